// The IoU threshold of NMS and the shortcuts that follow from it, for CPU and CUDA. Points 1 to 4
// of nms_grid_cpu.h prove that they miss no suppression.
#pragma once

#include <cstdint>
#include <limits>

#include "../core/box_math.h"

namespace rcnn_ext {

template <class T>
struct SuppressionRule {
  static constexpr T kUnitRoundoff = std::numeric_limits<T>::epsilon() / 2;  // u
  static constexpr T kMaxGridCoordinate = T(int64_t{1} << 60);
  static constexpr T kMinGridArea = T(1) / (T(int64_t{1} << 40) * T(int64_t{1} << 40));

  T bound;
  T filter;              // c' in nms_grid_cpu.h
  T suppression_radius;  // twice the largest distance of centers at which a box of
                         // width 1 can suppress another

  explicit SuppressionRule(double iou_threshold) : bound(suppression_bound<T>(iou_threshold)) {
    const double u = kUnitRoundoff;
    const double b = static_cast<double>(bound);
    const double c = b * (1 - u) / (1 + b * (1 - u));
    filter = bound >= T(0) ? static_cast<T>(c * (1 - 16 * u))
                           : T(0);  // no filter below 0: see limit_of()
    const double t = b * (1 - 16 * u);
    suppression_radius = static_cast<T>((1 - t) / t * 1.001);
  }
  // A NaN threshold suppresses nothing.
  bool keeps_all() const { return !(bound < T(1)); }
  bool needs_exact_tests() const { return bound < T(0); }
  bool allows_grid() const { return bound >= T(1) / T(32); }

  // Two boxes can suppress each other only if their intersection is above the sum of their limits.
  RCNN_HOST_DEVICE T limit_of(T area) const {
    const T limit = filter * area;
    return limit >= std::numeric_limits<T>::min() ? limit : -std::numeric_limits<T>::infinity();
  }
};

}  // namespace rcnn_ext
