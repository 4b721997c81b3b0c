// The boxes of the columns of box_iou on the CPU, by coordinate (structure of arrays).
#pragma once

#include <cstdint>
#include <vector>

#include "../core/box_math.h"
#include "../core/dual.h"
#include "../core/host_device.h"

namespace rcnn_ext {

// Pairs whose gradients are computed together. One value for all instruction sets, since it decides
// the order of the sums.
constexpr int kGradientLanes = 16;

// Boxes and their terms, so that the loop over them is vectorized.
template <class T>
class BoxColumns {
 public:
  template <class Measure, class Stored>
  BoxColumns(const Measure& measure, const Stored* boxes, int64_t count)
      : count_(count), stride_(count + kGradientLanes), columns_(6 * stride_) {
    for (int64_t j = 0; j < count; ++j) {
      const Box<T> box = load_box<T>(boxes + 4 * j);
      const BoxTerms<T> terms = measure.terms(box);
      const T values[6] = {box.x1, box.y1, box.x2, box.y2, terms.area, terms.angle};
      for (int64_t c = 0; c < 6; ++c) columns_[c * stride_ + j] = values[c];
    }
  }
  int64_t count() const { return count_; }

  // x1, y1, x2, y2, then the terms of a measure: area and angle. Readable for
  // kGradientLanes boxes after the last, for a vector that is not full.
  RCNN_INLINE const T* column(int64_t c) const { return columns_.data() + c * stride_; }
  RCNN_INLINE Box<T> box(int64_t j) const {
    return {column(0)[j], column(1)[j], column(2)[j], column(3)[j]};
  }
  RCNN_INLINE BoxTerms<T> terms(int64_t j) const { return {column(4)[j], column(5)[j]}; }

 private:
  int64_t count_, stride_;
  std::vector<T> columns_;
};

// The columns with the derivatives of their terms by their coordinates.
template <class T>
struct DualColumns {
  BoxColumns<T> boxes;
  int64_t stride;
  std::vector<T> partials;  // [8, stride]: of areas, then of angles

  template <class Measure, class Stored>
  DualColumns(const Measure& measure, const Stored* coordinates, int64_t count)
      : boxes(measure, coordinates, count), stride(count + kGradientLanes), partials(8 * stride) {
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
