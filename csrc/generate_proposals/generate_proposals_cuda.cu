// Proposals of a whole batch on CUDA. Contract: rcnn_ext/ops/generate_proposals.py.
//
// select_top_kernel, one block per level and image, finds the pre_nms_top_n anchors with the
// highest logits by a radix select, without sorting the others. PyTorch sorts those, and
// suppress_proposals_kernel, again one block per level and image, decodes them and runs NMS.
// PyTorch sorts what is left of each image, and gather_proposals_kernel writes the padded result.
// All sizes are known beforehand, so nothing synchronizes.
#include <tuple>

#include "../core/dispatch.h"
#include "../core/register.h"
#include "../core/sort_key.h"
#include "../core/stable_ops.h"
#include "../cuda/block_primitives.cuh"
#include "../cuda/launch.cuh"
#include "../nms/nms_block_cuda_kernels.cuh"
#include "generate_proposals.h"

namespace rcnn_ext {
namespace {

constexpr int kSelectThreads = 1024;  // per level and image; untuned
constexpr int kSelectWarps = kSelectThreads / kWarpSize;
constexpr int kProposalThreads = 256;  // per block of the other kernels; untuned
// Above the five levels of a common pyramid; 704 of the 4096 bytes that kernel arguments may take.
constexpr int kLevelsPerLaunch = 8;

// The score of an anchor that is not a proposal; scores are probabilities.
constexpr int kNoScore = -1;

template <class Stored>
struct AnchorLevelMaps {
  const Stored* logits;  // [N, anchors], in the order of memory
  const Stored* deltas;
  int64_t delta_strides[4];  // image, channel, row, column
  int anchors, anchors_per_position, width;
  bool channels_last;
  int top;
  int64_t first_anchor, first_top;
};

// The levels of one launch, passed as a kernel argument: no copy to the device precedes the launch.
template <class Stored>
struct PyramidMaps {
  AnchorLevelMaps<Stored> levels[kLevelsPerLaunch];
};

// The logit of an anchor by its index within the level, which counts rows, columns, then k.
template <class Stored>
__device__ __forceinline__ accumulate_t<Stored> logit_of(const AnchorLevelMaps<Stored>& level,
                                                         const Stored* logits, int anchor) {
  const int at = level.channels_last ? anchor
                                     : anchor % level.anchors_per_position *
                                               (level.anchors / level.anchors_per_position) +
                                           anchor / level.anchors_per_position;
  return static_cast<accumulate_t<Stored>>(logits[at]);
}

// The `top` anchors with the highest logits of a level of an image, in ascending order of their
// index, by one block. Rows are levels, then images. anchor_indices and out: [rows, max_top]; the
// end of a row is filled with -infinity.
template <class Stored>
__global__ void __launch_bounds__(kSelectThreads)
    select_top_kernel(PyramidMaps<Stored> maps, int64_t images, int64_t max_top,
                      int* anchor_indices, accumulate_t<Stored>* out) {
  using T = accumulate_t<Stored>;
  using Key = decltype(descending_key(T()));
  __shared__ int warp_below[kSelectWarps];
  __shared__ int warp_equal[kSelectWarps];
  const AnchorLevelMaps<Stored>& level = maps.levels[blockIdx.x / images];
  const Stored* logits = level.logits + blockIdx.x % images * level.anchors;
  anchor_indices += blockIdx.x * max_top;
  out += blockIdx.x * max_top;
  const int thread = threadIdx.x;
  const int warp = warp_index();
  const int lane = lane_index();
  for (int64_t i = level.top + thread; i < max_top; i += kSelectThreads) {
    anchor_indices[i] = 0;
    out[i] = -std::numeric_limits<T>::infinity();
  }
  if (level.top == 0) return;  // uniform in the block
  const SelectedKey<Key> last = block_radix_select<kSelectThreads, Key>(
      level.anchors, level.top, [&](int i) { return descending_key(static_cast<T>(logits[i])); });

  // Each warp has a range of anchors, in which it first counts those that it will write.
  const int steps = (level.anchors + kSelectThreads - 1) / kSelectThreads;
  const int begin = warp * steps * kWarpSize;
  int below = 0;
  int equal = 0;
  for (int step = 0; step < steps; ++step) {
    const int i = begin + step * kWarpSize + lane;
    const bool inside = i < level.anchors;
    const Key key = inside ? descending_key(logit_of(level, logits, i)) : Key(0);
    below += __popc(__ballot_sync(kFullWarp, inside && key < last.key));
    equal += __popc(__ballot_sync(kFullWarp, inside && key == last.key));
  }
  if (lane == 0) {
    warp_below[warp] = below;
    warp_equal[warp] = equal;
  }
  __syncthreads();
  below = scan_warp_counts(warp_below).before;
  equal = scan_warp_counts(warp_equal).before;
  for (int step = 0; step < steps; ++step) {
    const int i = begin + step * kWarpSize + lane;
    const bool inside = i < level.anchors;
    const T logit = inside ? logit_of(level, logits, i) : T(0);
    const Key key = descending_key(logit);
    const unsigned below_ballot = __ballot_sync(kFullWarp, inside && key < last.key);
    const unsigned equal_ballot = __ballot_sync(kFullWarp, inside && key == last.key);
    const int equal_before = equal + count_lanes_before(equal_ballot);
    const bool selected =
        inside && (key < last.key || (key == last.key && equal_before < last.equal_count));
    if (selected) {
      const int place =
          below + count_lanes_before(below_ballot) + min(equal_before, last.equal_count);
      anchor_indices[place] = i;
      // A NaN without a sign: the sort goes by the bits and would put other NaNs after the filling.
      out[place] = logit == logit ? logit : std::numeric_limits<T>::quiet_NaN();
    }
    below += __popc(below_ballot);
    equal += __popc(equal_ballot);
  }
}

// Decodes the selected anchors of a level of an image, which `order` sorts by logit, and runs NMS,
// by one block. scores and boxes: [N, top]; kept: [rows, max_top], a workspace.
template <class Stored>
__global__ void __launch_bounds__(kProposalThreads)
    suppress_proposals_kernel(PyramidMaps<Stored> maps, int64_t images, int64_t max_top,
                              int64_t top, int64_t max_proposals, const int* anchor_indices,
                              const accumulate_t<Stored>* logits, const int64_t* order,
                              const accumulate_t<Stored>* anchors, int64_t anchor_stride,
                              const accumulate_t<Stored>* sizes,
                              BoxCoder<accumulate_t<Stored>> coder, accumulate_t<Stored> min_score,
                              accumulate_t<Stored> min_side, accumulate_t<Stored> bound,
                              Box<accumulate_t<Stored>>* kept, accumulate_t<Stored>* scores,
                              Box<accumulate_t<Stored>>* boxes) {
  using T = accumulate_t<Stored>;
  __shared__ BlockNmsShared<T> shared;
  const AnchorLevelMaps<Stored>& level = maps.levels[blockIdx.x / images];
  const int64_t image = blockIdx.x % images;
  const int64_t row = blockIdx.x * max_top;
  const Stored* deltas = level.deltas + image * level.delta_strides[0];
  const int64_t first = image * top + level.first_top;
  T score = T(0);
  const auto load = [&](int64_t rank, Box<T>& box) {
    const int64_t slot = row + order[row + rank];
    const int anchor_index = anchor_indices[slot];
    const int position = anchor_index / level.anchors_per_position;
    const Stored* delta = deltas +
                          4 * (anchor_index % level.anchors_per_position) * level.delta_strides[1] +
                          position / level.width * level.delta_strides[2] +
                          position % level.width * level.delta_strides[3];
    const BoxDeltas<T> box_deltas = load_deltas(delta, level.delta_strides[1], coder);
    const Box<T> anchor =
        load_box<T>(anchors + image * anchor_stride + 4 * (level.first_anchor + anchor_index));
    box = clip_box(decode_box(anchor, box_deltas, std::exp(box_deltas.log_width),
                              std::exp(box_deltas.log_height)),
                   sizes[2 * image + 1], sizes[2 * image]);
    score = T(1) / (T(1) + std::exp(-logits[slot]));
    return score >= min_score && has_min_size(box, min_side) && is_finite(box);
  };
  const auto finish = [&](int64_t rank, bool is_kept, const Box<T>& box) {
    scores[first + rank] = is_kept ? score : T(kNoScore);
    if (is_kept) boxes[first + rank] = box;
  };
  block_nms<kProposalThreads>(shared, level.top, max_proposals, bound, kept + row, load, finish);
}

// The proposals of each image in order of score, padded. scores, order and boxes: [N, top];
// out_boxes and out_scores: [N, max_proposals]
template <class T>
__global__ void __launch_bounds__(kProposalThreads)
    gather_proposals_kernel(const T* scores, const int64_t* order, const Box<T>* boxes,
                            int64_t images, int64_t top, int64_t max_proposals, Box<T>* out_boxes,
                            T* out_scores, int64_t* counts) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kProposalThreads + threadIdx.x;
       i < images * max_proposals; i += static_cast<int64_t>(gridDim.x) * kProposalThreads) {
    const int64_t image = i / max_proposals;
    const int64_t place = i % max_proposals;
    const int64_t at = image * top + place;
    const bool is_proposal = scores[at] >= T(0);
    out_scores[i] = is_proposal ? scores[at] : T(0);
    out_boxes[i] = is_proposal ? boxes[image * top + order[at]] : Box<T>{};
    // The last proposal of an image knows their count.
    if (is_proposal && (place + 1 == max_proposals || scores[at + 1] < T(0))) {
      counts[image] = place + 1;
    }
    if (!is_proposal && place == 0) counts[image] = 0;
  }
}

