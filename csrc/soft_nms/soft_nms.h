// Score decay of Soft-NMS (Bodla et al., "Soft-NMS: Improving Object Detection With One Line of
// Code", ICCV 2017) on CPU and CUDA alike, and the checks of the arguments.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../core/box_math.h"
#include "../nms/nms.h"

namespace rcnn_ext {

// The values of the argument `method` in rcnn_ext/ops/soft_nms.py.
enum class DecayMethod : int64_t { kLinear = 0, kGaussian = 1 };

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  using Bits = int32_t;
  static constexpr int kDegree = 7;
  static constexpr int kMantissa = 23;
  static constexpr int kBias = 127;
  static constexpr float kMinArgument = -87.0f;  // below, the result would be subnormal
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
  static constexpr double kMinArgument = -708.0;
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
};

// exp(x) for x <= 0; 0 where the result would not be normal. Written out, since the functions of
// the C library, of its vector variants and of CUDA differ in the last bit, and with it the order
// of scores.
template <class T>
RCNN_HOST_DEVICE T exp_nonpositive(T x) {
  using C = ExpConstants<T>;
  using Bits = typename C::Bits;
  const T inside = maximum(x, C::kMinArgument);
  const Bits n = static_cast<Bits>(inside * T(1.4426950408889634) - T(0.5));  // to nearest
  const T whole = static_cast<T>(n);
  const T r = (inside - whole * C::kLn2High) - whole * C::kLn2Low;  // |r| <= ln(2) / 2
  // The exponential series, from its last term inward: 1 + r/1 (1 + r/2 (1 + r/3 (...))).
  T sum = T(1);
  for (int k = C::kDegree; k >= 1; --k) sum = T(1) + r * (T(1) / T(k)) * sum;
  const Bits bits = (n + C::kBias) << C::kMantissa;
  T power;
  memcpy(&power, &bits, sizeof(power));
  return sum * power *
         // As a factor, since GCC does not vectorize a conditional here.
         static_cast<T>(x >= C::kMinArgument);
}

template <class T>
struct SoftNmsRule {
  T iou_threshold;  // at this IoU and above, linear decay lowers scores
  T sigma;
  T score_threshold;

  SoftNmsRule(double iou_threshold, double sigma, double score_threshold)
      : iou_threshold(round_up_to<T>(iou_threshold)),
        // At least the smallest normal number, so that 0 / sigma is 0.
        sigma(maximum(static_cast<T>(sigma), std::numeric_limits<T>::min())),
        score_threshold(round_up_to<T>(score_threshold)) {}
};

// The score of a removed box, which was taken or fell below the threshold. All other scores are at
// least 0, so their bits as integers order as they do.
template <class T>
constexpr T kRemovedScore = T(-1);

// The score of a box before the first round; adding 0 turns -0 into 0.
template <class T>
RCNN_HOST_DEVICE T initial_score(const Box<T>& box, T score, const SoftNmsRule<T>& rule) {
  return is_finite(box) && score >= rule.score_threshold ? score + T(0) : kRemovedScore<T>;
}

// The score of a box after one with a higher score was taken. Removed boxes stay removed.
template <DecayMethod method, class T>
RCNN_HOST_DEVICE T decay_score(T score, const Box<T>& taken, T taken_area, const Box<T>& box,
                               T box_area, const SoftNmsRule<T>& rule) {
  const T iou = clamp_min_zero(iou_with_areas(taken, taken_area, box, box_area));  // 0 for NaN
  const T weight = method == DecayMethod::kLinear ? (iou >= rule.iou_threshold ? T(1) - iou : T(1))
                                                  : exp_nonpositive(-(iou * iou) / rule.sigma);
  const T lowered = score * weight;
  // Both are needed, as -1 times a weight of 0 is not below a threshold of 0.
  const bool remains = (score >= T(0)) & (lowered >= rule.score_threshold);
  return remains ? lowered : kRemovedScore<T>;
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
