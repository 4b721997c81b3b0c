// RoIAlign on the CPU. Contract: rcnn_ext/ops/roi_align.py.
#include <torch/csrc/stable/library.h>

#include "roi_align.h"
#include "roi_align_levels_cpu.h"

namespace rcnn_ext {
namespace {

// input: [N, C, H, W], rois: [K, 5] (batch index, x1, y1, x2, y2; image pixels) -> [K, C, PH, PW]
Tensor roi_align_cpu(const Tensor& input, const Tensor& rois, double spatial_scale,
                     int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                     bool aligned) {
  const AlignOptions options{spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned};
  check_roi_align(input, rois, options);
  return align_levels({input}, {"roi_align", rois, {}, {spatial_scale}, options});
}

// grad: [K, C, PH, PW], rois: [K, 5] -> gradient of the input, [N, C, H, W]
Tensor roi_align_backward_cpu(const Tensor& grad, const Tensor& rois, double spatial_scale,
                              int64_t pooled_height, int64_t pooled_width, int64_t batch_size,
                              int64_t channels, int64_t height, int64_t width,
                              int64_t sampling_ratio, bool aligned, bool channels_last) {
  const AlignOptions options{spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned};
  const FeatureShape shape{batch_size, channels, height, width};
  check_roi_align_backward(grad, rois, shape, options);
  return align_levels_backward(
      grad, {shape}, {"roi_align_backward", rois, {}, {spatial_scale}, options}, channels_last)[0];
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&rcnn_ext::roi_align_cpu));
  m.impl("roi_align_backward", TORCH_BOX(&rcnn_ext::roi_align_backward_cpu));
}
