// The arguments of postprocess_detections, checked for CPU and CUDA, and its inputs and outputs.
#pragma once

#include <cstdint>
#include <limits>
#include <tuple>

#include "../core/box_decoding_options.h"
#include "../core/checks.h"
#include "../core/dispatch.h"
#include "../core/stable_ops.h"

namespace rcnn_ext {

// logits: [R, K], deltas: [R, 4 K] or [R, 4], rois: [R, 4], image_ids: [R] int64
inline void check_postprocess_detections(const Tensor& logits, const Tensor& deltas,
                                         const Tensor& rois, const Tensor& image_ids,
                                         const Tensor& image_sizes, int64_t detections_per_image,
                                         const DecodingOptions& options) {
  const char* op = "postprocess_detections";
  check_floating(logits, op, "logits");
  RCNN_CHECK(logits.dim() == 2 && logits.size(1) > 0, op, ": expected logits of shape [R, K], got ",
             shape_of(logits));
  const int64_t count = logits.size(0);
  const int64_t classes = logits.size(1);
  RCNN_CHECK(deltas.dim() == 2 && deltas.size(0) == count &&
                 (deltas.size(1) == 4 * classes || deltas.size(1) == 4),
             op, ": expected deltas of shape [", count, ", ", 4 * classes, "] or [", count,
             ", 4], got ", shape_of(deltas));
  RCNN_CHECK(deltas.scalar_type() == logits.scalar_type(), op,
             ": expected logits and deltas of one dtype, got ", name_of(logits.scalar_type()),
             " and ", name_of(deltas.scalar_type()));
  check_floating(rois, op, "rois");
  RCNN_CHECK(rois.dim() == 2 && rois.size(0) == count && rois.size(1) == 4, op,
             ": expected rois of shape [", count, ", 4], got ", shape_of(rois));
  RCNN_CHECK(image_ids.dim() == 1 && image_ids.size(0) == count, op,
             ": expected image_ids of shape [", count, "], got ", shape_of(image_ids));
  RCNN_CHECK(image_ids.scalar_type() == ScalarType::Long, op,
             ": expected image_ids to be int64, got ", name_of(image_ids.scalar_type()));
  check_same_device(deltas, logits, op, "deltas", "logits");
  check_same_device(rois, logits, op, "rois", "logits");
  check_same_device(image_ids, logits, op, "image_ids", "logits");
  check_image_sizes(image_sizes, logits, op);
  check_max_count(detections_per_image, op, "detections_per_image");
  options.check(op);
  RCNN_CHECK(count * classes <= std::numeric_limits<int32_t>::max(), op,
             ": expected at most 2^31 - 1 scores, got ", count, " times ", classes);
}

// Contiguous and in the dtype to compute in, but for the deltas, which keep theirs.
struct DetectionInputs {
  Tensor probabilities;  // [R, K]
  Tensor deltas;         // [R, 4 K] or [R, 4]
  Tensor rois;           // [R, 4]
  Tensor image_ids;      // [R] int64
  Tensor sizes;          // [N, 2]
};

// The arguments must have been checked.
inline DetectionInputs dense_inputs(const Tensor& logits, const Tensor& deltas, const Tensor& rois,
                                    const Tensor& image_ids, const Tensor& image_sizes) {
  const ScalarType computed = accumulate_dtype(logits.scalar_type());
  return {softmax(contiguous_as(logits, computed)), contiguous_as(deltas, deltas.scalar_type()),
          contiguous_as(rois, computed), contiguous_as(image_ids, ScalarType::Long),
          contiguous_as(image_sizes, computed)};
}

// The results for N images with D detections each.
struct DetectionTensors {
  Tensor boxes;   // [N, D, 4]
  Tensor scores;  // [N, D]
  Tensor labels;  // [N, D] int64
  Tensor rois;    // [N, D] int64
  Tensor counts;  // [N] int64

  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> all() const {
    return {boxes, scores, labels, rois, counts};
  }
};

// Allocate the results, uninitialized.
inline DetectionTensors empty_detections(const Tensor& logits, int64_t images,
                                         int64_t max_detections) {
  const ScalarType computed = accumulate_dtype(logits.scalar_type());
  return {empty_on_device_of(logits, {images, max_detections, 4}, computed),
          empty_on_device_of(logits, {images, max_detections}, computed),
          empty_on_device_of(logits, {images, max_detections}, ScalarType::Long),
          empty_on_device_of(logits, {images, max_detections}, ScalarType::Long),
          empty_on_device_of(logits, {images}, ScalarType::Long)};
}

}  // namespace rcnn_ext
