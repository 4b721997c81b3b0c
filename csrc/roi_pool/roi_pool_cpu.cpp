// RoIPool on the CPU. Contract: rcnn_ext/ops/roi_pool.py.
//
// Which path runs, forward:
//
// clang-format off
// | path                    | function                      | when                              |
// |-------------------------|-------------------------------|-----------------------------------|
// | channels-last per pixel | roi_pool_pixels               | channels-last, from 16 channels   |
// | channels-last strips    | roi_pool_strips_channels_last | channels-last, fewer channels     |
// | transposed blocks       | roi_pool_channels             | NCHW, blocks of 16 channels for   |
// |                         |                               | which it is estimated to be       |
// |                         |                               | faster and that fit a tile        |
// | strips                  | roi_pool_strips               | all other channels of NCHW maps   |
// clang-format on
//
// Transposed blocks cost about as much for one channel as for 16, and memory for each pixel that
// they hold; strips cost as much for each channel, and memory for a row. Maxima do not round, so
// that all paths give the same bits.
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
#include "../core/map_strides.h"
#include "../core/register.h"
#include "../core/roi_math.h"
#include "../core/stable_ops.h"
#include "../cpu/huge_pages.h"
#include "../cpu/parallel.h"
#include "../cpu/prefetch.h"
#include "../cpu/radix_sort.h"
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

// The work of RoIPool on NCHW maps. Cycles were fitted to benchmarks/roi_grid.py on an AMD EPYC
// with AVX-512, one core, 2026-11.
class PoolWork {
 public:
  PoolWork(const BinsOfRois& rois, const FeatureShape& shape, int64_t bins) {
    int64_t region = 0;
    for (const RoiBins& roi : rois) {
      const int64_t rows = roi.y.pixels();
      const int64_t columns = roi.x.pixels();
      const auto bin_rows = static_cast<int64_t>(roi.y.size());
      read_ += rows * columns;
      region += roi.y.extent() * roi.x.extent();
      strip_cycles_ += rows * (roi.x.extent() / 8 + 2) + bin_rows * (10 + columns * 3 / 2);
      bins_ += bins;
    }
    const int64_t pixels = shape.batch_size * shape.height * shape.width;
    held_ = 2 * read_ >= pixels ? pixels : std::min(region, pixels);
    strip_cycles_ += 6 * bins_;
    block_cycles_ = 5 * held_ + read_ + 12 * bins_;
    // A tile of 128 Ki pixels, or as many as the result of the RoIs is large: a few pixels here and
    // there of a larger map would each cost a page fault.
    constexpr int64_t kMaxPixels = 1 << 17;
    constexpr int64_t kMaxPixelsPerBin = 5;
    const int64_t plane = shape.height * shape.width;
    fits_ = plane <= kMaxPixels || (held_ == pixels && plane <= kMaxPixelsPerBin * bins_);
  }

  // The number of channels, from the first, that are taken in transposed blocks.
  int64_t transposed_channels(int64_t channels) const {
    if (!fits_ || block_cycles_ >= kChannelsPerTask * strip_cycles_) return 0;
    const int64_t rest = channels % kChannelsPerTask;
    return block_cycles_ < rest * strip_cycles_ ? channels : channels - rest;
  }
  // Of a channel on strips, per RoI.
  int64_t strip_cycles(int64_t rois) const { return strip_cycles_ / std::max<int64_t>(1, rois); }

 private:
  int64_t read_ = 0;  // pixels, by all bins
  int64_t bins_ = 0;
  int64_t held_;  // pixels of a transposed block
  bool fits_;
  int64_t strip_cycles_ = 0;  // per channel
  int64_t block_cycles_;      // per block of channels
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
    const auto* data = features.tensor.const_data_ptr<Stored>();
    const auto* roi_data = dense_rois.const_data_ptr<T>();
    auto* out = output.mutable_data_ptr<Stored>();
    auto* out_argmax = argmax.mutable_data_ptr<int32_t>();
    check_batch_indices(roi_data, roi_count, shape.batch_size, "roi_pool");
    if (output.numel() == 0) return;
    const int64_t bins = pooled_height * pooled_width;

    advise_huge_pages(out, output.numel() * sizeof(Stored));
    advise_huge_pages(out_argmax, argmax.numel() * sizeof(int32_t));
    // The order matters to the cache, unless it holds a plane, and to transposed blocks.
    constexpr int64_t kMaxUnsortedPixels = 1 << 14;
    const bool few_channels = channels < kChannelsPerTask;
    const bool sorted =
        roi_count > 1 && (!few_channels || shape.height * shape.width > kMaxUnsortedPixels);
    BinsOfRois rois_with_bins(roi_data, roi_count, options, shape, sorted);
    const int64_t cycles = 60 + 8 * bins;  // for a RoI and a channel, about

