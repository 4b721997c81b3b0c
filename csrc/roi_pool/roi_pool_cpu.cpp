// RoIPool on the CPU. Contract: rcnn_ext/ops/roi_pool.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../common/box_math.h"
#include "../common/dispatch.h"
#include "../common/roi_math.h"
#include "../common/roi_tables.h"
#include "../common/stable_ops.h"
#include "roi_pool_checks.h"

namespace rcnn_ext {
namespace {

// The pixels of every bin of one RoI.
struct RoiBins {
  int64_t batch;
  std::vector<PixelRange> y, x;
  int64_t widest;  // bin, in columns

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
    widest = 0;
    for (const PixelRange& bin : x) widest = std::max(widest, bin.last - bin.first);
  }
};

// Maxima of two rows, place by place, and the number of the row that each comes from.
template <class Stored, class T>
void fold_row(const Stored* __restrict source, int32_t row, int64_t width, T* __restrict values,
              int32_t* __restrict rows) {
  for (int64_t x = 0; x < width; ++x) {
    const T value = static_cast<T>(source[x]);
    const T maximum = values[x];
    const int32_t maximum_row = rows[x];
    values[x] = takes_over(value, maximum) ? value : maximum;
    rows[x] = takes_over(value, maximum) ? row : maximum_row;
  }
}

// Scratch memory for one channel of one RoI.
template <class T>
struct PlaneScratch {
  std::vector<T> values;                               // [W] maxima over the rows of a bin
  std::vector<int32_t> rows;                           // [W] and the rows they come from
  std::vector<T> maxima;                               // [PW]
  std::vector<int32_t> maximum_rows, maximum_columns;  // [PW]

  PlaneScratch(int64_t width, int64_t pooled_width)
      : values(width),
        rows(width),
        maxima(pooled_width),
        maximum_rows(pooled_width),
        maximum_columns(pooled_width) {}

  // The maxima of the bins, of folded columns without NaN, with their first rows and columns. Bins
  // advance side by side, column by column, as far as the widest of them, a narrower one repeating
  // its last column: their comparisons do not wait for each other, and no loop has a length that
  // the processor could not predict.
  void fold_columns(const std::vector<PixelRange>& xs, int64_t widest) {
    const auto bins = static_cast<int64_t>(xs.size());
    for (int64_t bin = 0; bin < bins; ++bin) {
      const int64_t column = std::min<int64_t>(xs[bin].first, values.size() - 1);
      maxima[bin] = values[column];
      maximum_rows[bin] = rows[column];
      maximum_columns[bin] = static_cast<int32_t>(column);
    }
    for (int64_t i = 1; i < widest; ++i) {
      for (int64_t bin = 0; bin < bins; ++bin) {
        const int64_t column = std::max<int64_t>(0, std::min(xs[bin].first + i, xs[bin].last - 1));
        const T value = values[column];
        const T maximum = maxima[bin];
        const int32_t row = rows[column];
        const int32_t maximum_row = maximum_rows[bin];
        // Masks, since compilers make branches of conditional stores.
        const int32_t replaced =
            -static_cast<int32_t>((value > maximum) | ((value >= maximum) & (row < maximum_row)));
        maxima[bin] = larger(value, maximum);
        maximum_rows[bin] = (row & replaced) | (maximum_row & ~replaced);
        maximum_columns[bin] =
            (static_cast<int32_t>(column) & replaced) | (maximum_columns[bin] & ~replaced);
      }
    }
  }
};

// One channel of one RoI, NCHW: the rows of a bin are folded side by side first, which runs in SIMD
// registers, then the columns of each bin.
// plane: [H, W], out and argmax: [PH, PW]
template <class Stored, class T>
void pool_plane(const RoiBins& bins, const Stored* plane, int64_t plane_width,
                PlaneScratch<T>& scratch, Stored* out, int32_t* argmax) {
  // Bins are in order, so they cover the columns between the first one's and the last one's.
  const int64_t first = bins.x.front().first;
  const int64_t width = bins.x.back().last - first;
  T* const values = scratch.values.data() + first;
  int32_t* const rows = scratch.rows.data() + first;
  for (const PixelRange& ys : bins.y) {
    int nan_count = 0;
    if (ys.first < ys.last && width > 0) {
      const Stored* top = plane + ys.first * plane_width + first;
      for (int64_t x = 0; x < width; ++x) values[x] = static_cast<T>(top[x]);
      std::fill_n(rows, width, 0);
      for (int64_t y = ys.first + 1; y < ys.last; ++y) {
        fold_row(plane + y * plane_width + first, static_cast<int32_t>(y - ys.first), width, values,
                 rows);
      }
      for (int64_t x = 0; x < width; ++x) nan_count += values[x] != values[x] ? 1 : 0;
      if (nan_count == 0) scratch.fold_columns(bins.x, bins.widest);
    }
    for (size_t bin = 0; bin < bins.x.size(); ++bin) {
      const PixelRange& xs = bins.x[bin];
      if (nan_count == 0 && ys.first < ys.last && xs.first < xs.last) {
        *out++ = static_cast<Stored>(scratch.maxima[bin]);
        *argmax++ = static_cast<int32_t>((ys.first + scratch.maximum_rows[bin]) * plane_width +
                                         scratch.maximum_columns[bin]);
      } else {
        const BinMaximum<T> maximum = bin_maximum<T>(ys, xs, plane, plane_width, 1);
        *out++ = static_cast<Stored>(maximum.value);
        *argmax++ = maximum.pixel;
      }
    }
  }
}

// Running maxima of all channels with their pixels.
template <class T>
struct Maxima {
  std::vector<T> values;
  std::vector<int32_t> pixels;

