// The threshold of a suppression and the shortcuts that follow from it, for CPU and CUDA. Why they
// leave no suppression out: points 1 to 4 of nms_grid_cpu.h.
#pragma once

#include <cstdint>
#include <limits>

#include "../core/box_math.h"

namespace rcnn_ext {

// The threshold, and the constants that follow from it.
template <class T>
struct SuppressionRule {
  static constexpr T kUlp = std::numeric_limits<T>::epsilon() / 2;  // u
  static constexpr T kFarthest = T(int64_t{1} << 60);
  static constexpr T kSmallest = T(1) / (T(int64_t{1} << 40) * T(int64_t{1} << 40));

  T bound;
  T filter;  // c'
  T reach;   // twice the largest distance of centers, for a box of width 1

  explicit SuppressionRule(double iou_threshold) : bound(suppression_bound<T>(iou_threshold)) {
    const double u = kUlp;
    const double b = static_cast<double>(bound);
    const double c = b * (1 - u) / (1 + b * (1 - u));
    filter =
        bound >= T(0) ? static_cast<T>(c * (1 - 16 * u)) : T(0);  // none below 0: see limit_of()
    const double t = b * (1 - 16 * u);
    reach = static_cast<T>((1 - t) / t * 1.001);
  }
  bool keeps_all() const { return !(bound < T(1)); }  // NaN, too
  bool is_exact_only() const { return bound < T(0); }
  bool allows_grid() const { return bound >= T(1) / T(32); }

  // Two boxes suppress each other only where their intersection is above the sum of their limits.
  RCNN_HOST_DEVICE T limit_of(T area) const {
    const T limit = filter * area;
    return limit >= std::numeric_limits<T>::min() ? limit : -std::numeric_limits<T>::infinity();
  }
};

}  // namespace rcnn_ext
