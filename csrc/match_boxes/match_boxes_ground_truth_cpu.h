// The ground truth of an image, as matching on the CPU reads it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../core/box_math.h"

namespace rcnn_ext {

constexpr int kGtBlock = 16;  // ground truths

// Boxes with an extent and areas far from the limits of the type. By monotony of rounding, the
// overlap of two of those is no larger than either area, so that their union is positive and their
// IoU a number of at least 0, and exactly 0 where they do not overlap.
template <class T>
RCNN_HOST_DEVICE bool is_regular(T width, T height, T area) {
  constexpr T kLargest = std::numeric_limits<T>::max() / 4;
  constexpr T kSmallest = std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon();
  return (width > 0) & (height > 0) & (area >= kSmallest) & (area <= kLargest);
}

// An axis in 256 cells, -128 to 127, whose numbers stand for coordinates where many are to be
// compared at once. They ascend with the coordinates, whatever is rounded, overflows or underflows
// on the way: where the cell of one is above that of another, so is the coordinate.
template <class T>
struct Cells {
  T scale, offset;

  // Cells of one size between `low` and `high`, as far as the type can tell them apart. What lies
  // outside belongs to the outermost.
  Cells(T low, T high) : scale(255 / (high - low)), offset(-128 - low * scale) {}

  // at: a number. What becomes NaN on the way, from infinities, is above all else.
  int8_t of(T at) const {
    const T cell = maximum(minimum(at * scale + offset, T(127)), T(-128));
    return static_cast<int8_t>(static_cast<int32_t>(cell));
  }
};

// Column by column, in whole blocks: the last one repeats the last box.
template <class T>
struct GroundTruth {
  std::vector<T> x1, y1, x2, y2, area;
  std::vector<uint8_t> has_sign;  // whether a coordinate has a sign bit
  int32_t count;
  bool regular = true;
  // The axes, if regular, and the coordinates x1, y1, x2, y2 in their cells.
  Cells<T> x_cells{0, 1}, y_cells{0, 1};
  std::vector<int8_t> cells[4];

  // coordinates: [count, 4], at least one box
  template <class Stored>
  GroundTruth(const Stored* coordinates, int64_t count) : count(static_cast<int32_t>(count)) {
    const int64_t room = (count + kGtBlock - 1) / kGtBlock * kGtBlock;
    for (int64_t g = 0; g < room; ++g) {
      const Box<T> box = load_box<T>(coordinates + 4 * std::min(g, count - 1));
      x1.push_back(box.x1);
      y1.push_back(box.y1);
      x2.push_back(box.x2);
      y2.push_back(box.y2);
      area.push_back(rcnn_ext::area(box));
      has_sign.push_back(std::signbit(box.x1) | std::signbit(box.y1) | std::signbit(box.x2) |
                         std::signbit(box.y2));
      regular = regular && is_regular(box.x2 - box.x1, box.y2 - box.y1, area.back());
    }
    if (!regular) return;
    x_cells = over(x1, x2);
    y_cells = over(y1, y2);
    for (int64_t g = 0; g < room; ++g) {
      cells[0].push_back(x_cells.of(x1[g]));
      cells[1].push_back(y_cells.of(y1[g]));
      cells[2].push_back(x_cells.of(x2[g]));
      cells[3].push_back(y_cells.of(y2[g]));
    }
  }

  RCNN_HOST_DEVICE Box<T> box(int64_t g) const { return {x1[g], y1[g], x2[g], y2[g]}; }

 private:
  static Cells<T> over(const std::vector<T>& low, const std::vector<T>& high) {
    return {*std::min_element(low.begin(), low.end()), *std::max_element(high.begin(), high.end())};
  }
};

}  // namespace rcnn_ext