  explicit Maxima(int64_t channels) : values(channels), pixels(channels) {}

  // source: [C], one pixel
  template <class Stored>
  void add(const Stored* source, int32_t pixel, bool first) {
    for (size_t c = 0; c < values.size(); ++c) {
      const T value = static_cast<T>(source[c]);
      const bool better = first || takes_over(value, values[c]);
      values[c] = better ? value : values[c];
      pixels[c] = better ? pixel : pixels[c];
    }
  }
};

// All channels of one RoI, NHWC. image: [H, W, C], out and argmax: [PH, PW, C]
template <class Stored, class T>
void pool_pixels(const RoiBins& bins, const Stored* image, int64_t width, int64_t channels,
                 Maxima<T>& maxima, Stored* out, int32_t* argmax) {
  for (const PixelRange ys : bins.y) {
    for (const PixelRange xs : bins.x) {
      bool first = true;
      for (int64_t y = ys.first; y < ys.last; ++y) {
        for (int64_t x = xs.first; x < xs.last; ++x) {
          const int64_t pixel = y * width + x;
          maxima.add(image + pixel * channels, static_cast<int32_t>(pixel), first);
          first = false;
        }
      }
      for (int64_t c = 0; c < channels; ++c) {
        *out++ = first ? Stored(0.0f) : static_cast<Stored>(maxima.values[c]);
        *argmax++ = first ? -1 : maxima.pixels[c];
      }
    }
  }
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
    const auto* data = static_cast<const Stored*>(features.tensor.const_data_ptr());
    const auto* roi_data = static_cast<const T*>(dense_rois.const_data_ptr());
    auto* out = static_cast<Stored*>(output.mutable_data_ptr());
    auto* out_argmax = static_cast<int32_t*>(argmax.mutable_data_ptr());
    check_batch_indices(roi_data, roi_count, shape.batch_size, "roi_pool");
    if (output.numel() == 0) return;
    const int64_t bins = pooled_height * pooled_width;
    const int64_t pixels = shape.height * shape.width;

    const auto tables = tabulate_rois<RoiBins>(roi_data, roi_count, options, shape);

    if (features.channels_last) {
      torch::stable::parallel_for(0, roi_count, 1, [&](int64_t begin, int64_t end) {
        Maxima<T> maxima(channels);
        for (int64_t k = begin; k < end; ++k) {
          pool_pixels(tables[k], data + tables[k].batch * pixels * channels, shape.width, channels,
                      maxima, out + k * bins * channels, out_argmax + k * bins * channels);
        }
      });
      return;
    }
    // A channel meets all RoIs before the next one, so that its planes stay in the cache.
    torch::stable::parallel_for(0, channels, 1, [&](int64_t begin, int64_t end) {
      PlaneScratch<T> scratch(shape.width, pooled_width);
      for (int64_t c = begin; c < end; ++c) {
        for (int64_t k = 0; k < roi_count; ++k) {
          const int64_t target = (k * channels + c) * bins;
          pool_plane(tables[k], data + (tables[k].batch * channels + c) * pixels, shape.width,
                     scratch, out + target, out_argmax + target);
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
