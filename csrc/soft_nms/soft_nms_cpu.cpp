// Soft non-maximum suppression on the CPU. Contract: rcnn_ext/ops/soft_nms.py.
//
// Boxes lie in groups of neighbours. A group knows the box around its boxes and its best score, so
// that taking a box visits the groups near it only, and finding the next looks at one score a
// group.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../core/dispatch.h"
#include "../core/stable_ops.h"
#include "../cpu/intrinsics.h"
#include "../nms/nms_score_order_cpu.h"
#include "soft_nms.h"
#include "soft_nms_boxes_cpu.h"

namespace rcnn_ext {
namespace {

// Less work than this many pairs of boxes is not worth waking other threads.
constexpr double kParallelPairs = 1e5;

}  // namespace
}  // namespace rcnn_ext

#define RCNN_TARGET_INCLUDE "../soft_nms/soft_nms_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {
namespace {

// The bits of a 16-bit number at every other place.
uint32_t spread(uint32_t number) {
  number = (number | number << 8) & 0x00ff00ffu;
  number = (number | number << 4) & 0x0f0f0f0fu;
  number = (number | number << 2) & 0x33333333u;
  return (number | number << 1) & 0x55555555u;
}

// Indices within a segment so that neighbours in the order are neighbours in the image: along the
// Z-order curve through the centers. Any order gives the same result.
template <class T>
Order order_by_place(const Box<T>* boxes, const uint32_t* owners, int64_t count) {
  if (count <= kSoftGroup) {
    Order order = uninitialized<uint32_t>(count);
    std::iota(order.get(), order.get() + count, 0u);
    return order;
  }
  double low_x = INFINITY, low_y = INFINITY, high_x = -INFINITY, high_y = -INFINITY;
  for (int64_t i = 0; i < count; ++i) {
    const Box<T>& box = boxes[owners[i]];
    if (!is_finite(box)) continue;
    low_x = std::min(low_x, static_cast<double>(box.x1));
    low_y = std::min(low_y, static_cast<double>(box.y1));
    high_x = std::max(high_x, static_cast<double>(box.x2));
    high_y = std::max(high_y, static_cast<double>(box.y2));
  }
  const auto cell = [](double center, double low, double high) {
    const double at = (center - low) / (high - low) * 65535;
    return at > 0 ? static_cast<uint32_t>(std::min(at, 65535.0)) : 0u;  // NaN, too
  };
  return order_by_key<IndexedKey32>(count, [&](int64_t i) {
    const Box<T>& box = boxes[owners[i]];
    const double x = box.x1 * 0.5 + box.x2 * 0.5;
    const double y = box.y1 * 0.5 + box.y2 * 0.5;
    return spread(cell(x, low_x, high_x)) | spread(cell(y, low_y, high_y)) << 1;
  });
}

// rescored[b] for the boxes b of one segment that are taken; `owners` gives its boxes.
template <class T>
void soft_suppress_segment(const Box<T>* boxes, const T* scores, const uint32_t* owners,
                           int64_t count, const SoftNmsRule<T>& rule, DecayMethod method,
                           T* rescored) {
  using Key = key_t<T>;
  const Order order = order_by_place(boxes, owners, count);
  const int64_t groups = (count + kSoftGroup - 1) / kSoftGroup;
  const int64_t padded = groups * kSoftGroup;
  const auto columns = uninitialized<T>(5 * padded);
  const auto keys = uninitialized<Key>(padded + 2 * groups);
  const auto hulls = uninitialized<Box<T>>(groups);
  const auto places = uninitialized<uint32_t>(count);
  const SoftBoxes<T> s{groups,
                       columns.get(),
                       columns.get() + padded,
                       columns.get() + 2 * padded,
                       columns.get() + 3 * padded,
                       columns.get() + 4 * padded,
                       keys.get(),
                       hulls.get(),
                       keys.get() + padded,
                       keys.get() + padded + groups,
                       places.get(),
                       owners};
  for (int64_t place = 0; place < padded; ++place) {
    Box<T> box{0, 0, 0, 0};
    T score = kRemovedScore<T>;
    if (place < count) {
      const uint32_t index = order[place];
      box = boxes[owners[index]];
      score = initial_score(box, scores[owners[index]], rule);
      places[index] = static_cast<uint32_t>(place);
      s.indices[place] = static_cast<Key>(index);
    } else {
      s.indices[place] = std::numeric_limits<Key>::max();
    }
    s.x1[place] = box.x1;
    s.y1[place] = box.y1;
    s.x2[place] = box.x2;
    s.y2[place] = box.y2;
    s.scores[place] = score;
    Box<T>& hull = s.hulls[place / kSoftGroup];
    if (place % kSoftGroup == 0) hull = {INFINITY, INFINITY, -INFINITY, -INFINITY};
    if (score < 0) continue;
    hull.x1 = minimum(hull.x1, box.x1);
    hull.y1 = minimum(hull.y1, box.y1);
    hull.x2 = maximum(hull.x2, box.x2);
    hull.y2 = maximum(hull.y2, box.y2);
  }
  if (method == DecayMethod::kLinear) {
    RCNN_DYNAMIC_DISPATCH(soft_suppress<DecayMethod::kLinear>(s, rule, rescored));
  } else {
    RCNN_DYNAMIC_DISPATCH(soft_suppress<DecayMethod::kGaussian>(s, rule, rescored));
  }
}

// `order` gives the boxes by segment; `starts` the first ranks of the segments, and the number of
// boxes at the end.
template <class T>
std::tuple<Tensor, Tensor> soft_suppress_segments(const Tensor& boxes, const Tensor& scores,
                                                  const uint32_t* order,
                                                  const std::vector<int64_t>& starts,
                                                  const SoftNmsRule<T>& rule, DecayMethod method) {
  const int64_t count = boxes.size(0);
  const ScalarType dtype = soft_nms_dtype(boxes, scores);
  const Tensor wide_boxes = contiguous_as(boxes, dtype);
  const Tensor wide_scores = contiguous_as(scores, dtype);
  const auto* box_data = reinterpret_cast<const Box<T>*>(wide_boxes.const_data_ptr<T>());
  const auto* score_data = wide_scores.const_data_ptr<T>();
  const auto rescored = uninitialized<T>(count);
  std::fill_n(rescored.get(), count, kRemovedScore<T>);

  const auto segments = static_cast<int64_t>(starts.size()) - 1;
  double pairs = 0;
  for (int64_t s = 0; s < segments; ++s) {
    const auto size = static_cast<double>(starts[s + 1] - starts[s]);
    pairs += size * size;
  }
  const int64_t threads = pairs < kParallelPairs ? 1 : torch::stable::get_num_threads();
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(threads, segments), 1, [&](int64_t, int64_t) {
    for (int64_t s = next++; s < segments; s = next++) {
      soft_suppress_segment(box_data, score_data, order + starts[s], starts[s + 1] - starts[s],
                            rule, method, rescored.get());
    }
  });

