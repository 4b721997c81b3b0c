// RoIPool on the CPU. Contract: rcnn_ext/ops/roi_pool.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/dispatch.h"
#include "../core/host_device.h"
#include "../core/roi_math.h"
#include "../core/stable_ops.h"
#include "../cpu/huge_pages.h"
#include "../cpu/parallel.h"
#include "../cpu/prefetch.h"
#include "roi_pool.h"
#include "roi_pool_bins_cpu.h"

#define RCNN_TARGET_INCLUDE "../roi_pool/roi_pool_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {
namespace {

// The RoIs of every image among [begin, end), sorted. data: [N, C, H, W]
template <class Stored>
std::vector<RoiSpan<RoiBins, Stored>> spans_of(const RoiBins* begin, const RoiBins* end,
                                               const Stored* data, const FeatureShape& shape) {
  std::vector<RoiSpan<RoiBins, Stored>> spans;
  while (begin != end) {
    const RoiBins* stop = begin;
    int64_t read = 0;
    for (; stop != end && stop->batch == begin->batch; ++stop) {
      read += (stop->y.back().last - stop->y.front().first) *
              (stop->x.back().last - stop->x.front().first);
    }
    const int64_t plane = shape.height * shape.width;
    const bool whole = 2 * read >= plane;  // from half of the map on; untuned
    spans.push_back({begin, stop, data + begin->batch * shape.channels * plane, shape.height,
                     shape.width, whole});
    begin = stop;
  }
  return spans;
}

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
    const auto* data = features.tensor.const_data_ptr<Stored>();
    const auto* roi_data = dense_rois.const_data_ptr<T>();
    auto* out = output.mutable_data_ptr<Stored>();
    auto* out_argmax = argmax.mutable_data_ptr<int32_t>();
    check_batch_indices(roi_data, roi_count, shape.batch_size, "roi_pool");
    if (output.numel() == 0) return;
    const int64_t bins = pooled_height * pooled_width;

    advise_huge_pages(out, output.numel() * sizeof(Stored));
    advise_huge_pages(out_argmax, argmax.numel() * sizeof(int32_t));
    const auto bins_of_rois = compute_bins(roi_data, roi_count, options, shape);

    if (features.channels_last) {
      torch::stable::parallel_for(0, roi_count, 1, [&](int64_t begin, int64_t end) {
        RCNN_DYNAMIC_DISPATCH(roi_pool_pixels<T>(bins_of_rois.data() + begin,
                                                 bins_of_rois.data() + end, data, shape, bins, out,
                                                 out_argmax));
      });
      return;
    }
    const bool streaming = output.numel() * static_cast<int64_t>(sizeof(Stored)) > kStreamingBytes;
    const int64_t cycles = 60 + 8 * bins;  // for a RoI and a channel, about
    parallel_for_2d(
        WorkGrid(channels, kChannelsPerTask, roi_count, torch::stable::get_num_threads()), cycles,
        [&](int64_t first, int64_t last, int64_t first_roi, int64_t last_roi) {
          const auto spans = spans_of(bins_of_rois.data() + first_roi,
                                      bins_of_rois.data() + last_roi, data, shape);
          RCNN_DYNAMIC_DISPATCH(
              roi_pool_channels<T>(spans, channels, bins, first, last, streaming, out, out_argmax));
        });
  });
  return {output, argmax};
}

// grad, argmax: [K, C, PH, PW], rois: [K, 5] -> gradient of the input, [N, C, H, W].
// Threads divide the channels, and each plane meets its RoIs in order: deterministic.
Tensor roi_pool_backward_cpu(const Tensor& grad, const Tensor& argmax, const Tensor& rois,
                             double spatial_scale, int64_t batch_size, int64_t channels,
                             int64_t height, int64_t width, bool channels_last) {
  const FeatureShape shape{batch_size, channels, height, width};
  check_roi_pool_backward(grad, argmax, rois, shape, spatial_scale);
  const int64_t roi_count = rois.size(0);
  const ScalarType dtype = grad.scalar_type();
  const Tensor upstream = dense_map_as(grad, channels_last);
  const Tensor pixels_of_maxima = dense_map_as(argmax, channels_last);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  Tensor result = empty_map(grad, {batch_size, channels, height, width}, dtype, channels_last);

  dispatch_floating(dtype, "roi_pool_backward", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    const auto* grad_data = upstream.const_data_ptr<Stored>();
    const auto* argmax_data = pixels_of_maxima.const_data_ptr<int32_t>();
    const auto* roi_data = dense_rois.const_data_ptr<T>();
    auto* out = result.mutable_data_ptr<Stored>();
    check_batch_indices(roi_data, roi_count, batch_size, "roi_pool_backward");
    if (result.numel() == 0) return;
    const int64_t bins = grad.size(2) * grad.size(3);
    const int64_t pixels = height * width;

    advise_huge_pages(out, result.numel() * sizeof(Stored));
    // A channel's gradient is summed where it will lie, unless that rounds.
    constexpr bool kInPlace = std::is_same_v<T, Stored>;
    if (channels_last) {
      const int64_t tasks = (channels + kChannelsPerTask - 1) / kChannelsPerTask;
      torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * kChannelsPerTask;
        const int64_t last = std::min(channels, end * kChannelsPerTask);
        std::vector<T> scratch(kInPlace ? 0 : pixels * kChannelsPerTask);
        for (int64_t n = 0; n < batch_size; ++n) {
          Stored* const image = out + n * pixels * channels;
          const auto scatter = [&](int64_t from, int64_t to, T* target, int64_t step) {
            RCNN_DYNAMIC_DISPATCH(roi_pool_backward_pixels<T>(roi_data, roi_count, n, grad_data,
                                                              argmax_data, shape, bins, from, to,
                                                              target, step));
          };
          if constexpr (kInPlace) {
            scatter(first, last, image + first, channels);
          } else {
            for (int64_t c = first; c < last; c += kChannelsPerTask) {
              const int64_t stop = std::min(last, c + kChannelsPerTask);
              scatter(c, stop, scratch.data(), stop - c);
              const T* sum = scratch.data();
              for (int64_t p = 0; p < pixels; ++p) {
                for (int64_t i = c; i < stop; ++i) {
                  image[p * channels + i] = static_cast<Stored>(*sum++);
                }
              }
            }
          }
        }
      });
      return;
    }
    torch::stable::parallel_for(0, channels, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(kInPlace ? 0 : pixels);
      for (int64_t n = 0; n < batch_size; ++n) {
        for (int64_t c = begin; c < end; ++c) {
          Stored* const target = out + (n * channels + c) * pixels;
          T* plane = scratch.data();
          if constexpr (kInPlace) plane = target;
          std::fill_n(plane, pixels, T(0));
          for (int64_t k = 0; k < roi_count; ++k) {
            if (roi_batch_index(roi_data[5 * k], batch_size) != n) continue;
            const int64_t base = (k * channels + c) * bins;
            for (int64_t bin = base; bin < base + bins; ++bin) {
              const int64_t pixel = argmax_data[bin];
              // The upper bound keeps an argmax from elsewhere from writing out of bounds.
              if (pixel < 0 || pixel >= pixels) continue;
              plane[pixel] += static_cast<T>(grad_data[bin]);
            }
          }
          if constexpr (!kInPlace) {
            for (int64_t p = 0; p < pixels; ++p) target[p] = static_cast<Stored>(plane[p]);
          }
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
