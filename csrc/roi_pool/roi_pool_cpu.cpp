// RoIPool on the CPU. Contract: rcnn_ext/ops/roi_pool.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../common/dispatch.h"
#include "../common/roi_math.h"
#include "../common/stable_ops.h"
#include "roi_pool_checks.h"

namespace rcnn_ext {
namespace {

constexpr int64_t kChannelBlock = 32;

// The pixels of every bin of one RoI.
struct RoiBins {
  int64_t batch;
  std::vector<PixelRange> y, x;

  // roi: [5] (batch index, x1, y1, x2, y2), image pixels
  template <class T>
  void tabulate(const T* roi, const PoolOptions& options, const FeatureShape& shape) {
    const T scale = static_cast<T>(options.spatial_scale);
    const auto y_axis = make_pool_axis(roi[2], roi[4], scale, options.pooled_height, shape.height);
    const auto x_axis = make_pool_axis(roi[1], roi[3], scale, options.pooled_width, shape.width);
    batch = roi_batch_index(roi[0], shape.batch_size);
    y.clear();
    x.clear();
    for (int64_t ph = 0; ph < options.pooled_height; ++ph) y.push_back(pool_bin(y_axis, ph));
    for (int64_t pw = 0; pw < options.pooled_width; ++pw) x.push_back(pool_bin(x_axis, pw));
  }
};

// input: [N, C, H, W], rois: [K, 5] (batch index, x1, y1, x2, y2; image pixels)
// -> maxima [K, C, PH, PW] and their pixels y * W + x, int32 [K, C, PH, PW] (-1: empty bin)
std::tuple<Tensor, Tensor> roi_pool_cpu(const Tensor& input, const Tensor& rois,
                                        double spatial_scale, int64_t pooled_height,
                                        int64_t pooled_width) {
  const PoolOptions options{spatial_scale, pooled_height, pooled_width};
  check_roi_pool(input, rois, options);
  const FeatureShape shape{input.size(0), input.size(1), input.size(2), input.size(3)};
  const int64_t channels = shape.channels;
  const int64_t roi_count = rois.size(0);
  const ScalarType dtype = input.scalar_type();
  const DenseMap features = dense_map(input);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  Tensor output = empty_map(input, {roi_count, channels, pooled_height, pooled_width}, dtype,
                            features.channels_last);
  Tensor argmax = empty_map(input, {roi_count, channels, pooled_height, pooled_width},
                            ScalarType::Int, features.channels_last);

  dispatch_floating(dtype, "roi_pool", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    const auto* data = static_cast<const Stored*>(features.tensor.const_data_ptr());
    const auto* roi_data = static_cast<const T*>(dense_rois.const_data_ptr());
    auto* out = static_cast<Stored*>(output.mutable_data_ptr());
    auto* out_argmax = static_cast<int32_t*>(argmax.mutable_data_ptr());
    check_batch_indices(roi_data, roi_count, shape.batch_size, "roi_pool");
    if (output.numel() == 0) return;
    const int64_t bins = pooled_height * pooled_width;
    const int64_t pixels = shape.height * shape.width;
    const int64_t step = features.channels_last ? channels : 1;
    const int64_t channel_step = features.channels_last ? 1 : pixels;
    const int64_t out_step = features.channels_last ? channels : 1;
    const int64_t out_channel_step = features.channels_last ? 1 : bins;

    const int64_t blocks = (channels + kChannelBlock - 1) / kChannelBlock;
    torch::stable::parallel_for(0, roi_count * blocks, 2, [&](int64_t begin, int64_t end) {
      RoiBins table;
      int64_t tabulated = -1;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t k = task / blocks;
        if (k != tabulated) table.tabulate(roi_data + 5 * k, options, shape);
        tabulated = k;
        const int64_t first = task % blocks * kChannelBlock;
        const int64_t last = std::min(first + kChannelBlock, channels);
        for (int64_t bin = 0; bin < bins; ++bin) {
          const PixelRange ys = table.y[bin / pooled_width];
          const PixelRange xs = table.x[bin % pooled_width];
          for (int64_t c = first; c < last; ++c) {
            const Stored* plane = data + table.batch * channels * pixels + c * channel_step;
            RunningMaximum<T> maximum;
            for (int64_t y = ys.first; y < ys.last; ++y) {
              for (int64_t x = xs.first; x < xs.last; ++x) {
                const int64_t pixel = y * shape.width + x;
                maximum.add(static_cast<T>(plane[pixel * step]), static_cast<int32_t>(pixel));
              }
            }
            const int64_t target = k * channels * bins + c * out_channel_step + bin * out_step;
            out[target] = static_cast<Stored>(maximum.value());
            out_argmax[target] = maximum.pixel();
          }
        }
      }
    });
  });
  return {output, argmax};
}