    if (features.channels_last) {
      torch::stable::parallel_for(
          0, roi_count, grain_size(cycles * channels), [&](int64_t first, int64_t last) {
            const RoiBins* const begin = rois_with_bins.begin() + first;
            const RoiBins* const end = rois_with_bins.begin() + last;
            if (few_channels) {
              RCNN_DYNAMIC_DISPATCH(
                  roi_pool_strips_channels_last<T>(begin, end, data, shape, out, out_argmax));
            } else {
              RCNN_DYNAMIC_DISPATCH(
                  roi_pool_pixels<T>(begin, end, data, shape, bins, out, out_argmax));
            }
          });
      return;
    }
    const PoolWork work(rois_with_bins, shape, bins);
    const bool grouped = sorted || shape.batch_size == 1 || roi_count == 1;
    const int64_t transposed = grouped ? work.transposed_channels(channels) : 0;
    const bool streaming = output.numel() * static_cast<int64_t>(sizeof(Stored)) > kStreamingBytes;
    const int64_t threads = torch::stable::get_num_threads();
    if (transposed > 0) {
      rois_with_bins.compute_all_columns();
      parallel_for_2d(WorkGrid(transposed, kChannelsPerTask, roi_count, threads), cycles,
                      [&](int64_t first, int64_t last, int64_t first_roi, int64_t last_roi) {
                        const auto spans = spans_of(rois_with_bins.begin() + first_roi,
                                                    rois_with_bins.begin() + last_roi, data, shape);
                        RCNN_DYNAMIC_DISPATCH(roi_pool_channels<T>(
                            spans, channels, bins, first, last, streaming, out, out_argmax));
                      });
    }
    if (transposed == channels) return;
    parallel_for_2d(WorkGrid(channels - transposed, 1, roi_count, threads),
                    work.strip_cycles(roi_count),
                    [&](int64_t first, int64_t last, int64_t first_roi, int64_t last_roi) {
                      RCNN_DYNAMIC_DISPATCH(roi_pool_strips<T>(
                          rois_with_bins.begin() + first_roi, rois_with_bins.begin() + last_roi,
                          data, shape, transposed + first, transposed + last, out, out_argmax));
                    });
  });
  return {output, argmax};
}

// The gradient of one channel where most pixels have none: terms are sorted by pixel, and those of
// a pixel added in order in T.
template <class T, class Stored>
class SparseGradient {
 public:
  SparseGradient(const T* rois, int64_t roi_count, const FeatureShape& shape, int64_t bins)
      : rois_(rois),
        roi_count_(roi_count),
        bins_(bins),
        shape_(shape),
        terms_(roi_count * bins),
        scratch_(roi_count * bins) {}

  // grad, argmax: [K, C, PH, PW] with strides `from`; out: [N, C, H, W] with strides `to`, zeros
  void add(const Stored* grad, const int32_t* argmax, int64_t channel, const MapStrides& from,
           const MapStrides& to, Stored* out) {
    const int64_t pixels = shape_.height * shape_.width;
    int64_t count = 0;
    for (int64_t k = 0; k < roi_count_; ++k) {
      const int64_t image = roi_batch_index(rois_[5 * k], shape_.batch_size);
      if (image < 0) continue;
      const int64_t base = k * shape_.channels * bins_ + channel * from.channel;
      for (int64_t bin = 0; bin < bins_; ++bin) {
        const int64_t pixel = argmax[base + bin * from.pixel];
        // The upper bound keeps an argmax from elsewhere from writing out of bounds.
        if (pixel < 0 || pixel >= pixels) continue;
        terms_[count++] = IndexedKey64::make(static_cast<uint64_t>(image * pixels + pixel),
                                             static_cast<uint32_t>(k * bins_ + bin));
      }
    }
    const IndexedKey64* const sorted = radix_sort(terms_.data(), scratch_.data(), count);
    for (int64_t i = 0; i < count;) {
      const uint64_t key = sorted[i].key();
      T sum = T(0);
      for (; i < count && sorted[i].key() == key; ++i) {
        const int64_t k = sorted[i].index() / bins_;
        const int64_t bin = sorted[i].index() % bins_;
        sum += static_cast<T>(
            grad[k * shape_.channels * bins_ + channel * from.channel + bin * from.pixel]);
      }
      const auto at = static_cast<int64_t>(key);
      out[at / pixels * shape_.channels * pixels + channel * to.channel + at % pixels * to.pixel] =
          static_cast<Stored>(sum);
    }
  }

 private:
  const T* rois_;
  int64_t roi_count_, bins_;
  FeatureShape shape_;
  std::vector<IndexedKey64> terms_, scratch_;
};

