// Greedy non-maximum merging on CUDA. Contract: rcnn_ext/ops/non_max_merging.py.
//
// One block per segment walks through its boxes by score; the boxes that an unclaimed one claims
// are found by all threads. Then one thread per merged box extends it by the boxes of its group.
#include <tuple>

#include "../core/box_math.h"
#include "../core/dispatch.h"
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../cuda/launch.cuh"
#include "../nms/nms_score_order_cuda_kernels.cuh"
#include "non_max_merging.h"

namespace rcnn_ext {
namespace {

constexpr int kClaimThreads = 512;  // per segment; untuned
constexpr int kMergeThreads = 128;

// The owner of a box that no box has claimed, and of one that none may claim.
constexpr int kUnclaimed = -1;
constexpr int kDropped = -2;

// Boxes in order of segment, then of score.
template <class T>
struct ClaimedBoxes {
  const Box<T>* boxes;      // [N], by rank
  const int64_t* segments;  // [N], by rank
  int count;
};

// The claims within one segment, by one block. owners: [N], by rank: the rank of the box that
// claimed it, its own if none did, or kDropped.
template <OverlapMetric metric, class T>
__global__ void __launch_bounds__(kClaimThreads, 2)
    claim_kernel(ClaimedBoxes<T> sorted, MergingRule<T> rule, int* owners) {
  __shared__ int segment_end;
  const int begin = static_cast<int>(blockIdx.x);
  const int64_t* segments = sorted.segments;
  // There is a block for every rank, since the host does not know where segments start.
  if (begin > 0 && segments[begin] == segments[begin - 1]) return;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    int low = begin;  // in the segment
    int high = sorted.count;
    while (high - low > 1) {
      const int middle = low + (high - low) / 2;
      (segments[middle] == segments[begin] ? low : high) = middle;
    }
    segment_end = high;
  }
  __syncthreads();
  const int end = segment_end;
  for (int rank = begin + thread; rank < end; rank += kClaimThreads) {
    owners[rank] = is_finite(sorted.boxes[rank]) ? kUnclaimed : kDropped;
  }
  __syncthreads();
  for (int rank = begin; rank < end; ++rank) {
    // The same for all threads: between barriers, only owners of later boxes are written.
    if (owners[rank] != kUnclaimed) continue;
    const Box<T> box = sorted.boxes[rank];
    const T box_area = area(box);
    for (int other = rank + 1 + thread; other < end; other += kClaimThreads) {
      if (owners[other] != kUnclaimed) continue;
      const Box<T> later = sorted.boxes[other];
      if (matches<metric>(box, box_area, later, area(later), rule)) owners[other] = rank;
    }
    __syncthreads();
  }
  for (int rank = begin + thread; rank < end; rank += kClaimThreads) {
    if (owners[rank] == kUnclaimed) owners[rank] = rank;
  }
}

// The merged boxes, by one thread each. members: [N], the ranks by owner, then by rank, so that a
// box comes before those that it claimed; merged, keep, owner_indices: [N], by index.
template <OverlapMetric metric, class T>
__global__ void __launch_bounds__(kMergeThreads)
    merge_kernel(ClaimedBoxes<T> sorted, MergingRule<T> rule, const int* owners,
                 const int64_t* members, const int64_t* order, Box<T>* merged, bool* keep,
                 int64_t* owner_indices) {
  const int64_t first =
      static_cast<int64_t>(blockIdx.x) * kMergeThreads + static_cast<int>(threadIdx.x);
  if (first >= sorted.count) return;
  const int64_t rank = members[first];
  const int owner = owners[rank];
  const int64_t index = order[rank];
  keep[index] = owner == rank;
  owner_indices[index] = owner == kDropped ? kNoIndex : order[owner];
  if (owner != rank) return;
  Box<T> box = sorted.boxes[rank];
  for (int64_t i = first + 1; i < sorted.count && owners[members[i]] == owner; ++i) {
    merge<metric>(box, sorted.boxes[members[i]], rule);
  }
  merged[index] = box;
}

// results: [N], where results[indices[k]] = k for k < kept.
__global__ void __launch_bounds__(kMergeThreads)
    number_kernel(const int64_t* indices, int64_t kept, int64_t* results) {
  const int64_t k =
      static_cast<int64_t>(blockIdx.x) * kMergeThreads + static_cast<int>(threadIdx.x);
  if (k < kept) results[indices[k]] = k;
}

// groups[b] = results[owner_indices[b]], in place; kNoIndex stays.
__global__ void __launch_bounds__(kMergeThreads)
    group_kernel(const int64_t* results, int64_t count, int64_t* groups) {
  const int64_t b =
      static_cast<int64_t>(blockIdx.x) * kMergeThreads + static_cast<int>(threadIdx.x);
  if (b < count && groups[b] != kNoIndex) groups[b] = results[groups[b]];
}

LaunchShape one_thread_each(int64_t count) {
  return {dim3(static_cast<unsigned>(ceil_div(count, kMergeThreads))), dim3(kMergeThreads)};
}

// boxes: [N, 4], scores: [N], idxs: [N] int64 -> merged boxes [K, 4], the index of the best box of
// each, int64 [K], by descending score, and the result of each box, int64 [N]
std::tuple<Tensor, Tensor, Tensor> non_max_merging_cuda(const Tensor& boxes, const Tensor& scores,
                                                        const Tensor& idxs, double threshold,
                                                        int64_t metric) {
  check_non_max_merging(boxes, scores, idxs, threshold, metric);
  const CudaScope scope(boxes);
  const int64_t count = boxes.size(0);
  const auto empty = [&](int64_t size, ScalarType dtype) {
    return empty_on_device_of(boxes, {size}, dtype);
  };
  if (count == 0) {
    return {empty_on_device_of(boxes, {0, 4}, boxes.scalar_type()), empty(0, ScalarType::Long),
            empty(0, ScalarType::Long)};
  }
  const ScalarType dtype = accumulate_dtype(boxes.scalar_type());
  const SuppressionOrder orders = order_by_sorting(scores, &idxs, scope);
  const Tensor sorted_boxes = select_rows(contiguous_as(boxes, dtype), orders.order);
  Tensor owners = empty(count, ScalarType::Int);
  Tensor keep = empty(count, ScalarType::Bool);
  Tensor groups = empty(count, ScalarType::Long);
  Tensor results = empty(count, ScalarType::Long);
  Tensor merged = empty_on_device_of(boxes, {count, 4}, dtype);
  const auto run = [&](auto tag, auto claim, auto merge) {
    using T = type_of<decltype(tag)>;
    const ClaimedBoxes<T> sorted{reinterpret_cast<const Box<T>*>(sorted_boxes.const_data_ptr<T>()),
                                 orders.segments.const_data_ptr<int64_t>(),
                                 static_cast<int>(count)};
    const MergingRule<T> rule(threshold);
    auto* const owner_data = owners.mutable_data_ptr<int32_t>();
    launch("non_max_merging: claim", claim,
           {dim3(static_cast<unsigned>(count)), dim3(kClaimThreads)}, scope, sorted, rule,
           owner_data);
    const Tensor members = stable_argsort(owners, /*descending=*/false);
    launch("non_max_merging: merge", merge, one_thread_each(count), scope, sorted, rule, owner_data,
           members.const_data_ptr<int64_t>(), orders.order.const_data_ptr<int64_t>(),
           reinterpret_cast<Box<T>*>(merged.mutable_data_ptr<T>()), keep.mutable_data_ptr<bool>(),
           groups.mutable_data_ptr<int64_t>());
  };
  const auto run_metric = [&](auto tag) {
    using T = type_of<decltype(tag)>;
    constexpr auto kIou = OverlapMetric::kIou;
    constexpr auto kIos = OverlapMetric::kIos;
    if (static_cast<OverlapMetric>(metric) == kIou) {
      run(tag, claim_kernel<kIou, T>, merge_kernel<kIou, T>);
    } else {
      run(tag, claim_kernel<kIos, T>, merge_kernel<kIos, T>);
    }
  };
  if (dtype == ScalarType::Double) {
    run_metric(TypeTag<double>{});
  } else {
    run_metric(TypeTag<float>{});
  }
  const Tensor indices = masked_select(orders.by_score, select_rows(keep, orders.by_score));
  const int64_t kept = indices.size(0);
  auto* const result_data = results.mutable_data_ptr<int64_t>();
  if (kept > 0) {
    launch("non_max_merging: number", number_kernel, one_thread_each(kept), scope,
           indices.const_data_ptr<int64_t>(), kept, result_data);
  }
  launch("non_max_merging: group", group_kernel, one_thread_each(count), scope, result_data, count,
         groups.mutable_data_ptr<int64_t>());
  return {contiguous_as(select_rows(merged, indices), boxes.scalar_type()), indices, groups};
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) {
  RCNN_REGISTER(m, "non_max_merging", non_max_merging_cuda, boxes, scores, idxs);
}
