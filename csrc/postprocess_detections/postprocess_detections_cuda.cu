// Detections of a whole batch on CUDA. Contract: rcnn_ext/ops/postprocess_detections.py.
//
// score_kernel writes the scores above the threshold class by class, and PyTorch sorts those of
// each class. suppress_detections_kernel, one block per class and image, runs NMS. PyTorch sorts
// the scores of the kept candidates, and gather_detections_kernel, one block per image, writes the
// best of them, padded. All sizes are known beforehand, so nothing synchronizes. Boxes are decoded
// anew wherever they are needed, and never stored for all classes.
#include <tuple>

#include "../core/dispatch.h"
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../cuda/block_primitives.cuh"
#include "../cuda/launch.cuh"
#include "../nms/nms_block_cuda_kernels.cuh"
#include "postprocess_detections.h"

namespace rcnn_ext {
namespace {

constexpr int kDetectionThreads = 256;  // per block of all kernels; untuned
constexpr int kDetectionWarps = kDetectionThreads / kWarpSize;

// The score of a candidate that is not a detection; scores are probabilities.
constexpr int kNoScore = -1;

// RoIs and their predictions. A candidate is a RoI and a class, counted from 0 without background.
template <class Stored>
struct Predictions {
  using T = accumulate_t<Stored>;
  const T* probabilities;    // [R, candidate classes + 1]
  const Stored* deltas;      // [R, delta_boxes, 4]
  const T* rois;             // [R, 4]
  const int64_t* image_ids;  // [R]
  const T* sizes;            // [N, 2]
  BoxCoder<T> coder;
  int64_t images, count, classes, delta_boxes;

