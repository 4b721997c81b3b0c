// Soft non-maximum suppression on CUDA. Contract: rcnn_ext/ops/soft_nms.py.
//
// One block per segment. Each round takes the remaining box with the highest score and decays the
// scores of the others. Every thread owns some of the boxes, so only the choice of the best one
// goes through shared memory.
#include <tuple>

#include "../core/box_math.h"
#include "../core/dispatch.h"
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../cuda/block_primitives.cuh"
#include "../cuda/launch.cuh"
#include "soft_nms.h"

namespace rcnn_ext {
namespace {

constexpr int kSoftNmsThreads = 512;  // per segment; untuned
constexpr int kSoftNmsWarps = kSoftNmsThreads / kWarpSize;

// A score and the rank of its box. The best has the highest score, and the lowest rank among
// equals.
template <class T>
struct RankedScore {
  T score;
  int rank;

  RCNN_HOST_DEVICE bool is_better_than(T other_score, int other_rank) const {
    return score > other_score || (score == other_score && rank < other_rank);
  }
};

template <class T>
__device__ RankedScore<T> best_of_warp(RankedScore<T> mine) {
  using Score = RankedScore<T>;
  // Assigns instead of choosing by ?:, which would select an address, in local memory.
  const auto better = [](Score a, Score b) {
    if (!a.is_better_than(b.score, b.rank)) a = b;
    return a;
  };
  const auto exchange = [](const Score& value, int mask) {
    return Score{shuffle_xor(value.score, mask), shuffle_xor(value.rank, mask)};
  };
  return warp_reduce(mine, better, exchange);
}

// Boxes in order of segment, then of index.
template <class T>
struct SegmentedBoxes {
  const Box<T>* boxes;      // [N], by rank
  const T* initial_scores;  // [N], by rank
  const int64_t* segments;  // [N], by rank, or null: one segment
  const int64_t* order;     // [N], from rank to index, or null: they are equal
  int count;
};

// Soft-NMS of one segment, by one block. scores: [N], by rank, a workspace; rescored, keep: [N], by
// index.
template <DecayMethod method, class T>
__global__ void __launch_bounds__(kSoftNmsThreads)
    soft_nms_kernel(SegmentedBoxes<T> sorted, SoftNmsRule<T> rule, T* scores, T* rescored,
                    bool* keep) {
  __shared__ RankedScore<T> warp_bests[kSoftNmsWarps];
  __shared__ RankedScore<T> taken;
  __shared__ int segment_end;
  const int begin = static_cast<int>(blockIdx.x);
  const int64_t* segments = sorted.segments;
  // There is a block for every rank, since the host does not know where segments start.
  if (segments != nullptr && begin > 0 && segments[begin] == segments[begin - 1]) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = warp_index();
  const int lane = lane_index();

  if (thread == 0) {
    int low = begin;  // in the segment
    int high = sorted.count;
    while (segments != nullptr && high - low > 1) {
      const int middle = low + (high - low) / 2;
      (segments[middle] == segments[begin] ? low : high) = middle;
    }
    segment_end = high;
  }
  __syncthreads();
  const int end = segment_end;

  RankedScore<T> mine{kRemovedScore<T>, end};
  for (int rank = begin + thread; rank < end; rank += kSoftNmsThreads) {
    const T score = initial_score(sorted.boxes[rank], sorted.initial_scores[rank], rule);
    scores[rank] = score;
    const int64_t index = sorted.order == nullptr ? rank : sorted.order[rank];
    rescored[index] = kRemovedScore<T>;
    keep[index] = false;
    if (!mine.is_better_than(score, rank)) mine = {score, rank};
  }
  while (true) {
    mine = best_of_warp(mine);
    if (lane == 0) warp_bests[warp] = mine;
    __syncthreads();
    if (warp == 0) {
      mine = lane < kSoftNmsWarps ? warp_bests[lane] : RankedScore<T>{kRemovedScore<T>, end};
      mine = best_of_warp(mine);
      if (lane == 0) {
        taken = mine;
        if (mine.score >= T(0)) {
          const int64_t index = sorted.order == nullptr ? mine.rank : sorted.order[mine.rank];
          rescored[index] = mine.score;
          keep[index] = true;
        }
      }
    }
    __syncthreads();
    // Written again only after the next round's first barrier.
    const RankedScore<T> best = taken;
    if (best.score < T(0)) return;
    const Box<T> box = sorted.boxes[best.rank];
    const T box_area = area(box);
    mine = {kRemovedScore<T>, end};
    for (int rank = begin + thread; rank < end; rank += kSoftNmsThreads) {
      const T old_score = scores[rank];
      if (old_score < T(0)) continue;
      const Box<T> other = sorted.boxes[rank];
      const T score = rank == best.rank
                          ? kRemovedScore<T>
                          : decay_score<method>(old_score, box, box_area, other, area(other), rule);
      scores[rank] = score;
      if (!mine.is_better_than(score, rank)) mine = {score, rank};
    }
  }
}

// `order` and `segments`: [N] int64, or null for one segment.
std::tuple<Tensor, Tensor> run_soft_nms(const Tensor& boxes, const Tensor& scores,
                                        const Tensor* order, const Tensor* segments,
                                        double iou_threshold, double sigma, double score_threshold,
                                        int64_t method, const CudaScope& scope) {
  const int64_t count = boxes.size(0);
  const ScalarType dtype = soft_nms_dtype(boxes, scores);
  Tensor sorted_boxes = contiguous_as(boxes, dtype);
  Tensor sorted_scores = contiguous_as(scores, dtype);
  if (order != nullptr) {
    sorted_boxes = select_rows(sorted_boxes, *order);
    sorted_scores = select_rows(sorted_scores, *order);
  }
  Tensor workspace = empty_on_device_of(boxes, {count}, dtype);
  Tensor rescored = empty_on_device_of(boxes, {count}, dtype);
  Tensor keep = empty_on_device_of(boxes, {count}, ScalarType::Bool);
  const auto run = [&](auto tag) {
    using T = type_of<decltype(tag)>;
    const auto pointer = [](const Tensor* tensor) {
      return tensor == nullptr ? nullptr : tensor->const_data_ptr<int64_t>();
    };
    const SegmentedBoxes<T> sorted{
        reinterpret_cast<const Box<T>*>(sorted_boxes.const_data_ptr<T>()),
        sorted_scores.const_data_ptr<T>(), pointer(segments), pointer(order),
        static_cast<int>(count)};
    const SoftNmsRule<T> rule(iou_threshold, sigma, score_threshold);
    const unsigned blocks = segments == nullptr ? 1u : static_cast<unsigned>(count);
    const auto kernel = static_cast<DecayMethod>(method) == DecayMethod::kLinear
                            ? soft_nms_kernel<DecayMethod::kLinear, T>
                            : soft_nms_kernel<DecayMethod::kGaussian, T>;
    launch("soft_nms", kernel, {dim3(blocks), dim3(kSoftNmsThreads)}, scope, sorted, rule,
           workspace.mutable_data_ptr<T>(), rescored.mutable_data_ptr<T>(),
           keep.mutable_data_ptr<bool>());
  };
  if (dtype == ScalarType::Double) {
    run(TypeTag<double>{});
  } else {
    run(TypeTag<float>{});
  }
  const Tensor by_score = stable_argsort(rescored, /*descending=*/true);
  const Tensor indices = masked_select(by_score, select_rows(keep, by_score));
  const Tensor result = select_rows(rescored, indices);
  return {indices, contiguous_as(result, scores.scalar_type())};
}

std::tuple<Tensor, Tensor> empty_result(const Tensor& boxes, const Tensor& scores) {
  return {empty_on_device_of(boxes, {0}, ScalarType::Long),
          empty_on_device_of(boxes, {0}, scores.scalar_type())};
}

// boxes: [N, 4], scores: [N] -> kept indices, int64, and their scores, by descending score
std::tuple<Tensor, Tensor> soft_nms_cuda(const Tensor& boxes, const Tensor& scores,
                                         double iou_threshold, double sigma, double score_threshold,
                                         int64_t method) {
  check_soft_nms(boxes, scores, iou_threshold, sigma, score_threshold, method, "soft_nms");
  const CudaScope scope(boxes);
  if (boxes.size(0) == 0) return empty_result(boxes, scores);
  return run_soft_nms(boxes, scores, nullptr, nullptr, iou_threshold, sigma, score_threshold,
                      method, scope);
}

// boxes: [N, 4], scores: [N], idxs: [N] int64 -> as soft_nms_cuda
std::tuple<Tensor, Tensor> batched_soft_nms_cuda(const Tensor& boxes, const Tensor& scores,
                                                 const Tensor& idxs, double iou_threshold,
                                                 double sigma, double score_threshold,
                                                 int64_t method) {
  constexpr const char* kOp = "batched_soft_nms";
  check_soft_nms(boxes, scores, iou_threshold, sigma, score_threshold, method, kOp);
  check_segments(idxs, boxes, kOp);
  const CudaScope scope(boxes);
  if (boxes.size(0) == 0) return empty_result(boxes, scores);
  const Tensor order = stable_argsort(idxs, /*descending=*/false);
  const Tensor segments = select_rows(idxs, order);
  return run_soft_nms(boxes, scores, &order, &segments, iou_threshold, sigma, score_threshold,
                      method, scope);
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) {
  RCNN_REGISTER(m, "soft_nms", soft_nms_cuda, boxes, scores);
  RCNN_REGISTER(m, "batched_soft_nms", batched_soft_nms_cuda, boxes, scores, idxs);
}
