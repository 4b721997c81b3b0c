// The arguments of roi_pool, checked for CPU and CUDA, and the maximum that both take.
#pragma once

#include <limits>

#include "../core/checks.h"
#include "../core/roi_math.h"

namespace rcnn_ext {

struct PoolOptions {
  double spatial_scale;
  int64_t pooled_height, pooled_width;
};

inline void check_plane_size(int64_t height, int64_t width, const char* op) {
  RCNN_CHECK(height == 0 || width <= std::numeric_limits<int32_t>::max() / height, op,
             ": expected an input of at most 2^31 - 1 pixels per channel, got ", height, " x ",
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

// Whether a later value takes the place of a maximum: it is greater, or the first NaN. As in
// torch.max, NaN counts as the largest number.
template <class T>
RCNN_HOST_DEVICE bool takes_over(T value, T maximum) {
  return !(value <= maximum) && maximum == maximum;
}

// The maximum of a bin and its first pixel; 0 and -1 for an empty bin.
template <class T>
struct BinMaximum {
  T value;
  int32_t pixel;
};

// plane: [H, W] with `step` elements from pixel to pixel
template <class T, class Stored>
RCNN_HOST_DEVICE BinMaximum<T> bin_maximum(const PixelRange& ys, const PixelRange& xs,
                                           const Stored* plane, int64_t plane_width, int64_t step) {
  if (ys.first >= ys.last || xs.first >= xs.last) return {T(0), -1};
  int64_t pixel = ys.first * plane_width + xs.first;
  T maximum = static_cast<T>(plane[pixel * step]);
  for (int64_t y = ys.first; y < ys.last; ++y) {
    const int64_t row_end = y * plane_width + xs.last;
    for (int64_t p = y * plane_width + xs.first; p < row_end; ++p) {
      const T value = static_cast<T>(plane[p * step]);
      // takes_over(value, maximum) in two steps: only the first is taken for most pixels, and as a
      // branch, since conditional moves would make each pixel wait for the one before.
      if (RCNN_UNLIKELY(!(value <= maximum))) {
        if (maximum == maximum) {
          maximum = value;
          pixel = p;
        }
      }
    }
  }
  return {maximum, static_cast<int32_t>(pixel)};
}

}  // namespace rcnn_ext
