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
inline void fill_lanes(const Measure& measure, const Box<T>& a, const BoxTerms<T>& a_terms,
                       const BoxColumns<T>& columns, int64_t first, Output* __restrict out) {
  for (int k = 0; k < kCount; ++k) {
    const T value = measure(a, a_terms, columns.box(first + k), columns.terms(first + k));
    out[k] = static_cast<Output>(value);
  }
}

// The first `whole` columns of a row, a multiple of the widest register's.
template <class Measure, class T, class Output>
inline void fill_whole(const Measure& measure, const Box<T>& a, const BoxTerms<T>& a_terms,
                       const BoxColumns<T>& columns, int64_t whole, Output* __restrict out) {
  constexpr int kN = kLanes<T>;
  for (int64_t j = 0; j < whole; j += kN) fill_lanes<kN>(measure, a, a_terms, columns, j, out + j);
}

// The last `count` columns of a row, fewer than kCount, in the narrowest vector that holds them.
// Up to kCount - 1 numbers behind the row are overwritten.
template <int kCount, class Measure, class T, class Output>
inline void fill_rest(const Measure& measure, const Box<T>& a, const BoxTerms<T>& a_terms,
                      const BoxColumns<T>& columns, int64_t first, int64_t count, Output* out) {
  if constexpr (kCount > 8) {
    if (count <= kCount / 2) {
      return fill_rest<kCount / 2>(measure, a, a_terms, columns, first, count, out);
    }
  }
  fill_lanes<kCount>(measure, a, a_terms, columns, first, out);
}

#if defined(RCNN_HAS_SHUFFLEVECTOR)
// The last columns of rows, no more than kWidth, those of several rows in one vector.
template <int kWidth, class T>
class RowEnds {
 public:
  static constexpr int kN = kLanes<T>;
  static constexpr int kRows = kN / kWidth;

  RowEnds(const BoxColumns<T>& columns, int64_t first) {
    for (int k = 0; k < kN; ++k) {
      for (int c = 0; c < 6; ++c) columns_[c][k] = columns.column(c)[first + k % kWidth];
    }
  }

  // kWidth numbers of each of kRows rows, at `out` and `step` numbers apart: what lies behind the
  // columns is overwritten. rows: [kN / 4, 4]
  template <class Measure, class Stored, class Output>
  RCNN_INLINE void fill(const Measure& measure, const Stored* rows, Output* out,
                        int64_t step) const {
    fill(measure, rows, out, step, std::make_integer_sequence<int, kN>());
  }

 private:
  template <class Measure, class Stored, class Output, int... kLane>
  RCNN_INLINE void fill(const Measure& measure, const Stored* rows, Output* out, int64_t step,
                        std::integer_sequence<int, kLane...>) const {
    const Vec<T, kN> boxes = load<T, kN>(rows);
    T a[4][kN];
    store<kN, T>(a[0], __builtin_shufflevector(boxes, boxes, (kLane / kWidth * 4)...));
    store<kN, T>(a[1], __builtin_shufflevector(boxes, boxes, (kLane / kWidth * 4 + 1)...));
    store<kN, T>(a[2], __builtin_shufflevector(boxes, boxes, (kLane / kWidth * 4 + 2)...));
    store<kN, T>(a[3], __builtin_shufflevector(boxes, boxes, (kLane / kWidth * 4 + 3)...));
    Output values[kN];
    for (int k = 0; k < kN; ++k) {
      const Box<T> box{a[0][k], a[1][k], a[2][k], a[3][k]};
      const Box<T> column{columns_[0][k], columns_[1][k], columns_[2][k], columns_[3][k]};
      values[k] = static_cast<Output>(
          measure(box, measure.terms(box), column, BoxTerms<T>{columns_[4][k], columns_[5][k]}));
    }
    for (int r = 0; r < kRows; ++r) {
      std::memcpy(out + r * step, values + r * kWidth, kWidth * sizeof(Output));
    }
  }

  alignas(64) T columns_[6][kN];
};

// Rows from `begin` on, while there are enough, of `whole` columns in whole vectors and no more
// than kWidth others. Returns the first row that is left.
template <int kWidth, class Measure, class T, class Stored, class Output>
int64_t fill_groups(const Measure& measure, const Stored* rows, int64_t begin, int64_t end,
                    const BoxColumns<T>& columns, int64_t whole, Output* out) {
  using Ends = RowEnds<kWidth, T>;
  const Ends ends(columns, whole);
  const int64_t count = columns.count();
  const int64_t last = end * count - (Ends::kRows - 1) * count - whole - kWidth;
  int64_t i = begin;
  for (; i + kLanes<T> / 4 <= end && i * count <= last; i += Ends::kRows) {
    ends.fill(measure, rows + 4 * i, out + i * count + whole, count);
    if (whole == 0) continue;
    for (int64_t r = i; r < i + Ends::kRows; ++r) {
      const Box<T> a = load_box<T>(rows + 4 * r);
      fill_whole(measure, a, measure.terms(a), columns, whole, out + r * count);
    }
  }
  return i;
}
#endif

