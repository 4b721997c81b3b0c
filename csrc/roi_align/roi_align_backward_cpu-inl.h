// RoIAlign on one CPU core, backward. Compiled once per instruction set (foreach_target.h).
//
// A pixel's gradient is a sum over RoIs in order; the contribution of a RoI is a sum over its bins,
// along x first in NCHW and along y first in NHWC.
#include <cstdint>
#include <type_traits>

#include "../cpu/targets.h"
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
RCNN_INLINE bool any_nonfinite(const T* values, int64_t count) {
  constexpr int kN = kLanes<T>;
  Vec<T, kN> zeros{};
  int64_t i = 0;
  for (; i + kN <= count; i += kN) zeros += LoadU<T, kN>(values + i) * Vec<T, kN>{};
  bool nonfinite = !AllZero<kN, T>(zeros);
  for (; i < count; ++i) nonfinite |= !(values[i] * T(0) == T(0));
  return nonfinite;
}

// rows[r][x] = sum of weight * grad[r][bin] over the bins that x is in, for the columns x of a
// block. grad: [kRows, PW]
template <int kRows, class T>
RCNN_INLINE void roi_align_backward_columns_n(const ColumnWeights<T>& block, const T* grad,
                                              int64_t pooled_width, T* rows, int64_t stride) {
  constexpr int kN = kLanes<T> < kColumnBlock ? kLanes<T> : kColumnBlock;
  for (int part = 0; part < kColumnBlock; part += kN) {
    Vec<T, kN> total[kRows];
    for (int r = 0; r < kRows; ++r) total[r] = Vec<T, kN>{};
    const T* weights = block.weights + part;
    for (int32_t bin = block.first_bin; bin < block.last_bin; ++bin, weights += kColumnBlock) {
      const Vec<T, kN> weight = LoadU<T, kN>(weights);
      for (int r = 0; r < kRows; ++r) total[r] += weight * Set<kN>(grad[r * pooled_width + bin]);
    }
    for (int r = 0; r < kRows; ++r) StoreU<kN, T>(rows + r * stride + part, total[r]);
  }
}

// roi_align_backward_columns_n() for any number of rows. grad: [count, PW]
template <class T>
RCNN_INLINE void roi_align_backward_columns(const ColumnWeights<T>& block, const T* grad,
                                            int64_t count, int64_t pooled_width, T* rows,
                                            int64_t stride) {
  int64_t r = 0;
  for (; r + kRowBlock <= count; r += kRowBlock) {
    roi_align_backward_columns_n<kRowBlock>(block, grad + r * pooled_width, pooled_width,
                                            rows + r * stride, stride);
  }
  for (; r < count; ++r) {
    roi_align_backward_columns_n<1>(block, grad + r * pooled_width, pooled_width, rows + r * stride,
                                    stride);
  }
}

// target[i] += sum over taps of weight * source[tap's index][i], for kVecs vectors. kTaps: their
// number, or 0 for any
template <int kN, int kVecs, int kTaps, class T>
RCNN_INLINE void add_rows_vecs(const Tap<T>* begin, const Tap<T>* end, const T* source,
                               int64_t stride, T* target) {
  Vec<T, kN> total[kVecs];
  for (int p = 0; p < kVecs; ++p) total[p] = Vec<T, kN>{};
  const auto add = [&](const Tap<T>& tap) {
    const Vec<T, kN> weight = Set<kN>(tap.weight);
    for (int p = 0; p < kVecs; ++p) {
      total[p] += weight * LoadU<T, kN>(source + tap.index * stride + p * kN);
    }
  };
  if (kTaps > 0) {
    for (int t = 0; t < kTaps; ++t) add(begin[t]);
  } else {
    for (const Tap<T>* tap = begin; tap != end; ++tap) add(*tap);
  }
  for (int p = 0; p < kVecs; ++p) {
    StoreU<kN, T>(target + p * kN, LoadU<T, kN>(target + p * kN) + total[p]);
  }
}

template <int kTaps, class T>
RCNN_INLINE void add_rows_of(const Tap<T>* begin, const Tap<T>* end, const T* source,
                             int64_t stride, int64_t count, T* target) {
  constexpr int kN = kLanes<T>;
  constexpr int kHalf = kN > kColumnBlock ? kColumnBlock : kN;
  int64_t i = 0;
  for (; i + 4 * kN <= count; i += 4 * kN) {
    add_rows_vecs<kN, 4, kTaps>(begin, end, source + i, stride, target + i);
  }
  for (; i + 2 * kN <= count; i += 2 * kN) {
    add_rows_vecs<kN, 2, kTaps>(begin, end, source + i, stride, target + i);
  }
  for (; i + kN <= count; i += kN) {
    add_rows_vecs<kN, 1, kTaps>(begin, end, source + i, stride, target + i);
  }
  for (; i + kHalf <= count; i += kHalf) {
    add_rows_vecs<kHalf, 1, kTaps>(begin, end, source + i, stride, target + i);
  }
  for (; i < count; ++i) {
    T total = T(0);
    for (const Tap<T>* tap = begin; tap != end; ++tap) {
      total += tap->weight * source[tap->index * stride + i];
    }
    target[i] += total;
  }
}

