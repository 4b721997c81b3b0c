// RoIAlign on one CPU core, backward. Compiled once per instruction set (foreach_target.h).
//
// A pixel sums what each RoI gives it, RoI by RoI; what a RoI gives it is a sum over bins, along x
// first in NCHW and along y first in NHWC.
#include <cstdint>
#include <type_traits>

#include "../cpu/targets.h"
#include "roi_align_scratch_cpu.h"
#include "roi_align_weights_cpu.h"

#if defined(RCNN_ROI_ALIGN_ROI_ALIGN_BACKWARD_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_ROI_ALIGN_ROI_ALIGN_BACKWARD_CPU_INL_H_
#undef RCNN_ROI_ALIGN_ROI_ALIGN_BACKWARD_CPU_INL_H_
#else
#define RCNN_ROI_ALIGN_ROI_ALIGN_BACKWARD_CPU_INL_H_
#endif

#include "../cpu/simd-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Whether a NaN or an infinity is among the values.
template <class T>
RCNN_INLINE bool any_special(const T* values, int64_t count) {
  constexpr int kN = kLanes<T>;
  Vec<T, kN> zeros{};
  int64_t i = 0;
  for (; i + kN <= count; i += kN) zeros += load<T, kN>(values + i) * Vec<T, kN>{};
  bool special = !all_zero<kN, T>(zeros);
  for (; i < count; ++i) special |= !(values[i] * T(0) == T(0));
  return special;
}

// rows[r][x] = sum over the bins that reach x of weight * grad[r][bin]. grad: [kRows, PW]
template <int kRows, class T>
RCNN_INLINE void spread_columns_of(const ColumnBlock<T>& block, const T* grad, int64_t pooled_width,
                                   T* rows, int64_t stride) {
  constexpr int kN = kLanes<T> < kColumnBlock ? kLanes<T> : kColumnBlock;
  for (int part = 0; part < kColumnBlock; part += kN) {
    Vec<T, kN> total[kRows];
    for (int r = 0; r < kRows; ++r) total[r] = Vec<T, kN>{};
    const T* weights = block.weights + part;
    for (int32_t bin = block.first_bin; bin < block.last_bin; ++bin, weights += kColumnBlock) {
      const Vec<T, kN> weight = load<T, kN>(weights);
      for (int r = 0; r < kRows; ++r) total[r] += weight * Set<kN>(grad[r * pooled_width + bin]);
    }
    for (int r = 0; r < kRows; ++r) store<kN, T>(rows + r * stride + part, total[r]);
  }
}

// The same for any number of rows. grad: [count, PW]
template <class T>
RCNN_INLINE void spread_columns(const ColumnBlock<T>& block, const T* grad, int64_t count,
                                int64_t pooled_width, T* rows, int64_t stride) {
  int64_t r = 0;
  for (; r + kRowBlock <= count; r += kRowBlock) {
    spread_columns_of<kRowBlock>(block, grad + r * pooled_width, pooled_width, rows + r * stride,
                                 stride);
  }
  for (; r < count; ++r) {
    spread_columns_of<1>(block, grad + r * pooled_width, pooled_width, rows + r * stride, stride);
  }
}

// target[i] += sum over taps of weight * source[tap's place][i]. kTaps: how many, or 0 for any
template <int kN, int kPacks, int kTaps, class T>
RCNN_INLINE void add_rows_packs(const Tap<T>* begin, const Tap<T>* end, const T* source,
                                int64_t stride, T* target) {
  Vec<T, kN> total[kPacks];
  for (int p = 0; p < kPacks; ++p) total[p] = Vec<T, kN>{};
  const auto add = [&](const Tap<T>& tap) {
    const Vec<T, kN> weight = Set<kN>(tap.weight);
    for (int p = 0; p < kPacks; ++p) {
      total[p] += weight * load<T, kN>(source + tap.place * stride + p * kN);
    }
  };
  if (kTaps > 0) {
    for (int t = 0; t < kTaps; ++t) add(begin[t]);
  } else {
    for (const Tap<T>* tap = begin; tap != end; ++tap) add(*tap);
  }
  for (int p = 0; p < kPacks; ++p) {
    store<kN, T>(target + p * kN, load<T, kN>(target + p * kN) + total[p]);
  }
}

template <int kTaps, class T>
RCNN_INLINE void add_rows_of(const Tap<T>* begin, const Tap<T>* end, const T* source,
                             int64_t stride, int64_t count, T* target) {
  constexpr int kN = kLanes<T>;
  constexpr int kHalf = kN > kColumnBlock ? kColumnBlock : kN;
  int64_t i = 0;
  for (; i + 4 * kN <= count; i += 4 * kN) {
    add_rows_packs<kN, 4, kTaps>(begin, end, source + i, stride, target + i);
  }
  for (; i + 2 * kN <= count; i += 2 * kN) {
    add_rows_packs<kN, 2, kTaps>(begin, end, source + i, stride, target + i);
  }
  for (; i + kN <= count; i += kN) {
    add_rows_packs<kN, 1, kTaps>(begin, end, source + i, stride, target + i);
  }
  for (; i + kHalf <= count; i += kHalf) {
    add_rows_packs<kHalf, 1, kTaps>(begin, end, source + i, stride, target + i);
  }
  for (; i < count; ++i) {
    T total = T(0);
    for (const Tap<T>* tap = begin; tap != end; ++tap) {
      total += tap->weight * source[tap->place * stride + i];
    }
    target[i] += total;
  }
}

