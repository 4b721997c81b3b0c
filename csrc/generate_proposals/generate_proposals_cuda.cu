// Proposals of a whole batch on CUDA. Contract: rcnn_ext/ops/generate_proposals.py.
//
// One block for each level of each image finds the best anchors (a radix select on the logits, no
// sort of all of them); PyTorch sorts those; one block for each decodes and suppresses them;
// PyTorch sorts what remains of each image, and a last kernel gathers it. Every size is known
// beforehand: nothing synchronises.
#include <tuple>

#include "../core/dispatch.h"
#include "../core/sort_key.h"
#include "../core/stable_ops.h"
#include "../cuda/launch.cuh"
#include "../nms/nms_block_cuda_kernels.cuh"
#include "generate_proposals.h"

namespace rcnn_ext {
namespace {

constexpr int kSelectThreads = 1024;
constexpr int kSelectWarps = kSelectThreads / kWarpSize;
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kThreads = 256;
constexpr int kLevelsPerLaunch = 8;

// Scores are probabilities: this marks a box that is none.
constexpr int kNoScore = -1;

template <class Stored>
struct LevelMaps {
  const Stored* logits;  // [N, anchors], in the order of memory
  const Stored* deltas;
  int64_t delta_strides[4];  // image, channel, row, column
  int anchors, shapes, width;
  bool channels_last;
  int top;
  int64_t first_anchor, first_top;
};

// As a kernel's argument, so that nothing is copied to the device before.
template <class Stored>
struct Maps {
  LevelMaps<Stored> levels[kLevelsPerLaunch];
};

// The logit of an anchor by its number: row, column and k.
template <class Stored>
__device__ __forceinline__ accumulate_t<Stored> logit_of(const LevelMaps<Stored>& level,
                                                         const Stored* logits, int anchor) {
  const int at = level.channels_last ? anchor
                                     : anchor % level.shapes * (level.anchors / level.shapes) +
                                           anchor / level.shapes;
  return static_cast<accumulate_t<Stored>>(logits[at]);
}

// The key of rank `top` (from 1) among those of the logits, and how many equal ones it takes:
// digit by digit from the highest, a histogram of those that agree so far.
template <class Stored, class Key>
__device__ void find_last_key(const LevelMaps<Stored>& level, const Stored* logits, Key* last,
                              int* equal_wanted) {
  using T = accumulate_t<Stored>;
  __shared__ int histogram[kDigits];
  const int thread = threadIdx.x;
  Key prefix = 0;
  int wanted = level.top;
  for (int shift = sizeof(Key) * 8 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    if (thread < kDigits) histogram[thread] = 0;
    __syncthreads();
    // All lanes go round as often, for those that vote.
    for (int base = 0; base < level.anchors; base += kSelectThreads) {
      const int i = base + thread;
      int digit = -1;
      if (i < level.anchors) {
        const Key key = descending_key(static_cast<T>(logits[i]));
        // Shifted in two steps: by all bits at once is undefined.
        if ((key ^ prefix) >> shift >> kDigitBits == 0) {
          digit = static_cast<int>(key >> shift & (kDigits - 1));
        }
      }
      // One addition for all lanes of a digit: logits are alike in their first ones.
      const unsigned alike = __match_any_sync(kFullWarp, digit);
      if (digit >= 0 && __ffs(static_cast<int>(alike)) - 1 == thread % kWarpSize) {
        atomicAdd(&histogram[digit], __popc(alike));
      }
    }
    __syncthreads();
    // Every thread walks through the histogram: the result needs no broadcast.
    int digit = 0;
    while (histogram[digit] < wanted) wanted -= histogram[digit++];
    prefix |= static_cast<Key>(digit) << shift;
    __syncthreads();  // the next round clears it
  }
  *last = prefix;
  *equal_wanted = wanted;
}

// One block: the best anchors of a level of an image, in order of their number. Rows are levels,
// then images. numbers and out: [rows, longest]; a row's end is filled with -infinity.
template <class Stored>
__global__ void __launch_bounds__(kSelectThreads)
    select_top_kernel(Maps<Stored> maps, int64_t images, int64_t longest, int* numbers,
                      accumulate_t<Stored>* out) {
  using T = accumulate_t<Stored>;
  using Key = decltype(descending_key(T()));
  __shared__ int below_of_warp[kSelectWarps];
  __shared__ int equal_of_warp[kSelectWarps];
  const LevelMaps<Stored>& level = maps.levels[blockIdx.x / images];
  const Stored* logits = level.logits + blockIdx.x % images * level.anchors;
  numbers += blockIdx.x * longest;
  out += blockIdx.x * longest;
  const int thread = threadIdx.x;
  const int warp = thread / kWarpSize;
  const int lane = thread % kWarpSize;
  for (int64_t i = level.top + thread; i < longest; i += kSelectThreads) {
    numbers[i] = 0;
    out[i] = -std::numeric_limits<T>::infinity();
  }
  if (level.top == 0) return;  // the same for the whole block
  Key last;
  int equal_wanted;
  find_last_key(level, logits, &last, &equal_wanted);

  // Each warp has a range of anchors; it first counts what it will write.
  const int steps = (level.anchors + kSelectThreads - 1) / kSelectThreads;
  const int begin = warp * steps * kWarpSize;
  int below = 0;
  int equal = 0;
  for (int step = 0; step < steps; ++step) {
    const int i = begin + step * kWarpSize + lane;
    const bool inside = i < level.anchors;
    const Key key = inside ? descending_key(logit_of(level, logits, i)) : Key(0);
    below += __popc(__ballot_sync(kFullWarp, inside && key < last));
    equal += __popc(__ballot_sync(kFullWarp, inside && key == last));
  }
  if (lane == 0) {
    below_of_warp[warp] = below;
    equal_of_warp[warp] = equal;
  }
  __syncthreads();
  below = 0;
  equal = 0;
  for (int w = 0; w < warp; ++w) {
    below += below_of_warp[w];
    equal += equal_of_warp[w];
  }
  for (int step = 0; step < steps; ++step) {
    const int i = begin + step * kWarpSize + lane;
    const bool inside = i < level.anchors;
    const T logit = inside ? logit_of(level, logits, i) : T(0);
    const Key key = descending_key(logit);
    const unsigned lower = (1u << lane) - 1;
    const unsigned are_below = __ballot_sync(kFullWarp, inside && key < last);
    const unsigned are_equal = __ballot_sync(kFullWarp, inside && key == last);
    const int equal_before = equal + __popc(are_equal & lower);
    const bool chosen = inside && (key < last || (key == last && equal_before < equal_wanted));
    if (chosen) {
      const int place = below + __popc(are_below & lower) + min(equal_before, equal_wanted);
      numbers[place] = i;
      // The NaN without a sign: the sort goes by the bits, and would put others behind the filling.
      out[place] = logit == logit ? logit : std::numeric_limits<T>::quiet_NaN();
    }
    below += __popc(are_below);
    equal += __popc(are_equal);
  }
}

// One block: decodes the chosen anchors of a level of an image, which `order` sorts by logit, and
// suppresses them. scores and boxes: [N, T]; kept: [rows, longest], a workspace.
template <class Stored>
__global__ void __launch_bounds__(kThreads)
    suppress_proposals_kernel(Maps<Stored> maps, int64_t images, int64_t longest, int64_t top,
                              int64_t most, const int* numbers, const accumulate_t<Stored>* logits,
                              const int64_t* order, const accumulate_t<Stored>* anchors,
                              int64_t anchor_stride, const accumulate_t<Stored>* sizes,
                              BoxCoder<accumulate_t<Stored>> coder,
                              accumulate_t<Stored> least_score, accumulate_t<Stored> least_side,
                              accumulate_t<Stored> bound, Box<accumulate_t<Stored>>* kept,
                              accumulate_t<Stored>* scores, Box<accumulate_t<Stored>>* boxes) {
  using T = accumulate_t<Stored>;
  __shared__ RowGroup<T> group;
  const LevelMaps<Stored>& level = maps.levels[blockIdx.x / images];
  const int64_t image = blockIdx.x % images;
  const int64_t row = blockIdx.x * longest;
  const Stored* deltas = level.deltas + image * level.delta_strides[0];
  const int64_t first = image * top + level.first_top;
  T score = T(0);
  const auto load = [&](int64_t rank, Box<T>& box) {
    const int64_t slot = row + order[row + rank];
    const int number = numbers[slot];
    const int position = number / level.shapes;
    const Stored* delta = deltas + 4 * (number % level.shapes) * level.delta_strides[1] +
                          position / level.width * level.delta_strides[2] +
                          position % level.width * level.delta_strides[3];
    const BoxDeltas<T> change = load_deltas(delta, level.delta_strides[1], coder);
    const Box<T> anchor =
        load_box<T>(anchors + image * anchor_stride + 4 * (level.first_anchor + number));
    box = clip_box(
        decode_box(anchor, change, std::exp(change.log_width), std::exp(change.log_height)),
        sizes[2 * image + 1], sizes[2 * image]);
    score = T(1) / (T(1) + std::exp(-logits[slot]));
    return score >= least_score && has_min_size(box, least_side) && is_finite(box);
  };
  const auto finish = [&](int64_t rank, bool stays, const Box<T>& box) {
    scores[first + rank] = stays ? score : T(kNoScore);
    if (stays) boxes[first + rank] = box;
  };
  suppress_row<kThreads>(group, level.top, most, bound, kept + row, load, finish);
}

// What is left of each image, in order of score, padded. order and scores: [N, T]; boxes: [N, T];
// out: [N, most]
template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_proposals_kernel(const T* scores, const int64_t* order, const Box<T>* boxes,
                            int64_t images, int64_t top, int64_t most, Box<T>* out_boxes,
                            T* out_scores, int64_t* counts) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < images * most;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t image = i / most;
    const int64_t place = i % most;
    const int64_t at = image * top + place;
    const bool is_one = scores[at] >= T(0);
    out_scores[i] = is_one ? scores[at] : T(0);
    out_boxes[i] = is_one ? boxes[image * top + order[at]] : Box<T>{};
    // The last one knows their number.
    if (is_one && (place + 1 == most || scores[at + 1] < T(0))) counts[image] = place + 1;
    if (!is_one && place == 0) counts[image] = 0;
  }
}

