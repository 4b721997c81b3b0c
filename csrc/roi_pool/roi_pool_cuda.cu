// RoIPool on CUDA. Contract: rcnn_ext/ops/roi_pool.py.
#include "../common/cuda_utils.cuh"
#include "../common/dispatch.h"
#include "../common/roi_gather.cuh"
#include "../common/roi_math.h"
#include "../common/stable_ops.h"
#include "roi_pool_checks.h"

namespace rcnn_ext {
namespace {

constexpr int kThreads = 256;

// A RoI divided into bins.
template <class T>
struct PoolRoi {
  int64_t batch;  // -1: outside the batch
  PoolAxis<T> y, x;
};

// roi: [5] (batch index, x1, y1, x2, y2), image pixels
template <class T>
RCNN_HOST_DEVICE PoolRoi<T> make_pool_roi(const T* roi, const PoolOptions& options,
                                          const FeatureShape& shape) {
  const T scale = static_cast<T>(options.spatial_scale);
  return {roi_batch_index(roi[0], shape.batch_size),
          make_pool_axis(roi[2], roi[4], scale, options.pooled_height, shape.height),
          make_pool_axis(roi[1], roi[3], scale, options.pooled_width, shape.width)};
}

// One thread an output element. A RoI with a bad batch index reads nothing and gives zeros.
// input: [N, C, H, W], rois: [K, 5], out and argmax: [K, C, PH, PW], maps in one layout
template <class Stored, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    roi_pool_kernel(const Stored* input, const accumulate_t<Stored>* rois, int64_t outputs,
                    FeatureShape shape, PoolOptions options, Stored* out, int32_t* argmax) {
  using T = accumulate_t<Stored>;
  const int64_t pixels = shape.height * shape.width;
  const MapStrides strides = MapStrides::of(kChannelsLast, shape.channels, pixels);
  for (int64_t o = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; o < outputs;
       o += static_cast<int64_t>(gridDim.x) * kThreads) {
    int64_t rest = o;
    int64_t c, ph, pw;
    if (kChannelsLast) {
      c = rest % shape.channels;
      rest /= shape.channels;
    }
    pw = rest % options.pooled_width;
    rest /= options.pooled_width;
    ph = rest % options.pooled_height;
    rest /= options.pooled_height;
    if (!kChannelsLast) {
      c = rest % shape.channels;
      rest /= shape.channels;
    }
    const PoolRoi<T> roi = make_pool_roi(rois + 5 * rest, options, shape);
    BinMaximum<T> maximum{T(0), -1};
    if (roi.batch >= 0) {
      const Stored* plane = input + roi.batch * shape.channels * pixels + c * strides.channel;
      maximum = bin_maximum<T>(pool_bin(roi.y, ph), pool_bin(roi.x, pw), plane, shape.width,
                               strides.pixel);
    }
    out[o] = static_cast<Stored>(maximum.value);
    argmax[o] = maximum.pixel;
  }
}

// input: [N, C, H, W], rois: [K, 5] (batch index, x1, y1, x2, y2; image pixels)
// -> maxima [K, C, PH, PW] and their pixels y * W + x, int32 [K, C, PH, PW] (-1: empty bin)
std::tuple<Tensor, Tensor> roi_pool_cuda(const Tensor& input, const Tensor& rois,
                                         double spatial_scale, int64_t pooled_height,
                                         int64_t pooled_width) {
  const PoolOptions options{spatial_scale, pooled_height, pooled_width};
  check_roi_pool(input, rois, options);
  const CudaScope scope(input);
  const FeatureShape shape{input.size(0), input.size(1), input.size(2), input.size(3)};
  const ScalarType dtype = input.scalar_type();
  const DenseMap features = dense_map(input);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  Tensor output = empty_map(input, {rois.size(0), shape.channels, pooled_height, pooled_width},
                            dtype, features.channels_last);
  Tensor argmax = empty_map(input, {rois.size(0), shape.channels, pooled_height, pooled_width},
                            ScalarType::Int, features.channels_last);
  if (output.numel() == 0) return {output, argmax};
  dispatch_floating(dtype, "roi_pool", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    const auto run = [&](auto kernel) {
      launch("roi_pool", kernel, {dim3(stride_grid(output.numel(), kThreads)), dim3(kThreads)},
             scope, static_cast<const Stored*>(features.tensor.const_data_ptr()),
             static_cast<const accumulate_t<Stored>*>(dense_rois.const_data_ptr()), output.numel(),
             shape, options, static_cast<Stored*>(output.mutable_data_ptr()),
             static_cast<int32_t*>(argmax.mutable_data_ptr()));
    };
    if (features.channels_last) {
      run(roi_pool_kernel<Stored, true>);
    } else {
      run(roi_pool_kernel<Stored, false>);
    }
  });
  return {output, argmax};
}

// The Pooling of roi_gather.cuh: a bin gives its gradient to the pixel of its maximum.
template <class Stored>
struct PoolGradient {
  using T = accumulate_t<Stored>;
  using Roi = PoolRoi<T>;
  const Stored* grad;     // [K, C, PH, PW]
  const int32_t* argmax;  // [K, C, PH, PW], in the layout of grad
  const T* rois;          // [K, 5]
  PoolOptions options;
  FeatureShape shape;

