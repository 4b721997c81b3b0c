// RoIAlign on one CPU core, forward, NCHW, on transposed blocks: with channels in the lanes of a
// register, no bin needs columns gathered. Sums have the order of roi_align_forward_cpu-inl.h, and
// so its bits. Compiled once per instruction set (foreach_target.h).
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../cpu/roi_order.h"
#include "../cpu/targets.h"
#include "roi_align_weights_cpu.h"

#if defined(RCNN_ROI_ALIGN_ROI_ALIGN_TRANSPOSED_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_ROI_ALIGN_ROI_ALIGN_TRANSPOSED_CPU_INL_H_
#undef RCNN_ROI_ALIGN_ROI_ALIGN_TRANSPOSED_CPU_INL_H_
#else
#define RCNN_ROI_ALIGN_ROI_ALIGN_TRANSPOSED_CPU_INL_H_
#endif

#include "../cpu/channel_block-inl.h"
#include "../cpu/simd-inl.h"
#include "roi_align_forward_cpu-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Taps of a bin on an axis up to which there is a kernel for each number: with AVX2, RoIAlign of 4
// levels took 22.8 -> 19.2 ms and of 512 RoIs 14.6 -> 12.5 ms, with AVX-512 as long as before (AMD
// EPYC, one core, 2026-11). Bins of the usual 2 x 2 samples have up to 4 x 4 taps.
constexpr int kMaxStaticTaps = 4;

// A row of bins of kRows taps along y and kColumns along x. Returns the sum of all, which is finite
// only if they are.
// pixels: [H, W, kLanes], out: [PW, kLanes]
template <int kRows, int kColumns, class T>
RCNN_NO_INLINE Vec<T, kLanes<T>> roi_align_row_static(const Tap<T>* rows,
                                                      const BinWeights<T>& block,
                                                      int64_t pooled_width, const T* pixels,
                                                      int64_t width, T* out) {
  constexpr int kN = kLanes<T>;
  Vec<T, kN> row_weights[std::max(kRows, 1)];
  const T* row_pixels[std::max(kRows, 1)];
  for (int r = 0; r < kRows; ++r) {
    row_weights[r] = Set<kN>(rows[r].weight);
    row_pixels[r] = pixels + rows[r].index * width * kN;
  }
  Vec<T, kN> all{};
  for (int64_t b = 0; b < pooled_width; ++b) {
    Vec<T, kN> total{};
    for (int c = 0; c < kColumns; ++c) {
      const int64_t at = static_cast<int64_t>(block.columns[c * pooled_width + b]) * kN;
      Vec<T, kN> column{};
      for (int r = 0; r < kRows; ++r) column += row_weights[r] * LoadU<T, kN>(row_pixels[r] + at);
      total += Set<kN>(block.weights[c * pooled_width + b]) * column;
    }
    StoreU<kN, T>(out + b * kN, total);
    all += total;
  }
  return all;
}

// kBins neighboring bins of a row, of any number of taps. Adds them up in `all`.
template <int kBins, class T>
RCNN_INLINE void roi_align_bins(const Tap<T>* begin, const Tap<T>* end, const BinWeights<T>& block,
                                int64_t first, int64_t pooled_width, const T* pixels, int64_t width,
                                T* out, Vec<T, kLanes<T>>& all) {
  constexpr int kN = kLanes<T>;
  Vec<T, kN> total[kBins];
  for (int b = 0; b < kBins; ++b) total[b] = Vec<T, kN>{};
  for (int32_t s = 0; s < block.steps; ++s) {
    const int32_t* const columns = block.columns + s * pooled_width + first;
    const T* const weights = block.weights + s * pooled_width + first;
    Vec<T, kN> column[kBins];
    const T* top[kBins];
    for (int b = 0; b < kBins; ++b) {
      column[b] = Vec<T, kN>{};
      top[b] = pixels + static_cast<int64_t>(columns[b]) * kN;
#if defined(__GNUC__)
      // Otherwise compilers keep indices in registers and compute an address for every load.
      __asm__("" : "+r"(top[b]));
#endif
    }
    for (const Tap<T>* tap = begin; tap != end; ++tap) {
      const int64_t row = tap->index * width * kN;
      const Vec<T, kN> weight = Set<kN>(tap->weight);
      for (int b = 0; b < kBins; ++b) column[b] += weight * LoadU<T, kN>(top[b] + row);
    }
    for (int b = 0; b < kBins; ++b) total[b] += Set<kN>(weights[b]) * column[b];
  }
  for (int b = 0; b < kBins; ++b) {
    all += total[b];
    StoreU<kN, T>(out + b * kN, total[b]);
  }
}

