// RoIAlign on one CPU core, forward, NCHW, with channels in the lanes of a register: for bins of
// few taps. Sums have the order of roi_align_forward_cpu-inl.h, and so its bits. Compiled once per
// instruction set (foreach_target.h).
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

// The most taps that a bin has on an axis for kernels that know their number.
constexpr int kFewTaps = 4;

// A row of bins of kRows taps along y and kColumns along x. tile: [H, W, kLanes], out: [PW, kLanes]
// Returns the sum of all, which is finite only if they are.
template <int kRows, int kColumns, class T>
RCNN_NO_INLINE Vec<T, kLanes<T>> align_few(const Tap<T>* rows, const BinBlock<T>& block,
                                           int64_t pooled_width, const T* tile, int64_t width,
                                           T* out) {
  constexpr int kN = kLanes<T>;
  Vec<T, kN> row_weights[std::max(kRows, 1)];
  const T* places[std::max(kRows, 1)];
  for (int r = 0; r < kRows; ++r) {
    row_weights[r] = Set<kN>(rows[r].weight);
    places[r] = tile + rows[r].place * width * kN;
  }
  Vec<T, kN> all{};
  for (int64_t b = 0; b < pooled_width; ++b) {
    Vec<T, kN> total{};
    for (int c = 0; c < kColumns; ++c) {
      const int64_t at = static_cast<int64_t>(block.columns[c * pooled_width + b]) * kN;
      Vec<T, kN> column{};
      for (int r = 0; r < kRows; ++r) column += row_weights[r] * load<T, kN>(places[r] + at);
      total += Set<kN>(block.weights[c * pooled_width + b]) * column;
    }
    store<kN, T>(out + b * kN, total);
    all += total;
  }
  return all;
}

// kBins neighbouring bins of a row, of any number of taps. Adds them up in `all`.
template <int kBins, class T>
RCNN_INLINE void align_bins(const Tap<T>* begin, const Tap<T>* end, const BinBlock<T>& block,
                            int64_t first, int64_t pooled_width, const T* tile, int64_t width,
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
      top[b] = tile + static_cast<int64_t>(columns[b]) * kN;
#if defined(__GNUC__)
      // Otherwise compilers hold indices, and work out an address for every load.
      __asm__("" : "+r"(top[b]));
#endif
    }
    for (const Tap<T>* tap = begin; tap != end; ++tap) {
      const int64_t row = tap->place * width * kN;
      const Vec<T, kN> weight = Set<kN>(tap->weight);
      for (int b = 0; b < kBins; ++b) column[b] += weight * load<T, kN>(top[b] + row);
    }
    for (int b = 0; b < kBins; ++b) total[b] += Set<kN>(weights[b]) * column[b];
  }
  for (int b = 0; b < kBins; ++b) {
    all += total[b];
    store<kN, T>(out + b * kN, total[b]);
  }
}

// The same for a row of bins. Returns their sum.
template <class T>
RCNN_INLINE Vec<T, kLanes<T>> align_many(const Tap<T>* begin, const Tap<T>* end,
                                         const BinBlock<T>& block, int64_t pooled_width,
                                         const T* tile, int64_t width, T* out) {
  Vec<T, kLanes<T>> all{};
  unrolled(pooled_width, [=, &all](auto number, int64_t bin) {
    align_bins<decltype(number)::value>(begin, end, block, bin, pooled_width, tile, width,
                                        out + bin * kLanes<T>, all);
  });
  return all;
}

// A row of bins, as above.
template <class T>
RCNN_INLINE Vec<T, kLanes<T>> align_row(const Tap<T>* begin, const Tap<T>* end,
                                        const BinBlock<T>& block, int64_t pooled_width,
                                        const T* tile, int64_t width, T* out) {
  if (end - begin > kFewTaps || block.steps > kFewTaps) {
    return align_many(begin, end, block, pooled_width, tile, width, out);
  }
  Vec<T, kLanes<T>> all;
  dispatch_static<kFewTaps>(end - begin, [&](auto rows) {
    dispatch_static<kFewTaps>(block.steps, [&](auto columns) {
      all = align_few<decltype(rows)::value, decltype(columns)::value>(begin, block, pooled_width,
                                                                       tile, width, out);
    });
  });
  return all;
}

// Whole runs of RoIs for channels [first, last). out: [K, C, PH, PW]
template <class T, class Stored>
void align_tiles(const std::vector<RoiSpan<RoiTable<T>, Stored>>& runs, const PooledShape& pooled,
                 int64_t first, int64_t last, bool large, Stored* out) {
  constexpr int kN = kLanes<T>;
  const int64_t bins = pooled.bins();
  StreamingWriter<T, Stored> results(bins, large);
  for_each_tile<T, /*kFindsNan=*/false>(
      runs, first, last, pooled.height,
      [&](const RoiTable<T>& table, const auto& run, auto& tile, int64_t c, int64_t count,
          auto& ahead) {
        const CsrWeights<T>& y = table.y;
        Stored* const target = out + (table.roi * pooled.channels + c) * bins;
        Vec<T, kN> all{};
        for (int64_t ph = 0; ph < pooled.height; ++ph) {
          results.send(pooled.height);
          ahead.fetch();
          all += align_row(y.taps + y.starts[ph], y.taps + y.starts[ph + 1], *table.bin_blocks,
                           pooled.width, tile.data() + table.first_column * kN, run.width,
                           results.data() + ph * pooled.width * kN);
        }
        // A NaN or an infinity among the sums is left in that of all; so it is if that overflows.
        if (RCNN_UNLIKELY(!(all_zero<kN, T>(all * Vec<T, kN>{})))) {
          const int64_t plane = run.height * run.width;
          for (int64_t i = 0; i < count; ++i) {
            align_exactly(table, run.image + (c + i) * plane, run.width, pooled, target + i * bins);
          }
          return;
        }
        results.put(count, target);
      });
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_ROI_ALIGN_ROI_ALIGN_TRANSPOSED_CPU_INL_H_
