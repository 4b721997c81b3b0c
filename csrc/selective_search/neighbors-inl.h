// Compiled once per instruction set (foreach_target.h).
#include <cstdint>

#include "../cpu/targets.h"

#if defined(RCNN_SELECTIVE_SEARCH_NEIGHBORS_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_SELECTIVE_SEARCH_NEIGHBORS_INL_H_
#undef RCNN_SELECTIVE_SEARCH_NEIGHBORS_INL_H_
#else
#define RCNN_SELECTIVE_SEARCH_NEIGHBORS_INL_H_
#endif

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Marks the boxes, given by column, that have a corner strictly inside the box (x1, y1, x2, y2).
inline void mark_corners_inside(const int32_t* min_x, const int32_t* min_y, const int32_t* max_x,
                                const int32_t* max_y, int count, int32_t x1, int32_t y1, int32_t x2,
                                int32_t y2, uint8_t* marks) {
  for (int i = 0; i < count; ++i) {
    const int columns = ((min_x[i] > x1) & (min_x[i] < x2)) | ((max_x[i] > x1) & (max_x[i] < x2));
    const int rows = ((min_y[i] > y1) & (min_y[i] < y2)) | ((max_y[i] > y1) & (max_y[i] < y2));
    marks[i] = static_cast<uint8_t>(columns & rows);
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_SELECTIVE_SEARCH_NEIGHBORS_INL_H_
