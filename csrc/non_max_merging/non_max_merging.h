// The rule of greedy non-maximum merging, on CPU and CUDA alike, and the checks of the arguments.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "../core/box_math.h"
#include "../nms/nms.h"

namespace rcnn_ext {

// The values of the argument `metric` in rcnn_ext/ops/non_max_merging.py.
enum class OverlapMetric : int64_t { kIou = 0, kIos = 1 };

template <class T>
struct MergingRule {
  T bound;  // two boxes match from this overlap on

  explicit MergingRule(double threshold) : bound(round_up_to<T>(threshold)) {}
  // Whether boxes match only if they have pixels in common: otherwise their overlap is 0 or NaN.
  bool needs_intersection() const { return bound > T(0); }
};

// Whether two boxes match. False for NaN.
template <OverlapMetric metric, class T>
RCNN_HOST_DEVICE bool matches(const Box<T>& a, T area_a, const Box<T>& b, T area_b,
                              const MergingRule<T>& rule) {
  return (metric == OverlapMetric::kIou ? iou_with_areas(a, area_a, b, area_b)
                                        : ios_with_areas(a, area_a, b, area_b)) >= rule.bound;
}

// Extend a merged box by a box of its group, if the two match as they are now.
template <OverlapMetric metric, class T>
RCNN_HOST_DEVICE void merge(Box<T>& merged, const Box<T>& box, const MergingRule<T>& rule) {
  if (!matches<metric>(merged, area(merged), box, area(box), rule)) return;
  merged = {minimum(merged.x1, box.x1), minimum(merged.y1, box.y1), maximum(merged.x2, box.x2),
            maximum(merged.y2, box.y2)};
}

// boxes: [N, 4], scores: [N], idxs: [N] int64
inline void check_non_max_merging(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                                  double threshold, int64_t metric) {
  constexpr const char* kOp = "non_max_merging";
  check_batched_nms(boxes, scores, idxs, kOp);
  RCNN_CHECK(boxes.size(0) <= std::numeric_limits<int32_t>::max(), kOp,
             ": expected fewer than 2^31 boxes, got ", boxes.size(0));
  RCNN_CHECK(!std::isnan(threshold), kOp, ": expected threshold to be a number, got nan");
  RCNN_CHECK(metric == 0 || metric == 1, kOp, ": expected metric 0 (iou) or 1 (ios), got ", metric);
}

}  // namespace rcnn_ext
