// RoIPool on one CPU core without transposed blocks: for few channels, or few RoIs on a large map.
// Compiled once per instruction set (foreach_target.h).
//
// A row of bins is reduced along y first, to a strip of one maximum per column, with neighboring
// columns in the lanes of a register; then bins are reduced along x, by windows that double. A
// pixel is read once per row of bins, and scratch memory is that of some strips.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../core/roi_math.h"
#include "../cpu/targets.h"
#include "roi_pool.h"
#include "roi_pool_bins_cpu.h"

#if defined(RCNN_ROI_POOL_ROI_POOL_STRIPS_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_ROI_POOL_ROI_POOL_STRIPS_CPU_INL_H_
#undef RCNN_ROI_POOL_ROI_POOL_STRIPS_CPU_INL_H_
#else
#define RCNN_ROI_POOL_ROI_POOL_STRIPS_CPU_INL_H_
#endif

#include "../cpu/simd-inl.h"
#include "roi_pool_maxima_cpu-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Scratch memory of a thread: maxima along y by column (and channel), with their pixels.
template <class T>
struct Strip {
  std::vector<T> values, window_values;
  std::vector<PixelOf<T>> pixels, window_pixels;
  std::vector<PixelOf<T>> columns;  // from the first of the strip

  // `step` numbers per column. Padded, since whole registers are read.
  Strip(int64_t max_columns, int64_t step)
      : values(max_columns * step + kLanes<T>),
        window_values(values.size()),
        pixels(values.size()),
        window_pixels(values.size()),
        columns(values.size()) {
    PixelOf<T> column = 0;
    for (size_t i = 0; i < columns.size(); column += 1) {
      for (int64_t c = 0; c < step && i < columns.size(); ++c) columns[i++] = column;
    }
  }
};

// Some rows of neighboring numbers.
template <class Stored>
struct RowBlock {
  const Stored* first;
  int64_t rows, step;    // elements from row to row
  int64_t pixel, width;  // the first pixel; pixels of a row of the map
};

// kVecs vectors of a strip. Returns whether a NaN or an infinity may be among the pixels.
template <int kN, int kVecs, class T, class Stored>
RCNN_INLINE bool reduce_rows_vecs(const RowBlock<Stored>& block, int64_t at, Strip<T>& strip) {
  using Pixel = PixelOf<T>;
  Maxima<T, kN> maxima[kVecs];
  Vec<T, kN> sum[kVecs];
  const Stored* from = block.first + at;
  Vec<Pixel, kN> row = Set<kN>(static_cast<Pixel>(block.pixel));
  const Vec<Pixel, kN> next = Set<kN>(static_cast<Pixel>(block.width));
  for (int p = 0; p < kVecs; ++p) {
    sum[p] = LoadU<T, kN>(from + p * kN);
    maxima[p] = {sum[p], row};
  }
  for (int64_t y = 1; y < block.rows; ++y) {
    from += block.step;
    row += next;
    for (int p = 0; p < kVecs; ++p) {
      const auto value = LoadU<T, kN>(from + p * kN);
      sum[p] += value;
      maxima[p].add(value, row);
    }
  }
  Vec<T, kN> zeros{};
  for (int p = 0; p < kVecs; ++p) {
    StoreU<kN, T>(strip.values.data() + at + p * kN, maxima[p].value);
    const auto column = LoadU<Pixel, kN>(strip.columns.data() + at + p * kN);
    StoreU<kN, Pixel>(strip.pixels.data() + at + p * kN, maxima[p].pixel + column);
    zeros += sum[p] * Vec<T, kN>{};
  }
  return !AllZero<kN, T>(zeros);
}

// A strip of `count` numbers. Returns whether a NaN or an infinity may be among the pixels.
template <int kN, class T, class Stored>
RCNN_INLINE bool reduce_rows(const RowBlock<Stored>& block, int64_t count, Strip<T>& strip) {
  constexpr int kSmallest = 16 / static_cast<int>(sizeof(T));
  if (count < kN) {
    if constexpr (kN > kSmallest) return reduce_rows<kN / 2>(block, count, strip);
    bool nonfinite = false;
    for (int64_t i = 0; i < count; ++i) {
      T maximum = static_cast<T>(block.first[i]);
      int64_t row = block.pixel;
      nonfinite |= !(maximum * T(0) == T(0));
      for (int64_t y = 1; y < block.rows; ++y) {
        const T value = static_cast<T>(block.first[y * block.step + i]);
        nonfinite |= !(value * T(0) == T(0));
        row = value > maximum ? block.pixel + y * block.width : row;
        maximum = value > maximum ? value : maximum;
      }
      strip.values[i] = maximum;
      strip.pixels[i] = static_cast<PixelOf<T>>(row) + strip.columns[i];
    }
    return nonfinite;
  }
  bool nonfinite = false;
  int64_t at = 0;
  for (; at + 4 * kN <= count; at += 4 * kN) {
    nonfinite |= reduce_rows_vecs<kN, 4>(block, at, strip);
  }
  for (; at + kN <= count; at += kN) nonfinite |= reduce_rows_vecs<kN, 1>(block, at, strip);
  // The last vector reaches back over columns that are reduced already.
  if (at < count) nonfinite |= reduce_rows_vecs<kN, 1>(block, count - kN, strip);
  return nonfinite;
}

