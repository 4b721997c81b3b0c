// Compiled once per instruction set (foreach_target.h).
#include <cstdint>

#include "../cpu/targets.h"

#if defined(RCNN_SELECTIVE_SEARCH_TEXTURE_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_SELECTIVE_SEARCH_TEXTURE_INL_H_
#undef RCNN_SELECTIVE_SEARCH_TEXTURE_INL_H_
#else
#define RCNN_SELECTIVE_SEARCH_TEXTURE_INL_H_
#endif

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Marks the pixels of one channel that are above their upper, left and lower neighbors. Rows are
// interleaved; a missing neighbor counts as 0.
template <class T>
void mark_peaks(const T* up, const T* row, const T* down, int width, int channel, uint8_t* marks) {
  const T* middle = row + channel;
  const T* above = up + channel;
  const T* below = down + channel;
  marks[0] = middle[0] > above[0] && middle[0] > below[0] && middle[0] > 0;
  for (int x = 1; x < width; ++x) {
    const T value = middle[3 * x];
    marks[x] = (value > above[3 * x]) & (value > below[3 * x]) & (value > middle[3 * (x - 1)]);
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_SELECTIVE_SEARCH_TEXTURE_INL_H_
