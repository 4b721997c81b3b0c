// RoIAlign on one CPU core, forward, NCHW, with channels in the lanes of a register: for bins of
// few taps. A source of for_each_isa.h, after align_forward_kernels.h; sums have its order, and so
// its bits.
#include "../common/channel_tile.h"

// kBins neighbouring bins of a row. tile: [H, W, kLanes], out: of the bins, [kLanes] each. Adds 0
// for every sum that is finite, else NaN.
template <int kBins, class T>
RCNN_HOST_DEVICE void align_bins(const Tap<T>* begin, const Tap<T>* end, const BinBlock<T>& block,
                                 int64_t first, int64_t pooled_width, const T* tile, int64_t width,
                                 T* out, Pack<T, kLanes<T>>& zeros) {
  constexpr int kN = kLanes<T>;
  Pack<T, kN> total[kBins];
  for (int b = 0; b < kBins; ++b) total[b] = Pack<T, kN>{};
  for (int32_t s = 0; s < block.steps; ++s) {
    const int32_t* const columns = block.columns + s * pooled_width + first;
    const T* const weights = block.weights + s * pooled_width + first;
    Pack<T, kN> column[kBins];
    const T* top[kBins];
    for (int b = 0; b < kBins; ++b) {
      column[b] = Pack<T, kN>{};
      top[b] = tile + static_cast<int64_t>(columns[b]) * kN;
#if defined(__GNUC__)
      // Otherwise compilers hold indices, and work out an address for every load.
      __asm__("" : "+r"(top[b]));
#endif
    }
    for (const Tap<T>* tap = begin; tap != end; ++tap) {
      const int64_t row = tap->place * width * kN;
      const Pack<T, kN> weight = splat<kN>(tap->weight);
      for (int b = 0; b < kBins; ++b) column[b] += weight * load<T, kN>(top[b] + row);
    }
    for (int b = 0; b < kBins; ++b) total[b] += splat<kN>(weights[b]) * column[b];
  }
  for (int b = 0; b < kBins; ++b) {
    zeros += total[b] * Pack<T, kN>{};
    store<kN, T>(out + b * kN, total[b]);
  }
}

// A row of bins, as above. Zeros for finite sums.
template <class T>
RCNN_HOST_DEVICE Pack<T, kLanes<T>> align_row(const Tap<T>* begin, const Tap<T>* end,
                                              const BinBlock<T> block, int64_t pooled_width,
                                              const T* tile, int64_t width, T* out) {
  Pack<T, kLanes<T>> zeros{};
  side_by_side(pooled_width, [=, &zeros](auto number, int64_t bin) {
    align_bins<decltype(number)::value>(begin, end, block, bin, pooled_width, tile, width,
                                        out + bin * kLanes<T>, zeros);
  });
  return zeros;
}

// Whole runs of RoIs for channels [first, last). out: [K, C, PH, PW]
template <class T, class Stored>
void align_tiles(const std::vector<RoiRun<RoiTable<T>, Stored>>& runs, const PooledShape& pooled,
                 int64_t first, int64_t last, bool large, Stored* out) {
  constexpr int kN = kLanes<T>;
  const int64_t bins = pooled.bins();
  ChannelResults<T, Stored> results(bins, large);
  for_each_tile<T>(
      runs, first, last, pooled.height,
      [&](const RoiTable<T>& table, const auto& run, auto& tile, int64_t c, int64_t count,
          auto& ahead) {
        const TapLists<T>& y = table.y;
        Stored* const target = out + (table.roi * pooled.channels + c) * bins;
        Pack<T, kN> zeros{};
        for (int64_t ph = 0; ph < pooled.height; ++ph) {
          results.send(pooled.height);
          ahead.fetch();
          zeros += align_row(y.taps + y.starts[ph], y.taps + y.starts[ph + 1], *table.bin_blocks,
                             pooled.width, tile.data() + table.first_column * kN, run.width,
                             results.data() + ph * pooled.width * kN);
        }
        const bool finite = all_zero<kN, T>(zeros);
        if (RCNN_UNLIKELY(!finite)) {
          const int64_t plane = run.height * run.width;
          for (int64_t i = 0; i < count; ++i) {
            align_exactly(table, run.image + (c + i) * plane, run.width, pooled, target + i * bins);
          }
          return;
        }
        results.put(count, target);
      });
}
