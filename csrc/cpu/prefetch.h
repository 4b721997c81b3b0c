// Memory that is asked for before it is read.
#pragma once

#include "../core/host_device.h"

namespace rcnn_ext {

// Brings the cache line of an address, to be written or to be read; a locality of 2 instead of 3
// leaves the first cache alone.
template <bool kWrite = false, int kLocality = 3>
RCNN_INLINE void prefetch(const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address, kWrite, kLocality);
#else
  (void)address;
#endif
}

}  // namespace rcnn_ext
