// Arguments that generate_proposals and postprocess_detections share, checked for CPU and CUDA.
#pragma once

#include <cstdint>
#include <vector>

#include "box_coding.h"
#include "checks.h"

namespace rcnn_ext {

// How boxes are decoded and which are too small, as the operators get it.
struct DecodingOptions {
  const std::vector<double>& weights;
  const std::vector<double>& means;
  double max_log_ratio;
  double min_size;

  void check(const char* op) const {
    RCNN_CHECK(weights.size() == 4 && means.size() == 4, op,
               ": expected four weights and four means, got ", weights.size(), " and ",
               means.size());
    for (const double weight : weights) {
      RCNN_CHECK(weight > 0, op, ": expected positive weights, got ", weight);
    }
  }
  template <class T>
  BoxCoder<T> coder() const {
    BoxCoder<T> coder;
    for (int c = 0; c < 4; ++c) {
      coder.weights[c] = static_cast<T>(weights[c]);
      coder.shifts[c] = static_cast<T>(means[c] * weights[c]);
    }
    coder.max_log_ratio = static_cast<T>(max_log_ratio);
    return coder;
  }
};

inline void check_max_count(int64_t max_count, const char* op, const char* argument) {
  RCNN_CHECK(max_count > 0, op, ": expected a positive ", argument, ", got ", max_count);
}

// image_sizes: [N, 2] (height, width)
inline void check_image_sizes(const Tensor& image_sizes, const Tensor& like, const char* op) {
  RCNN_CHECK(image_sizes.dim() == 2 && image_sizes.size(1) == 2, op,
             ": expected image_sizes of shape [N, 2] (height, width), got ", shape_of(image_sizes));
  RCNN_CHECK(!is_complex(image_sizes.scalar_type()), op,
             ": expected image_sizes to be real numbers, got ", name_of(image_sizes.scalar_type()));
  check_same_device(image_sizes, like, op, "image_sizes", "logits");
}

}  // namespace rcnn_ext
