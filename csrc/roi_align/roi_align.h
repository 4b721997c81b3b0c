// The arguments of roi_align, checked for CPU and CUDA.
#pragma once

#include "../core/checks.h"

namespace rcnn_ext {

struct RoiAlignOptions {
  double spatial_scale;
  int64_t pooled_height, pooled_width;
  int64_t sampling_ratio;
  bool aligned;
};

// The samples of a bin are visited one by one, and their number is the square of this: a larger
// ratio than any map has pixels would only run for very long.
inline void check_sampling_ratio(int64_t sampling_ratio, const char* op) {
  constexpr int64_t kMaxSamplingRatio = 4096;
  RCNN_CHECK(sampling_ratio <= kMaxSamplingRatio, op, ": expected a sampling_ratio of at most ",
             kMaxSamplingRatio, ", got ", sampling_ratio);
}

inline void check_roi_align(const Tensor& input, const Tensor& rois,
                            const RoiAlignOptions& options) {
  check_roi_arguments(input, rois, "roi_align");
  check_pooled_size(options.pooled_height, options.pooled_width, "roi_align");
  check_spatial_scale(options.spatial_scale, "roi_align");
  check_sampling_ratio(options.sampling_ratio, "roi_align");
}

inline void check_roi_align_backward(const Tensor& grad, const Tensor& rois,
                                     const FeatureShape& shape, const RoiAlignOptions& options) {
  check_feature_shape(shape, "roi_align_backward");
  check_pooled_size(options.pooled_height, options.pooled_width, "roi_align_backward");
  check_spatial_scale(options.spatial_scale, "roi_align_backward");
  check_sampling_ratio(options.sampling_ratio, "roi_align_backward");
  check_pooled_gradient(grad, rois, shape.channels, options.pooled_height, options.pooled_width,
                        "roi_align_backward");
}

}  // namespace rcnn_ext
