// How soft suppression lowers scores (Bodla et al., "Soft-NMS: Improving Object Detection With One
// Line of Code", ICCV 2017), for CPU and CUDA.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../core/box_math.h"
#include "../nms/nms.h"

namespace rcnn_ext {

// The numbers by which rcnn_ext/ops/soft_nms.py asks for a method.
enum class DecayMethod : int64_t { kLinear = 0, kGaussian = 1 };

// The smallest T that is not below `number`: x >= it exactly when double(x) >= number.
template <class T>
inline T smallest_not_below(double number) {
  return -suppression_bound<T>(-number);
}

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  using Bits = int32_t;
  static constexpr int kDegree = 7;
  static constexpr int kMantissa = 23;
  static constexpr int kBias = 127;
  static constexpr float kLeast = -87.0f;  // the result is normal
  // The logarithm of 2 in two parts, the first of few digits: its multiples are exact.
  static constexpr float kLn2High = 0.693359375f;
  static constexpr float kLn2Low = -2.12194440e-4f;
};
template <>
struct ExpConstants<double> {
  using Bits = int64_t;
  static constexpr int kDegree = 13;
  static constexpr int kMantissa = 52;
  static constexpr int kBias = 1023;
  static constexpr double kLeast = -708.0;
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
};

// exp(x) for x <= 0; 0 below the range of normal results. Written out, since those of the C
// library, of its vector versions and of CUDA differ in the last bit, and with it the order of
// scores.
template <class T>
RCNN_HOST_DEVICE T exp_of_negative(T x) {
  using C = ExpConstants<T>;
  using Bits = typename C::Bits;
  const T inside = maximum(x, C::kLeast);
  const Bits n = static_cast<Bits>(inside * T(1.4426950408889634) - T(0.5));  // to nearest
  const T whole = static_cast<T>(n);
  const T r = (inside - whole * C::kLn2High) - whole * C::kLn2Low;  // |r| <= ln(2) / 2
  // The exponential series, from its last term inwards: 1 + r/1 (1 + r/2 (1 + r/3 (...))).
  T sum = T(1);
  for (int k = C::kDegree; k >= 1; --k) sum = T(1) + r * (T(1) / T(k)) * sum;
  const Bits bits = (n + C::kBias) << C::kMantissa;
  T power;
  memcpy(&power, &bits, sizeof(power));
  return sum * power *
         static_cast<T>(x >= C::kLeast);  // a factor, as GCC vectorises no choice here
}

template <class T>
struct SoftNmsRule {
  T iou_threshold;  // from this IoU on, linear decay lowers scores
  T sigma;
  T score_threshold;

  SoftNmsRule(double iou_threshold, double sigma, double score_threshold)
      : iou_threshold(smallest_not_below<T>(iou_threshold)),
        // Where it underflows, 0 / sigma has to stay 0.
        sigma(maximum(static_cast<T>(sigma), std::numeric_limits<T>::min())),
        score_threshold(smallest_not_below<T>(score_threshold)) {}
};

// A score that is out: of a box that was taken or fell below the threshold. All others are at least
// 0, and so their bits, read as integers, order as they do.
template <class T>
constexpr T kOut = T(-1);

// What a box starts with.
template <class T>
RCNN_HOST_DEVICE T first_score(const Box<T>& box, T score, const SoftNmsRule<T>& rule) {
  return is_finite(box) && score >= rule.score_threshold ? score + T(0) : kOut<T>;  // -0 to 0
}

// The score of a box after one with a higher score has been taken; what is out stays out.
template <DecayMethod method, class T>
RCNN_HOST_DEVICE T decayed(T score, const Box<T>& taken, T taken_area, const Box<T>& box,
                           T box_area, const SoftNmsRule<T>& rule) {
  const T iou = clamp_min_zero(iou_with_areas(taken, taken_area, box, box_area));  // of NaN: 0
  const T weight = method == DecayMethod::kLinear ? (iou >= rule.iou_threshold ? T(1) - iou : T(1))
                                                  : exp_of_negative(-(iou * iou) / rule.sigma);
  const T lowered = score * weight;
  // Both, as -1 times a weight of 0 is not below a threshold of 0.
  const bool stays = (score >= T(0)) & (lowered >= rule.score_threshold);
  return stays ? lowered : kOut<T>;
}

// boxes: [N, 4], scores: [N] floating
inline void check_soft_nms(const Tensor& boxes, const Tensor& scores, double iou_threshold,
                           double sigma, double score_threshold, int64_t method, const char* op) {
  check_nms(boxes, scores, op);
  check_floating(scores, op, "scores");
  RCNN_CHECK(boxes.size(0) <= std::numeric_limits<int32_t>::max(), op,
             ": expected fewer than 2^31 boxes, got ", boxes.size(0));
  RCNN_CHECK(!std::isnan(iou_threshold), op, ": expected iou_threshold to be a number, got nan");
  RCNN_CHECK(sigma > 0, op, ": expected sigma above 0, got ", sigma);
  RCNN_CHECK(score_threshold >= 0, op, ": expected score_threshold of at least 0, got ",
             score_threshold);
  RCNN_CHECK(method == 0 || method == 1, op, ": expected method 0 (linear) or 1 (gaussian), got ",
             method);
}

// Scores are computed in float64 where either input is, else in float32.
inline ScalarType soft_nms_dtype(const Tensor& boxes, const Tensor& scores) {
  const bool wide =
      boxes.scalar_type() == ScalarType::Double || scores.scalar_type() == ScalarType::Double;
  return wide ? ScalarType::Double : ScalarType::Float;
}

}  // namespace rcnn_ext
