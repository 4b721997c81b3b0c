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
                                          double spatial_scale, const FeatureShape& shape) {
  const T scale = static_cast<T>(spatial_scale);
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
    const PoolRoi<T> roi = make_pool_roi(rois + 5 * rest, options, options.spatial_scale, shape);
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

// What roi_gather.cuh asks for: a bin gives its gradient to the pixel of its maximum.
template <class StoredType>
struct PoolGradient {
  using Stored = StoredType;
  using T = accumulate_t<Stored>;
  using Roi = PoolRoi<T>;
  static constexpr bool kSeparable = false;
  const Stored* grad;     // [K, C, PH, PW]
  const T* rois;          // [K, 5]
  const int32_t* argmax;  // [K, C, PH, PW], in the layout of grad
  PoolOptions options;

  __device__ __forceinline__ Roi make_roi(const T* roi, double spatial_scale,
                                          const FeatureShape& shape) const {
    return make_pool_roi(roi, options, spatial_scale, shape);
  }
  __device__ __forceinline__ ReachedPixels reach(const Roi& roi) const {
    if (!roi.y.valid || !roi.x.valid) return {0, 0, 0, 0};
    return {static_cast<int>(pool_bin(roi.y, 0).first),
            static_cast<int>(pool_bin(roi.y, options.pooled_height - 1).last),
            static_cast<int>(pool_bin(roi.x, 0).first),
            static_cast<int>(pool_bin(roi.x, options.pooled_width - 1).last)};
  }
  template <int kCount>
  bool takes(int64_t channels) const {
    return takes_packs(grad, channels, kCount) && takes_packs(argmax, channels, kCount);
  }
  template <class Visit>
  __device__ __forceinline__ void visit_y(const Roi& roi, int64_t bin, int64_t first, int64_t last,
                                          Visit visit) const {
    visit_bin(roi.y, bin, first, last, visit);
  }
  template <class Visit>
  __device__ __forceinline__ void visit_x(const Roi& roi, int64_t bin, int64_t first, int64_t last,
                                          Visit visit) const {
    visit_bin(roi.x, bin, first, last, visit);
  }
  // Of a bin to the pixels `pixel`, `pixel + row_step`, ... of a column.
  template <bool kPacks, int kRows, int kChannels>
  __device__ __forceinline__ void add(int64_t element, int channels, int64_t channel_stride,
                                      int64_t pixel, int64_t row_step,
                                      T (&sums)[kRows][kChannels]) const {
    Pack<int32_t, kChannels> maxima;
    Pack<Stored, kChannels> grads;
    if constexpr (kPacks) {
      maxima = load_pack<kChannels>(argmax + element);
      grads = load_pack<kChannels>(grad + element);
    } else {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        maxima.values[c] = c < channels ? argmax[element + c * channel_stride] : -1;
        grads.values[c] = c < channels ? grad[element + c * channel_stride] : Stored(0);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (maxima.values[c] == pixel) sums[r][c] += static_cast<T>(grads.values[c]);
      }
      pixel += row_step;
    }
  }

 private:
  template <class Visit>
  __device__ __forceinline__ static void visit_bin(const PoolAxis<T>& axis, int64_t bin,
                                                   int64_t first, int64_t last, Visit visit) {
    const PixelRange range = pool_bin(axis, bin);
    for (int64_t p = max(range.first, first); p < min(range.last, last); ++p) visit(p, T(1));
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
        static_cast<const accumulate_t<Stored>*>(dense_rois.const_data_ptr()),
        static_cast<const int32_t*>(pixels_of_maxima.const_data_ptr()), options};
    launch_roi_gather(
        "roi_pool_backward", pooling, grad,
        one_level(static_cast<Stored*>(result.mutable_data_ptr()), shape, spatial_scale), 1,
        channels_last, rois.size(0), options.pooled_height, options.pooled_width,
        upstream.channels_last, scope);
  });
  return result;
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) {
  m.impl("roi_pool", TORCH_BOX(&rcnn_ext::roi_pool_cuda));
  m.impl("roi_pool_backward", TORCH_BOX(&rcnn_ext::roi_pool_backward_cuda));
}
