// The arguments of roi_pool, checked for CPU and CUDA, and the maximum that both take.
#pragma once

#include <limits>

#include "../common/checks.h"
#include "../common/host_device.h"

namespace rcnn_ext {

struct PoolOptions {
  double spatial_scale;
  int64_t pooled_height, pooled_width;
};

inline void check_plane_size(int64_t height, int64_t width, const char* op) {
  RCNN_CHECK(height == 0 || width <= std::numeric_limits<int32_t>::max() / height, op,
             ": expected an input of at most 2^31 - 1 pixels a channel, got ", height, " x ",
             width);
}

inline void check_roi_pool(const Tensor& input, const Tensor& rois, const PoolOptions& options) {
  check_roi_arguments(input, rois, "roi_pool");
  check_pooled_size(options.pooled_height, options.pooled_width, "roi_pool");
  check_spatial_scale(options.spatial_scale, "roi_pool");
  check_plane_size(input.size(2), input.size(3), "roi_pool");
}

inline void check_roi_pool_backward(const Tensor& grad, const Tensor& argmax, const Tensor& rois,
                                    const FeatureShape& shape, double spatial_scale) {
  check_feature_shape(shape, "roi_pool_backward");
  check_spatial_scale(spatial_scale, "roi_pool_backward");
  check_plane_size(shape.height, shape.width, "roi_pool_backward");
  RCNN_CHECK(grad.dim() == 4, "roi_pool_backward: expected grad of shape [K, C, PH, PW], got ",
             shape_of(grad));
  check_pooled_gradient(grad, rois, shape.channels, grad.size(2), grad.size(3),
                        "roi_pool_backward");
  RCNN_CHECK(argmax.scalar_type() == ScalarType::Int && shape_of(argmax) == shape_of(grad),
             "roi_pool_backward: expected argmax to be int32 of shape ", shape_of(grad), ", got ",
             name_of(argmax.scalar_type()), " of shape ", shape_of(argmax));
  check_same_device(grad, argmax, "roi_pool_backward", "grad", "argmax");
}

// The maximum of a bin and its first pixel; 0 and -1 for an empty bin. NaN counts as the largest
// number, as in torch.max.
template <class T>
class RunningMaximum {
 public:
  RCNN_HOST_DEVICE void add(T value, int32_t pixel) {
    // The negation makes a NaN take the place of any number, and keeps the first NaN.
    if (pixel_ < 0 || (value_ == value_ && !(value <= value_))) {
      value_ = value;
      pixel_ = pixel;
    }
  }
  RCNN_HOST_DEVICE T value() const { return value_; }
  RCNN_HOST_DEVICE int32_t pixel() const { return pixel_; }

 private:
  T value_ = T(0);
  int32_t pixel_ = -1;
};

}  // namespace rcnn_ext
