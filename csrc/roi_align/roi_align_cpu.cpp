// RoIAlign on the CPU. Contract: rcnn_ext/ops/roi_align.py.
//
// A bin of a RoI is a weighted sum of pixels whose weights are products of one in y and one in x
// (roi_math.h). A RoI's weights are tabulated once and serve all its channels.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../common/dispatch.h"
#include "../common/roi_math.h"
#include "../common/roi_tables.h"
#include "../common/stable_ops.h"
#include "roi_align_checks.h"

namespace rcnn_ext {
namespace {

// One pixel along an axis with its weight in a bin. 32 bits keep the tables of all RoIs in the
// cache.
template <class T>
struct Tap {
  int32_t pixel;
  T weight;
};

// The taps of every bin along one axis: taps [starts[bin], starts[bin + 1]) belong to `bin`.
template <class T>
struct AxisTaps {
  std::vector<Tap<T>> taps;
  std::vector<int64_t> starts;

  void tabulate(const AlignAxis<T>& axis, int64_t bins) {
    taps.clear();
    starts.assign(1, 0);
    for (int64_t bin = 0; bin < bins; ++bin) {
      const SampleRange range = samples_within(axis, bin, T(-1), T(axis.extent));
      for (int64_t sample = range.first; sample < range.last; ++sample) {
        const AxisSample<T> at = interpolate(sample_position(axis, bin, sample), axis.extent);
        add(starts.back(), at.low, at.weight_low);
        add(starts.back(), at.high, at.weight_high);
      }
      starts.push_back(static_cast<int64_t>(taps.size()));
    }
  }

 private:
  // Samples of a bin move monotonically, so a pixel that repeats is one of the last two taps.
  void add(int64_t bin_start, int64_t position, T weight) {
    const auto pixel = static_cast<int32_t>(position);
    if (weight == T(0)) return;
    const auto count = static_cast<int64_t>(taps.size());
    for (int64_t t = count - 1; t >= std::max(bin_start, count - 2); --t) {
      if (taps[t].pixel == pixel) {
        taps[t].weight += weight;
        return;
      }
    }
    taps.push_back({pixel, weight});
  }
};

// What all channels of a RoI share.
template <class T>
struct RoiTable {
  int64_t batch;
  T count;  // samples a bin is averaged over
  AxisTaps<T> y, x;
  // The columns that the x taps touch: [first_column, first_column + width).
  int64_t first_column, width;

