// Soft non-maximum suppression on the CPU. Contract: rcnn_ext/ops/soft_nms.py.
//
// Boxes are sorted along a Z-order curve and split into groups of 64 neighbors. Each group has a
// bounding box and its best score, so that a taken box decays only the groups that it overlaps, and
// the next box is found by one score per group.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../core/dispatch.h"
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../cpu/intrinsics.h"
#include "../nms/nms_score_order_cpu.h"
#include "../nms/nms_z_order_cpu.h"
#include "soft_nms.h"
#include "soft_nms_boxes_cpu.h"

#define RCNN_TARGET_INCLUDE "../soft_nms/soft_nms_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {
namespace {

// Soft-NMS of one segment. box_indices: [count], of its boxes among all; sets rescored[b] for every
// box b taken.
template <class T>
void soft_nms_segment(const Box<T>* boxes, const T* scores, const uint32_t* box_indices,
                      int64_t count, const SoftNmsRule<T>& rule, DecayMethod method, T* rescored) {
  using Bits = score_bits_t<T>;
  const Order order = order_by_z_curve(boxes, box_indices, count, kBoxesPerSoftNmsGroup);
  const int64_t groups = (count + kBoxesPerSoftNmsGroup - 1) / kBoxesPerSoftNmsGroup;
  const int64_t padded = groups * kBoxesPerSoftNmsGroup;
  const auto columns = uninitialized<T>(5 * padded);
  const auto indices_and_bests = uninitialized<Bits>(padded + 2 * groups);
  const auto bounds = uninitialized<Box<T>>(groups);
  const auto positions = uninitialized<uint32_t>(count);
  const SoftNmsBoxes<T> s{groups,
                          columns.get(),
                          columns.get() + padded,
                          columns.get() + 2 * padded,
                          columns.get() + 3 * padded,
                          columns.get() + 4 * padded,
                          indices_and_bests.get(),
                          bounds.get(),
                          indices_and_bests.get() + padded,
                          indices_and_bests.get() + padded + groups,
                          positions.get(),
                          box_indices};
  for (int64_t position = 0; position < padded; ++position) {
    Box<T> box{0, 0, 0, 0};
    T score = kRemovedScore<T>;
    if (position < count) {
      const uint32_t index = order[position];
      box = boxes[box_indices[index]];
      score = initial_score(box, scores[box_indices[index]], rule);
      positions[index] = static_cast<uint32_t>(position);
      s.indices[position] = static_cast<Bits>(index);
    } else {
      s.indices[position] = std::numeric_limits<Bits>::max();
    }
    s.x1[position] = box.x1;
    s.y1[position] = box.y1;
    s.x2[position] = box.x2;
    s.y2[position] = box.y2;
    s.scores[position] = score;
    Box<T>& bounds = s.bounds[position / kBoxesPerSoftNmsGroup];
    if (position % kBoxesPerSoftNmsGroup == 0) bounds = {INFINITY, INFINITY, -INFINITY, -INFINITY};
    if (score < 0) continue;
    bounds.x1 = minimum(bounds.x1, box.x1);
    bounds.y1 = minimum(bounds.y1, box.y1);
    bounds.x2 = maximum(bounds.x2, box.x2);
    bounds.y2 = maximum(bounds.y2, box.y2);
  }
  if (method == DecayMethod::kLinear) {
    RCNN_DYNAMIC_DISPATCH(run_soft_nms<DecayMethod::kLinear>(s, rule, rescored));
  } else {
    RCNN_DYNAMIC_DISPATCH(run_soft_nms<DecayMethod::kGaussian>(s, rule, rescored));
  }
}

// order: box indices by segment; starts: the first ranks of the segments, then the box count.
template <class T>
std::tuple<Tensor, Tensor> soft_nms_segments(const Tensor& boxes, const Tensor& scores,
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

  parallel_for_segments(starts, [&](int64_t begin, int64_t end) {
    soft_nms_segment(box_data, score_data, order + begin, end - begin, rule, method,
                     rescored.get());
  });

  int64_t kept = 0;
  for (int64_t b = 0; b < count; ++b) kept += rescored[b] >= 0;
  const auto by_score = order_by_descending(rescored.get(), count);  // removed boxes come last
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

std::tuple<Tensor, Tensor> run_soft_nms(const Tensor& boxes, const Tensor& scores,
                                        const uint32_t* order, const std::vector<int64_t>& starts,
                                        double iou_threshold, double sigma, double score_threshold,
                                        int64_t method) {
  const auto run = [&](auto tag) {
    using T = type_of<decltype(tag)>;
    return soft_nms_segments<T>(boxes, scores, order, starts,
                                SoftNmsRule<T>(iou_threshold, sigma, score_threshold),
                                static_cast<DecayMethod>(method));
  };
  return soft_nms_dtype(boxes, scores) == ScalarType::Double ? run(TypeTag<double>{})
                                                             : run(TypeTag<float>{});
}

std::tuple<Tensor, Tensor> empty_result(const Tensor& boxes, const Tensor& scores) {
  return {empty_on_device_of(boxes, {0}, ScalarType::Long),
          empty_on_device_of(boxes, {0}, scores.scalar_type())};
}

// boxes: [N, 4], scores: [N] -> kept indices, int64, and their scores, by descending score
std::tuple<Tensor, Tensor> soft_nms_cpu(const Tensor& boxes, const Tensor& scores,
                                        double iou_threshold, double sigma, double score_threshold,
                                        int64_t method) {
  check_soft_nms(boxes, scores, iou_threshold, sigma, score_threshold, method, "soft_nms");
  const int64_t count = boxes.size(0);
  if (count == 0) return empty_result(boxes, scores);
  return run_soft_nms(boxes, scores, identity_order(count).get(), {0, count}, iou_threshold, sigma,
                      score_threshold, method);
}

// boxes: [N, 4], scores: [N], idxs: [N] int64 -> as soft_nms_cpu
std::tuple<Tensor, Tensor> batched_soft_nms_cpu(const Tensor& boxes, const Tensor& scores,
                                                const Tensor& idxs, double iou_threshold,
                                                double sigma, double score_threshold,
                                                int64_t method) {
  constexpr const char* kOp = "batched_soft_nms";
  check_soft_nms(boxes, scores, iou_threshold, sigma, score_threshold, method, kOp);
  check_segments(idxs, boxes, kOp);
  const int64_t count = boxes.size(0);
  if (count == 0) return empty_result(boxes, scores);
  const Segments segments = order_by_segment(idxs, identity_order(count).get());
  return run_soft_nms(boxes, scores, segments.order.get(), segments.starts, iou_threshold, sigma,
                      score_threshold, method);
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  RCNN_REGISTER(m, "soft_nms", soft_nms_cpu, boxes, scores);
  RCNN_REGISTER(m, "batched_soft_nms", batched_soft_nms_cpu, boxes, scores, idxs);
}
