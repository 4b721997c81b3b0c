// RoIAlign over the levels of a feature pyramid, on the CPU. Contract:
// rcnn_ext/ops/multiscale_roi_align.py.
#include <torch/csrc/stable/library.h>

#include "../core/dispatch.h"
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../roi_align/roi_align_cpu.h"
#include "multiscale_roi_align.h"

namespace rcnn_ext {
namespace {

// rois: [K, 5] -> [K]
template <class T>
std::vector<int32_t> levels_of(const Tensor& rois, const PyramidRule& rule) {
  const auto* data = rois.const_data_ptr<T>();
  std::vector<int32_t> levels(rois.size(0));
  for (size_t k = 0; k < levels.size(); ++k) {
    levels[k] = static_cast<int32_t>(pyramid_level(data + 5 * k, rule));
  }
  return levels;
}

RoiAlignRequest make_request(const char* op, const Tensor& rois, ScalarType dtype,
                             const PyramidOptions& options) {
  const Tensor dense = contiguous_as(rois, accumulate_dtype(dtype));
  const PyramidRule rule = options.rule();
  return {
      op, dense,
      dtype == ScalarType::Double ? levels_of<double>(dense, rule) : levels_of<float>(dense, rule),
      options.spatial_scales, options.align};
}

// inputs: [N, C, H, W] each, finest first, rois: [K, 5] (batch index, x1, y1, x2, y2; image pixels)
// -> [K, C, PH, PW]
Tensor multiscale_roi_align_cpu(const std::vector<Tensor>& inputs, const Tensor& rois,
                                const std::vector<double>& spatial_scales, int64_t pooled_height,
                                int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                                double canonical_scale, int64_t canonical_level) {
  const PyramidOptions options{spatial_scales,
                               {1.0, pooled_height, pooled_width, sampling_ratio, aligned},
                               canonical_scale,
                               canonical_level};
  check_multiscale_roi_align(inputs, rois, options);
  return roi_align_levels(
      inputs, make_request("multiscale_roi_align", rois, inputs[0].scalar_type(), options));
}

// grad: [K, C, PH, PW], rois: [K, 5] -> gradients of the inputs, [N, C, H, W] each
std::vector<Tensor> multiscale_roi_align_backward_cpu(
    const Tensor& grad, const Tensor& rois, const std::vector<double>& spatial_scales,
    int64_t pooled_height, int64_t pooled_width, int64_t batch_size, int64_t channels,
    const std::vector<int64_t>& heights, const std::vector<int64_t>& widths, int64_t sampling_ratio,
    bool aligned, double canonical_scale, int64_t canonical_level, bool channels_last) {
  const PyramidOptions options{spatial_scales,
                               {1.0, pooled_height, pooled_width, sampling_ratio, aligned},
                               canonical_scale,
                               canonical_level};
  const auto shapes = check_multiscale_roi_align_backward(grad, rois, batch_size, channels, heights,
                                                          widths, options);
  return roi_align_backward_levels(
      grad, shapes,
      make_request("multiscale_roi_align_backward", rois, grad.scalar_type(), options),
      channels_last);
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  RCNN_REGISTER(m, "multiscale_roi_align", multiscale_roi_align_cpu, inputs, rois);
  RCNN_REGISTER(m, "multiscale_roi_align_backward", multiscale_roi_align_backward_cpu, grad, rois);
}