// Rows [begin, end) of one result [N, M]; rows: [N, 4]. A row's last vector runs into the next row,
// which is written after it, so that short rows are no slower than long ones; at the end of the
// range it goes through a buffer.
template <class Measure, class T, class Stored, class Output>
void fill_rows(const Measure& measure, const Stored* rows, int64_t begin, int64_t end,
               const BoxColumns<T>& columns, Output* out) {
  constexpr int kN = kLanes<T>;
  const int64_t count = columns.count();
  const int64_t whole = count / kN * kN;
#if defined(RCNN_HAS_SHUFFLEVECTOR)
  // An angle costs more than is gained.
  if constexpr (!std::is_same_v<Measure, CompleteIou>) {
    const int64_t rest = count - whole;
    if constexpr (kN >= 8) {
      if (rest > 0 && rest <= 4) {
        begin = fill_groups<4>(measure, rows, begin, end, columns, whole, out);
      }
    }
    if constexpr (kN >= 16) {
      if (rest > 4 && rest <= 8) {
        begin = fill_groups<8>(measure, rows, begin, end, columns, whole, out);
      }
    }
  }
#endif
  const Output* const out_end = out + end * count;
  for (int64_t i = begin; i < end; ++i) {
    const Box<T> a = load_box<T>(rows + 4 * i);
    const BoxTerms<T> a_terms = measure.terms(a);
    Output* const row = out + i * count;
    fill_whole(measure, a, a_terms, columns, whole, row);
    if (whole == count) continue;
    if (row + whole + kN <= out_end) {
      fill_rest<kN>(measure, a, a_terms, columns, whole, count - whole, row + whole);
    } else {
      Output rest[kN];
      fill_lanes<kN>(measure, a, a_terms, columns, whole, rest);
      for (int64_t k = whole; k < count; ++k) row[k] = rest[k - whole];
    }
  }
}

// Adds up the gradients of the rows [begin, end) by their boxes, and those by the columns.
// rows: [N, 4]; grad: [N, M]; row_gradients: [N, 4]; column_sums: [4, M].
template <class Measure, class T, class Stored>
void sum_gradients(const Measure& measure, const Stored* rows, int64_t begin, int64_t end,
                   const VariableColumns<T>& variables, const T* grad, Stored* row_gradients,
                   double* column_sums) {
  using D = Dual<T>;
  const BoxColumns<T>& columns = variables.boxes;
  const int64_t count = columns.count();
  for (int64_t i = begin; i < end; ++i) {
    const Box<T> a = load_box<T>(rows + 4 * i);
    const BoxTerms<T> a_terms = measure.terms(a);
    const Box<D> variable_a = variable(a);
    const BoxTerms<D> variable_a_terms = measure.terms(variable_a);
    double sums[4][kSumLanes] = {};
    for (int64_t j = 0; j < count; j += kSumLanes) {
      const int64_t used = std::min<int64_t>(kSumLanes, count - j);
      T weights[kSumLanes] = {};
      std::copy_n(grad + i * count + j, used, weights);
      T by_a[4][kSumLanes], by_b[4][kSumLanes];
      for (int k = 0; k < kSumLanes; ++k) {
        const Box<T> b = columns.box(j + k);
        const BoxTerms<T> b_terms = columns.terms(j + k);
        const D value = measure(variable_a, variable_a_terms, constant(b),
                                BoxTerms<D>{D(b_terms.area), D(b_terms.angle)});
        for (int c = 0; c < 4; ++c) by_a[c][k] = weights[k] * value.partial[c];
      }
      for (int k = 0; k < kSumLanes; ++k) {
        const D value = measure(constant(a), BoxTerms<D>{D(a_terms.area), D(a_terms.angle)},
                                variable(columns.box(j + k)), variables.terms(j + k));
        for (int c = 0; c < 4; ++c) by_b[c][k] = weights[k] * value.partial[c];
      }
      for (int c = 0; c < 4; ++c) {
        double* const of_columns = column_sums + c * count + j;
        if (used == kSumLanes) {
          for (int k = 0; k < kSumLanes; ++k) sums[c][k] += static_cast<double>(by_a[c][k]);
          for (int k = 0; k < kSumLanes; ++k) of_columns[k] += static_cast<double>(by_b[c][k]);
        } else {
          for (int k = 0; k < used; ++k) sums[c][k] += static_cast<double>(by_a[c][k]);
          for (int k = 0; k < used; ++k) of_columns[k] += static_cast<double>(by_b[c][k]);
        }
      }
    }
    for (int c = 0; c < 4; ++c) {
      for (int half = kSumLanes / 2; half > 0; half /= 2) {
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
