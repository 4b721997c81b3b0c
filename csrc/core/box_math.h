// Geometry of boxes (x1, y1, x2, y2): what decides the result of every IoU, suppression test and
// match, on CPU and CUDA alike. Both compilers run without contraction into fused multiply-adds, so
// that the two give the same bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace rcnn_ext {

// torch.minimum, torch.maximum, torch.clamp(min=0), torch.atan and Tensor.detach of numbers; dual.h
// overloads them with their derivatives. A NaN in one argument need not survive here: the areas
// carry it into every result.
template <class T>
RCNN_HOST_DEVICE T minimum(T a, T b) {
  return a < b ? a : b;
}
template <class T>
RCNN_HOST_DEVICE T maximum(T a, T b) {
  return a > b ? a : b;
}
template <class T>
RCNN_HOST_DEVICE T clamp_min_zero(T a) {
  return a > T(0) ? a : T(0);
}
// torch.minimum with NaN, too, where one of the two is NaN.
template <class T>
RCNN_HOST_DEVICE T minimum_or_nan(T a, T b) {
  return (a < b) | (a != a) ? a : b;
}
template <class T>
RCNN_HOST_DEVICE T arctan(T a) {
  return std::atan(a);
}
template <class T>
RCNN_HOST_DEVICE T detach(T a) {
  return a;
}

template <class T>
struct Box {
  T x1, y1, x2, y2;
};

// coordinates: [4] of any type, converted to the type to compute in.
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
  const T width = clamp_min_zero(minimum(a.x2, b.x2) - maximum(a.x1, b.x1));
  const T height = clamp_min_zero(minimum(a.y2, b.y2) - maximum(a.y1, b.y1));
  return width * height;
}

// IoU with areas that the caller has already; 0 / 0 is NaN, as in torchvision.
template <class T>
RCNN_HOST_DEVICE T iou_with_areas(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
  const T intersection = intersection_area(a, b);
  return intersection / (area_a + area_b - intersection);
}

// Intersection over the smaller of two areas that the caller has already; 0 / 0 is NaN.
template <class T>
RCNN_HOST_DEVICE T ios_with_areas(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
  return intersection_area(a, b) / minimum_or_nan(area_a, area_b);
}

// The pairwise measures: the four of torchvision.ops, and intersection over smaller. A measure has
//   terms(box)                      what it needs of one box alone, computed once per box,
//   operator()(a, a_terms, b, b_terms)  the measure of a pair of boxes, computed once per pair.
template <class T>
struct BoxTerms {
  T area;
  T angle;  // of the diagonal; used by CompleteIou only
};

struct IntersectionOverUnion {
  template <class T>
  RCNN_HOST_DEVICE BoxTerms<T> terms(const Box<T>& box) const {
    return {area(box), T(0)};
  }
  template <class T>
  RCNN_HOST_DEVICE T operator()(const Box<T>& a, const BoxTerms<T>& a_terms, const Box<T>& b,
                                const BoxTerms<T>& b_terms) const {
    return iou_with_areas(a, a_terms.area, b, b_terms.area);
  }
};

// Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019.
struct GeneralizedIou : IntersectionOverUnion {
  template <class T>
  RCNN_HOST_DEVICE T operator()(const Box<T>& a, const BoxTerms<T>& a_terms, const Box<T>& b,
                                const BoxTerms<T>& b_terms) const {
    const T intersection = intersection_area(a, b);
    const T union_area = a_terms.area + b_terms.area - intersection;
    const T enclosing_width = clamp_min_zero(maximum(a.x2, b.x2) - minimum(a.x1, b.x1));
    const T enclosing_height = clamp_min_zero(maximum(a.y2, b.y2) - minimum(a.y1, b.y1));
    const T enclosing = enclosing_width * enclosing_height;
    return intersection / union_area - (enclosing - union_area) / enclosing;
  }
};

// Zheng et al., "Distance-IoU Loss", AAAI 2020. `eps` is in squared pixels.
struct DistanceIou : IntersectionOverUnion {
  double eps;
  RCNN_HOST_DEVICE explicit DistanceIou(double eps) : eps(eps) {}
  template <class T>
  RCNN_HOST_DEVICE T operator()(const Box<T>& a, const BoxTerms<T>& a_terms, const Box<T>& b,
                                const BoxTerms<T>& b_terms) const {
    const T enclosing_width = clamp_min_zero(maximum(a.x2, b.x2) - minimum(a.x1, b.x1));
    const T enclosing_height = clamp_min_zero(maximum(a.y2, b.y2) - minimum(a.y1, b.y1));
    const T diagonal =
        enclosing_width * enclosing_width + enclosing_height * enclosing_height + T(eps);
    const T dx = (a.x1 + a.x2) / T(2) - (b.x1 + b.x2) / T(2);
    const T dy = (a.y1 + a.y2) / T(2) - (b.y1 + b.y2) / T(2);
    return iou_with_areas(a, a_terms.area, b, b_terms.area) - (dx * dx + dy * dy) / diagonal;
  }
};

// Complete IoU of the same paper: the aspect-ratio term's weight is a constant for the derivative.
struct CompleteIou {
  double eps;
  template <class T>
  RCNN_HOST_DEVICE BoxTerms<T> terms(const Box<T>& box) const {
    return {area(box), arctan((box.x2 - box.x1) / (box.y2 - box.y1))};
  }
  template <class T>
  RCNN_HOST_DEVICE T operator()(const Box<T>& a, const BoxTerms<T>& a_terms, const Box<T>& b,
                                const BoxTerms<T>& b_terms) const {
    const T angle = a_terms.angle - b_terms.angle;
    const T v = T(0.40528473456935108577551785283891) * (angle * angle);  // 4 / pi^2
    const T iou = iou_with_areas(a, a_terms.area, b, b_terms.area);
    const T alpha = detach(v / (T(1) - iou + v + T(eps)));
    return DistanceIou(eps)(a, a_terms, b, b_terms) - alpha * v;
  }
};

// 1 where the smaller box lies within the larger one, whatever their sizes.
struct IntersectionOverSmaller : IntersectionOverUnion {
  template <class T>
  RCNN_HOST_DEVICE T operator()(const Box<T>& a, const BoxTerms<T>& a_terms, const Box<T>& b,
                                const BoxTerms<T>& b_terms) const {
    return ios_with_areas(a, a_terms.area, b, b_terms.area);
  }
};

// The values of the argument `measure` in rcnn_ext/ops/box_iou.py.
enum class MeasureId : int64_t {
  kIou = 0,
  kGeneralized = 1,
  kDistance = 2,
  kComplete = 3,
  kSmaller = 4
};

// The largest T of at most `threshold`. For an IoU x of type T, x > suppression_bound<T>(t)
// exactly when double(x) > t: torchvision's comparison without leaving T.
template <class T>
inline T suppression_bound(double threshold) {
  T bound = static_cast<T>(threshold);
  if (static_cast<double>(bound) > threshold) {
    bound = std::nextafter(bound, -static_cast<T>(INFINITY));
  }
  return bound;
}

// The smallest T of at least `number`: x >= it exactly when double(x) >= number.
template <class T>
inline T round_up_to(double number) {
  return -suppression_bound<T>(-number);
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
