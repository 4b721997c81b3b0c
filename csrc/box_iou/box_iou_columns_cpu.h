// Boxes column by column, as the loops of box_iou on the CPU read them.
#pragma once

#include <cstdint>
#include <vector>

#include "../core/box_math.h"
#include "../core/dual.h"
#include "../core/host_device.h"

namespace rcnn_ext {

// Pairs whose gradients one vector or several take at a time, the same for all instruction sets: it
// decides the order of a sum.
constexpr int kSumLanes = 16;

// Boxes column by column, so that the loop over them runs in SIMD registers.
template <class T>
class BoxColumns {
 public:
  template <class Measure, class Stored>
  BoxColumns(const Measure& measure, const Stored* boxes, int64_t count)
      : count_(count), stride_(count + kSumLanes), columns_(6 * stride_) {
    for (int64_t j = 0; j < count; ++j) {
      const Box<T> box = load_box<T>(boxes + 4 * j);
      const BoxTerms<T> terms = measure.terms(box);
      const T values[6] = {box.x1, box.y1, box.x2, box.y2, terms.area, terms.angle};
      for (int64_t c = 0; c < 6; ++c) columns_[c * stride_ + j] = values[c];
    }
  }
  int64_t count() const { return count_; }

  // x1, y1, x2, y2, then the terms of a measure: area and angle. Readable for kSumLanes boxes
  // behind the last, for a vector that is not full.
  RCNN_INLINE const T* column(int64_t c) const { return columns_.data() + c * stride_; }
  RCNN_INLINE Box<T> box(int64_t j) const {
    return {column(0)[j], column(1)[j], column(2)[j], column(3)[j]};
  }
  RCNN_INLINE BoxTerms<T> terms(int64_t j) const { return {column(4)[j], column(5)[j]}; }

 private:
  int64_t count_, stride_;
  std::vector<T> columns_;
};

// The same with the derivatives of what a measure needs of one box alone.
template <class T>
struct VariableColumns {
  BoxColumns<T> boxes;
  int64_t stride;
  std::vector<T> partials;  // [8, stride]: of areas, then of angles

  template <class Measure, class Stored>
  VariableColumns(const Measure& measure, const Stored* coordinates, int64_t count)
      : boxes(measure, coordinates, count), stride(count + kSumLanes), partials(8 * stride) {
    for (int64_t j = 0; j < count; ++j) {
      const BoxTerms<Dual<T>> terms = measure.terms(variable(boxes.box(j)));
      for (int64_t c = 0; c < 4; ++c) {
        partials[c * stride + j] = terms.area.partial[c];
        partials[(4 + c) * stride + j] = terms.angle.partial[c];
      }
    }
  }
  RCNN_INLINE BoxTerms<Dual<T>> terms(int64_t j) const {
    const BoxTerms<T> values = boxes.terms(j);
    BoxTerms<Dual<T>> result;
    result.area.value = values.area;
    result.angle.value = values.angle;
    for (int c = 0; c < 4; ++c) {
      result.area.partial[c] = partials[c * stride + j];
      result.angle.partial[c] = partials[(4 + c) * stride + j];
    }
    return result;
  }
};

}  // namespace rcnn_ext