  // roi: [5] (batch index, x1, y1, x2, y2), image pixels
  void tabulate(const T* roi, const AlignOptions& options, const FeatureShape& shape) {
    const T scale = static_cast<T>(options.spatial_scale);
    const auto y_axis = make_align_axis(roi[2], roi[4], scale, options.pooled_height,
                                        options.sampling_ratio, options.aligned, shape.height);
    const auto x_axis = make_align_axis(roi[1], roi[3], scale, options.pooled_width,
                                        options.sampling_ratio, options.aligned, shape.width);
    batch = roi_batch_index(roi[0], shape.batch_size);
    count = align_sample_count(y_axis, x_axis);
    y.tabulate(y_axis, options.pooled_height);
    x.tabulate(x_axis, options.pooled_width);
    first_column = shape.width;
    int64_t last_column = -1;
    for (const Tap<T>& tap : x.taps) {
      first_column = std::min<int64_t>(first_column, tap.pixel);
      last_column = std::max<int64_t>(last_column, tap.pixel);
    }
    width = std::max<int64_t>(0, last_column - first_column + 1);
    if (width == 0) first_column = 0;
  }
};

// One channel of one RoI, NCHW. plane: [H, W], out: [PH, PW], row: scratch [>= table.width]
template <class Stored, class T>
void align_plane(const RoiTable<T>& table, const Stored* plane, int64_t plane_width,
                 int64_t pooled_height, int64_t pooled_width, T* row, Stored* out) {
  for (int64_t ph = 0; ph < pooled_height; ++ph) {
    std::fill_n(row, table.width, T(0));
    for (int64_t t = table.y.starts[ph]; t < table.y.starts[ph + 1]; ++t) {
      const Tap<T> tap = table.y.taps[t];
      const Stored* source = plane + tap.pixel * plane_width + table.first_column;
      for (int64_t x = 0; x < table.width; ++x) row[x] += tap.weight * static_cast<T>(source[x]);
    }
    for (int64_t pw = 0; pw < pooled_width; ++pw) {
      T sum = T(0);
      for (int64_t t = table.x.starts[pw]; t < table.x.starts[pw + 1]; ++t) {
        const Tap<T> tap = table.x.taps[t];
        sum += tap.weight * row[tap.pixel - table.first_column];
      }
      out[ph * pooled_width + pw] = static_cast<Stored>(sum / table.count);
    }
  }
}

// All channels of one RoI, NHWC. image: [H, W, C], out: [PH, PW, C], sums: scratch [C]
template <class Stored, class T>
void align_pixels(const RoiTable<T>& table, const Stored* image, const FeatureShape& shape,
                  int64_t pooled_height, int64_t pooled_width, T* sums, Stored* out) {
  const int64_t channels = shape.channels;
  for (int64_t ph = 0; ph < pooled_height; ++ph) {
    for (int64_t pw = 0; pw < pooled_width; ++pw) {
      std::fill_n(sums, channels, T(0));
      for (int64_t ty = table.y.starts[ph]; ty < table.y.starts[ph + 1]; ++ty) {
        const Tap<T> y = table.y.taps[ty];
        for (int64_t tx = table.x.starts[pw]; tx < table.x.starts[pw + 1]; ++tx) {
          const Tap<T> x = table.x.taps[tx];
          const Stored* source = image + (y.pixel * shape.width + x.pixel) * channels;
          const T weight = y.weight * x.weight;
          for (int64_t c = 0; c < channels; ++c) sums[c] += weight * static_cast<T>(source[c]);
        }
      }
      Stored* target = out + (ph * pooled_width + pw) * channels;
      for (int64_t c = 0; c < channels; ++c) target[c] = static_cast<Stored>(sums[c] / table.count);
    }
  }
}

// input: [N, C, H, W], rois: [K, 5] (batch index, x1, y1, x2, y2; image pixels) -> [K, C, PH, PW]
Tensor roi_align_cpu(const Tensor& input, const Tensor& rois, double spatial_scale,
                     int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                     bool aligned) {
  const AlignOptions options{spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned};
  check_roi_align(input, rois, options);
  const FeatureShape shape{input.size(0), input.size(1), input.size(2), input.size(3)};
  const int64_t roi_count = rois.size(0);
  const ScalarType dtype = input.scalar_type();
  const DenseMap features = dense_map(input);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  Tensor output = empty_map(input, {roi_count, shape.channels, pooled_height, pooled_width}, dtype,
                            features.channels_last);

  dispatch_floating(dtype, "roi_align", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    const auto* data = static_cast<const Stored*>(features.tensor.const_data_ptr());
    const auto* roi_data = static_cast<const T*>(dense_rois.const_data_ptr());
    auto* out = static_cast<Stored*>(output.mutable_data_ptr());
    check_batch_indices(roi_data, roi_count, shape.batch_size, "roi_align");
    if (output.numel() == 0) return;
    const int64_t bins = pooled_height * pooled_width;
    const int64_t pixels = shape.height * shape.width;

    const auto tables = tabulate_rois<RoiTable<T>>(roi_data, roi_count, options, shape);

    if (features.channels_last) {
      torch::stable::parallel_for(0, roi_count, 1, [&](int64_t begin, int64_t end) {
        std::vector<T> sums(shape.channels);
        for (int64_t k = begin; k < end; ++k) {
          align_pixels(tables[k], data + tables[k].batch * pixels * shape.channels, shape,
                       pooled_height, pooled_width, sums.data(), out + k * bins * shape.channels);
        }
      });
      return;
    }
    // A channel meets all RoIs before the next one, so that its planes stay in the cache.
    torch::stable::parallel_for(0, shape.channels, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> row(shape.width);
      for (int64_t c = begin; c < end; ++c) {
        for (int64_t k = 0; k < roi_count; ++k) {
          align_plane(tables[k], data + (tables[k].batch * shape.channels + c) * pixels,
                      shape.width, pooled_height, pooled_width, row.data(),
                      out + (k * shape.channels + c) * bins);
        }
      }
    });
  });
  return output;
}