// grad, argmax: [K, C, PH, PW], rois: [K, 5] -> gradient of the input, [N, C, H, W].
// Threads share out the channels, and each plane meets its RoIs in order: deterministic.
Tensor roi_pool_backward_cpu(const Tensor& grad, const Tensor& argmax, const Tensor& rois,
                             double spatial_scale, int64_t batch_size, int64_t channels,
                             int64_t height, int64_t width, bool channels_last) {
  const FeatureShape shape{batch_size, channels, height, width};
  check_roi_pool_backward(grad, argmax, rois, shape, spatial_scale);
  const int64_t roi_count = rois.size(0);
  const ScalarType dtype = grad.scalar_type();
  const DenseMap upstream = dense_map(grad);
  const Tensor pixels_of_maxima = dense_map_as(argmax, upstream.channels_last);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  Tensor result = empty_map(grad, {batch_size, channels, height, width}, dtype, channels_last);

  dispatch_floating(dtype, "roi_pool_backward", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    const auto* grad_data = static_cast<const Stored*>(upstream.tensor.const_data_ptr());
    const auto* argmax_data = static_cast<const int32_t*>(pixels_of_maxima.const_data_ptr());
    const auto* roi_data = static_cast<const T*>(dense_rois.const_data_ptr());
    auto* out = static_cast<Stored*>(result.mutable_data_ptr());
    check_batch_indices(roi_data, roi_count, batch_size, "roi_pool_backward");
    if (result.numel() == 0) return;
    const int64_t bins = grad.size(2) * grad.size(3);
    const int64_t pixels = height * width;
    const int64_t grad_step = upstream.channels_last ? channels : 1;
    const int64_t grad_channel = upstream.channels_last ? 1 : bins;
    const int64_t out_step = channels_last ? channels : 1;
    const int64_t out_channel = channels_last ? 1 : pixels;

    torch::stable::parallel_for(0, channels, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> plane(pixels);
      for (int64_t n = 0; n < batch_size; ++n) {
        for (int64_t c = begin; c < end; ++c) {
          std::fill(plane.begin(), plane.end(), T(0));
          for (int64_t k = 0; k < roi_count; ++k) {
            if (roi_batch_index(roi_data[5 * k], batch_size) != n) continue;
            const int64_t base = k * channels * bins + c * grad_channel;
            for (int64_t bin = 0; bin < bins; ++bin) {
              const int64_t pixel = argmax_data[base + bin * grad_step];
              // The upper bound keeps an argmax from elsewhere from writing out of bounds.
              if (pixel < 0 || pixel >= pixels) continue;
              plane[pixel] += static_cast<T>(grad_data[base + bin * grad_step]);
            }
          }
          Stored* target = out + n * channels * pixels + c * out_channel;
          for (int64_t p = 0; p < pixels; ++p) target[p * out_step] = static_cast<Stored>(plane[p]);
        }
      }
    });
  });
  return result;
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  m.impl("roi_pool", TORCH_BOX(&rcnn_ext::roi_pool_cpu));
  m.impl("roi_pool_backward", TORCH_BOX(&rcnn_ext::roi_pool_backward_cpu));
}
