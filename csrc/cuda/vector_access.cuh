// Several consecutive elements in one load or store of up to 16 bytes.
#pragma once

#include <cstdint>

namespace rcnn_ext {

// As PyTorch's aligned_vector.
template <class Stored, int kCount>
struct alignas(sizeof(Stored) * kCount) AlignedVector {
  Stored values[kCount];
};

template <int kCount, class Stored>
__device__ __forceinline__ AlignedVector<Stored, kCount> load_vector(const Stored* address) {
  return *reinterpret_cast<const AlignedVector<Stored, kCount>*>(address);
}

template <int kCount, class Stored>
__device__ __forceinline__ void store_vector(Stored* address,
                                             const AlignedVector<Stored, kCount>& vector) {
  *reinterpret_cast<AlignedVector<Stored, kCount>*>(address) = vector;
}

template <class Stored>
__device__ __forceinline__ const Stored* advance_bytes(const Stored* from, int64_t bytes) {
  return reinterpret_cast<const Stored*>(reinterpret_cast<const char*>(from) + bytes);
}

// Whether every group of `count` elements at a multiple of `count` can be accessed as an
// AlignedVector. A view of a larger tensor may begin anywhere, so the number of channels alone does
// not tell.
template <class Stored>
bool can_vectorize(const Stored* data, int64_t channels, int count) {
  return channels % count == 0 &&
         reinterpret_cast<uintptr_t>(data) % (sizeof(Stored) * static_cast<size_t>(count)) == 0;
}

}  // namespace rcnn_ext
