// The comparisons that decide a match, on CPU and CUDA alike, and the checks of the arguments.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "../core/box_math.h"
#include "../core/checks.h"
#include "../core/dispatch.h"

namespace rcnn_ext {

// Values of `matches` that are not an index, as torchvision's Matcher.BELOW_LOW_THRESHOLD and
// BETWEEN_THRESHOLDS.
constexpr int32_t kBelowLowThreshold = -1;
constexpr int32_t kBetweenThresholds = -2;

// Whether an IoU replaces the best so far, as in torch.max(): NaN is above every number, and among
// equal ones the first stays.
template <class T>
RCNN_HOST_DEVICE bool is_better(T iou, T best) {
  return iou > best || (iou != iou && best == best);
}

// Maps a box's best IoU to its match. low <= high.
template <class T>
struct MatchThresholds {
  T high, low;

  // kBelowLowThreshold, kBetweenThresholds, or 0 where the match is a ground truth.
  RCNN_HOST_DEVICE int32_t label(T best) const {
    // Masks of all bits or none, since a compiler may turn a conditional into a branch.
    const int32_t under_high = -static_cast<int32_t>(best < high);
    const int32_t under_low = -static_cast<int32_t>(best < low);
    return (under_high & kBetweenThresholds) ^
           (under_low & (kBetweenThresholds ^ kBelowLowThreshold));
  }

  // The match of a box whose best IoU is with ground truth `index`.
  RCNN_HOST_DEVICE int64_t operator()(T best, int64_t index) const {
    return best < high ? label(best) : index;
  }
};

// One image of a batch: the first index and the count of its ground truth, boxes and results.
struct MatchImage {
  int64_t first_gt, gt_count, first_box, box_count, first_result;
};

inline int64_t check_counts(const std::vector<int64_t>& counts, int64_t total, const char* name,
                            const char* of) {
  int64_t sum = 0;
  for (const int64_t count : counts) {
    // Indices within an image have 32 bits in the kernels.
    RCNN_CHECK(count >= 0 && count <= std::numeric_limits<int32_t>::max(), "match_boxes: expected ",
               name, " between 0 and 2^31 - 1, got ", count);
    sum += count;
  }
  RCNN_CHECK(sum == total, "match_boxes: expected ", name, " that sum up to the ", total,
             " boxes of ", of, ", got ", sum);
  return sum;
}

// Check the arguments and return the images of the batch, in order. Without box_counts, every image
// has all boxes. gt_boxes: [G, 4], boxes: [P, 4]
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

}  // namespace rcnn_ext
