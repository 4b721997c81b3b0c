// Dual numbers (forward-mode differentiation): a value with its partial derivatives by the four
// coordinates of a box. A measure of box_math.h computed on duals gives its gradient from the lines
// of code that give its value. Ties and clamps follow PyTorch: maximum and minimum share the
// gradient equally between equal arguments, and clamp(min=0) passes it at 0.
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
  // The coordinate `index` of the box, by which derivatives are taken.
  RCNN_HOST_DEVICE Dual(T variable, int index) : value(variable) {
    for (int i = 0; i < kPartials; ++i) partial[i] = i == index ? T(1) : T(0);
  }
};

// The chain rule: a function f(a, b) of the given value, whose derivatives by a and b are df_da and
// df_db.
template <class T>
RCNN_HOST_DEVICE Dual<T> chain_rule(T value, T df_da, const Dual<T>& a, T df_db, const Dual<T>& b) {
  Dual<T> result;
  result.value = value;
  for (int i = 0; i < Dual<T>::kPartials; ++i) {
    result.partial[i] = df_da * a.partial[i] + df_db * b.partial[i];
  }
  return result;
}

// The chain rule for a function f(a).
template <class T>
RCNN_HOST_DEVICE Dual<T> chain_rule(T value, T df_da, const Dual<T>& a) {
  Dual<T> result;
  result.value = value;
  for (int i = 0; i < Dual<T>::kPartials; ++i) result.partial[i] = df_da * a.partial[i];
  return result;
}

template <class T>
RCNN_HOST_DEVICE Dual<T> operator+(const Dual<T>& a, const Dual<T>& b) {
  return chain_rule(a.value + b.value, T(1), a, T(1), b);
}
template <class T>
RCNN_HOST_DEVICE Dual<T> operator-(const Dual<T>& a, const Dual<T>& b) {
  return chain_rule(a.value - b.value, T(1), a, T(-1), b);
}
template <class T>
RCNN_HOST_DEVICE Dual<T> operator*(const Dual<T>& a, const Dual<T>& b) {
  return chain_rule(a.value * b.value, b.value, a, a.value, b);
}
template <class T>
RCNN_HOST_DEVICE Dual<T> operator/(const Dual<T>& a, const Dual<T>& b) {
  const T quotient = a.value / b.value;
  return chain_rule(quotient, T(1) / b.value, a, -quotient / b.value, b);
}

template <class T>
RCNN_HOST_DEVICE Dual<T> minimum(const Dual<T>& a, const Dual<T>& b) {
  const T share = a.value < b.value ? T(1) : a.value > b.value ? T(0) : T(0.5);
  return chain_rule(a.value < b.value ? a.value : b.value, share, a, T(1) - share, b);
}
template <class T>
RCNN_HOST_DEVICE Dual<T> maximum(const Dual<T>& a, const Dual<T>& b) {
  const T share = a.value > b.value ? T(1) : a.value < b.value ? T(0) : T(0.5);
  return chain_rule(a.value > b.value ? a.value : b.value, share, a, T(1) - share, b);
}
template <class T>
RCNN_HOST_DEVICE Dual<T> minimum_or_nan(const Dual<T>& a, const Dual<T>& b) {
  Dual<T> result = minimum(a, b);
  result.value = minimum_or_nan(a.value, b.value);
  return result;
}
template <class T>
RCNN_HOST_DEVICE Dual<T> clamp_min_zero(const Dual<T>& a) {
  return chain_rule(a.value > T(0) ? a.value : T(0), a.value >= T(0) ? T(1) : T(0), a);
}
template <class T>
RCNN_HOST_DEVICE Dual<T> arctan(const Dual<T>& a) {
  return chain_rule(T(std::atan(a.value)), T(1) / (T(1) + a.value * a.value), a);
}
template <class T>
RCNN_HOST_DEVICE Dual<T> detach(const Dual<T>& a) {
  return Dual<T>(a.value);
}

// A box whose coordinates are the variables, and one of constants.
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
  const Dual<T> result = measure(da, measure.terms(da), db, measure.terms(db));
  for (int i = 0; i < 4; ++i) sums[i] += weight * result.partial[i];
}

}  // namespace rcnn_ext
