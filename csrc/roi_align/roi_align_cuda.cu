// RoIAlign on CUDA. Contract: rcnn_ext/ops/roi_align.py.
#include <limits>

#include "../common/cuda_utils.cuh"
#include "../common/dispatch.h"
#include "../common/roi_gather.cuh"
#include "../common/roi_math.h"
#include "../common/stable_ops.h"
#include "roi_align_checks.h"

namespace rcnn_ext {
namespace {

constexpr int kThreads = 256;

// A RoI divided into bins: what one thread needs of it.
template <class T>
struct AlignRoi {
  int64_t batch;  // -1: outside the batch
  AlignAxis<T> y, x;
  T count;  // samples a bin is averaged over
};

// roi: [5] (batch index, x1, y1, x2, y2), image pixels
template <class T>
RCNN_HOST_DEVICE AlignRoi<T> make_align_roi(const T* roi, const AlignOptions& options,
                                            const FeatureShape& shape) {
  const T scale = static_cast<T>(options.spatial_scale);
  AlignRoi<T> result;
  result.batch = roi_batch_index(roi[0], shape.batch_size);
  result.y = make_align_axis(roi[2], roi[4], scale, options.pooled_height, options.sampling_ratio,
                             options.aligned, shape.height);
  result.x = make_align_axis(roi[1], roi[3], scale, options.pooled_width, options.sampling_ratio,
                             options.aligned, shape.width);
  result.count = align_sample_count(result.y, result.x);
  return result;
}

// One thread an output element. A RoI with a bad batch index reads nothing and gives zeros.
// input: [N, C, H, W], rois: [K, 5], out: [K, C, PH, PW], maps in one layout
template <class Stored, bool kChannelsLast, class Index>
__global__ void __launch_bounds__(kThreads)
    roi_align_kernel(const Stored* input, const accumulate_t<Stored>* rois, Index outputs,
                     FeatureShape shape, AlignOptions options, Stored* out) {
  using T = accumulate_t<Stored>;
  const Index channels = static_cast<Index>(shape.channels);
  const Index pooled_height = static_cast<Index>(options.pooled_height);
  const Index pooled_width = static_cast<Index>(options.pooled_width);
  const int64_t pixels = shape.height * shape.width;
  const MapStrides strides = MapStrides::of(kChannelsLast, shape.channels, pixels);
  const Index step = static_cast<Index>(gridDim.x) * kThreads;
  for (Index o = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; o < outputs; o += step) {
    Index rest = o;
    Index c, ph, pw;
    if (kChannelsLast) {
      c = rest % channels;
      rest /= channels;
    }
    pw = rest % pooled_width;
    rest /= pooled_width;
    ph = rest % pooled_height;
    rest /= pooled_height;
    if (!kChannelsLast) {
      c = rest % channels;
      rest /= channels;
    }
    const AlignRoi<T> roi = make_align_roi(rois + 5 * static_cast<int64_t>(rest), options, shape);
    T sum = T(0);
    if (roi.batch >= 0) {
      const Stored* plane = input + roi.batch * shape.channels * pixels + c * strides.channel;
      const SampleRange ys = samples_within(roi.y, ph, T(-1), T(shape.height));
      const SampleRange xs = samples_within(roi.x, pw, T(-1), T(shape.width));
      for (int64_t iy = ys.first; iy < ys.last; ++iy) {
        const AxisSample<T> y = interpolate(sample_position(roi.y, ph, iy), shape.height);
        if (y.weight_low == T(0) && y.weight_high == T(0)) continue;
        const Stored* low = plane + y.low * shape.width * strides.pixel;
        const Stored* high = plane + y.high * shape.width * strides.pixel;
        for (int64_t ix = xs.first; ix < xs.last; ++ix) {
          const AxisSample<T> x = interpolate(sample_position(roi.x, pw, ix), shape.width);
          if (x.weight_low == T(0) && x.weight_high == T(0)) continue;
          const int64_t left = x.low * strides.pixel;
          const int64_t right = x.high * strides.pixel;
          sum += y.weight_low * (x.weight_low * static_cast<T>(low[left]) +
                                 x.weight_high * static_cast<T>(low[right])) +
                 y.weight_high * (x.weight_low * static_cast<T>(high[left]) +
                                  x.weight_high * static_cast<T>(high[right]));
        }
      }
    }
    out[o] = static_cast<Stored>(sum / roi.count);
  }
}

template <class Stored, bool kChannelsLast>
void launch_roi_align(const Tensor& input, const Tensor& rois, const FeatureShape& shape,
                      const AlignOptions& options, const CudaScope& scope, Tensor& output) {
  using T = accumulate_t<Stored>;
  const int64_t outputs = output.numel();
  const LaunchShape blocks{dim3(stride_grid(outputs, kThreads)), dim3(kThreads)};
  const auto run = [&](auto kernel) {
    launch("roi_align", kernel, blocks, scope, static_cast<const Stored*>(input.const_data_ptr()),
           static_cast<const T*>(rois.const_data_ptr()), outputs, shape, options,
           static_cast<Stored*>(output.mutable_data_ptr()));
  };
  // 32-bit division is several times faster; a step beyond the last element must not overflow.
  if (outputs < std::numeric_limits<int32_t>::max()) {
    run(roi_align_kernel<Stored, kChannelsLast, uint32_t>);
  } else {
    run(roi_align_kernel<Stored, kChannelsLast, int64_t>);
  }
}

// input: [N, C, H, W], rois: [K, 5] (batch index, x1, y1, x2, y2; image pixels) -> [K, C, PH, PW]
Tensor roi_align_cuda(const Tensor& input, const Tensor& rois, double spatial_scale,
                      int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                      bool aligned) {
  const AlignOptions options{spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned};
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
    if (features.channels_last) {
      launch_roi_align<Stored, true>(features.tensor, dense_rois, shape, options, scope, output);
    } else {
      launch_roi_align<Stored, false>(features.tensor, dense_rois, shape, options, scope, output);
    }
  });
  return output;
}

