// Hints about the cache.
#pragma once

#include <cstdint>

#include "../core/host_device.h"

namespace rcnn_ext {

// Prefetches the cache line of an address, to be written or to be read. A locality of 2 instead of
// 3 brings it to L2 only.
template <bool kWrite = false, int kLocality = 3>
RCNN_INLINE void prefetch(const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address, kWrite, kLocality);
#else
  (void)address;
#endif
}

// Prefetches the cache lines of `count` elements, at least one.
template <bool kWrite, class Stored>
RCNN_INLINE void prefetch_range(const Stored* from, int64_t count) {
  constexpr int64_t kElementsPerLine = 64 / sizeof(Stored);
  for (int64_t i = 0; i < count; i += kElementsPerLine) prefetch<kWrite>(from + i);
  prefetch<kWrite>(from + count - 1);
}

// Results of more bytes than this are written with non-temporal stores, to avoid evicting the
// cache: 8 MB, of which the L2 of any core keeps little; untuned.
constexpr int64_t kStreamingBytes = int64_t{1} << 23;

}  // namespace rcnn_ext
