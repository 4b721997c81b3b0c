// Greedy non-maximum suppression on the CPU. Contract: rcnn_ext/ops/nms.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../common/box_math.h"
#include "../common/dispatch.h"
#include "../common/stable_ops.h"
#include "nms_checks.h"

namespace rcnn_ext {
namespace {

// Boxes kept so far, column by column, so that one candidate meets many of them in a SIMD register.
template <class T>
class KeptBoxes {
 public:
  void clear() {
    for (auto* column : {&x1_, &y1_, &x2_, &y2_, &areas_}) column->clear();
  }
  void add(const Box<T>& box, T box_area) {
    x1_.push_back(box.x1);
    y1_.push_back(box.y1);
    x2_.push_back(box.x2);
    y2_.push_back(box.y2);
    areas_.push_back(box_area);
  }
  bool suppress(const Box<T>& candidate, T candidate_area, T bound) const {
    // Long enough to fill the registers, short enough that leaving early pays.
    constexpr int64_t kChunk = 64;
    const int64_t count = static_cast<int64_t>(x1_.size());
    for (int64_t begin = 0; begin < count; begin += kChunk) {
      const int64_t end = std::min(begin + kChunk, count);
      int suppressed = 0;
      for (int64_t k = begin; k < end; ++k) {
        const Box<T> kept{x1_[k], y1_[k], x2_[k], y2_[k]};
        suppressed |= suppresses(kept, areas_[k], candidate, candidate_area, bound) ? 1 : 0;
      }
      if (suppressed) return true;
    }
    return false;
  }

 private:
  std::vector<T> x1_, y1_, x2_, y2_, areas_;
};

// Suppression among the boxes of one segment, which come in order of score. `order[r]` is the box
// of rank r; keep[r] tells whether it stays.
template <class Stored>
void suppress_segment(const Stored* boxes, const int64_t* order, int64_t count,
                      accumulate_t<Stored> bound, KeptBoxes<accumulate_t<Stored>>& kept,
                      char* keep) {
  using T = accumulate_t<Stored>;
  kept.clear();
  for (int64_t rank = 0; rank < count; ++rank) {
    const Box<T> box = load_box<T>(boxes + 4 * order[rank]);
    const T box_area = area(box);
    keep[rank] = is_finite(box) && !kept.suppress(box, box_area, bound);
    if (keep[rank]) kept.add(box, box_area);
  }
}

// First ranks of the segments of equal numbers in a sorted list, and its length at the end.
std::vector<int64_t> segment_starts(const int64_t* segments, const int64_t* order, int64_t count) {
  std::vector<int64_t> starts;
  for (int64_t rank = 0; rank < count; ++rank) {
    if (rank == 0 || segments[order[rank]] != segments[order[rank - 1]]) starts.push_back(rank);
  }
  starts.push_back(count);
  return starts;
}

// Kept boxes of every segment. `order` ([N] int64) sorts by segment, then by score.
std::vector<char> suppress_segments(const Tensor& boxes, const int64_t* order,
                                    const std::vector<int64_t>& starts, double iou_threshold) {
  std::vector<char> keep(boxes.size(0));
  const Tensor dense = contiguous_as(boxes, boxes.scalar_type());
  dispatch_floating(boxes.scalar_type(), "nms", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    const auto* data = static_cast<const Stored*>(dense.const_data_ptr());
    const T bound = suppression_bound<T>(iou_threshold);
    const auto segments = static_cast<int64_t>(starts.size()) - 1;
    torch::stable::parallel_for(0, segments, 1, [&](int64_t begin, int64_t end) {
      KeptBoxes<T> kept;
      for (int64_t s = begin; s < end; ++s) {
        suppress_segment(data, order + starts[s], starts[s + 1] - starts[s], bound, kept,
                         keep.data() + starts[s]);
      }
    });
  });
  return keep;
}

// The boxes whose flag is set, in the order of the list.
Tensor select(const Tensor& boxes, const int64_t* order, const std::vector<char>& keep) {
  const auto count = std::count(keep.begin(), keep.end(), char{1});
  Tensor result = empty_on_device_of(boxes, {count}, ScalarType::Long);
  auto* out = static_cast<int64_t*>(result.mutable_data_ptr());
  for (size_t rank = 0; rank < keep.size(); ++rank) {
    if (keep[rank]) *out++ = order[rank];
  }
  return result;
}

// boxes: [N, 4], scores: [N] -> kept indices, int64, by score
Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_nms(boxes, scores, "nms");
  const int64_t count = boxes.size(0);
  if (count == 0) return empty_on_device_of(boxes, {0}, ScalarType::Long);
  const Tensor by_score = stable_argsort(scores, /*descending=*/true);
  const auto* order = static_cast<const int64_t*>(by_score.const_data_ptr());
  return select(boxes, order, suppress_segments(boxes, order, {0, count}, iou_threshold));
}

// boxes: [N, 4], scores: [N], idxs: [N] int64 -> kept indices, int64, by score
Tensor batched_nms_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                       double iou_threshold) {
  check_batched_nms(boxes, scores, idxs);
  const int64_t count = boxes.size(0);
  if (count == 0) return empty_on_device_of(boxes, {0}, ScalarType::Long);

  const Tensor by_score = stable_argsort(scores, /*descending=*/true);
  const auto* score_order = static_cast<const int64_t*>(by_score.const_data_ptr());
  const Tensor dense_idxs = contiguous_as(idxs, ScalarType::Long);
  const auto* segments = static_cast<const int64_t*>(dense_idxs.const_data_ptr());

  std::vector<int64_t> ranks(count);  // positions in score_order, by segment, then by score
  for (int64_t rank = 0; rank < count; ++rank) ranks[rank] = rank;
  std::stable_sort(ranks.begin(), ranks.end(), [&](int64_t a, int64_t b) {
    return segments[score_order[a]] < segments[score_order[b]];
  });
  std::vector<int64_t> order(count);
  for (int64_t i = 0; i < count; ++i) order[i] = score_order[ranks[i]];

  const std::vector<char> keep = suppress_segments(
      boxes, order.data(), segment_starts(segments, order.data(), count), iou_threshold);
  std::vector<char> keep_by_score(count);
  for (int64_t i = 0; i < count; ++i) keep_by_score[ranks[i]] = keep[i];
  return select(boxes, score_order, keep_by_score);
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  m.impl("nms", TORCH_BOX(&rcnn_ext::nms_cpu));
  m.impl("batched_nms", TORCH_BOX(&rcnn_ext::batched_nms_cpu));
}