template <class Stored>
std::vector<PyramidMaps<Stored>> make_maps(const AnchorPyramid& pyramid,
                                           const std::vector<DenseMap>& logits,
                                           const std::vector<Tensor>& deltas) {
  std::vector<PyramidMaps<Stored>> launches(ceil_div(pyramid.levels.size(), kLevelsPerLaunch));
  for (size_t l = 0; l < pyramid.levels.size(); ++l) {
    const AnchorLevel& level = pyramid.levels[l];
    AnchorLevelMaps<Stored>& maps = launches[l / kLevelsPerLaunch].levels[l % kLevelsPerLaunch];
    maps.logits = logits[l].tensor.const_data_ptr<Stored>();
    maps.deltas = deltas[l].const_data_ptr<Stored>();
    for (int d = 0; d < 4; ++d) maps.delta_strides[d] = deltas[l].strides()[d];
    maps.anchors = static_cast<int>(level.anchors());
    maps.anchors_per_position = static_cast<int>(level.anchors_per_position);
    maps.width = static_cast<int>(level.width);
    maps.channels_last = logits[l].channels_last;
    maps.top = static_cast<int>(level.top);
    maps.first_anchor = level.first_anchor;
    maps.first_top = level.first_top;
  }
  return launches;
}

// logits: [N, K_l, H_l, W_l], deltas: [N, 4 K_l, H_l, W_l], anchors: [A, 4] or [N, A, 4],
// image_sizes: [N, 2] -> boxes [N, P, 4], scores [N, P], counts [N]
std::tuple<Tensor, Tensor, Tensor> generate_proposals_cuda(
    const std::vector<Tensor>& logits, const std::vector<Tensor>& deltas, const Tensor& anchors,
    const Tensor& image_sizes, int64_t pre_nms_top_n, int64_t post_nms_top_n, double iou_threshold,
    double score_threshold, double min_size, const std::vector<double>& weights,
    const std::vector<double>& means, double max_log_ratio) {
  const DecodingOptions options{weights, means, max_log_ratio, min_size};
  const AnchorPyramid pyramid = check_generate_proposals(logits, deltas, anchors, image_sizes,
                                                         pre_nms_top_n, post_nms_top_n, options);
  const Tensor& like = logits[0];
  const CudaScope scope(like);
  const int64_t images = pyramid.images;
  const int64_t top = pyramid.top;
  const int64_t max_proposals = std::min(post_nms_top_n, top);
  const int64_t max_top = pyramid.max_top();
  const auto levels = static_cast<int64_t>(pyramid.levels.size());
  const ScalarType dtype = like.scalar_type();
  const ScalarType computed = accumulate_dtype(dtype);
  Tensor boxes = empty_on_device_of(like, {images, max_proposals, 4}, computed);
  Tensor scores = empty_on_device_of(like, {images, max_proposals}, computed);
  Tensor counts = empty_on_device_of(like, {images}, ScalarType::Long);
  if (images * max_proposals == 0) {
    torch::stable::zero_(counts);
    return {boxes, scores, counts};
  }
  std::vector<DenseMap> maps;
  for (const Tensor& map : logits) maps.push_back(dense_map(map));
  const Tensor all_anchors = contiguous_as(anchors, computed);
  const Tensor sizes = contiguous_as(image_sizes, computed);
  Tensor anchor_indices = empty_on_device_of(like, {levels * images, max_top}, ScalarType::Int);
  Tensor selected_logits = empty_on_device_of(like, {levels * images, max_top}, computed);
  Tensor kept = empty_on_device_of(like, {levels * images, max_top, 4}, computed);
  Tensor all_scores = empty_on_device_of(like, {images, top}, computed);
  Tensor all_boxes = empty_on_device_of(like, {images, top, 4}, computed);

  dispatch_floating(dtype, "generate_proposals", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    const auto launches = make_maps<Stored>(pyramid, maps, deltas);
    const auto rows_before = [&](size_t l) {
      return static_cast<int64_t>(l) * kLevelsPerLaunch * images;
    };
    const auto grid_of = [&](size_t l) {
      const int64_t rows = std::min(levels * images - rows_before(l), kLevelsPerLaunch * images);
      return dim3(static_cast<unsigned>(rows));
    };
    auto* anchor_of = anchor_indices.mutable_data_ptr<int>();
    auto* logit_of = selected_logits.mutable_data_ptr<T>();
    for (size_t l = 0; l < launches.size(); ++l) {
      const int64_t skip = rows_before(l) * max_top;
      launch("generate_proposals: select_top", select_top_kernel<Stored>,
             {grid_of(l), dim3(kSelectThreads)}, scope, launches[l], images, max_top,
             anchor_of + skip, logit_of + skip);
    }
    const Tensor by_logit = stable_sort(selected_logits, 1, /*descending=*/true).indices;
    for (size_t l = 0; l < launches.size(); ++l) {
      const int64_t skip = rows_before(l) * max_top;
      launch("generate_proposals: suppress", suppress_proposals_kernel<Stored>,
             {grid_of(l), dim3(kProposalThreads)}, scope, launches[l], images, max_top, top,
             max_proposals, anchor_of + skip, logit_of + skip,
             by_logit.const_data_ptr<int64_t>() + skip, all_anchors.const_data_ptr<T>(),
             anchors.dim() == 3 ? 4 * pyramid.anchors : 0, sizes.const_data_ptr<T>(),
             options.coder<T>(), static_cast<T>(score_threshold), static_cast<T>(min_size),
             suppression_bound<T>(iou_threshold),
             reinterpret_cast<Box<T>*>(kept.mutable_data_ptr<T>()) + skip,
             all_scores.mutable_data_ptr<T>(),
             reinterpret_cast<Box<T>*>(all_boxes.mutable_data_ptr<T>()));
    }
    const auto by_score = stable_sort(all_scores, 1, /*descending=*/true);
    launch("generate_proposals: gather", gather_proposals_kernel<T>,
           {dim3(stride_grid(images * max_proposals, kProposalThreads)), dim3(kProposalThreads)},
           scope, by_score.values.const_data_ptr<T>(), by_score.indices.const_data_ptr<int64_t>(),
           reinterpret_cast<const Box<T>*>(all_boxes.const_data_ptr<T>()), images, top,
           max_proposals, reinterpret_cast<Box<T>*>(boxes.mutable_data_ptr<T>()),
           scores.mutable_data_ptr<T>(), counts.mutable_data_ptr<int64_t>());
  });
  return {boxes, scores, counts};
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) {
  RCNN_REGISTER(m, "generate_proposals", generate_proposals_cuda, logits, deltas, anchors,
                image_sizes);
}