  RCNN_HOST_DEVICE Roi roi(int64_t k) const { return make_pool_roi(rois + 5 * k, options, shape); }
  RCNN_HOST_DEVICE static bool spans(const PoolAxis<T>& axis, int64_t bins, int64_t first,
                                     int64_t last) {
    return axis.valid && pool_bin(axis, 0).first < last && pool_bin(axis, bins - 1).last > first;
  }
  RCNN_HOST_DEVICE bool touches(const Roi& roi, int64_t image, const Tile& tile) const {
    return roi.batch == image && spans(roi.y, options.pooled_height, tile.y, tile.y_end) &&
           spans(roi.x, options.pooled_width, tile.x, tile.x_end);
  }
  RCNN_HOST_DEVICE static T covers(const PoolAxis<T>& axis, int64_t bin, int64_t pixel) {
    const PixelRange range = pool_bin(axis, bin);
    return range.first <= pixel && pixel < range.last ? T(1) : T(0);
  }
  RCNN_HOST_DEVICE T y_weight(const Roi& roi, int64_t bin, int64_t y) const {
    return covers(roi.y, bin, y);
  }
  RCNN_HOST_DEVICE T x_weight(const Roi& roi, int64_t bin, int64_t x) const {
    return covers(roi.x, bin, x);
  }
  RCNN_HOST_DEVICE T gradient(const Roi&, int64_t element, int64_t pixel, T, T) const {
    return argmax[element] == pixel ? static_cast<T>(grad[element]) : T(0);
  }
};

// grad, argmax: [K, C, PH, PW], rois: [K, 5] -> gradient of the input, [N, C, H, W]
Tensor roi_pool_backward_cuda(const Tensor& grad, const Tensor& argmax, const Tensor& rois,
                              double spatial_scale, int64_t batch_size, int64_t channels,
                              int64_t height, int64_t width, bool channels_last) {
  const FeatureShape shape{batch_size, channels, height, width};
  check_roi_pool_backward(grad, argmax, rois, shape, spatial_scale);
  const CudaScope scope(grad);
  const ScalarType dtype = grad.scalar_type();
  const DenseMap upstream = dense_map(grad);
  const Tensor pixels_of_maxima = dense_map_as(argmax, upstream.channels_last);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  const PoolOptions options{spatial_scale, grad.size(2), grad.size(3)};
  Tensor result = empty_map(grad, {batch_size, channels, height, width}, dtype, channels_last);
  if (result.numel() == 0) return result;
  dispatch_floating(dtype, "roi_pool_backward", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    const PoolGradient<Stored> pooling{
        static_cast<const Stored*>(upstream.tensor.const_data_ptr()),
        static_cast<const int32_t*>(pixels_of_maxima.const_data_ptr()),
        static_cast<const accumulate_t<Stored>*>(dense_rois.const_data_ptr()), options, shape};
    auto* out = static_cast<Stored*>(result.mutable_data_ptr());
    const auto run = [&](auto last) {
      launch_roi_gather<Stored, decltype(last)::value>(
          "roi_pool_backward", pooling, rois.size(0), shape, options.pooled_height,
          options.pooled_width, upstream.channels_last, scope, out);
    };
    if (channels_last) {
      run(std::true_type{});
    } else {
      run(std::false_type{});
    }
  });
  return result;
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) {
  m.impl("roi_pool", TORCH_BOX(&rcnn_ext::roi_pool_cuda));
  m.impl("roi_pool_backward", TORCH_BOX(&rcnn_ext::roi_pool_backward_cuda));
}