// A row of bins of any number of taps. Returns their sum.
template <class T>
RCNN_INLINE Vec<T, kLanes<T>> roi_align_row_dynamic(const Tap<T>* begin, const Tap<T>* end,
                                                    const BinWeights<T>& block,
                                                    int64_t pooled_width, const T* pixels,
                                                    int64_t width, T* out) {
  Vec<T, kLanes<T>> all{};
  unrolled(pooled_width, [=, &all](auto bin_count, int64_t bin) {
    roi_align_bins<decltype(bin_count)::value>(begin, end, block, bin, pooled_width, pixels, width,
                                               out + bin * kLanes<T>, all);
  });
  return all;
}

// A row of bins: by the kernel for its number of taps, if there is one. Returns their sum.
template <class T>
RCNN_INLINE Vec<T, kLanes<T>> roi_align_row(const Tap<T>* begin, const Tap<T>* end,
                                            const BinWeights<T>& block, int64_t pooled_width,
                                            const T* pixels, int64_t width, T* out) {
  if (end - begin > kMaxStaticTaps || block.steps > kMaxStaticTaps) {
    return roi_align_row_dynamic(begin, end, block, pooled_width, pixels, width, out);
  }
  Vec<T, kLanes<T>> all;
  dispatch_static<kMaxStaticTaps>(end - begin, [&](auto rows) {
    dispatch_static<kMaxStaticTaps>(block.steps, [&](auto columns) {
      all = roi_align_row_static<decltype(rows)::value, decltype(columns)::value>(
          begin, block, pooled_width, pixels, width, out);
    });
  });
  return all;
}

// Spans of RoIs for channels [first, last). streaming: whether to write with non-temporal stores;
// out: [K, C, PH, PW]
template <class T, class Stored>
void roi_align_transposed(const std::vector<RoiSpan<RoiWeights<T>, Stored>>& spans,
                          const PooledShape& pooled, int64_t first, int64_t last, bool streaming,
                          Stored* out) {
  constexpr int kN = kLanes<T>;
  const int64_t bins = pooled.bins();
  StreamingWriter<T, Stored> results(bins, streaming);
  for_each_channel_block<T, /*kTracksFinite=*/false>(
      spans, first, last, pooled.height,
      [&](const RoiWeights<T>& roi, const auto& span, auto& block, int64_t c, int64_t count,
          auto& prefetcher) {
        const CsrWeights<T>& y = roi.y;
        Stored* const target = out + (roi.index * pooled.channels + c) * bins;
        Vec<T, kN> all{};
        for (int64_t ph = 0; ph < pooled.height; ++ph) {
          results.flush(pooled.height);
          prefetcher.advance();
          all += roi_align_row(y.taps + y.starts[ph], y.taps + y.starts[ph + 1], *roi.bin_weights,
                               pooled.width, block.data() + roi.first_column * kN, span.width,
                               results.data() + ph * pooled.width * kN);
        }
        // A NaN or an infinity makes the sum nonfinite. So may overflow, which costs a second
        // computation only.
        if (RCNN_UNLIKELY(!(AllZero<kN, T>(all * Vec<T, kN>{})))) {
          const int64_t plane = span.height * span.width;
          for (int64_t i = 0; i < count; ++i) {
            roi_align_exact(roi, span.image + (c + i) * plane, span.width, pooled,
                            target + i * bins);
          }
          return;
        }
        results.store(count, target);
      });
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_ROI_ALIGN_ROI_ALIGN_TRANSPOSED_CPU_INL_H_
