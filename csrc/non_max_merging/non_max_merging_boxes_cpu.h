// The boxes of a segment for non_max_merging on the CPU.
#pragma once

#include <cstdint>
#include <type_traits>

namespace rcnn_ext {

constexpr int kBoxesPerMergingGroup = 64;
constexpr int kMergingGroupsPerVector = 16;  // the bounds that are tested together

// An integer with as many bits as T, so that vectors of both have as many lanes.
template <class T>
using owner_t = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// The owner of a box that no box has claimed yet, and of one that none may claim.
constexpr int kUnclaimed = -1;
constexpr int kDropped = -2;

// The boxes of one segment by columns (structure of arrays), in groups of neighbors. The last group
// is padded with dropped boxes, and the groups with empty ones.
template <class T>
struct MergingBoxes {
  int64_t groups;                // a multiple of kMergingGroupsPerVector
  T *x1, *y1, *x2, *y2, *areas;  // kBoxesPerMergingGroup per group, but for the empty ones
  owner_t<T>* owners;            // as many: the rank of the box that claimed it
  T *bounds_x1, *bounds_y1, *bounds_x2, *bounds_y2;  // [groups]
  owner_t<T>* unclaimed;                             // [groups]: how many boxes are unclaimed
  const uint32_t* positions;                         // in the columns above, by rank
  int64_t count;                                     // of ranks
};

}  // namespace rcnn_ext
