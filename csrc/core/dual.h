// Forward-mode derivatives: a number with its partial derivatives by the 4 coordinates of a box.
// Running a measure of box_math.h on duals gives its gradient from the same lines of code that give
// its value. Ties and clamps follow PyTorch: maximum and minimum share the gradient equally between
// equal arguments, and clamp(min=0) passes it at 0.
#pragma once

#include "box_math.h"

namespace rcnn_ext {

template <class T>
struct Dual {
  static constexpr int kPartials = 4;
  T value;
  T partial[kPartials];

  Dual() = default;
  // A constant.
  RCNN_HOST_DEVICE explicit Dual(T constant) : value(constant) {
    for (int i = 0; i < kPartials; ++i) partial[i] = T(0);
  }
  // The variable number `index`.
  RCNN_HOST_DEVICE Dual(T variable, int index) : value(variable) {
    for (int i = 0; i < kPartials; ++i) partial[i] = i == index ? T(1) : T(0);
  }
};

// c = ca * a + cb * b for the partials, with a given value.
template <class T>
RCNN_HOST_DEVICE Dual<T> combine(T value, T ca, const Dual<T>& a, T cb, const Dual<T>& b) {
  Dual<T> result;
  result.value = value;
  for (int i = 0; i < Dual<T>::kPartials; ++i) {
    result.partial[i] = ca * a.partial[i] + cb * b.partial[i];
  }
  return result;
}

template <class T>
RCNN_HOST_DEVICE Dual<T> scaled(T value, T c, const Dual<T>& a) {
  Dual<T> result;
  result.value = value;
  for (int i = 0; i < Dual<T>::kPartials; ++i) result.partial[i] = c * a.partial[i];
  return result;
}

template <class T>
RCNN_HOST_DEVICE Dual<T> operator+(const Dual<T>& a, const Dual<T>& b) {
  return combine(a.value + b.value, T(1), a, T(1), b);
}
template <class T>
RCNN_HOST_DEVICE Dual<T> operator-(const Dual<T>& a, const Dual<T>& b) {
  return combine(a.value - b.value, T(1), a, T(-1), b);
}
template <class T>
RCNN_HOST_DEVICE Dual<T> operator*(const Dual<T>& a, const Dual<T>& b) {
  return combine(a.value * b.value, b.value, a, a.value, b);
}
template <class T>
RCNN_HOST_DEVICE Dual<T> operator/(const Dual<T>& a, const Dual<T>& b) {
  const T quotient = a.value / b.value;
  return combine(quotient, T(1) / b.value, a, -quotient / b.value, b);
}

template <class T>
RCNN_HOST_DEVICE Dual<T> smaller(const Dual<T>& a, const Dual<T>& b) {
  const T share = a.value < b.value ? T(1) : a.value > b.value ? T(0) : T(0.5);
  return combine(a.value < b.value ? a.value : b.value, share, a, T(1) - share, b);
}
template <class T>
RCNN_HOST_DEVICE Dual<T> larger(const Dual<T>& a, const Dual<T>& b) {
  const T share = a.value > b.value ? T(1) : a.value < b.value ? T(0) : T(0.5);
  return combine(a.value > b.value ? a.value : b.value, share, a, T(1) - share, b);
}
template <class T>
RCNN_HOST_DEVICE Dual<T> at_least_zero(const Dual<T>& a) {
  return scaled(a.value > T(0) ? a.value : T(0), a.value >= T(0) ? T(1) : T(0), a);
}
template <class T>
RCNN_HOST_DEVICE Dual<T> arc_tangent(const Dual<T>& a) {
  return scaled(T(std::atan(a.value)), T(1) / (T(1) + a.value * a.value), a);
}
template <class T>
RCNN_HOST_DEVICE Dual<T> detached(const Dual<T>& a) {
  return Dual<T>(a.value);
}

// A box whose coordinates are the variables, and one that does not change.
template <class T>
RCNN_HOST_DEVICE Box<Dual<T>> variable(const Box<T>& box) {
  using D = Dual<T>;
  return {D(box.x1, 0), D(box.y1, 1), D(box.x2, 2), D(box.y2, 3)};
}
template <class T>
RCNN_HOST_DEVICE Box<Dual<T>> constant(const Box<T>& box) {
  using D = Dual<T>;
  return {D(box.x1), D(box.y1), D(box.x2), D(box.y2)};
}

// The derivatives of measure(a, b) by the coordinates of a (or of b, with kOfSecond), times
// `weight`, added to sums [4].
template <bool kOfSecond, class T, class Measure, class Sum>
RCNN_HOST_DEVICE void add_gradient(const Measure& measure, const Box<T>& a, const Box<T>& b,
                                   T weight, Sum* sums) {
  const Box<Dual<T>> da = kOfSecond ? constant(a) : variable(a);
  const Box<Dual<T>> db = kOfSecond ? variable(b) : constant(b);
  const Dual<T> result = measure(da, measure.prepare(da), db, measure.prepare(db));
  for (int i = 0; i < 4; ++i) sums[i] += weight * result.partial[i];
}

}  // namespace rcnn_ext
