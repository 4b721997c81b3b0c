// Greedy non-maximum suppression on CUDA. Contract: rcnn_ext/ops/nms.py.
//
// Boxes, ordered by segment (class) and score, are taken a chunk at a time
// (nms_chunk_cuda_kernels.cuh). Work is O(kept * N), memory O(N), and the host waits for nothing:
// nms() alone reads back how many boxes it kept. Up to a chunk's size, that is three launches in
// all.
#include <tuple>

#include "../core/dispatch.h"
#include "../core/stable_ops.h"
#include "../cuda/launch.cuh"
#include "nms.h"
#include "nms_chunk_cuda_kernels.cuh"
#include "nms_score_order_cuda_kernels.cuh"

namespace rcnn_ext {
namespace {

// The best `most` indices that stay, int64 [most], and how many they are, int64 []. Without
// padding, what is behind them is not written. boxes: [N, 4], scores: [N], idxs: [N] int64 or null;
// N > 0
std::tuple<Tensor, Tensor> suppress(const Tensor& boxes, const Tensor& scores, const Tensor* idxs,
                                    double iou_threshold, int64_t most, bool with_padding,
                                    const CudaScope& scope) {
  const int64_t count = boxes.size(0);
  const ScalarType dtype = boxes.scalar_type();
  const int64_t most_groups = std::min(ceil_div(count, kGroup), max_blocks(kGroupsPerChunk));
  const int64_t chunk_size = most_groups * kGroup;
  const bool one_chunk = count <= chunk_size;
  const SuppressionOrder orders =
      one_chunk ? order_by_counting(scores, idxs, scope) : order_by_sorting(scores, idxs, scope);
  const Tensor dense = contiguous_as(boxes, dtype);
  Tensor overlaps =
      empty_on_device_of(boxes, {most_groups, most_groups * kGroup}, ScalarType::Long);
  Tensor bits = empty_on_device_of(boxes, {2, most_groups, 2}, ScalarType::Int);
  Tensor kept = empty_on_device_of(boxes, {one_chunk ? 0 : chunk_size + 1}, ScalarType::Long);
  Tensor suppressed = empty_on_device_of(boxes, {one_chunk ? 0 : count}, ScalarType::Bool);
  torch::stable::zero_(suppressed);
  Tensor flags = empty_on_device_of(boxes, {idxs == nullptr ? 0 : count}, ScalarType::Bool);
  Tensor indices = empty_on_device_of(boxes, {most}, ScalarType::Long);
  Tensor number = empty_on_device_of(boxes, {}, ScalarType::Long);
  auto* const number_data = number.mutable_data_ptr<int64_t>();
  auto* const index_data = indices.mutable_data_ptr<int64_t>();

  dispatch_floating(dtype, "nms", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    const auto data = [&](const Tensor& tensor) { return tensor.const_data_ptr<int64_t>(); };
    const RankedBoxes<Stored> ranked{dense.const_data_ptr<Stored>(), data(orders.order),
                                     idxs == nullptr ? nullptr : data(orders.segments), count,
                                     one_chunk ? nullptr : suppressed.mutable_data_ptr<bool>()};
    const KeptBoxes result{idxs == nullptr ? index_data : nullptr,
                           number_data,
                           most,
                           with_padding ? most : 0,
                           flags.mutable_data_ptr<bool>(),
                           idxs == nullptr ? nullptr : data(orders.score_ranks)};
    const SuppressionRule<T> rule(iou_threshold);
    for (int64_t first = 0; first < count; first += chunk_size) {
      const int64_t size = std::min(chunk_size, count - first);
      const int64_t rest = count - first - size;
      const auto groups = static_cast<unsigned>(ceil_div(size, kGroup));
      auto* const bit_data = reinterpret_cast<unsigned*>(bits.mutable_data_ptr<int32_t>());
      auto* const kept_data = kept.mutable_data_ptr<int64_t>();
      const Chunk chunk{first,
                        static_cast<int>(size),
                        static_cast<int>(groups),
                        rest == 0,
                        reinterpret_cast<unsigned long long*>(overlaps.mutable_data_ptr<int64_t>()),
                        bit_data,
                        bit_data + 2 * most_groups,
                        kept_data,
                        kept_data + chunk_size};
      launch("nms: overlap", overlap_kernel<Stored>, {dim3(groups, groups), dim3(kThreads)}, scope,
             ranked, chunk, result, rule);
      launch("nms: resolve", resolve_kernel,
             {dim3(idxs == nullptr ? 1 : groups), dim3(kResolveThreads)}, scope, chunk,
             ranked.order, result);
      if (rest > 0) {
        launch("nms: suppress_rest", suppress_rest_kernel<Stored>,
               {dim3(static_cast<unsigned>(ceil_div(rest, kThreads))), dim3(kThreads)}, scope,
               ranked, chunk, result, rule);
      }
    }
    if (idxs != nullptr) {
      launch("nms: collect", collect_kernel, {dim3(1), dim3(kCollectThreads)}, scope,
             data(orders.by_score), count, result, index_data);
    }
  });
  return {indices, number};
}

// All indices that stay. The size of the result is data: the one synchronisation.
Tensor suppress_all(const Tensor& boxes, const Tensor& scores, const Tensor* idxs,
                    double iou_threshold) {
  const CudaScope scope(boxes);
  const int64_t count = boxes.size(0);
  if (count == 0) return empty_on_device_of(boxes, {0}, ScalarType::Long);
  auto [indices, number] = suppress(boxes, scores, idxs, iou_threshold, count, false, scope);
  // A copy, so that no result holds the memory of N indices.
  return torch::stable::clone(torch::stable::narrow(indices, 0, 0, read_number(number)));
}

// The best `most`, padded, and their number: nothing synchronises.
std::tuple<Tensor, Tensor> suppress_padded(const Tensor& boxes, const Tensor& scores,
                                           const Tensor* idxs, double iou_threshold, int64_t most) {
  const CudaScope scope(boxes);
  if (boxes.size(0) == 0 || most == 0) return no_boxes(boxes, most);
  return suppress(boxes, scores, idxs, iou_threshold, most, true, scope);
}

// boxes: [N, 4], scores: [N] -> kept indices, int64, by score
Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_nms(boxes, scores, "nms");
  return suppress_all(boxes, scores, nullptr, iou_threshold);
}

