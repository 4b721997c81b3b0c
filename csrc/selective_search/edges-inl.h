// Compiled once per instruction set (foreach_target.h). Sums keep the order of NumPy, so that
// segmentations come out as scikit-image's, bit for bit.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../cpu/targets.h"
#include "edges.h"

#if defined(RCNN_SELECTIVE_SEARCH_EDGES_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_SELECTIVE_SEARCH_EDGES_INL_H_
#undef RCNN_SELECTIVE_SEARCH_EDGES_INL_H_
#else
#define RCNN_SELECTIVE_SEARCH_EDGES_INL_H_
#endif

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Euclidean distances between the pixels of two rows of planes, and their ranks.
inline void distances(const double* const* a, const double* const* b, int shift_a, int shift_b,
                      int count, double* costs, uint16_t* ranks) {
  const double *r0 = a[0] + shift_a, *g0 = a[1] + shift_a, *b0 = a[2] + shift_a;
  const double *r1 = b[0] + shift_b, *g1 = b[1] + shift_b, *b1 = b[2] + shift_b;
  for (int i = 0; i < count; ++i) {
    const double dr = r1[i] - r0[i], dg = g1[i] - g0[i], db = b1[i] - b0[i];
    costs[i] = std::sqrt((dr * dr + dg * dg) + db * db);
  }
  constexpr int kLast = selective_search::kRanks - 1;
  for (int i = 0; i < count; ++i) {
    int64_t bits;
    std::memcpy(&bits, costs + i, sizeof bits);
    const int32_t rank =
        static_cast<int32_t>(bits >> selective_search::kRankShift) - selective_search::kFirstRank;
    const int32_t low = rank > 0 ? rank : 0;
    ranks[i] = static_cast<uint16_t>(low < kLast ? low : kLast);
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_SELECTIVE_SEARCH_EDGES_INL_H_
