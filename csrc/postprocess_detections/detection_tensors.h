// What postprocess_detections reads and gives, the same on CPU and CUDA.
#pragma once

#include <tuple>

#include "../core/dispatch.h"
#include "../core/stable_ops.h"

namespace rcnn_ext {

// Dense, and in the dtype that is computed in; deltas in their own.
struct DetectionInputs {
  Tensor probabilities;  // [R, K]
  Tensor deltas;         // [R, 4 K] or [R, 4]
  Tensor rois;           // [R, 4]
  Tensor image_ids;      // [R] int64
  Tensor sizes;          // [N, 2]
};

// Of arguments that were checked.
inline DetectionInputs dense_inputs(const Tensor& logits, const Tensor& deltas, const Tensor& rois,
                                    const Tensor& image_ids, const Tensor& image_sizes) {
  const ScalarType computed = accumulate_dtype(logits.scalar_type());
  return {softmax(contiguous_as(logits, computed)), contiguous_as(deltas, deltas.scalar_type()),
          contiguous_as(rois, computed), contiguous_as(image_ids, ScalarType::Long),
          contiguous_as(image_sizes, computed)};
}

// The results of N images with D detections each.
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

// Not filled.
inline DetectionTensors empty_detections(const Tensor& logits, int64_t images, int64_t most) {
  const ScalarType computed = accumulate_dtype(logits.scalar_type());
  return {empty_on_device_of(logits, {images, most, 4}, computed),
          empty_on_device_of(logits, {images, most}, computed),
          empty_on_device_of(logits, {images, most}, ScalarType::Long),
          empty_on_device_of(logits, {images, most}, ScalarType::Long),
          empty_on_device_of(logits, {images}, ScalarType::Long)};
}

}  // namespace rcnn_ext