// boxes: [N, 4], scores: [N], idxs: [N] int64 -> kept indices, int64, by score
Tensor batched_nms_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                        double iou_threshold) {
  check_batched_nms(boxes, scores, idxs, "batched_nms");
  return suppress_all(boxes, scores, &idxs, iou_threshold);
}

// The same -> kept indices, int64 [max_output], padded with -1, and their number, int64 []
std::tuple<Tensor, Tensor> nms_padded_cuda(const Tensor& boxes, const Tensor& scores,
                                           double iou_threshold, int64_t max_output) {
  check_nms(boxes, scores, "nms_padded");
  check_max_output(max_output, "nms_padded");
  return suppress_padded(boxes, scores, nullptr, iou_threshold, max_output);
}

std::tuple<Tensor, Tensor> batched_nms_padded_cuda(const Tensor& boxes, const Tensor& scores,
                                                   const Tensor& idxs, double iou_threshold,
                                                   int64_t max_output) {
  check_batched_nms(boxes, scores, idxs, "batched_nms_padded");
  check_max_output(max_output, "batched_nms_padded");
  return suppress_padded(boxes, scores, &idxs, iou_threshold, max_output);
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) {
  m.impl("nms", TORCH_BOX(&rcnn_ext::nms_cuda));
  m.impl("batched_nms", TORCH_BOX(&rcnn_ext::batched_nms_cuda));
  m.impl("nms_padded", TORCH_BOX(&rcnn_ext::nms_padded_cuda));
  m.impl("batched_nms_padded", TORCH_BOX(&rcnn_ext::batched_nms_padded_cuda));
}
