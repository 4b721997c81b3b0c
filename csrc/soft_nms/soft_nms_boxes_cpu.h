// The boxes of a segment for soft_nms on the CPU.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/box_math.h"

namespace rcnn_ext {

constexpr int kBoxesPerSoftNmsGroup = 64;

// An integer of the size of T, for the bits of scores; also for indices, so that vectors of both
// have as many lanes.
template <class T>
using score_bits_t = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// The boxes of one segment by columns (structure of arrays), in groups of neighbors. The last group
// is padded with removed boxes.
template <class T>
struct SoftNmsBoxes {
  int64_t groups;
  T *x1, *y1, *x2, *y2, *scores;        // [groups * kBoxesPerSoftNmsGroup]
  score_bits_t<T>* indices;             // [groups * kBoxesPerSoftNmsGroup], within the segment
  Box<T>* bounds;                       // [groups]
  score_bits_t<T>*best, *best_indices;  // [groups]: the best score, and the index that has it
  const uint32_t* positions;    // position in the columns above, by index within the segment
  const uint32_t* box_indices;  // index among all boxes, by index within the segment
};

}  // namespace rcnn_ext