// One or two bins reach most pixels: which of them it is, is guessed once a row, not once a pack.
template <class T>
RCNN_INLINE void add_rows(const Tap<T>* begin, const Tap<T>* end, const T* source, int64_t stride,
                          int64_t count, T* target) {
  switch (end - begin) {
    case 0: break;
    case 1: add_rows_of<1>(begin, end, source, stride, count, target); break;
    case 2: add_rows_of<2>(begin, end, source, stride, count, target); break;
    default: add_rows_of<0>(begin, end, source, stride, count, target);
  }
}

// Adds what one RoI gives one channel, tap by tap: a NaN or an infinite gradient reaches only
// pixels whose weight is not 0.
template <class T>
inline void spread_exactly(const RoiTable<T>& table, const T* grad, const PooledShape& pooled,
                           T* plane, int64_t row) {
  for (int64_t i = 0; i < table.rows; ++i) {
    for (int64_t column = 0; column < table.columns; ++column) {
      const ColumnBlock<T>& block = table.column_blocks[column / kColumnBlock];
      T total = T(0);
      bool reached = false;
      for (int32_t t = table.by_row.starts[i]; t < table.by_row.starts[i + 1]; ++t) {
        const Tap<T> y = table.by_row.taps[t];
        T sum = T(0);
        for (int32_t bin = block.first_bin; bin < block.last_bin; ++bin) {
          const T weight =
              block.weights[(bin - block.first_bin) * kColumnBlock + column % kColumnBlock];
          if (weight == T(0)) continue;
          reached = true;
          sum += weight * grad[y.place * pooled.width + bin];
        }
        total += y.weight * sum;
      }
      if (reached) plane[(table.first_row + i) * row + table.first_column + column] += total;
    }
  }
}

// Adds what one RoI gives one channel, NCHW. grad: [PH, PW], plane: [H, W]
template <class T, class Stored>
inline void spread_plane(const RoiTable<T>& table, const Stored* stored, const PooledShape& pooled,
                         SpreadScratch<T>& scratch, T* plane, int64_t row) {
  if (table.rows == 0 || table.columns == 0) return;
  const T* grad;
  if constexpr (std::is_same_v<T, Stored>) {
    grad = stored;
  } else {
    load_all(scratch.grad.data(), stored, pooled.bins());
    grad = scratch.grad.data();
  }
  if (RCNN_UNLIKELY(any_special(grad, pooled.bins()))) {
    return spread_exactly(table, grad, pooled, plane, row);
  }
  const int64_t stride = SpreadScratch<T>::row_stride(table.columns);
  for (int64_t block = 0; block * kColumnBlock < table.columns; ++block) {
    spread_columns(table.column_blocks[block], grad, pooled.height, pooled.width,
                   scratch.rows.data() + block * kColumnBlock, stride);
  }
  const auto add = [&](int32_t first, int32_t last, auto taps) {
    for (const int32_t* i = table.row_order.rows + first; i != table.row_order.rows + last; ++i) {
      const int32_t* const start = table.by_row.starts + *i;
      add_rows_of<decltype(taps)::value>(table.by_row.taps + start[0], table.by_row.taps + start[1],
                                         scratch.rows.data(), stride, table.columns,
                                         plane + (table.first_row + *i) * row + table.first_column);
    }
  };
  const RowOrder& order = table.row_order;
  add(0, order.ones, std::integral_constant<int, 1>());
  add(order.ones, order.twos, std::integral_constant<int, 2>());
  add(order.twos, order.all, std::integral_constant<int, 0>());
}

// Adds what one RoI gives row y of an image, NHWC. grad: [PH, PW, C], line: [W, C], sums: [PW, C]
// scratch
template <class T, class Stored>
inline void spread_line(const RoiTable<T>& table, const Stored* grad, const PooledShape& pooled,
                        int64_t y, T* sums, T* line) {
  const int64_t channels = pooled.channels;
  const int32_t* const start = table.by_row.starts + (y - table.first_row);
  if (start[0] == start[1]) return;
  const int64_t count = pooled.width * channels;
  constexpr int kN = kLanes<T>;
  int64_t i = 0;
  for (; i + kN <= count; i += kN) {
    Vec<T, kN> total{};
    for (int32_t t = start[0]; t < start[1]; ++t) {
      const Tap<T> tap = table.by_row.taps[t];
      total += Set<kN>(tap.weight) * load<T, kN>(grad + tap.place * count + i);
    }
    store<kN, T>(sums + i, total);
  }
  for (; i < count; ++i) {
    T total = T(0);
    for (int32_t t = start[0]; t < start[1]; ++t) {
      const Tap<T> tap = table.by_row.taps[t];
      total += tap.weight * static_cast<T>(grad[tap.place * count + i]);
    }
    sums[i] = total;
  }
  for (int64_t x = 0; x < table.widths; ++x) {
    const int32_t* const at = table.by_column.starts + x;
    add_rows(table.by_column.taps + at[0], table.by_column.taps + at[1], sums, channels, channels,
             line + (table.first_x + x) * channels);
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_ROI_ALIGN_ROI_ALIGN_BACKWARD_CPU_INL_H_