// How the bins of a RoI are read from a strip along x: as the maximum of two windows of equal
// length that cover a bin together. All windows of a length are computed at once, by doubling it.
struct BinWindows {
  struct Pair {
    int64_t first, second;  // columns from the strip's first
  };
  int64_t length = 1;  // a power of two
  std::vector<Pair> pairs;
  std::vector<int64_t> irregular;  // bins that are empty, or narrower than a window

  void reset(const PixelRanges& bins) {
    int64_t widest = 1;
    for (const PixelRange& xs : bins) widest = std::max(widest, xs.last - xs.first);
    length = 1;
    while (2 * length < widest) length *= 2;
    pairs.resize(bins.size());
    irregular.clear();
    const int64_t left = bins.front().first;
    for (size_t bin = 0; bin < bins.size(); ++bin) {
      const PixelRange& xs = bins[bin];
      if (RCNN_UNLIKELY(xs.last - xs.first < length)) {
        irregular.push_back(static_cast<int64_t>(bin));
        pairs[bin] = {0, 0};
      } else {
        pairs[bin] = {xs.first - left, xs.last - length - left};
      }
    }
  }
};

// to[i] = maximum of from[i] and from[i + offset], for i < count
template <class T>
RCNN_INLINE void merge_windows(const T* from, const PixelOf<T>* from_pixels, int64_t offset,
                               int64_t count, T* to, PixelOf<T>* to_pixels) {
  using Pixel = PixelOf<T>;
  constexpr int kN = kLanes<T>;
  for (int64_t i = 0; i < count; i += kN) {
    Maxima<T, kN> maxima{LoadU<T, kN>(from + i), LoadU<Pixel, kN>(from_pixels + i)};
    maxima.add_in_any_order(LoadU<T, kN>(from + i + offset),
                            LoadU<Pixel, kN>(from_pixels + i + offset));
    StoreU<kN, T>(to + i, maxima.value);
    StoreU<kN, Pixel>(to_pixels + i, maxima.pixel);
  }
}

// The pixel of the maximum of a bin of at least one column, column by column: from `first` on,
// before `last`.
template <class T>
inline int64_t narrow_bin_pixel(int64_t first, int64_t last, int64_t step, const Strip<T>& strip) {
  T value = strip.values[first];
  PixelOf<T> pixel = strip.pixels[first];
  for (int64_t at = first + step; at < last; at += step) {
    const T other = strip.values[at];
    if (other > value || (other == value && strip.pixels[at] < pixel)) {
      value = other;
      pixel = strip.pixels[at];
    }
  }
  return pixel;
}

// A row of bins from a strip of `count` numbers. image: [H, W, step] at the first channel; out and
// argmax: [PW, step]
template <class T, class Stored>
inline void reduce_columns(const PixelRanges& bins, const BinWindows& windows, int64_t count,
                           int64_t step, Strip<T>& strip, const Stored* image, Stored* out,
                           int32_t* argmax) {
  using Pixel = PixelOf<T>;
  const T* values = strip.values.data();
  const Pixel* pixels = strip.pixels.data();
  for (int64_t length = 1; length < windows.length; length *= 2) {
    merge_windows(values, pixels, length * step, count - (2 * length - 1) * step,
                  strip.window_values.data(), strip.window_pixels.data());
    values = strip.window_values.data();
    pixels = strip.window_pixels.data();
  }
  Stored* to = out;
  int32_t* to_argmax = argmax;
  for (const BinWindows::Pair& pair : windows.pairs) {
    const int64_t first = pair.first * step;
    const int64_t second = pair.second * step;
    for (int64_t c = 0; c < step; ++c) {
      const T value = values[first + c];
      const T other = values[second + c];
      const Pixel pixel = pixels[first + c];
      const Pixel place = pixels[second + c];
      // Not as a branch, which would often be mispredicted.
      const Pixel takes_place = (other > value) | ((other == value) & (place < pixel));
      const int64_t at = pixel ^ ((pixel ^ place) & -takes_place);
      *to++ = image[at * step + c];
      *to_argmax++ = static_cast<int32_t>(at);
    }
  }
  const int64_t left = bins.front().first;
  for (const int64_t bin : windows.irregular) {
    const PixelRange& xs = bins[bin];
    for (int64_t c = 0; c < step; ++c) {
      if (xs.first >= xs.last) {
        out[bin * step + c] = static_cast<Stored>(T(0));
        argmax[bin * step + c] = -1;
        continue;
      }
      const int64_t at =
          narrow_bin_pixel((xs.first - left) * step + c, (xs.last - left) * step, step, strip);
      out[bin * step + c] = image[at * step + c];
      argmax[bin * step + c] = static_cast<int32_t>(at);
    }
  }
}

