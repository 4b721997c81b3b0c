// What decides a match, on CPU and CUDA alike, and the arguments of match_boxes checked.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "../core/box_math.h"
#include "../core/checks.h"
#include "../core/dispatch.h"

namespace rcnn_ext {

// What stands in the place of an index (torchvision's Matcher).
constexpr int32_t kBelowLowThreshold = -1;
constexpr int32_t kBetweenThresholds = -2;

// Whether an IoU takes the place of the best so far, as in torch.max(): NaN is above every number,
// and of equals the first stays.
template <class T>
RCNN_HOST_DEVICE bool beats(T iou, T best) {
  return iou > best || (iou != iou && best == best);
}

// `low` is no higher than `high`.
template <class T>
struct MatchThresholds {
  T high, low;

  // The match of a box with its best IoU, but 0 for the index of a ground truth.
  RCNN_HOST_DEVICE int32_t without_index(T best) const {
    // All bits or none: what a compiler takes for a choice may become a branch.
    const int32_t under_high = -static_cast<int32_t>(best < high);
    const int32_t under_low = -static_cast<int32_t>(best < low);
    return (under_high & kBetweenThresholds) ^
           (under_low & (kBetweenThresholds ^ kBelowLowThreshold));
  }

  // The match of a box whose best IoU is with ground truth `index`.
  RCNN_HOST_DEVICE int64_t operator()(T best, int64_t index) const {
    return best < high ? without_index(best) : index;
  }
};

// One image of a batch: where its ground truth, boxes and results begin, and how many there are.
struct MatchImage {
  int64_t first_gt, gt_count, first_box, box_count, first_result;
};

inline int64_t check_counts(const std::vector<int64_t>& counts, int64_t total, const char* name,
                            const char* of) {
  int64_t sum = 0;
  for (const int64_t count : counts) {
    // The indices of the kernels have 32 bits.
    RCNN_CHECK(count >= 0 && count <= std::numeric_limits<int32_t>::max(), "match_boxes: expected ",
               name, " between 0 and 2^31 - 1, got ", count);
    sum += count;
  }
  RCNN_CHECK(sum == total, "match_boxes: expected ", name, " that sum up to the ", total,
             " boxes of ", of, ", got ", sum);
  return sum;
}

// gt_boxes: [G, 4], boxes: [P, 4]. The images of the batch in order; without box_counts, each has
// all boxes.
inline std::vector<MatchImage> check_match_boxes(const Tensor& gt_boxes,
                                                 const std::vector<int64_t>& gt_counts,
                                                 const Tensor& boxes,
                                                 const std::vector<int64_t>& box_counts,
                                                 double high_threshold, double low_threshold) {
  check_boxes(gt_boxes, "match_boxes", "gt_boxes");
  check_boxes(boxes, "match_boxes", "boxes");
  RCNN_CHECK(gt_boxes.scalar_type() == boxes.scalar_type(),
             "match_boxes: expected gt_boxes and boxes of one dtype, got ",
             name_of(gt_boxes.scalar_type()), " and ", name_of(boxes.scalar_type()));
  check_same_device(gt_boxes, boxes, "match_boxes", "gt_boxes", "boxes");
  if (boxes.scalar_type() != ScalarType::Long) check_floating(boxes, "match_boxes", "boxes");
  RCNN_CHECK(low_threshold <= high_threshold,
             "match_boxes: expected low_threshold of at most high_threshold, got ", low_threshold,
             " and ", high_threshold);
  check_counts(gt_counts, gt_boxes.size(0), "gt_counts", "gt_boxes");
  const bool shared = box_counts.empty();
  if (!shared) {
    RCNN_CHECK(box_counts.size() == gt_counts.size(),
               "match_boxes: expected as many box_counts as gt_counts, or none, got ",
               box_counts.size(), " and ", gt_counts.size());
    check_counts(box_counts, boxes.size(0), "box_counts", "boxes");
  }
  std::vector<MatchImage> images;
  int64_t first_gt = 0, first_result = 0;
  for (size_t i = 0; i < gt_counts.size(); ++i) {
    const int64_t count = shared ? boxes.size(0) : box_counts[i];
    images.push_back({first_gt, gt_counts[i], shared ? 0 : first_result, count, first_result});
    first_gt += gt_counts[i];
    first_result += count;
  }
  return images;
}

inline int64_t result_count(const std::vector<MatchImage>& images) {
  return images.empty() ? 0 : images.back().first_result + images.back().box_count;
}

// The type of an IoU, as for box_iou.
template <class Stored>
struct MatchIou {
  using type = float;
};
template <>
struct MatchIou<double> {
  using type = double;
};
template <class Stored>
using MatchIou_t = typename MatchIou<Stored>::type;

}  // namespace rcnn_ext