  RCNN_HOST_DEVICE bool in_batch(int64_t roi) const {
    return image_ids[roi] >= 0 && image_ids[roi] < images;
  }
  // in_batch(roi) must hold.
  RCNN_HOST_DEVICE Box<T> box(int64_t roi, int64_t label) const {
    const int64_t delta_box = delta_boxes == 1 ? 0 : label + 1;
    const BoxDeltas<T> box_deltas =
        load_deltas(deltas + 4 * (roi * delta_boxes + delta_box), 1, coder);
    const T* size = sizes + 2 * image_ids[roi];
    return clip_box(decode_box(load_box<T>(rois + 4 * roi), box_deltas,
                               std::exp(box_deltas.log_width), std::exp(box_deltas.log_height)),
                    size[1], size[0]);
  }
};

// The scores of valid candidates class by class, and kept_scores initialized to "none kept".
// by_class: [classes, R], kept_scores: [R, classes]
template <class Stored>
__global__ void __launch_bounds__(kDetectionThreads)
    score_kernel(Predictions<Stored> predictions, accumulate_t<Stored> threshold,
                 accumulate_t<Stored> min_side, accumulate_t<Stored>* by_class,
                 accumulate_t<Stored>* kept_scores) {
  using T = accumulate_t<Stored>;
  const int64_t classes = predictions.classes;
  const int64_t candidates = predictions.count * classes;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kDetectionThreads + threadIdx.x;
       i < candidates; i += static_cast<int64_t>(gridDim.x) * kDetectionThreads) {
    const int64_t roi = i / classes;
    const int64_t label = i % classes;
    T score = predictions.probabilities[roi * (classes + 1) + label + 1];
    if (!(score > threshold) || !predictions.in_batch(roi)) {
      score = T(kNoScore);
    } else {
      const Box<T> box = predictions.box(roi, label);
      if (!has_min_size(box, min_side) || !is_finite(box)) score = T(kNoScore);
    }
    by_class[label * predictions.count + roi] = score;
    kept_scores[i] = T(kNoScore);
  }
}

// How many of the descending scores are not kNoScore, by binary search.
template <class T>
__device__ int64_t count_scores(const T* scores, int64_t count) {
  int64_t low = 0;
  int64_t high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (scores[middle] >= T(0)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// NMS of one class of one image, by one block. scores and order: [classes, R], sorted; kept:
// [classes * N, max_kept_per_class], a workspace; kept_scores: [R, classes]
template <class Stored>
__global__ void __launch_bounds__(kDetectionThreads)
    suppress_detections_kernel(Predictions<Stored> predictions, const accumulate_t<Stored>* scores,
                               const int64_t* order, accumulate_t<Stored> bound,
                               int64_t max_kept_per_class, Box<accumulate_t<Stored>>* kept,
                               accumulate_t<Stored>* kept_scores) {
  using T = accumulate_t<Stored>;
  __shared__ BlockNmsShared<T> shared;
  const int64_t label = blockIdx.x / predictions.images;
  const int64_t image = blockIdx.x % predictions.images;
  scores += label * predictions.count;
  order += label * predictions.count;
  const int64_t count = count_scores(scores, predictions.count);
  const auto load = [&](int64_t rank, Box<T>& box) {
    const int64_t roi = order[rank];
    if (predictions.image_ids[roi] != image) {
      box = Box<T>{};
      return false;
    }
    box = predictions.box(roi, label);
    return true;
  };
  const auto finish = [&](int64_t rank, bool is_kept, const Box<T>&) {
    if (is_kept) kept_scores[order[rank] * predictions.classes + label] = scores[rank];
  };
  block_nms<kDetectionThreads>(shared, count, max_kept_per_class, bound,
                               kept + blockIdx.x * max_kept_per_class, load, finish);
}

// The best kept candidates of an image, padded, by one block. scores and order: [R * classes],
// sorted; out_boxes, out_scores, out_labels, out_rois: [N, max_detections]
template <class Stored>
__global__ void __launch_bounds__(kDetectionThreads)
    gather_detections_kernel(Predictions<Stored> predictions, const accumulate_t<Stored>* scores,
                             const int64_t* order, int64_t max_detections,
                             Box<accumulate_t<Stored>>* out_boxes, accumulate_t<Stored>* out_scores,
                             int64_t* out_labels, int64_t* out_rois, int64_t* counts) {
  using T = accumulate_t<Stored>;
  __shared__ int warp_counts[kDetectionWarps];
  const int64_t image = blockIdx.x;
  const int64_t first_out = image * max_detections;
  const int64_t count = count_scores(scores, predictions.count * predictions.classes);
  int64_t found = 0;
  for (int64_t base = 0; base < count && found < max_detections; base += kDetectionThreads) {
    const int64_t rank = base + threadIdx.x;
    const int64_t candidate = rank < count ? order[rank] : 0;
    const int64_t roi = candidate / predictions.classes;
    const bool is_of_image = rank < count && predictions.image_ids[roi] == image;
    const BlockCount of_image = block_count_flags(is_of_image, warp_counts);
    const int64_t place = found + of_image.before;
    if (is_of_image && place < max_detections) {
      const int64_t label = candidate % predictions.classes;
      out_boxes[first_out + place] = predictions.box(roi, label);
      out_scores[first_out + place] = scores[rank];
      out_labels[first_out + place] = label + 1;
      out_rois[first_out + place] = roi;
    }
    found += of_image.total;
    __syncthreads();  // the next round overwrites the counts of the warps
  }
  found = min(found, max_detections);
  if (threadIdx.x == 0) counts[image] = found;
  for (int64_t place = found + threadIdx.x; place < max_detections; place += kDetectionThreads) {
    out_boxes[first_out + place] = Box<T>{};
    out_scores[first_out + place] = T(0);
    out_labels[first_out + place] = 0;
    out_rois[first_out + place] = 0;
  }
}

// logits: [R, K], deltas: [R, 4 K] or [R, 4], rois: [R, 4], image_ids: [R] int64,
// image_sizes: [N, 2] -> boxes [N, D, 4], scores [N, D], labels [N, D], RoIs [N, D], counts [N]
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> postprocess_detections_cuda(
    const Tensor& logits, const Tensor& deltas, const Tensor& rois, const Tensor& image_ids,
    const Tensor& image_sizes, double score_threshold, double iou_threshold,
    int64_t detections_per_image, double min_size, const std::vector<double>& weights,
    const std::vector<double>& means, double max_log_ratio) {
  const DecodingOptions options{weights, means, max_log_ratio, min_size};
  check_postprocess_detections(logits, deltas, rois, image_ids, image_sizes, detections_per_image,
                               options);
  const CudaScope scope(logits);
  const int64_t count = logits.size(0);
  const int64_t classes = logits.size(1) - 1;
  const int64_t images = image_sizes.size(0);
  const int64_t max_detections = std::min(detections_per_image, count * classes);
  const ScalarType computed = accumulate_dtype(logits.scalar_type());
  DetectionTensors out = empty_detections(logits, images, max_detections);
  if (images * max_detections == 0) {
    torch::stable::zero_(out.counts);
    return out.all();
  }
  const DetectionInputs in = dense_inputs(logits, deltas, rois, image_ids, image_sizes);
  const int64_t max_kept_per_class = std::min(max_detections, count);
  Tensor by_class = empty_on_device_of(logits, {classes, count}, computed);
  Tensor kept_scores = empty_on_device_of(logits, {count * classes}, computed);
  Tensor kept = empty_on_device_of(logits, {classes * images, max_kept_per_class, 4}, computed);

  dispatch_floating(logits.scalar_type(), "postprocess_detections", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    const Predictions<Stored> predictions{in.probabilities.const_data_ptr<T>(),
                                          in.deltas.const_data_ptr<Stored>(),
                                          in.rois.const_data_ptr<T>(),
                                          in.image_ids.const_data_ptr<int64_t>(),
                                          in.sizes.const_data_ptr<T>(),
                                          options.coder<T>(),
                                          images,
                                          count,
                                          classes,
                                          deltas.size(1) / 4};
    launch("postprocess_detections: score", score_kernel<Stored>,
           {dim3(stride_grid(count * classes, kDetectionThreads)), dim3(kDetectionThreads)}, scope,
           predictions, static_cast<T>(score_threshold), static_cast<T>(min_size),
           by_class.mutable_data_ptr<T>(), kept_scores.mutable_data_ptr<T>());
    const auto sorted = stable_sort(by_class, 1, /*descending=*/true);
    launch("postprocess_detections: suppress", suppress_detections_kernel<Stored>,
           {dim3(static_cast<unsigned>(classes * images)), dim3(kDetectionThreads)}, scope,
           predictions, sorted.values.const_data_ptr<T>(), sorted.indices.const_data_ptr<int64_t>(),
           suppression_bound<T>(iou_threshold), max_kept_per_class,
           reinterpret_cast<Box<T>*>(kept.mutable_data_ptr<T>()),
           kept_scores.mutable_data_ptr<T>());
    const auto best = stable_sort(kept_scores, 0, /*descending=*/true);
    launch("postprocess_detections: gather", gather_detections_kernel<Stored>,
           {dim3(static_cast<unsigned>(images)), dim3(kDetectionThreads)}, scope, predictions,
           best.values.const_data_ptr<T>(), best.indices.const_data_ptr<int64_t>(), max_detections,
           reinterpret_cast<Box<T>*>(out.boxes.mutable_data_ptr<T>()),
           out.scores.mutable_data_ptr<T>(), out.labels.mutable_data_ptr<int64_t>(),
           out.rois.mutable_data_ptr<int64_t>(), out.counts.mutable_data_ptr<int64_t>());
  });
  return out.all();
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) {
  RCNN_REGISTER(m, "postprocess_detections", postprocess_detections_cuda, logits, deltas, rois,
                image_ids, image_sizes);
}
