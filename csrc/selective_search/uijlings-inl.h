// Compiled once per instruction set (foreach_target.h).
#include <cmath>
#include <cstdint>

#include "../cpu/targets.h"
#include "uijlings.h"

#if defined(RCNN_SELECTIVE_SEARCH_UIJLINGS_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_SELECTIVE_SEARCH_UIJLINGS_INL_H_
#undef RCNN_SELECTIVE_SEARCH_UIJLINGS_INL_H_
#else
#define RCNN_SELECTIVE_SEARCH_UIJLINGS_INL_H_
#endif

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Sum of the smaller of two shares. `count` is a multiple of kSumLanes, and each lane has a sum of
// its own whatever the width of the registers.
inline float intersection(const float* a, const float* b, int count) {
  constexpr int kSumLanes = selective_search::kSumLanes;
  float sums[kSumLanes] = {};
  for (int i = 0; i < count; i += kSumLanes) {
    for (int lane = 0; lane < kSumLanes; ++lane) {
      const float x = a[i + lane], y = b[i + lane];
      sums[lane] += x < y ? x : y;
    }
  }
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

inline void weighted_mean(const float* a, const float* b, float weight_a, float weight_b, int count,
                          float* mean) {
  for (int i = 0; i < count; ++i) mean[i] = a[i] * weight_a + b[i] * weight_b;
}

// The derivative of a row in one direction as a code: its bin by magnitude, kBins higher where it
// is negative. `before` and `after` are shifted against the row in x, `above` and `below` in y.
inline void code_derivatives(const double* before, const double* after, const double* above,
                             const double* below, double cosine, double sine, int width,
                             uint8_t* codes) {
  constexpr int kBins = selective_search::kTextureBins;
  for (int x = 0; x < width; ++x) {
    // Central differences are over two pixels.
    const double slope = 0.5 * (cosine * (after[x] - before[x]) + sine * (below[x] - above[x]));
    const double size = std::sqrt(std::fabs(slope) * selective_search::kTextureScale);
    const int bin = static_cast<int>(size < kBins - 1 ? size : kBins - 1);
    codes[x] = static_cast<uint8_t>(bin + (slope < 0 ? kBins : 0));
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_SELECTIVE_SEARCH_UIJLINGS_INL_H_