// The bins of a RoI in one channel, where `step` is 1, or in `step` channels of channels-last maps.
// image: at the first of them; out and argmax: [bins, step]
template <class T, class Stored>
inline void roi_pool_strips_of_roi(const RoiBins& roi, const BinWindows& windows,
                                   const Stored* image, int64_t width, int64_t step,
                                   Strip<T>& strip, Stored* out, int32_t* argmax) {
  const int64_t left = roi.x.front().first;
  const int64_t count = roi.x.extent() * step;
  const int64_t row = static_cast<int64_t>(roi.x.size()) * step;
  Stored* to = out;
  int32_t* to_argmax = argmax;
  for (const PixelRange& ys : roi.y) {
    if (ys.first >= ys.last || count == 0) {
      std::fill_n(to, row, static_cast<Stored>(T(0)));
      std::fill_n(to_argmax, row, -1);
    } else {
      const int64_t pixel = ys.first * width + left;
      const RowBlock<Stored> block{image + pixel * step, ys.last - ys.first, width * step, pixel,
                                   width};
      if (RCNN_UNLIKELY(reduce_rows<kLanes<T>>(block, count, strip))) {
        for (int64_t c = 0; c < step; ++c) {
          roi_pool_exact<T>(roi, image + c, width, step, out + c, argmax + c, step);
        }
        return;
      }
      reduce_columns(roi.x, windows, count, step, strip, image, to, to_argmax);
    }
    to += row;
    to_argmax += row;
  }
}

// The columns from the first bin to the last of the widest RoI.
inline int64_t max_extent(const RoiBins* begin, const RoiBins* end) {
  int64_t columns = 0;
  for (; begin != end; ++begin) columns = std::max(columns, begin->x.extent());
  return columns;
}

// RoIs, NCHW, for channels [first, last). input: [N, C, H, W], out and argmax: [K, C, PH, PW]
template <class T, class Stored>
void roi_pool_strips(const RoiBins* begin, const RoiBins* end, const Stored* input,
                     const FeatureShape& shape, int64_t first, int64_t last, Stored* out,
                     int32_t* argmax) {
  Strip<T> strip(max_extent(begin, end), 1);
  BinWindows windows;
  const int64_t plane = shape.height * shape.width;
  for (const RoiBins* roi = begin; roi != end; ++roi) {
    windows.reset(roi->x);
    const int64_t bins = static_cast<int64_t>(roi->y.size() * roi->x.size());
    for (int64_t c = first; c < last; ++c) {
      const int64_t target = (roi->index * shape.channels + c) * bins;
      roi_pool_strips_of_roi(*roi, windows, input + (roi->batch * shape.channels + c) * plane,
                             shape.width, 1, strip, out + target, argmax + target);
    }
  }
}

// RoIs, NHWC, all channels. input: [N, H, W, C], out and argmax: [K, PH, PW, C]
template <class T, class Stored>
void roi_pool_strips_channels_last(const RoiBins* begin, const RoiBins* end, const Stored* input,
                                   const FeatureShape& shape, Stored* out, int32_t* argmax) {
  Strip<T> strip(max_extent(begin, end), shape.channels);
  BinWindows windows;
  const int64_t image = shape.height * shape.width * shape.channels;
  for (const RoiBins* roi = begin; roi != end; ++roi) {
    const int64_t target =
        roi->index * static_cast<int64_t>(roi->y.size() * roi->x.size()) * shape.channels;
    windows.reset(roi->x);
    roi_pool_strips_of_roi(*roi, windows, input + roi->batch * image, shape.width, shape.channels,
                           strip, out + target, argmax + target);
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_ROI_POOL_ROI_POOL_STRIPS_CPU_INL_H_