template <class Stored>
std::vector<Maps<Stored>> make_maps(const AnchorPyramid& pyramid,
                                    const std::vector<DenseMap>& logits,
                                    const std::vector<Tensor>& deltas) {
  std::vector<Maps<Stored>> launches(ceil_div(pyramid.levels.size(), kLevelsPerLaunch));
  for (size_t l = 0; l < pyramid.levels.size(); ++l) {
    const AnchorLevel& level = pyramid.levels[l];
    LevelMaps<Stored>& maps = launches[l / kLevelsPerLaunch].levels[l % kLevelsPerLaunch];
    maps.logits = logits[l].tensor.const_data_ptr<Stored>();
    maps.deltas = deltas[l].const_data_ptr<Stored>();
    for (int d = 0; d < 4; ++d) maps.delta_strides[d] = deltas[l].strides()[d];
    maps.anchors = static_cast<int>(level.anchors());
    maps.shapes = static_cast<int>(level.shapes);
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
  const int64_t most = std::min(post_nms_top_n, top);
  const int64_t longest = pyramid.max_top();
  const auto levels = static_cast<int64_t>(pyramid.levels.size());
  const ScalarType dtype = like.scalar_type();
  const ScalarType computed = accumulate_dtype(dtype);
  Tensor boxes = empty_on_device_of(like, {images, most, 4}, computed);
  Tensor scores = empty_on_device_of(like, {images, most}, computed);
  Tensor counts = empty_on_device_of(like, {images}, ScalarType::Long);
  if (images * most == 0) {
    torch::stable::zero_(counts);
    return {boxes, scores, counts};
  }
  std::vector<DenseMap> maps;
  for (const Tensor& map : logits) maps.push_back(dense_map(map));
  const Tensor all_anchors = contiguous_as(anchors, computed);
  const Tensor sizes = contiguous_as(image_sizes, computed);
  Tensor numbers = empty_on_device_of(like, {levels * images, longest}, ScalarType::Int);
  Tensor chosen = empty_on_device_of(like, {levels * images, longest}, computed);
  Tensor kept = empty_on_device_of(like, {levels * images, longest, 4}, computed);
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
    auto* number_of = numbers.mutable_data_ptr<int>();
    auto* logit_of = chosen.mutable_data_ptr<T>();
    for (size_t l = 0; l < launches.size(); ++l) {
      const int64_t skip = rows_before(l) * longest;
      launch("generate_proposals: select_top", select_top_kernel<Stored>,
             {grid_of(l), dim3(kSelectThreads)}, scope, launches[l], images, longest,
             number_of + skip, logit_of + skip);
    }
    const Tensor by_logit = stable_sort(chosen, 1, /*descending=*/true).indices;
    for (size_t l = 0; l < launches.size(); ++l) {
      const int64_t skip = rows_before(l) * longest;
      launch("generate_proposals: suppress", suppress_proposals_kernel<Stored>,
             {grid_of(l), dim3(kThreads)}, scope, launches[l], images, longest, top, most,
             number_of + skip, logit_of + skip, by_logit.const_data_ptr<int64_t>() + skip,
             all_anchors.const_data_ptr<T>(), anchors.dim() == 3 ? 4 * pyramid.anchors : 0,
             sizes.const_data_ptr<T>(), options.coder<T>(), static_cast<T>(score_threshold),
             static_cast<T>(min_size), suppression_bound<T>(iou_threshold),
             reinterpret_cast<Box<T>*>(kept.mutable_data_ptr<T>()) + skip,
             all_scores.mutable_data_ptr<T>(),
             reinterpret_cast<Box<T>*>(all_boxes.mutable_data_ptr<T>()));
    }
    const auto by_score = stable_sort(all_scores, 1, /*descending=*/true);
    launch("generate_proposals: gather", gather_proposals_kernel<T>,
           {dim3(stride_grid(images * most, kThreads)), dim3(kThreads)}, scope,
           by_score.values.const_data_ptr<T>(), by_score.indices.const_data_ptr<int64_t>(),
           reinterpret_cast<const Box<T>*>(all_boxes.const_data_ptr<T>()), images, top, most,
           reinterpret_cast<Box<T>*>(boxes.mutable_data_ptr<T>()), scores.mutable_data_ptr<T>(),
           counts.mutable_data_ptr<int64_t>());
  });
  return {boxes, scores, counts};
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) {
  m.impl("generate_proposals", TORCH_BOX(&rcnn_ext::generate_proposals_cuda));
}
