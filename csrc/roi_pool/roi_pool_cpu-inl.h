// RoIPool on one CPU core, compiled once per instruction set (foreach_target.h).
//
// The lanes of a register are channels, so that no bin reduces over lanes: NCHW planes are
// transposed to blocks of channels where RoIs cover them, each pixel once for all RoIs. Maxima are
// kept with the pixels that they come from, in numbers of the same width; among equals the first
// pixel stays. A NaN counts as the largest number: where there may be one, bins are taken channel
// by channel.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "../core/checks.h"
#include "../core/roi_math.h"
#include "../cpu/roi_order.h"
#include "../cpu/targets.h"
#include "roi_pool.h"
#include "roi_pool_bins_cpu.h"

#if defined(RCNN_ROI_POOL_ROI_POOL_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_ROI_POOL_ROI_POOL_CPU_INL_H_
#undef RCNN_ROI_POOL_ROI_POOL_CPU_INL_H_
#else
#define RCNN_ROI_POOL_ROI_POOL_CPU_INL_H_
#endif

#include "../cpu/channel_block-inl.h"
#include "../cpu/simd-inl.h"
#include "roi_pool_maxima_cpu-inl.h"
#include "roi_pool_strips_cpu-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// kVecs vectors of channels of one bin. image: at the first of them, [H, W, `step` elements]
// Returns whether there may be a NaN.
template <int kN, int kVecs, class T, class Stored>
RCNN_INLINE bool roi_pool_bin_vecs(const PixelRange& ys, const PixelRange& xs, const Stored* image,
                                   int64_t width, int64_t step, Stored* out, int32_t* argmax) {
  using Pixel = PixelOf<T>;
  if (RCNN_UNLIKELY(ys.first >= ys.last || xs.first >= xs.last)) {
    for (int p = 0; p < kVecs; ++p) {
      StoreU<kN, T>(out + p * kN, Vec<T, kN>{});
      StoreU<kN, Pixel>(argmax + p * kN, Set<kN>(Pixel(-1)));
    }
    return false;
  }
  Maxima<T, kN> maxima[kVecs];
  Vec<T, kN> sum[kVecs];
  const int64_t begin = ys.first * width + xs.first;
  for (int p = 0; p < kVecs; ++p) {
    sum[p] = Vec<T, kN>{};
    maxima[p] = {LoadU<T, kN>(image + begin * step + p * kN), Set<kN>(static_cast<Pixel>(begin))};
  }
  for (int64_t y = ys.first; y < ys.last; ++y) {
    const int64_t first = y * width + xs.first;
    const Stored* pixel = image + first * step;
    Vec<Pixel, kN> at = Set<kN>(static_cast<Pixel>(first));
    for (int64_t x = xs.first; x < xs.last; ++x) {
      for (int p = 0; p < kVecs; ++p) {
        const auto value = LoadU<T, kN>(pixel + p * kN);
        sum[p] += value;
        maxima[p].add(value, at);
      }
      pixel += step;
      at += Set<kN>(Pixel(1));
    }
  }
  bool nonfinite = false;
  for (int p = 0; p < kVecs; ++p) {
    StoreU<kN, T>(out + p * kN, maxima[p].value);
    StoreU<kN, Pixel>(argmax + p * kN, maxima[p].pixel);
    nonfinite |= !AllZero<kN, T>(sum[p] * Vec<T, kN>{});
  }
  return nonfinite;
}

