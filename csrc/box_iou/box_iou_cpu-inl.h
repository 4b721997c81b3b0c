// The loops of box_iou_cpu.cpp, compiled once per instruction set (foreach_target.h).
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../core/dual.h"
#include "../cpu/targets.h"
#include "box_iou_columns_cpu.h"

#if defined(RCNN_BOX_IOU_BOX_IOU_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_BOX_IOU_BOX_IOU_CPU_INL_H_
#undef RCNN_BOX_IOU_BOX_IOU_CPU_INL_H_
#else
#define RCNN_BOX_IOU_BOX_IOU_CPU_INL_H_
#endif

#include "../cpu/simd-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// out[k] = measure(a, columns[k]) for kCount columns: vector code without a remainder.
template <int kCount, class Measure, class T, class Output>
inline void compute_columns(const Measure& measure, const Box<T>& a, const BoxTerms<T>& a_terms,
                            const BoxColumns<T>& columns, int64_t first, Output* __restrict out) {
  for (int k = 0; k < kCount; ++k) {
    const T value = measure(a, a_terms, columns.box(first + k), columns.terms(first + k));
    out[k] = static_cast<Output>(value);
  }
}

// The first `vector_columns` columns of a row, a multiple of the lanes of the widest register.
template <class Measure, class T, class Output>
inline void compute_whole_vectors(const Measure& measure, const Box<T>& a,
                                  const BoxTerms<T>& a_terms, const BoxColumns<T>& columns,
                                  int64_t vector_columns, Output* __restrict out) {
  constexpr int kN = kLanes<T>;
  for (int64_t j = 0; j < vector_columns; j += kN) {
    compute_columns<kN>(measure, a, a_terms, columns, j, out + j);
  }
}

// The last `count` columns of a row, at most kCount, in the narrowest vector that holds them. Up to
// kCount - 1 elements after the row are overwritten.
template <int kCount, class Measure, class T, class Output>
inline void compute_remainder(const Measure& measure, const Box<T>& a, const BoxTerms<T>& a_terms,
                              const BoxColumns<T>& columns, int64_t first, int64_t count,
                              Output* out) {
  if constexpr (kCount > 8) {
    if (count <= kCount / 2) {
      return compute_remainder<kCount / 2>(measure, a, a_terms, columns, first, count, out);
    }
  }
  compute_columns<kCount>(measure, a, a_terms, columns, first, out);
}

#if defined(RCNN_HAS_SHUFFLEVECTOR)
// The remainders of rows, at most kWidth columns each, computed for several rows in one vector.
template <int kWidth, class T>
class RowRemainders {
 public:
  static constexpr int kN = kLanes<T>;
  static constexpr int kRowsPerVector = kN / kWidth;

  RowRemainders(const BoxColumns<T>& columns, int64_t first) {
    for (int k = 0; k < kN; ++k) {
      for (int c = 0; c < 6; ++c) columns_[c][k] = columns.column(c)[first + k % kWidth];
    }
  }

  // Write kWidth elements for each of kRowsPerVector rows, `step` elements apart; those after the
  // columns are overwritten too. rows: [kN / 4, 4]
  template <class Measure, class Stored, class Output>
  RCNN_INLINE void compute(const Measure& measure, const Stored* rows, Output* out,
                           int64_t step) const {
    compute(measure, rows, out, step, std::make_integer_sequence<int, kN>());
  }

 private:
  template <class Measure, class Stored, class Output, int... kLane>
  RCNN_INLINE void compute(const Measure& measure, const Stored* rows, Output* out, int64_t step,
                           std::integer_sequence<int, kLane...>) const {
    const Vec<T, kN> boxes = LoadU<T, kN>(rows);
    T a[4][kN];
    StoreU<kN, T>(a[0], __builtin_shufflevector(boxes, boxes, (kLane / kWidth * 4)...));
    StoreU<kN, T>(a[1], __builtin_shufflevector(boxes, boxes, (kLane / kWidth * 4 + 1)...));
    StoreU<kN, T>(a[2], __builtin_shufflevector(boxes, boxes, (kLane / kWidth * 4 + 2)...));
    StoreU<kN, T>(a[3], __builtin_shufflevector(boxes, boxes, (kLane / kWidth * 4 + 3)...));
    Output values[kN];
    for (int k = 0; k < kN; ++k) {
      const Box<T> box{a[0][k], a[1][k], a[2][k], a[3][k]};
      const Box<T> column{columns_[0][k], columns_[1][k], columns_[2][k], columns_[3][k]};
      values[k] = static_cast<Output>(
          measure(box, measure.terms(box), column, BoxTerms<T>{columns_[4][k], columns_[5][k]}));
    }
    for (int r = 0; r < kRowsPerVector; ++r) {
      std::memcpy(out + r * step, values + r * kWidth, kWidth * sizeof(Output));
    }
  }

  alignas(64) T columns_[6][kN];
};

// Compute rows from `begin` on, kRowsPerVector at a time, of `vector_columns` columns in whole
// vectors and at most kWidth others. Return the first row that is left.
template <int kWidth, class Measure, class T, class Stored, class Output>
int64_t compute_rows_with_remainders(const Measure& measure, const Stored* rows, int64_t begin,
                                     int64_t end, const BoxColumns<T>& columns,
                                     int64_t vector_columns, Output* out) {
  using Remainders = RowRemainders<kWidth, T>;
  const Remainders remainders(columns, vector_columns);
  const int64_t count = columns.count();
  const int64_t last =
      end * count - (Remainders::kRowsPerVector - 1) * count - vector_columns - kWidth;
  int64_t i = begin;
  for (; i + kLanes<T> / 4 <= end && i * count <= last; i += Remainders::kRowsPerVector) {
    remainders.compute(measure, rows + 4 * i, out + i * count + vector_columns, count);
    if (vector_columns == 0) continue;
    for (int64_t r = i; r < i + Remainders::kRowsPerVector; ++r) {
      const Box<T> a = load_box<T>(rows + 4 * r);
      compute_whole_vectors(measure, a, measure.terms(a), columns, vector_columns, out + r * count);
    }
  }
  return i;
}
#endif

