// RoIAlign on CUDA. Contract: rcnn_ext/ops/roi_align.py.
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "roi_align_backward_cuda_kernels.cuh"
#include "roi_align_forward_cuda_kernels.cuh"

namespace rcnn_ext {
namespace {

// input: [N, C, H, W], rois: [K, 5] (batch index, x1, y1, x2, y2; image pixels) -> [K, C, PH, PW]
Tensor roi_align_cuda(const Tensor& input, const Tensor& rois, double spatial_scale,
                      int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                      bool aligned) {
  const RoiAlignOptions options{spatial_scale, pooled_height, pooled_width, sampling_ratio,
                                aligned};
  check_roi_align(input, rois, options);
  const CudaScope scope(input);
  const FeatureShape shape{input.size(0), input.size(1), input.size(2), input.size(3)};
  const ScalarType dtype = input.scalar_type();
  const DenseMap features = dense_map(input);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  Tensor output = empty_map(input, {rois.size(0), shape.channels, pooled_height, pooled_width},
                            dtype, features.channels_last);
  if (output.numel() == 0) return output;
  dispatch_floating(dtype, "roi_align", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    launch_align("roi_align",
                 one_level(features.tensor.const_data_ptr<Stored>(), shape, spatial_scale), 1,
                 features.channels_last, dense_rois.const_data_ptr<accumulate_t<Stored>>(),
                 rois.size(0), options, scope, output.mutable_data_ptr<Stored>());
  });
  return output;
}

// grad: [K, C, PH, PW], rois: [K, 5] -> gradient of the input, [N, C, H, W]
Tensor roi_align_backward_cuda(const Tensor& grad, const Tensor& rois, double spatial_scale,
                               int64_t pooled_height, int64_t pooled_width, int64_t batch_size,
                               int64_t channels, int64_t height, int64_t width,
                               int64_t sampling_ratio, bool aligned, bool channels_last) {
  const RoiAlignOptions options{spatial_scale, pooled_height, pooled_width, sampling_ratio,
                                aligned};
  const FeatureShape shape{batch_size, channels, height, width};
  check_roi_align_backward(grad, rois, shape, options);
  const CudaScope scope(grad);
  const ScalarType dtype = grad.scalar_type();
  const DenseMap upstream = dense_map(grad);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  Tensor result = empty_map(grad, {batch_size, channels, height, width}, dtype, channels_last);
  if (result.numel() == 0) return result;
  dispatch_floating(dtype, "roi_align_backward", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    const RoiAlignGradient<Stored> pooling{upstream.tensor.const_data_ptr<Stored>(),
                                           dense_rois.const_data_ptr<accumulate_t<Stored>>(),
                                           options};
    launch_roi_gather("roi_align_backward", pooling, grad,
                      one_level(result.mutable_data_ptr<Stored>(), shape, spatial_scale), 1,
                      channels_last, rois.size(0), pooled_height, pooled_width,
                      upstream.channels_last, scope);
  });
  return result;
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) {
  RCNN_REGISTER(m, "roi_align", roi_align_cuda, input, rois);
  RCNN_REGISTER(m, "roi_align_backward", roi_align_backward_cuda, grad, rois);
}