// A register of channels of kBins neighboring bins, none of them empty, of which no pixel is a NaN.
// block: [H, W, kLanes], columns: [count, PW] at the first bin, value and pixel: of the bins,
// [kLanes] each
//
// The bins advance together: one after the other, each pixel would wait for the maximum before it,
// and the ends of their loops would be mispredicted branches.
template <int kBins, class T>
RCNN_INLINE void roi_pool_bins(const PixelRange& ys, const int32_t* columns, int64_t count,
                               int64_t pooled_width, const T* block, int64_t width, T* value,
                               PixelOf<T>* pixel) {
  using Pixel = PixelOf<T>;
  constexpr int kN = kLanes<T>;
  Maxima<T, kN> maxima[kBins];
  for (int b = 0; b < kBins; ++b) {
    maxima[b] = {Set<kN>(-std::numeric_limits<T>::infinity()), Vec<Pixel, kN>{}};
  }
  // Counted from the first pixel of a bin, pixels of all bins have one number.
  for (int64_t y = ys.first; y < ys.last; ++y) {
    const T* const row = block + y * width * kN;
    Vec<Pixel, kN> at = Set<kN>(static_cast<Pixel>((y - ys.first) * width));
    for (const int32_t* column = columns; column != columns + count * pooled_width;
         column += pooled_width) {
      for (int b = 0; b < kBins; ++b) {
        maxima[b].add(LoadU<T, kN>(row + static_cast<int64_t>(column[b]) * kN), at);
      }
      at += Set<kN>(Pixel(1));
    }
  }
  for (int b = 0; b < kBins; ++b) {
    const auto first = static_cast<Pixel>(ys.first * width + columns[b]);
    StoreU<kN, T>(value + b * kN, maxima[b].value);
    StoreU<kN, Pixel>(pixel + b * kN, maxima[b].pixel + Set<kN>(first));
  }
}

// A row of bins. With 16 registers it needs them all to itself: not inlined, it took 24.3 -> 20.4
// ms with AVX2 and 50 -> 46 ms with SSE2 for 512 RoIs (AMD EPYC, one core, 2026-11). With 32 of
// AVX-512, what the compiler knows of its caller is worth more.
template <class T>
#if RCNN_ISA < 2
RCNN_NO_INLINE void
#else
RCNN_INLINE void
#endif
roi_pool_row(const PixelRange ys, const int32_t* columns, int64_t count, int64_t pooled_width,
             const T* block, int64_t width, T* value, PixelOf<T>* pixel) {
  unrolled(pooled_width, [=](auto bin_count, int64_t bin) {
    roi_pool_bins<decltype(bin_count)::value>(ys, columns + bin, count, pooled_width, block, width,
                                              value + bin * kLanes<T>, pixel + bin * kLanes<T>);
  });
}

// Spans of RoIs, NCHW, for channels [first, last). streaming: whether to write with non-temporal
// stores; out and argmax: [K, C, PH, PW]
template <class T, class Stored>
void roi_pool_channels(const std::vector<RoiSpan<RoiBins, Stored>>& spans, int64_t channels,
                       int64_t bins, int64_t first, int64_t last, bool streaming, Stored* out,
                       int32_t* argmax) {
  using Pixel = PixelOf<T>;
  constexpr int kN = kLanes<T>;
  StreamingWriter<T, Stored> values(bins, streaming);
  StreamingWriter<Pixel, int32_t> places(bins, streaming);
  const auto rows = static_cast<int64_t>(spans.front().begin->y.size());
  for_each_channel_block<T, /*kTracksFinite=*/true>(
      spans, first, last, rows,
      [&](const RoiBins& roi, const auto& span, auto& block, int64_t c, int64_t count,
          auto& prefetcher) {
        bool nonfinite = false;
        const int64_t left = roi.x.front().first;
        const int64_t right = roi.x.back().last;
        const int64_t bottom = left < right && !block.all_finite() ? roi.y.back().last : 0;
        for (int64_t y = roi.y.front().first; y < bottom; ++y) {
          nonfinite |= block.ensure_transposed(y * span.width + left, y * span.width + right);
        }
        const int64_t target = (roi.index * channels + c) * bins;
        if (RCNN_UNLIKELY(nonfinite)) {
          const int64_t plane = span.height * span.width;
          for (int64_t i = 0; i < count; ++i) {
            roi_pool_exact<T>(roi, span.image + (c + i) * plane, span.width, 1,
                              out + target + i * bins, argmax + target + i * bins, 1);
          }
          return;
        }
        const auto pooled_width = static_cast<int64_t>(roi.x.size());
        T* value = values.data();
        Pixel* place = places.data();
        for (const PixelRange& ys : roi.y) {
          values.flush(rows);
          places.flush(rows);
          prefetcher.advance();
          if (roi.column_count > 0) {
            roi_pool_row(ys, roi.columns.data(), roi.column_count, pooled_width, block.data(),
                         span.width, value, place);
          }
          value += pooled_width * kN;
          place += pooled_width * kN;
        }
        for (const int64_t bin : roi.empty) {
          StoreU<kN, T>(values.data() + bin * kN, Vec<T, kN>{});
          StoreU<kN, Pixel>(places.data() + bin * kN, Set<kN>(Pixel(-1)));
        }
        values.store(count, out + target);
        places.store(count, argmax + target);
      });
}

