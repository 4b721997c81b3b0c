// Greedy non-maximum merging on the CPU. Contract: rcnn_ext/ops/non_max_merging.py.
//
// A box that no better box has claimed claims all that match it. Boxes are sorted along a Z-order
// curve and split into groups of 64 neighbors with a bounding box each, so that a box is compared
// only with the groups that it overlaps and that still have unclaimed boxes: boxes without a common
// area do not match from a threshold above 0. The grid of nms would not do, since a box may match
// one that is larger without limit. The claims do not depend on merged boxes, which are computed
// afterwards, in one pass over the boxes by score.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../core/dispatch.h"
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../cpu/intrinsics.h"
#include "../nms/nms_score_order_cpu.h"
#include "../nms/nms_z_order_cpu.h"
#include "non_max_merging.h"
#include "non_max_merging_boxes_cpu.h"

#define RCNN_TARGET_INCLUDE "../non_max_merging/non_max_merging_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {
namespace {

// The boxes of one segment with the memory that they need.
template <class T>
class MergingSegment {
 public:
  // box_indices: [count], by rank
  MergingSegment(const Box<T>* boxes, const uint32_t* box_indices, int64_t count,
                 const MergingRule<T>& rule)
      : positions_(uninitialized<uint32_t>(count)) {
    const Order order = order_by_z_curve(boxes, box_indices, count, kBoxesPerMergingGroup);
    const int64_t used_groups = (count + kBoxesPerMergingGroup - 1) / kBoxesPerMergingGroup;
    const int64_t padded = used_groups * kBoxesPerMergingGroup;
    const int64_t groups = (used_groups + kMergingGroupsPerVector - 1) / kMergingGroupsPerVector *
                           kMergingGroupsPerVector;
    numbers_ = uninitialized<T>(5 * padded + 4 * groups);
    owners_ = uninitialized<owner_t<T>>(padded + groups);
    T* const bounds = numbers_.get() + 5 * padded;
    columns = {groups,
               numbers_.get(),
               numbers_.get() + padded,
               numbers_.get() + 2 * padded,
               numbers_.get() + 3 * padded,
               numbers_.get() + 4 * padded,
               owners_.get(),
               bounds,
               bounds + groups,
               bounds + 2 * groups,
               bounds + 3 * groups,
               owners_.get() + padded,
               positions_.get(),
               count};
    for (int64_t group = 0; group < groups; ++group) {
      // Boxes that can match without an intersection are in groups without bounds.
      const T low = rule.needs_intersection() ? INFINITY : -INFINITY;
      Box<T> limits{low, low, -low, -low};
      owner_t<T> unclaimed = 0;
      for (int k = 0; group < used_groups && k < kBoxesPerMergingGroup; ++k) {
        const int64_t position = group * kBoxesPerMergingGroup + k;
        Box<T> box{0, 0, 0, 0};
        bool valid = false;
        if (position < count) {
          const uint32_t rank = order[position];
          positions_[rank] = static_cast<uint32_t>(position);
          valid = is_finite(boxes[box_indices[rank]]);
          if (valid) box = boxes[box_indices[rank]];
        }
        columns.x1[position] = box.x1;
        columns.y1[position] = box.y1;
        columns.x2[position] = box.x2;
        columns.y2[position] = box.y2;
        columns.areas[position] = area(box);
        columns.owners[position] = valid ? kUnclaimed : kDropped;
        if (!valid) continue;
        ++unclaimed;
        limits = {minimum(limits.x1, box.x1), minimum(limits.y1, box.y1),
                  maximum(limits.x2, box.x2), maximum(limits.y2, box.y2)};
      }
      columns.bounds_x1[group] = limits.x1;
      columns.bounds_y1[group] = limits.y1;
      columns.bounds_x2[group] = limits.x2;
      columns.bounds_y2[group] = limits.y2;
      columns.unclaimed[group] = unclaimed;
    }
  }
  // The rank of the owner of a box, or kDropped.
  owner_t<T> owner(int64_t rank) const { return columns.owners[positions_[rank]]; }

  MergingBoxes<T> columns;

