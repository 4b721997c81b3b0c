// Greedy non-maximum suppression on CUDA. Contract: rcnn_ext/ops/nms.py.
//
// Boxes are sorted by segment (class) and descending score, and taken a chunk of 8192 at a time.
// All pairs within a chunk are tested in parallel: the suppression matrix is one bit per pair, in
// 64-bit words. One block then walks through the words, 64 boxes at a time, which is the sequential
// part of greedy NMS; each box that it keeps goes on to suppress boxes of later chunks
// (nms_chunk_cuda_kernels.cuh). Work is O(kept * N), memory O(N), and the host waits for nothing:
// nms() alone reads back how many boxes were kept. Up to the size of a chunk, three launches do all
// of it.
#include <tuple>

#include "../core/dispatch.h"
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../cuda/launch.cuh"
#include "nms.h"
#include "nms_chunk_cuda_kernels.cuh"
#include "nms_score_order_cuda_kernels.cuh"

namespace rcnn_ext {
namespace {

// The indices of the first `max_kept` kept boxes by score, int64 [max_kept], and how many there
// are, int64 []. Without padding, the elements after those are uninitialized. boxes: [N, 4],
// scores: [N], idxs: [N] int64 or null; N > 0
std::tuple<Tensor, Tensor> suppress(const Tensor& boxes, const Tensor& scores, const Tensor* idxs,
                                    double iou_threshold, int64_t max_kept, bool with_padding,
                                    const CudaScope& scope) {
  const int64_t count = boxes.size(0);
  const ScalarType dtype = boxes.scalar_type();
  const int64_t max_words = std::min(ceil_div(count, kBoxesPerWord), max_blocks(kWordsPerChunk));
  const int64_t chunk_size = max_words * kBoxesPerWord;
  const bool one_chunk = count <= chunk_size;
  const SuppressionOrder orders =
      one_chunk ? order_by_counting(scores, idxs, scope) : order_by_sorting(scores, idxs, scope);
  const Tensor dense = contiguous_as(boxes, dtype);
  Tensor suppression =
      empty_on_device_of(boxes, {max_words, max_words * kBoxesPerWord}, ScalarType::Long);
  Tensor bits = empty_on_device_of(boxes, {2, max_words, 2}, ScalarType::Int);
  Tensor carried = empty_on_device_of(boxes, {one_chunk ? 0 : chunk_size + 1}, ScalarType::Long);
  Tensor suppressed = empty_on_device_of(boxes, {one_chunk ? 0 : count}, ScalarType::Bool);
  torch::stable::zero_(suppressed);
  Tensor flags = empty_on_device_of(boxes, {idxs == nullptr ? 0 : count}, ScalarType::Bool);
  Tensor indices = empty_on_device_of(boxes, {max_kept}, ScalarType::Long);
  Tensor kept_count = empty_on_device_of(boxes, {}, ScalarType::Long);
  auto* const count_data = kept_count.mutable_data_ptr<int64_t>();
  auto* const index_data = indices.mutable_data_ptr<int64_t>();

  dispatch_floating(dtype, "nms", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    const auto data = [&](const Tensor& tensor) { return tensor.const_data_ptr<int64_t>(); };
    const RankedBoxes<Stored> ranked{dense.const_data_ptr<Stored>(), data(orders.order),
                                     idxs == nullptr ? nullptr : data(orders.segments), count,
                                     one_chunk ? nullptr : suppressed.mutable_data_ptr<bool>()};
    const NmsOutput output{idxs == nullptr ? index_data : nullptr,
                           count_data,
                           max_kept,
                           with_padding ? max_kept : 0,
                           flags.mutable_data_ptr<bool>(),
                           idxs == nullptr ? nullptr : data(orders.score_ranks)};
    const SuppressionRule<T> rule(iou_threshold);
    for (int64_t first = 0; first < count; first += chunk_size) {
      const int64_t size = std::min(chunk_size, count - first);
      const int64_t later_count = count - first - size;
      const auto words = static_cast<unsigned>(ceil_div(size, kBoxesPerWord));
      auto* const bit_data = reinterpret_cast<unsigned*>(bits.mutable_data_ptr<int32_t>());
      auto* const carried_data = carried.mutable_data_ptr<int64_t>();
      const NmsChunk chunk{
          first,
          static_cast<int>(size),
          static_cast<int>(words),
          later_count == 0,
          reinterpret_cast<unsigned long long*>(suppression.mutable_data_ptr<int64_t>()),
          bit_data,
          bit_data + 2 * max_words,
          carried_data,
          carried_data + chunk_size};
      launch("nms: suppression", suppression_kernel<Stored>,
             {dim3(words, words), dim3(kSuppressThreads)}, scope, ranked, chunk, output, rule);
      launch("nms: resolve", resolve_kernel,
             {dim3(idxs == nullptr ? 1 : words), dim3(kResolveThreads)}, scope, chunk, ranked.order,
             output);
      if (later_count > 0) {
        launch("nms: suppress_later", suppress_later_kernel<Stored>,
               {dim3(static_cast<unsigned>(ceil_div(later_count, kSuppressThreads))),
                dim3(kSuppressThreads)},
               scope, ranked, chunk, output, rule);
      }
    }
    if (idxs != nullptr) {
      launch("nms: compact", compact_kernel, {dim3(1), dim3(kCompactThreads)}, scope,
             data(orders.by_score), count, output, index_data);
    }
  });
  return {indices, kept_count};
}

// The indices of all kept boxes. Their count is data: the one synchronization with the host.
Tensor suppress_all(const Tensor& boxes, const Tensor& scores, const Tensor* idxs,
                    double iou_threshold) {
  const CudaScope scope(boxes);
  const int64_t count = boxes.size(0);
  if (count == 0) return empty_on_device_of(boxes, {0}, ScalarType::Long);
  auto [indices, kept_count] = suppress(boxes, scores, idxs, iou_threshold, count, false, scope);
  // A copy, so that no result holds the memory of N indices.
  return torch::stable::clone(torch::stable::narrow(indices, 0, 0, read_number(kept_count)));
}

// The first `max_kept` kept boxes, padded, and their count, without a synchronization.
std::tuple<Tensor, Tensor> suppress_padded(const Tensor& boxes, const Tensor& scores,
                                           const Tensor* idxs, double iou_threshold,
                                           int64_t max_kept) {
  const CudaScope scope(boxes);
  if (boxes.size(0) == 0 || max_kept == 0) return empty_padded_result(boxes, max_kept);
  return suppress(boxes, scores, idxs, iou_threshold, max_kept, true, scope);
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

// boxes: [N, 4], scores: [N] -> kept indices, int64 [max_output], padded with -1, and their count,
// int64 []
std::tuple<Tensor, Tensor> nms_padded_cuda(const Tensor& boxes, const Tensor& scores,
                                           double iou_threshold, int64_t max_output) {
  check_nms(boxes, scores, "nms_padded");
  check_max_output(max_output, "nms_padded");
  return suppress_padded(boxes, scores, nullptr, iou_threshold, max_output);
}

// boxes: [N, 4], scores: [N], idxs: [N] int64 -> as nms_padded_cuda
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
  RCNN_REGISTER(m, "nms", nms_cuda, boxes, scores);
  RCNN_REGISTER(m, "batched_nms", batched_nms_cuda, boxes, scores, idxs);
  RCNN_REGISTER(m, "nms_padded", nms_padded_cuda, boxes, scores);
  RCNN_REGISTER(m, "batched_nms_padded", batched_nms_padded_cuda, boxes, scores, idxs);
}