// RoIs, NHWC. input: [N, H, W, C], out and argmax: [K, PH, PW, C]
template <class T, class Stored>
void roi_pool_pixels(const RoiBins* begin, const RoiBins* end, const Stored* input,
                     const FeatureShape& shape, int64_t bins, Stored* out, int32_t* argmax) {
  constexpr int kN = kLanes<T>;
  constexpr int kVecs = 4;
  const int64_t channels = shape.channels;
  // Some channels of all RoIs before the next ones, so that RoIs share what is in the cache.
  for (int64_t c = 0; c < channels;) {
    // The last vector reaches back over channels that are pooled already, where there are enough.
    if (channels - c < kN) c = std::max<int64_t>(0, channels - kN);
    const int64_t vecs = std::min<int64_t>(kVecs, (channels - c) / kN);
    const int64_t count = vecs == kVecs ? kVecs * kN : vecs > 0 ? kN : channels - c;
    for (const RoiBins* roi = begin; roi != end; ++roi) {
      const Stored* const image = input + roi->batch * shape.height * shape.width * channels + c;
      const int64_t target = roi->index * bins * channels + c;
      bool nonfinite = count < kN;
      int64_t at = target;
      for (size_t bin = 0; bin < roi->y.size() * roi->x.size() && count >= kN; ++bin) {
        const PixelRange& ys = roi->y[bin / roi->x.size()];
        const PixelRange& xs = roi->x[bin % roi->x.size()];
        if (count > kN) {
          nonfinite |= roi_pool_bin_vecs<kN, kVecs, T>(ys, xs, image, shape.width, channels,
                                                       out + at, argmax + at);
        } else {
          nonfinite |= roi_pool_bin_vecs<kN, 1, T>(ys, xs, image, shape.width, channels, out + at,
                                                   argmax + at);
        }
        at += channels;
      }
      for (int64_t i = 0; i < count && RCNN_UNLIKELY(nonfinite); ++i) {
        roi_pool_exact<T>(*roi, image + i, shape.width, channels, out + target + i,
                          argmax + target + i, channels);
      }
    }
    c += count;
  }
}

// Adds the gradient of channels [first, last) of an image, NHWC: a sum over bins in order. grad,
// argmax: [K, PH, PW, C], target: [H * W] pixels that are `step` elements apart
template <class T, class Stored>
void roi_pool_backward_pixels(const T* rois, int64_t roi_count, int64_t image, const Stored* grad,
                              const int32_t* argmax, const FeatureShape& shape, int64_t bins,
                              int64_t first, int64_t last, T* target, int64_t step) {
  const int64_t pixels = shape.height * shape.width;
  for (int64_t k = 0; k < roi_count; ++k) {
    if (roi_batch_index(rois[5 * k], shape.batch_size) != image) continue;
    for (int64_t bin = k * bins; bin < (k + 1) * bins; ++bin) {
      const Stored* const from = grad + bin * shape.channels + first;
      const int32_t* const places = argmax + bin * shape.channels + first;
      const auto add = [&](int64_t c, T value) {
        const int64_t pixel = places[c];
        // The upper bound keeps an argmax from elsewhere from writing out of bounds.
        if (pixel >= 0 && pixel < pixels) target[pixel * step + c] += value;
      };
      constexpr int kN = kLanes<T>;
      int64_t c = 0;
      for (; c + kN <= last - first; c += kN) {
        const Vec<T, kN> values = LoadU<T, kN>(from + c);
        for (int i = 0; i < kN; ++i) add(c + i, values[i]);
      }
      for (; c < last - first; ++c) add(c, static_cast<T>(from[c]));
    }
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_ROI_POOL_ROI_POOL_CPU_INL_H_
