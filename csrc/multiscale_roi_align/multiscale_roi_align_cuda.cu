// RoIAlign over the levels of a feature pyramid, on CUDA. Contract:
// rcnn_ext/ops/multiscale_roi_align.py.
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../roi_align/roi_align_backward_cuda_kernels.cuh"
#include "../roi_align/roi_align_forward_cuda_kernels.cuh"
#include "multiscale_roi_align.h"
#include "multiscale_roi_align_cuda.cuh"

namespace rcnn_ext {
namespace {

// inputs: [N, C, H, W] each, finest first, rois: [K, 5] (batch index, x1, y1, x2, y2; image pixels)
// -> [K, C, PH, PW]
Tensor multiscale_roi_align_cuda(const std::vector<Tensor>& inputs, const Tensor& rois,
                                 const std::vector<double>& spatial_scales, int64_t pooled_height,
                                 int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                                 double canonical_scale, int64_t canonical_level) {
  const PyramidOptions options{spatial_scales,
                               {1.0, pooled_height, pooled_width, sampling_ratio, aligned},
                               canonical_scale,
                               canonical_level};
  check_multiscale_roi_align(inputs, rois, options);
  const CudaScope scope(inputs[0]);
  const ScalarType dtype = inputs[0].scalar_type();
  const bool channels_last = is_channels_last(inputs[0]);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  std::vector<Tensor> maps;
  for (const Tensor& input : inputs) maps.push_back(dense_map_as(input, channels_last));
  Tensor output =
      empty_map(inputs[0], {rois.size(0), inputs[0].size(1), pooled_height, pooled_width}, dtype,
                channels_last);
  if (output.numel() == 0) return output;
  dispatch_floating(dtype, "multiscale_roi_align", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    const auto levels = pyramid_levels<const Stored>(maps, options);
    launch_align("multiscale_roi_align", levels, static_cast<int>(maps.size()), channels_last,
                 dense_rois.const_data_ptr<accumulate_t<Stored>>(), rois.size(0), options.align,
                 scope, output.mutable_data_ptr<Stored>());
  });
  return output;
}

// grad: [K, C, PH, PW], rois: [K, 5] -> gradients of the inputs, [N, C, H, W] each
std::vector<Tensor> multiscale_roi_align_backward_cuda(
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
  const CudaScope scope(grad);
  const ScalarType dtype = grad.scalar_type();
  const DenseMap upstream = dense_map(grad);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  std::vector<Tensor> results;
  bool any = false;
  for (const FeatureShape& shape : shapes) {
    results.push_back(
        empty_map(grad, {batch_size, channels, shape.height, shape.width}, dtype, channels_last));
    any = any || results.back().numel() > 0;
  }
  if (!any) return results;
  dispatch_floating(dtype, "multiscale_roi_align_backward", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    const RoiAlignGradient<Stored> pooling{upstream.tensor.const_data_ptr<Stored>(),
                                           dense_rois.const_data_ptr<accumulate_t<Stored>>(),
                                           options.align};
    const auto levels = pyramid_levels<Stored>(results, options);
    launch_roi_gather("multiscale_roi_align_backward", pooling, grad, levels,
                      static_cast<int>(results.size()), channels_last, rois.size(0), pooled_height,
                      pooled_width, upstream.channels_last, scope);
  });
  return results;
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) {
  RCNN_REGISTER(m, "multiscale_roi_align", multiscale_roi_align_cuda, inputs, rois);
  RCNN_REGISTER(m, "multiscale_roi_align_backward", multiscale_roi_align_backward_cuda, grad, rois);
}