// The Pooling of roi_gather.cuh.
template <class Stored>
struct AlignGradient {
  using T = accumulate_t<Stored>;
  using Roi = AlignRoi<T>;
  const Stored* grad;  // [K, C, PH, PW]
  const T* rois;       // [K, 5]
  AlignOptions options;
  FeatureShape shape;

  RCNN_HOST_DEVICE Roi roi(int64_t k) const { return make_align_roi(rois + 5 * k, options, shape); }
  RCNN_HOST_DEVICE static bool spans(const AlignAxis<T>& axis, int64_t bins, int64_t first,
                                     int64_t last) {
    const T end = axis.start + T(bins) * axis.bin_size;
    // A sample reaches less than a pixel, and rounding moves it by less than another.
    const T slack = T(2) + (std::fabs(axis.start) + std::fabs(end)) * T(1e-5);
    return (axis.start < end ? axis.start : end) - slack <= T(last) &&
           (axis.start < end ? end : axis.start) + slack >= T(first);
  }
  RCNN_HOST_DEVICE bool touches(const Roi& roi, int64_t image, const Tile& tile) const {
    return roi.batch == image && spans(roi.y, options.pooled_height, tile.y, tile.y_end) &&
           spans(roi.x, options.pooled_width, tile.x, tile.x_end);
  }
  RCNN_HOST_DEVICE T y_weight(const Roi& roi, int64_t bin, int64_t y) const {
    return align_weight(roi.y, bin, y) / roi.count;
  }
  RCNN_HOST_DEVICE T x_weight(const Roi& roi, int64_t bin, int64_t x) const {
    return align_weight(roi.x, bin, x);
  }
  RCNN_HOST_DEVICE T gradient(const Roi&, int64_t element, int64_t, T y_weight, T x_weight) const {
    return y_weight * x_weight * static_cast<T>(grad[element]);
  }
};

// grad: [K, C, PH, PW], rois: [K, 5] -> gradient of the input, [N, C, H, W]
Tensor roi_align_backward_cuda(const Tensor& grad, const Tensor& rois, double spatial_scale,
                               int64_t pooled_height, int64_t pooled_width, int64_t batch_size,
                               int64_t channels, int64_t height, int64_t width,
                               int64_t sampling_ratio, bool aligned, bool channels_last) {
  const AlignOptions options{spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned};
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
    const AlignGradient<Stored> pooling{
        static_cast<const Stored*>(upstream.tensor.const_data_ptr()),
        static_cast<const accumulate_t<Stored>*>(dense_rois.const_data_ptr()), options, shape};
    auto* out = static_cast<Stored*>(result.mutable_data_ptr());
    const auto run = [&](auto last) {
      launch_roi_gather<Stored, decltype(last)::value>("roi_align_backward", pooling, rois.size(0),
                                                       shape, pooled_height, pooled_width,
                                                       upstream.channels_last, scope, out);
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
  m.impl("roi_align", TORCH_BOX(&rcnn_ext::roi_align_cuda));
  m.impl("roi_align_backward", TORCH_BOX(&rcnn_ext::roi_align_backward_cuda));
}