// Compute the rows [begin, end) of one result [N, M]. rows: [N, 4]. The last vector of a row
// overlaps the next row, which is written after it, so that short rows are as fast as long ones; at
// the end of the range it goes through a buffer.
template <class Measure, class T, class Stored, class Output>
void compute_rows(const Measure& measure, const Stored* rows, int64_t begin, int64_t end,
                  const BoxColumns<T>& columns, Output* out) {
  constexpr int kN = kLanes<T>;
  const int64_t count = columns.count();
  const int64_t vector_columns = count / kN * kN;
#if defined(RCNN_HAS_SHUFFLEVECTOR)
  // Not for CompleteIou, whose angle per row costs more than this saves.
  if constexpr (!std::is_same_v<Measure, CompleteIou>) {
    const int64_t remainder = count - vector_columns;
    if constexpr (kN >= 8) {
      if (remainder > 0 && remainder <= 4) {
        begin = compute_rows_with_remainders<4>(measure, rows, begin, end, columns, vector_columns,
                                                out);
      }
    }
    if constexpr (kN >= 16) {
      if (remainder > 4 && remainder <= 8) {
        begin = compute_rows_with_remainders<8>(measure, rows, begin, end, columns, vector_columns,
                                                out);
      }
    }
  }
#endif
  const Output* const out_end = out + end * count;
  for (int64_t i = begin; i < end; ++i) {
    const Box<T> a = load_box<T>(rows + 4 * i);
    const BoxTerms<T> a_terms = measure.terms(a);
    Output* const row = out + i * count;
    compute_whole_vectors(measure, a, a_terms, columns, vector_columns, row);
    if (vector_columns == count) continue;
    if (row + vector_columns + kN <= out_end) {
      compute_remainder<kN>(measure, a, a_terms, columns, vector_columns, count - vector_columns,
                            row + vector_columns);
    } else {
      Output buffer[kN];
      compute_columns<kN>(measure, a, a_terms, columns, vector_columns, buffer);
      for (int64_t k = vector_columns; k < count; ++k) row[k] = buffer[k - vector_columns];
    }
  }
}

// Sum the gradients by the boxes of the rows [begin, end), and add those by the boxes of the
// columns. rows: [N, 4]; grad: [N, M]; row_gradients: [N, 4]; column_sums: [4, M].
template <class Measure, class T, class Stored>
void sum_gradients(const Measure& measure, const Stored* rows, int64_t begin, int64_t end,
                   const DualColumns<T>& dual_columns, const T* grad, Stored* row_gradients,
                   double* column_sums) {
  using D = Dual<T>;
  const BoxColumns<T>& columns = dual_columns.boxes;
  const int64_t count = columns.count();
  for (int64_t i = begin; i < end; ++i) {
    const Box<T> a = load_box<T>(rows + 4 * i);
    const BoxTerms<T> a_terms = measure.terms(a);
    const Box<D> variable_a = variable(a);
    const BoxTerms<D> variable_a_terms = measure.terms(variable_a);
    double sums[4][kGradientLanes] = {};
    for (int64_t j = 0; j < count; j += kGradientLanes) {
      const int64_t used = std::min<int64_t>(kGradientLanes, count - j);
      T weights[kGradientLanes] = {};
      std::copy_n(grad + i * count + j, used, weights);
      T by_a[4][kGradientLanes], by_b[4][kGradientLanes];
      for (int k = 0; k < kGradientLanes; ++k) {
        const Box<T> b = columns.box(j + k);
        const BoxTerms<T> b_terms = columns.terms(j + k);
        const D value = measure(variable_a, variable_a_terms, constant(b),
                                BoxTerms<D>{D(b_terms.area), D(b_terms.angle)});
        for (int c = 0; c < 4; ++c) by_a[c][k] = weights[k] * value.partial[c];
      }
      for (int k = 0; k < kGradientLanes; ++k) {
        const D value = measure(constant(a), BoxTerms<D>{D(a_terms.area), D(a_terms.angle)},
                                variable(columns.box(j + k)), dual_columns.terms(j + k));
        for (int c = 0; c < 4; ++c) by_b[c][k] = weights[k] * value.partial[c];
      }
      for (int c = 0; c < 4; ++c) {
        double* const of_columns = column_sums + c * count + j;
        if (used == kGradientLanes) {
          for (int k = 0; k < kGradientLanes; ++k) sums[c][k] += static_cast<double>(by_a[c][k]);
          for (int k = 0; k < kGradientLanes; ++k) of_columns[k] += static_cast<double>(by_b[c][k]);
        } else {
          for (int k = 0; k < used; ++k) sums[c][k] += static_cast<double>(by_a[c][k]);
          for (int k = 0; k < used; ++k) of_columns[k] += static_cast<double>(by_b[c][k]);
        }
      }
    }
    for (int c = 0; c < 4; ++c) {
      for (int half = kGradientLanes / 2; half > 0; half /= 2) {
        for (int k = 0; k < half; ++k) sums[c][k] += sums[c][k + half];
      }
      row_gradients[4 * i + c] = static_cast<Stored>(static_cast<T>(sums[c][0]));
    }
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_BOX_IOU_BOX_IOU_CPU_INL_H_
