// The orders in which NMS visits boxes, on CUDA: by score, and by segment (class) and score.
//
// A few thousand boxes are ranked by counting: the rank of a box is the number of boxes before it.
// That is one launch, whose quadratic work the whole device shares; a device-wide sort takes
// several launches.
#pragma once

#include "../core/dispatch.h"
#include "../core/sort_key.h"
#include "../core/stable_ops.h"
#include "../cuda/block_primitives.cuh"
#include "../cuda/launch.cuh"

namespace rcnn_ext {

// All int64 [N]. Without segments `order` is `by_score`, and the last two are undefined.
struct SuppressionOrder {
  Tensor by_score;     // from score rank to index: descending scores, equal ones by index
  Tensor order;        // from rank to index: by segment, then by score
  Tensor segments;     // from rank to segment
  Tensor score_ranks;  // from rank to score rank
};

constexpr int kRankThreads = 256;  // untuned
// Boxes that a warp ranks by one pass over all scores; untuned.
constexpr int kRanksPerWarp = 4;
constexpr int kRanksPerBlock = kRankThreads / kWarpSize * kRanksPerWarp;

// Ranks boxes by counting. idxs: [N] or null; then order, segments and score_ranks are null as
// well.
template <class Score>
__global__ void __launch_bounds__(kRankThreads)
    rank_kernel(const Score* scores, const int64_t* idxs, int count, int64_t* by_score,
                int64_t* order, int64_t* segments, int64_t* score_ranks) {
  using Number = std::conditional_t<std::is_same_v<Score, int64_t>, int64_t, accumulate_t<Score>>;
  using Key = decltype(descending_key(Number()));
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const int first = static_cast<int>(blockIdx.x) * kRanksPerBlock + warp * kRanksPerWarp;
  Key mine[kRanksPerWarp];
  int64_t my_segment[kRanksPerWarp];
  int before[kRanksPerWarp] = {};           // boxes before in the order of score
  int before_in_order[kRanksPerWarp] = {};  // boxes before by segment, then by score
#pragma unroll
  for (int n = 0; n < kRanksPerWarp; ++n) {
    const int i = min(first + n, count - 1);
    mine[n] = descending_key(static_cast<Number>(scores[i]));
    my_segment[n] = idxs == nullptr ? 0 : idxs[i];
  }
  for (int j = lane; j < count; j += kWarpSize) {
    const Key other = descending_key(static_cast<Number>(scores[j]));
    const int64_t segment = idxs == nullptr ? 0 : idxs[j];
#pragma unroll
    for (int n = 0; n < kRanksPerWarp; ++n) {
      const bool is_before = other < mine[n] || (other == mine[n] && j < first + n);
      before[n] += is_before;
      if (idxs != nullptr) {
        before_in_order[n] += segment < my_segment[n] || (segment == my_segment[n] && is_before);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kRanksPerWarp; ++n) {
    const int rank = warp_sum(before[n]);
    const int place = warp_sum(before_in_order[n]);
    const int i = first + n;
    if (lane == 0 && i < count) {
      by_score[rank] = i;
      if (idxs != nullptr) {
        order[place] = i;
        segments[place] = my_segment[n];
        score_ranks[place] = rank;
      }
    }
  }
}

// Calls function(TypeTag<Score>, scores) with the scores in a dtype that rank_kernel takes. Returns
// false for a dtype whose numbers none of those can represent.
template <class Function>
bool dispatch_scores(const Tensor& scores, Function&& function) {
  switch (scores.scalar_type()) {
    case ScalarType::Half:
    case ScalarType::BFloat16:
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::Long: break;
    case ScalarType::Bool:
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Short:
    case ScalarType::Int: return dispatch_scores(contiguous_as(scores, ScalarType::Long), function);
    default: return false;
  }
  dispatch_floating_and_int64(scores.scalar_type(), "nms", [&](auto tag) {
    function(tag, contiguous_as(scores, scores.scalar_type()));
  });
  return true;
}

// Signed integers that ascend as the scores descend. Sorting these instead of the scores makes all
// NaNs equal, which PyTorch's sort on CUDA orders by their bits.
template <class Score, class Key>
__global__ void __launch_bounds__(kRankThreads)
    key_kernel(const Score* scores, int64_t count, Key* keys) {
  using Unsigned = std::make_unsigned_t<Key>;
  constexpr Unsigned kSign = Unsigned{1} << (8 * sizeof(Key) - 1);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRankThreads + threadIdx.x;
  if (i >= count) return;
  keys[i] = static_cast<Key>(descending_key(static_cast<accumulate_t<Score>>(scores[i])) ^ kSign);
}

inline Tensor argsort_scores(const Tensor& scores, const CudaScope& scope) {
  if (!is_floating(scores.scalar_type())) return stable_argsort(scores, /*descending=*/true);
  const int64_t count = scores.size(0);
  Tensor keys;
  dispatch_floating(scores.scalar_type(), "nms", [&](auto tag) {
    using Score = type_of<decltype(tag)>;
    using Key = std::conditional_t<std::is_same_v<Score, double>, int64_t, int32_t>;
    keys = empty_on_device_of(scores, {count},
                              std::is_same_v<Score, double> ? ScalarType::Long : ScalarType::Int);
    const Tensor dense = contiguous_as(scores, scores.scalar_type());
    launch("nms: key", key_kernel<Score, Key>,
           {dim3(static_cast<unsigned>(ceil_div(count, kRankThreads))), dim3(kRankThreads)}, scope,
           dense.const_data_ptr<Score>(), count, keys.mutable_data_ptr<Key>());
  });
  return stable_argsort(keys, /*descending=*/false);
}

// For any number of boxes and any dtype that PyTorch sorts. idxs: [N] int64 or null
inline SuppressionOrder order_by_sorting(const Tensor& scores, const Tensor* idxs,
                                         const CudaScope& scope) {
  const Tensor by_score = argsort_scores(scores, scope);
  if (idxs == nullptr) return {by_score, by_score, Tensor(), Tensor()};
  const Tensor idxs_by_score = select_rows(*idxs, by_score);
  const Tensor score_ranks = stable_argsort(idxs_by_score, /*descending=*/false);
  return {by_score, select_rows(by_score, score_ranks), select_rows(idxs_by_score, score_ranks),
          score_ranks};
}

// For few enough boxes that their count is an int. scores: [N], idxs: [N] int64 or null
inline SuppressionOrder order_by_counting(const Tensor& scores, const Tensor* idxs,
                                          const CudaScope& scope) {
  const int64_t count = scores.size(0);
  const auto empty = [&] { return empty_on_device_of(scores, {count}, ScalarType::Long); };
  SuppressionOrder orders{empty(), Tensor(), Tensor(), Tensor()};
  if (idxs != nullptr) orders = {orders.by_score, empty(), empty(), empty()};
  const Tensor dense_idxs = idxs == nullptr ? Tensor() : contiguous_as(*idxs, ScalarType::Long);
  const auto data = [&](Tensor& tensor) {
    return idxs == nullptr ? nullptr : tensor.mutable_data_ptr<int64_t>();
  };
  const bool ranked = dispatch_scores(scores, [&](auto tag, const Tensor& dense) {
    using Score = type_of<decltype(tag)>;
    launch("nms: rank", rank_kernel<Score>,
           {dim3(static_cast<unsigned>(ceil_div(count, kRanksPerBlock))), dim3(kRankThreads)},
           scope, dense.const_data_ptr<Score>(),
           idxs == nullptr ? nullptr : dense_idxs.const_data_ptr<int64_t>(),
           static_cast<int>(count), orders.by_score.mutable_data_ptr<int64_t>(), data(orders.order),
           data(orders.segments), data(orders.score_ranks));
  });
  if (!ranked) return order_by_sorting(scores, idxs, scope);
  if (idxs == nullptr) orders.order = orders.by_score;
  return orders;
}

}  // namespace rcnn_ext
