// Several neighbouring elements in one load or store of up to 16 bytes.
#pragma once

#include <cstdint>

namespace rcnn_ext {

template <class Stored, int kCount>
struct alignas(sizeof(Stored) * kCount) Pack {
  Stored values[kCount];
};

template <int kCount, class Stored>
__device__ __forceinline__ Pack<Stored, kCount> load_pack(const Stored* address) {
  return *reinterpret_cast<const Pack<Stored, kCount>*>(address);
}

template <int kCount, class Stored>
__device__ __forceinline__ void store_pack(Stored* address, const Pack<Stored, kCount>& pack) {
  *reinterpret_cast<Pack<Stored, kCount>*>(address) = pack;
}

template <class Stored>
__device__ __forceinline__ const Stored* advance(const Stored* from, int64_t bytes) {
  return reinterpret_cast<const Stored*>(reinterpret_cast<const char*>(from) + bytes);
}

// Whether every run of `count` elements at a multiple of `count` can be accessed at once. A view of
// a larger tensor may begin anywhere, so the number of channels alone does not tell.
template <class Stored>
bool takes_packs(const Stored* data, int64_t channels, int count) {
  return channels % count == 0 &&
         reinterpret_cast<uintptr_t>(data) % (sizeof(Stored) * static_cast<size_t>(count)) == 0;
}

}  // namespace rcnn_ext