  int64_t kept = 0;
  for (int64_t b = 0; b < count; ++b) kept += rescored[b] >= 0;
  const auto by_score = order_by_descending(rescored.get(), count);  // what is out comes last
  Tensor indices = empty_on_device_of(boxes, {kept}, ScalarType::Long);
  Tensor result = empty_on_device_of(boxes, {kept}, dtype);
  auto* index_data = indices.mutable_data_ptr<int64_t>();
  auto* result_data = result.mutable_data_ptr<T>();
  for (int64_t rank = 0; rank < kept; ++rank) {
    index_data[rank] = by_score[rank];
    result_data[rank] = rescored[by_score[rank]];
  }
  return {indices, contiguous_as(result, scores.scalar_type())};
}

std::tuple<Tensor, Tensor> soft_suppress(const Tensor& boxes, const Tensor& scores,
                                         const uint32_t* order, const std::vector<int64_t>& starts,
                                         double iou_threshold, double sigma, double score_threshold,
                                         int64_t method) {
  const auto run = [&](auto tag) {
    using T = type_of<decltype(tag)>;
    return soft_suppress_segments<T>(boxes, scores, order, starts,
                                     SoftNmsRule<T>(iou_threshold, sigma, score_threshold),
                                     static_cast<DecayMethod>(method));
  };
  return soft_nms_dtype(boxes, scores) == ScalarType::Double ? run(TypeTag<double>{})
                                                             : run(TypeTag<float>{});
}

std::tuple<Tensor, Tensor> nothing(const Tensor& boxes, const Tensor& scores) {
  return {empty_on_device_of(boxes, {0}, ScalarType::Long),
          empty_on_device_of(boxes, {0}, scores.scalar_type())};
}

Order in_place_order(int64_t count) {
  Order order = uninitialized<uint32_t>(count);
  std::iota(order.get(), order.get() + count, 0u);
  return order;
}

// boxes: [N, 4], scores: [N] -> kept indices, int64, and their scores, by falling score
std::tuple<Tensor, Tensor> soft_nms_cpu(const Tensor& boxes, const Tensor& scores,
                                        double iou_threshold, double sigma, double score_threshold,
                                        int64_t method) {
  check_soft_nms(boxes, scores, iou_threshold, sigma, score_threshold, method, "soft_nms");
  const int64_t count = boxes.size(0);
  if (count == 0) return nothing(boxes, scores);
  return soft_suppress(boxes, scores, in_place_order(count).get(), {0, count}, iou_threshold, sigma,
                       score_threshold, method);
}

// The same with idxs: [N] int64.
std::tuple<Tensor, Tensor> batched_soft_nms_cpu(const Tensor& boxes, const Tensor& scores,
                                                const Tensor& idxs, double iou_threshold,
                                                double sigma, double score_threshold,
                                                int64_t method) {
  constexpr const char* kOp = "batched_soft_nms";
  check_soft_nms(boxes, scores, iou_threshold, sigma, score_threshold, method, kOp);
  check_segments(idxs, boxes, kOp);
  const int64_t count = boxes.size(0);
  if (count == 0) return nothing(boxes, scores);
  const Segments segments = order_by_segment(idxs, in_place_order(count).get());
  return soft_suppress(boxes, scores, segments.order.get(), segments.starts, iou_threshold, sigma,
                       score_threshold, method);
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  m.impl("soft_nms", TORCH_BOX(&rcnn_ext::soft_nms_cpu));
  m.impl("batched_soft_nms", TORCH_BOX(&rcnn_ext::batched_soft_nms_cpu));
}