// Adds the gradient of one channel of one RoI to a plane. grad: [PH, PW] with stride `step` between
// bins, plane: [H, W] with stride `step` between pixels, row: scratch [>= table.width]
template <class Stored, class T>
void scatter_plane(const RoiTable<T>& table, const Stored* grad, int64_t step, int64_t plane_width,
                   int64_t pooled_height, int64_t pooled_width, T* row, T* plane) {
  for (int64_t ph = 0; ph < pooled_height; ++ph) {
    if (table.y.starts[ph] == table.y.starts[ph + 1]) continue;
    std::fill_n(row, table.width, T(0));
    for (int64_t pw = 0; pw < pooled_width; ++pw) {
      const T upstream = static_cast<T>(grad[(ph * pooled_width + pw) * step]) / table.count;
      for (int64_t t = table.x.starts[pw]; t < table.x.starts[pw + 1]; ++t) {
        const Tap<T> tap = table.x.taps[t];
        row[tap.pixel - table.first_column] += tap.weight * upstream;
      }
    }
    for (int64_t t = table.y.starts[ph]; t < table.y.starts[ph + 1]; ++t) {
      const Tap<T> tap = table.y.taps[t];
      T* target = plane + tap.pixel * plane_width + table.first_column;
      for (int64_t x = 0; x < table.width; ++x) target[x] += tap.weight * row[x];
    }
  }
}

// grad: [K, C, PH, PW], rois: [K, 5] -> gradient of the input, [N, C, H, W].
// Threads share out the channels, and each plane meets its RoIs in order: the result depends
// neither on the number of threads nor on chance.
Tensor roi_align_backward_cpu(const Tensor& grad, const Tensor& rois, double spatial_scale,
                              int64_t pooled_height, int64_t pooled_width, int64_t batch_size,
                              int64_t channels, int64_t height, int64_t width,
                              int64_t sampling_ratio, bool aligned, bool channels_last) {
  const AlignOptions options{spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned};
  const FeatureShape shape{batch_size, channels, height, width};
  check_roi_align_backward(grad, rois, shape, options);
  const int64_t roi_count = rois.size(0);
  const ScalarType dtype = grad.scalar_type();
  const DenseMap upstream = dense_map(grad);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  Tensor result = empty_map(grad, {batch_size, channels, height, width}, dtype, channels_last);

  dispatch_floating(dtype, "roi_align_backward", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    const auto* grad_data = static_cast<const Stored*>(upstream.tensor.const_data_ptr());
    const auto* roi_data = static_cast<const T*>(dense_rois.const_data_ptr());
    auto* out = static_cast<Stored*>(result.mutable_data_ptr());
    check_batch_indices(roi_data, roi_count, batch_size, "roi_align_backward");
    if (result.numel() == 0) return;
    const int64_t bins = pooled_height * pooled_width;
    const int64_t pixels = height * width;
    // Element (k, c, bin) of the gradient and (n, c, pixel) of the result, in either layout.
    const int64_t grad_step = upstream.channels_last ? channels : 1;
    const int64_t grad_channel = upstream.channels_last ? 1 : bins;
    const int64_t out_step = channels_last ? channels : 1;
    const int64_t out_channel = channels_last ? 1 : pixels;

    const auto tables = tabulate_rois<RoiTable<T>>(roi_data, roi_count, options, shape);
    torch::stable::parallel_for(0, channels, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> row(width), plane(pixels);
      for (int64_t n = 0; n < batch_size; ++n) {
        for (int64_t c = begin; c < end; ++c) {
          std::fill(plane.begin(), plane.end(), T(0));
          for (int64_t k = 0; k < roi_count; ++k) {
            if (tables[k].batch != n) continue;
            scatter_plane(tables[k], grad_data + k * channels * bins + c * grad_channel, grad_step,
                          width, pooled_height, pooled_width, row.data(), plane.data());
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
  m.impl("roi_align", TORCH_BOX(&rcnn_ext::roi_align_cpu));
  m.impl("roi_align_backward", TORCH_BOX(&rcnn_ext::roi_align_backward_cpu));
}
