// The ground truth boxes of an image for match_boxes on the CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../core/box_math.h"

namespace rcnn_ext {

// Ground truths that are compared with one box or with the bounds of a block at a time.
constexpr int kGtsPerBlock = 16;

// Whether a box has positive sides and an area far from the limits of the type. Rounding being
// monotonic, the intersection of two such boxes is at most either area, so their union is positive
// and their IoU a number of at least 0, and exactly 0 where they do not overlap.
template <class T>
RCNN_INLINE bool is_well_conditioned(T width, T height, T area) {
  constexpr T kMaxConditionedArea = std::numeric_limits<T>::max() / 4;
  constexpr T kMinConditionedArea =
      std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon();
  return (width > 0) & (height > 0) & (area >= kMinConditionedArea) & (area <= kMaxConditionedArea);
}

// Quantizes the coordinates of an axis to int8, so that one instruction compares many of them. The
// mapping is monotonic whatever is rounded, overflows or underflows on the way: where the quantized
// value of one coordinate is above that of another, so is the coordinate.
template <class T>
struct AxisQuantizer {
  T scale, offset;

  // 256 equal steps between `low` and `high`; coordinates outside saturate.
  AxisQuantizer(T low, T high) : scale(255 / (high - low)), offset(-128 - low * scale) {}

  // coordinate: not NaN. What becomes NaN on the way, from infinities, quantizes to 127.
  int8_t quantize(T coordinate) const {
    const T clamped = maximum(minimum(coordinate * scale + offset, T(127)), T(-128));
    return static_cast<int8_t>(static_cast<int32_t>(clamped));
  }
};

// The boxes by columns, as structure of arrays, in whole blocks: the last block repeats the last
// box.
template <class T>
struct GroundTruth {
  std::vector<T> x1, y1, x2, y2, area;
  std::vector<uint8_t> has_sign;  // whether any coordinate has its sign bit set
  int32_t count;
  bool well_conditioned = true;
  // If well-conditioned: the quantized columns x1, y1, x2 and y2.
  AxisQuantizer<T> x_axis{0, 1}, y_axis{0, 1};
  std::vector<int8_t> quantized[4];

  // coordinates: [count, 4], at least one box
  template <class Stored>
  GroundTruth(const Stored* coordinates, int64_t count) : count(static_cast<int32_t>(count)) {
    const int64_t padded_count = (count + kGtsPerBlock - 1) / kGtsPerBlock * kGtsPerBlock;
    for (int64_t g = 0; g < padded_count; ++g) {
      const Box<T> box = load_box<T>(coordinates + 4 * std::min(g, count - 1));
      x1.push_back(box.x1);
      y1.push_back(box.y1);
      x2.push_back(box.x2);
      y2.push_back(box.y2);
      area.push_back(rcnn_ext::area(box));
      has_sign.push_back(std::signbit(box.x1) | std::signbit(box.y1) | std::signbit(box.x2) |
                         std::signbit(box.y2));
      well_conditioned =
          well_conditioned && is_well_conditioned(box.x2 - box.x1, box.y2 - box.y1, area.back());
    }
    if (!well_conditioned) return;
    x_axis = axis_of(x1, x2);
    y_axis = axis_of(y1, y2);
    for (int64_t g = 0; g < padded_count; ++g) {
      quantized[0].push_back(x_axis.quantize(x1[g]));
      quantized[1].push_back(y_axis.quantize(y1[g]));
      quantized[2].push_back(x_axis.quantize(x2[g]));
      quantized[3].push_back(y_axis.quantize(y2[g]));
    }
  }

  RCNN_INLINE Box<T> box(int64_t g) const { return {x1[g], y1[g], x2[g], y2[g]}; }

 private:
  static AxisQuantizer<T> axis_of(const std::vector<T>& low, const std::vector<T>& high) {
    return {*std::min_element(low.begin(), low.end()), *std::max_element(high.begin(), high.end())};
  }
};

}  // namespace rcnn_ext