 private:
  std::unique_ptr<uint32_t[]> positions_;
  std::unique_ptr<T[]> numbers_;
  std::unique_ptr<owner_t<T>[]> owners_;
};

// Merge one segment. box_indices: [count], of its boxes among all, by score. Set owners[b], the
// index of the box that claimed b or kDropped, for every box, and merged[b] for those that own
// themselves.
template <OverlapMetric metric, class T>
void merge_segment(const Box<T>* boxes, const uint32_t* box_indices, int64_t count,
                   const MergingRule<T>& rule, int64_t* owners, Box<T>* merged) {
  const MergingSegment<T> segment(boxes, box_indices, count, rule);
  RCNN_DYNAMIC_DISPATCH(claim_boxes<metric>(segment.columns, rule));
  for (int64_t rank = 0; rank < count; ++rank) {
    const int64_t index = box_indices[rank];
    const int64_t owner_rank = segment.owner(rank);
    if (owner_rank < 0) {
      owners[index] = kDropped;
      continue;
    }
    const int64_t owner = box_indices[owner_rank];
    owners[index] = owner;
    if (owner == index) {
      merged[index] = boxes[index];
    } else {
      merge<metric>(merged[owner], boxes[index], rule);
    }
  }
}

struct MergedGroups {
  Tensor boxes, indices, groups;
};

// by_score: [N]
template <OverlapMetric metric, class T>
MergedGroups merge_segments(const Tensor& boxes, const uint32_t* by_score, const Segments& segments,
                            double threshold) {
  const int64_t count = boxes.size(0);
  const Tensor dense = contiguous_as(boxes, accumulate_dtype(boxes.scalar_type()));
  const auto* box_data = reinterpret_cast<const Box<T>*>(dense.const_data_ptr<T>());
  const MergingRule<T> rule(threshold);
  const auto owners = uninitialized<int64_t>(count);
  const auto merged = uninitialized<Box<T>>(count);
  parallel_for_segments(segments.starts, [&](int64_t begin, int64_t end) {
    merge_segment<metric>(box_data, segments.order.get() + begin, end - begin, rule, owners.get(),
                          merged.get());
  });

  int64_t kept = 0;
  for (int64_t b = 0; b < count; ++b) kept += owners[b] == b;
  Tensor result = empty_on_device_of(boxes, {kept, 4}, dense.scalar_type());
  Tensor indices = empty_on_device_of(boxes, {kept}, ScalarType::Long);
  Tensor groups = empty_on_device_of(boxes, {count}, ScalarType::Long);
  auto* result_data = reinterpret_cast<Box<T>*>(result.mutable_data_ptr<T>());
  auto* index_data = indices.mutable_data_ptr<int64_t>();
  auto* group_data = groups.mutable_data_ptr<int64_t>();
  // An owner comes before all that it owns.
  for (int64_t rank = 0, next = 0; rank < count; ++rank) {
    const int64_t b = by_score[rank];
    if (owners[b] == b) {
      result_data[next] = merged[b];
      index_data[next] = b;
      group_data[b] = next++;
    } else {
      group_data[b] = owners[b] < 0 ? kNoIndex : group_data[owners[b]];
    }
  }
  return {contiguous_as(result, boxes.scalar_type()), indices, groups};
}

// boxes: [N, 4], scores: [N], idxs: [N] int64 -> merged boxes [K, 4], the index of the best box of
// each, int64 [K], by descending score, and the result of each box, int64 [N]
std::tuple<Tensor, Tensor, Tensor> non_max_merging_cpu(const Tensor& boxes, const Tensor& scores,
                                                       const Tensor& idxs, double threshold,
                                                       int64_t metric) {
  check_non_max_merging(boxes, scores, idxs, threshold, metric);
  const auto empty = [&] { return empty_on_device_of(boxes, {0}, ScalarType::Long); };
  if (boxes.size(0) == 0) {
    return {empty_on_device_of(boxes, {0, 4}, boxes.scalar_type()), empty(), empty()};
  }
  const Order by_score = order_by_score(scores);
  const Segments segments = order_by_segment(idxs, by_score.get());
  const auto run = [&](auto tag) {
    using T = type_of<decltype(tag)>;
    return static_cast<OverlapMetric>(metric) == OverlapMetric::kIou
               ? merge_segments<OverlapMetric::kIou, T>(boxes, by_score.get(), segments, threshold)
               : merge_segments<OverlapMetric::kIos, T>(boxes, by_score.get(), segments, threshold);
  };
  const MergedGroups merged =
      boxes.scalar_type() == ScalarType::Double ? run(TypeTag<double>{}) : run(TypeTag<float>{});
  return {merged.boxes, merged.indices, merged.groups};
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  RCNN_REGISTER(m, "non_max_merging", non_max_merging_cpu, boxes, scores, idxs);
}