// Adds the gradient of kPlanes channels of a RoI. grad, argmax: [kPlanes, bins], planes: [kPlanes,
// pixels]
//
// Neighboring bins often share their maximum, and an addition to a pixel waits for the one before:
// meanwhile those of the other planes go on.
template <int kPlanes, class T, class Stored>
void scatter_planes_n(const Stored* grad, const int32_t* argmax, int64_t bins, int64_t pixels,
                      T* planes) {
  for (int64_t bin = 0; bin < bins; ++bin) {
    for (int c = 0; c < kPlanes; ++c) {
      const auto pixel = static_cast<uint64_t>(int64_t{argmax[c * bins + bin]});
      // None, -1, is a large number here. The bound also keeps an argmax from elsewhere from
      // writing beyond the plane.
      if (pixel >= static_cast<uint64_t>(pixels)) continue;
      planes[c * pixels + pixel] += static_cast<T>(grad[c * bins + bin]);
    }
  }
}

// scatter_planes_n() for any number of channels.
template <class T, class Stored>
void scatter_planes(const Stored* grad, const int32_t* argmax, int64_t bins, int64_t channels,
                    int64_t pixels, T* planes) {
  int64_t c = 0;
  const auto scatter = [&](auto planes_at_once) {
    constexpr int kPlanes = decltype(planes_at_once)::value;
    for (; c + kPlanes <= channels; c += kPlanes) {
      scatter_planes_n<kPlanes>(grad + c * bins, argmax + c * bins, bins, pixels,
                                planes + c * pixels);
    }
  };
  scatter(std::integral_constant<int, 4>());
  scatter(std::integral_constant<int, 2>());
  scatter(std::integral_constant<int, 1>());
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
    // Sums that do not round where they will lie, and half types with bins on few of the pixels.
    constexpr int64_t kMinPixelsPerBin = 8;
    const bool sparse = !kInPlace && roi_count * bins * kMinPixelsPerBin < batch_size * pixels;
    if (sparse || (kInPlace && channels_last)) {
      const int64_t size = result.numel();
      torch::stable::parallel_for(0, size, 1 << 18, [&](int64_t begin, int64_t end) {
        std::memset(out + begin, 0, (end - begin) * sizeof(Stored));
      });
    }
    if (sparse) {
      torch::stable::parallel_for(0, channels, 1, [&](int64_t begin, int64_t end) {
        SparseGradient<T, Stored> sum(roi_data, roi_count, shape, bins);
        for (int64_t c = begin; c < end; ++c) {
          sum.add(grad_data, argmax_data, c, MapStrides::of(channels_last, channels, bins),
                  MapStrides::of(channels_last, channels, pixels), out);
        }
      });
      return;
    }
    if (channels_last) {
      const int64_t tasks = (channels + kChannelsPerTask - 1) / kChannelsPerTask;
      torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * kChannelsPerTask;
        const int64_t last = std::min(channels, end * kChannelsPerTask);
        std::vector<T> scratch(kInPlace ? 0 : pixels * std::min(channels, kChannelsPerTask));
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
              std::fill_n(scratch.data(), pixels * (stop - c), T(0));
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
    // Planes that the cache holds together take what they get from a RoI in one go.
    constexpr int64_t kBytesPerGroup = 1 << 19;
    const int64_t group =
        std::max<int64_t>(1, kBytesPerGroup / static_cast<int64_t>(pixels * sizeof(T)));
    torch::stable::parallel_for(0, channels, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(kInPlace ? 0 : std::min(group, end - begin) * pixels);
      for (int64_t n = 0; n < batch_size; ++n) {
        for (int64_t first = begin; first < end; first += group) {
          const int64_t last = std::min(end, first + group);
          Stored* const target = out + (n * channels + first) * pixels;
          T* planes = scratch.data();
          if constexpr (kInPlace) planes = target;
          std::memset(planes, 0, (last - first) * pixels * sizeof(T));
          for (int64_t k = 0; k < roi_count; ++k) {
            if (roi_batch_index(roi_data[5 * k], batch_size) != n) continue;
            const int64_t at = (k * channels + first) * bins;
            scatter_planes(grad_data + at, argmax_data + at, bins, last - first, pixels, planes);
          }
          if constexpr (!kInPlace) {
            for (int64_t p = 0; p < (last - first) * pixels; ++p) {
              target[p] = static_cast<Stored>(planes[p]);
            }
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
  RCNN_REGISTER(m, "roi_pool", roi_pool_cpu, input, rois);
  RCNN_REGISTER(m, "roi_pool_backward", roi_pool_backward_cpu, grad, argmax, rois);
}
