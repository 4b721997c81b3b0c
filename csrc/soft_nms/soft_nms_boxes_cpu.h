// The boxes of a segment, as the loops of soft_nms on the CPU read them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/box_math.h"

namespace rcnn_ext {

constexpr int kSoftGroup = 64;  // boxes

// An integer of the size of T: the bits of scores, and indices beside them.
template <class T>
using key_t = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// The boxes of one segment, column by column, group after group; what fills the last group is out.
template <class T>
struct SoftBoxes {
  int64_t groups;
  T *x1, *y1, *x2, *y2, *scores;  // [groups * kSoftGroup]
  key_t<T>* indices;              // within the segment
  Box<T>* hulls;                  // [groups]
  key_t<T>*best, *best_indices;   // [groups]
  const uint32_t* places;         // by index within the segment
  const uint32_t* owners;         // the box, by index within the segment
};

}  // namespace rcnn_ext
