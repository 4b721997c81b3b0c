// Compiled once per instruction set (foreach_target.h). Sums keep the order of scipy.ndimage,
// so that smoothed images come out as its own, bit for bit.
#include "../cpu/targets.h"

#if defined(RCNN_SELECTIVE_SEARCH_SMOOTHING_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_SELECTIVE_SEARCH_SMOOTHING_INL_H_
#undef RCNN_SELECTIVE_SEARCH_SMOOTHING_INL_H_
#else
#define RCNN_SELECTIVE_SEARCH_SMOOTHING_INL_H_
#endif

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// One row of interleaved pixels into three rows of doubles.
template <class T>
void split_row(const T* pixels, int width, double factor, double* red, double* green,
               double* blue) {
  for (int x = 0; x < width; ++x) {
    red[x] = static_cast<double>(pixels[3 * x]) * factor;
    green[x] = static_cast<double>(pixels[3 * x + 1]) * factor;
    blue[x] = static_cast<double>(pixels[3 * x + 2]) * factor;
  }
}

// The weighted sum of the elements symmetric about each element, the outermost pair first.
// `before(k)` and `after(k)` give the elements k steps from the middle ones.
template <class Before, class After>
inline void smooth(const double* middle, Before before, After after, const double* weights,
                   int radius, int count, double* smoothed) {
  // As many accumulators as stay in registers: four vectors of doubles.
  constexpr int kSumCount = RCNN_VECTOR_BYTES / 2;
  int begin = 0;
  for (; begin + kSumCount <= count; begin += kSumCount) {
    double sums[kSumCount];
    for (int i = 0; i < kSumCount; ++i) sums[i] = middle[begin + i] * weights[0];
    for (int k = radius; k > 0; --k) {
      const double* low = before(k) + begin;
      const double* high = after(k) + begin;
      const double weight = weights[k];
      for (int i = 0; i < kSumCount; ++i) sums[i] += (low[i] + high[i]) * weight;
    }
    for (int i = 0; i < kSumCount; ++i) smoothed[begin + i] = sums[i];
  }
  for (; begin < count; ++begin) {
    double sum = middle[begin] * weights[0];
    for (int k = radius; k > 0; --k) {
      sum += (before(k)[begin] + after(k)[begin]) * weights[k];
    }
    smoothed[begin] = sum;
  }
}

// Down the columns: rows[radius + k] is the row k below.
inline void smooth_columns(const double* const* rows, const double* weights, int radius, int width,
                           double* smoothed) {
  smooth(
      rows[radius], [&](int k) { return rows[radius - k]; },
      [&](int k) { return rows[radius + k]; }, weights, radius, width, smoothed);
}

// Along a row that has `radius` elements before its first and after its last.
inline void smooth_row(const double* padded, const double* weights, int radius, int width,
                       double* smoothed) {
  smooth(
      padded, [&](int k) { return padded - k; }, [&](int k) { return padded + k; }, weights, radius,
      width, smoothed);
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_SELECTIVE_SEARCH_SMOOTHING_INL_H_
