// Claims within one segment, compiled once per instruction set (foreach_target.h).
#include <cstdint>

#include "../core/box_math.h"
#include "../cpu/targets.h"
#include "non_max_merging.h"
#include "non_max_merging_boxes_cpu.h"

#if defined(RCNN_NON_MAX_MERGING_NON_MAX_MERGING_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_NON_MAX_MERGING_NON_MAX_MERGING_CPU_INL_H_
#undef RCNN_NON_MAX_MERGING_NON_MAX_MERGING_CPU_INL_H_
#else
#define RCNN_NON_MAX_MERGING_NON_MAX_MERGING_CPU_INL_H_
#endif

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Claim the unclaimed boxes of a group that match a box.
template <OverlapMetric metric, class T>
inline void claim_in_group(const MergingBoxes<T>& s, int64_t group, const Box<T>& box, T box_area,
                           owner_t<T> rank, const MergingRule<T>& rule) {
  using Owner = owner_t<T>;
  const int64_t first = group * kBoxesPerMergingGroup;
  const T *x1 = s.x1 + first, *y1 = s.y1 + first, *x2 = s.x2 + first, *y2 = s.y2 + first;
  const T* areas = s.areas + first;
  Owner* __restrict owners = s.owners + first;
  Owner claimed = 0;
  for (int k = 0; k < kBoxesPerMergingGroup; ++k) {
    const Box<T> other{x1[k], y1[k], x2[k], y2[k]};
    const bool claims =
        matches<metric>(box, box_area, other, areas[k], rule) & (owners[k] == kUnclaimed);
    // By a mask, since GCC compiles a conditional to a branch.
    const Owner mask = -static_cast<Owner>(claims);
    owners[k] = (owners[k] & ~mask) | (rank & mask);
    claimed += static_cast<Owner>(claims);
  }
  s.unclaimed[group] -= claimed;
}

// Set the owners of the boxes of one segment: in order of rank, every box that is unclaimed owns
// itself and claims the unclaimed boxes that match it.
template <OverlapMetric metric, class T>
void claim_boxes(const MergingBoxes<T>& s, const MergingRule<T>& rule) {
  using Owner = owner_t<T>;
  for (int64_t rank = 0; rank < s.count; ++rank) {
    const int64_t position = s.positions[rank];
    if (s.owners[position] != kUnclaimed) continue;
    s.owners[position] = static_cast<Owner>(rank);
    --s.unclaimed[position / kBoxesPerMergingGroup];
    const Box<T> box{s.x1[position], s.y1[position], s.x2[position], s.y2[position]};
    const T box_area = s.areas[position];
    for (int64_t first = 0; first < s.groups; first += kMergingGroupsPerVector) {
      Owner overlaps[kMergingGroupsPerVector];
      Owner any = 0;
      for (int k = 0; k < kMergingGroupsPerVector; ++k) {
        const int64_t group = first + k;
        overlaps[k] = (s.bounds_x1[group] < box.x2) & (s.bounds_x2[group] > box.x1) &
                      (s.bounds_y1[group] < box.y2) & (s.bounds_y2[group] > box.y1) &
                      (s.unclaimed[group] > 0);
        any |= overlaps[k];
      }
      if (any == 0) continue;
      for (int k = 0; k < kMergingGroupsPerVector; ++k) {
        if (overlaps[k] == 0) continue;
        claim_in_group<metric>(s, first + k, box, box_area, static_cast<Owner>(rank), rule);
      }
    }
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_NON_MAX_MERGING_NON_MAX_MERGING_CPU_INL_H_