// Most pixels are in one or two bins: the branch between them is taken once per row, not per
// vector.
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

// Adds the contribution of one RoI to one channel, tap by tap: a NaN or an infinite gradient goes
// to pixels only whose weight is not 0.
template <class T>
inline void roi_align_backward_exact(const RoiWeights<T>& roi, const T* grad,
                                     const PooledShape& pooled, T* plane, int64_t row) {
  for (int64_t i = 0; i < roi.rows; ++i) {
    for (int64_t column = 0; column < roi.columns; ++column) {
      const ColumnWeights<T>& block = roi.column_weights[column / kColumnBlock];
      T total = T(0);
      bool any_weight = false;
      for (int32_t t = roi.by_row.starts[i]; t < roi.by_row.starts[i + 1]; ++t) {
        const Tap<T> y = roi.by_row.taps[t];
        T sum = T(0);
        for (int32_t bin = block.first_bin; bin < block.last_bin; ++bin) {
          const T weight =
              block.weights[(bin - block.first_bin) * kColumnBlock + column % kColumnBlock];
          if (weight == T(0)) continue;
          any_weight = true;
          sum += weight * grad[y.index * pooled.width + bin];
        }
        total += y.weight * sum;
      }
      if (any_weight) plane[(roi.first_row + i) * row + roi.first_column + column] += total;
    }
  }
}

// Adds the contribution of one RoI to one channel, NCHW. stored: [PH, PW], plane: [H, W]
template <class T, class Stored>
inline void roi_align_backward_plane(const RoiWeights<T>& roi, const Stored* stored,
                                     const PooledShape& pooled, BackwardScratch<T>& scratch,
                                     T* plane, int64_t row) {
  if (roi.rows == 0 || roi.columns == 0) return;
  const T* grad;
  if constexpr (std::is_same_v<T, Stored>) {
    grad = stored;
  } else {
    load_all(scratch.grad.data(), stored, pooled.bins());
    grad = scratch.grad.data();
  }
  if (RCNN_UNLIKELY(any_nonfinite(grad, pooled.bins()))) {
    return roi_align_backward_exact(roi, grad, pooled, plane, row);
  }
  const int64_t stride = BackwardScratch<T>::row_stride(roi.columns);
  for (int64_t block = 0; block * kColumnBlock < roi.columns; ++block) {
    roi_align_backward_columns(roi.column_weights[block], grad, pooled.height, pooled.width,
                               scratch.rows.data() + block * kColumnBlock, stride);
  }
  const auto add = [&](int32_t first, int32_t last, auto taps) {
    for (const int32_t* i = roi.rows_by_tap_count.rows + first;
         i != roi.rows_by_tap_count.rows + last; ++i) {
      const int32_t* const start = roi.by_row.starts + *i;
      add_rows_of<decltype(taps)::value>(roi.by_row.taps + start[0], roi.by_row.taps + start[1],
                                         scratch.rows.data(), stride, roi.columns,
                                         plane + (roi.first_row + *i) * row + roi.first_column);
    }
  };
  const RowsByTapCount& order = roi.rows_by_tap_count;
  add(0, order.one_tap_end, std::integral_constant<int, 1>());
  add(order.one_tap_end, order.two_taps_end, std::integral_constant<int, 2>());
  add(order.two_taps_end, order.end, std::integral_constant<int, 0>());
}

// Adds the contribution of one RoI to row y of an image, NHWC. grad: [PH, PW, C], line: [W, C],
// sums: scratch [PW, C]
template <class T, class Stored>
inline void roi_align_backward_row(const RoiWeights<T>& roi, const Stored* grad,
                                   const PooledShape& pooled, int64_t y, T* sums, T* line) {
  const int64_t channels = pooled.channels;
  const int32_t* const start = roi.by_row.starts + (y - roi.first_row);
  if (start[0] == start[1]) return;
  const int64_t count = pooled.width * channels;
  constexpr int kN = kLanes<T>;
  int64_t i = 0;
  for (; i + kN <= count; i += kN) {
    Vec<T, kN> total{};
    for (int32_t t = start[0]; t < start[1]; ++t) {
      const Tap<T> tap = roi.by_row.taps[t];
      total += Set<kN>(tap.weight) * LoadU<T, kN>(grad + tap.index * count + i);
    }
    StoreU<kN, T>(sums + i, total);
  }
  for (; i < count; ++i) {
    T total = T(0);
    for (int32_t t = start[0]; t < start[1]; ++t) {
      const Tap<T> tap = roi.by_row.taps[t];
      total += tap.weight * static_cast<T>(grad[tap.index * count + i]);
    }
    sums[i] = total;
  }
  for (int64_t x = 0; x < roi.x_count; ++x) {
    const int32_t* const at = roi.by_column.starts + x;
    add_rows(roi.by_column.taps + at[0], roi.by_column.taps + at[1], sums, channels, channels,
             line + (roi.first_x + x) * channels);
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_ROI_ALIGN_ROI_ALIGN_BACKWARD_CPU_INL_H_
