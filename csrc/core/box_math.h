// Geometry of boxes (x1, y1, x2, y2): what decides the result of every IoU, suppression test and
// match, on CPU and CUDA alike. Both compilers run without contraction into fused multiply-adds, so
// that the two give the same bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace rcnn_ext {

// Minimum, maximum and clamp as PyTorch differentiates them; dual.h overloads them for derivatives.
// A NaN in one argument need not survive here: the areas carry it into every result.
template <class T>
RCNN_HOST_DEVICE T smaller(T a, T b) {
  return a < b ? a : b;
}
template <class T>
RCNN_HOST_DEVICE T larger(T a, T b) {
  return a > b ? a : b;
}
template <class T>
RCNN_HOST_DEVICE T at_least_zero(T a) {
  return a > T(0) ? a : T(0);
}
template <class T>
RCNN_HOST_DEVICE T arc_tangent(T a) {
  return std::atan(a);
}
// The value without its derivative, as under torch.no_grad().
template <class T>
RCNN_HOST_DEVICE T detached(T a) {
  return a;
}

template <class T>
struct Box {
  T x1, y1, x2, y2;
};

// [4] numbers of any type -> a box to compute with.
template <class T, class Stored>
RCNN_HOST_DEVICE Box<T> load_box(const Stored* coordinates) {
  return {T(coordinates[0]), T(coordinates[1]), T(coordinates[2]), T(coordinates[3])};
}

template <class T>
RCNN_HOST_DEVICE T area(const Box<T>& box) {
  return (box.x2 - box.x1) * (box.y2 - box.y1);
}

template <class T>
RCNN_HOST_DEVICE T intersection_area(const Box<T>& a, const Box<T>& b) {
  const T width = at_least_zero(smaller(a.x2, b.x2) - larger(a.x1, b.x1));
  const T height = at_least_zero(smaller(a.y2, b.y2) - larger(a.y1, b.y1));
  return width * height;
}

// IoU with areas that the caller has already; 0 / 0 is NaN, as in torchvision.
template <class T>
RCNN_HOST_DEVICE T iou_with_areas(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
  const T intersection = intersection_area(a, b);
  return intersection / (area_a + area_b - intersection);
}

// The four pairwise measures of torchvision.ops. A measure has
//   prepare(box)          what it needs of one box alone, computed once a box and not once a pair,
//   operator()(a, of_a, b, of_b)  the measure of a pair of boxes with those.
template <class T>
struct Prepared {
  T area;
  T angle;  // of the diagonal; used by CompleteIou only
};

struct IntersectionOverUnion {
  template <class T>
  RCNN_HOST_DEVICE Prepared<T> prepare(const Box<T>& box) const {
    return {area(box), T(0)};
  }
  template <class T>
  RCNN_HOST_DEVICE T operator()(const Box<T>& a, const Prepared<T>& of_a, const Box<T>& b,
                                const Prepared<T>& of_b) const {
    return iou_with_areas(a, of_a.area, b, of_b.area);
  }
};

// Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019.
struct GeneralizedIou : IntersectionOverUnion {
  template <class T>
  RCNN_HOST_DEVICE T operator()(const Box<T>& a, const Prepared<T>& of_a, const Box<T>& b,
                                const Prepared<T>& of_b) const {
    const T intersection = intersection_area(a, b);
    const T union_area = of_a.area + of_b.area - intersection;
    const T hull_width = at_least_zero(larger(a.x2, b.x2) - smaller(a.x1, b.x1));
    const T hull_height = at_least_zero(larger(a.y2, b.y2) - smaller(a.y1, b.y1));
    const T hull = hull_width * hull_height;
    return intersection / union_area - (hull - union_area) / hull;
  }
};

// Zheng et al., "Distance-IoU Loss", AAAI 2020. `eps` is in squared pixels.
struct DistanceIou : IntersectionOverUnion {
  double eps;
  RCNN_HOST_DEVICE explicit DistanceIou(double eps) : eps(eps) {}
  template <class T>
  RCNN_HOST_DEVICE T operator()(const Box<T>& a, const Prepared<T>& of_a, const Box<T>& b,
                                const Prepared<T>& of_b) const {
    const T hull_width = at_least_zero(larger(a.x2, b.x2) - smaller(a.x1, b.x1));
    const T hull_height = at_least_zero(larger(a.y2, b.y2) - smaller(a.y1, b.y1));
    const T diagonal = hull_width * hull_width + hull_height * hull_height + T(eps);
    const T dx = (a.x1 + a.x2) / T(2) - (b.x1 + b.x2) / T(2);
    const T dy = (a.y1 + a.y2) / T(2) - (b.y1 + b.y2) / T(2);
    return iou_with_areas(a, of_a.area, b, of_b.area) - (dx * dx + dy * dy) / diagonal;
  }
};

// Complete IoU of the same paper: the aspect-ratio term's weight is a constant for the derivative.
struct CompleteIou {
  double eps;
  template <class T>
  RCNN_HOST_DEVICE Prepared<T> prepare(const Box<T>& box) const {
    return {area(box), arc_tangent((box.x2 - box.x1) / (box.y2 - box.y1))};
  }
  template <class T>
  RCNN_HOST_DEVICE T operator()(const Box<T>& a, const Prepared<T>& of_a, const Box<T>& b,
                                const Prepared<T>& of_b) const {
    const T angle = of_a.angle - of_b.angle;
    const T v = T(0.40528473456935108577551785283891) * (angle * angle);  // 4 / pi^2
    const T iou = iou_with_areas(a, of_a.area, b, of_b.area);
    const T alpha = detached(v / (T(1) - iou + v + T(eps)));
    return DistanceIou(eps)(a, of_a, b, of_b) - alpha * v;
  }
};

// The numbers by which rcnn_ext/ops/box_iou.py asks for a measure.
enum class MeasureId : int64_t { kIou = 0, kGeneralized = 1, kDistance = 2, kComplete = 3 };

// The largest T that is not above `threshold`. For an IoU x of type T, x > suppression_bound<T>(t)
// exactly when double(x) > t: torchvision's comparison without leaving T.
template <class T>
inline T suppression_bound(double threshold) {
  T bound = static_cast<T>(threshold);
  if (static_cast<double>(bound) > threshold) {
    bound = std::nextafter(bound, -static_cast<T>(INFINITY));
  }
  return bound;
}

// Whether a kept box removes another one. False for NaN.
template <class T>
RCNN_HOST_DEVICE bool suppresses(const Box<T>& kept, T kept_area, const Box<T>& other, T other_area,
                                 T bound) {
  return iou_with_areas(kept, kept_area, other, other_area) > bound;
}

// Boxes with NaN or infinite coordinates are never kept and never suppress others.
template <class T>
RCNN_HOST_DEVICE bool is_finite(const Box<T>& box) {
  // A sum of zeros and NaNs: x - x is 0 for every finite x and NaN otherwise.
  return ((box.x1 - box.x1) + (box.y1 - box.y1) + (box.x2 - box.x2) + (box.y2 - box.y2)) == T(0);
}

}  // namespace rcnn_ext
