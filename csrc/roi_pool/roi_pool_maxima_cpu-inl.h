// Maxima of RoIPool's bins on one CPU core, with the pixels that they come from. Compiled once per
// instruction set (foreach_target.h).
#include <cstdint>
#include <type_traits>

#include "../core/roi_math.h"
#include "../cpu/targets.h"
#include "roi_pool.h"
#include "roi_pool_bins_cpu.h"

#if defined(RCNN_ROI_POOL_ROI_POOL_MAXIMA_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_ROI_POOL_ROI_POOL_MAXIMA_CPU_INL_H_
#undef RCNN_ROI_POOL_ROI_POOL_MAXIMA_CPU_INL_H_
#else
#define RCNN_ROI_POOL_ROI_POOL_MAXIMA_CPU_INL_H_
#endif

#include "../cpu/simd-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

template <class T>
using PixelOf = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// The maxima of some channels of a bin, and the pixels that they come from.
template <class T, int N>
struct Maxima {
  Vec<T, N> value;
  Vec<PixelOf<T>, N> pixel;

  // Pixels come in ascending order.
  RCNN_INLINE void add(const Vec<T, N>& other, const Vec<PixelOf<T>, N>& at) {
#if defined(__GNUC__)
    pixel = other > value ? at : pixel;
#else
    for (int i = 0; i < N; ++i) pixel[i] = other[i] > value[i] ? at[i] : pixel[i];
#endif
    value = Max<N, T>(other, value);
  }

  // Among equals the smaller pixel stays. The value may then be that of another zero.
  RCNN_INLINE void add_in_any_order(const Vec<T, N>& other, const Vec<PixelOf<T>, N>& at) {
#if defined(__GNUC__)
    pixel = (other > value) | ((other == value) & (at < pixel)) ? at : pixel;
#else
    for (int i = 0; i < N; ++i) {
      const bool takes_place = other[i] > value[i] || (other[i] == value[i] && at[i] < pixel[i]);
      pixel[i] = takes_place ? at[i] : pixel[i];
    }
#endif
    value = Max<N, T>(other, value);
  }
};

// Every bin of one channel pixel by pixel, for NaN. plane: `step` elements per pixel, out and
// argmax: `out_step` elements per bin
template <class T, class Stored>
inline void roi_pool_exact(const RoiBins& bins, const Stored* plane, int64_t width, int64_t step,
                           Stored* out, int32_t* argmax, int64_t out_step) {
  for (const PixelRange& ys : bins.y) {
    for (const PixelRange& xs : bins.x) {
      const BinMaximum<T> maximum = bin_maximum<T>(ys, xs, plane, width, step);
      *out = static_cast<Stored>(maximum.value);
      *argmax = maximum.pixel;
      out += out_step;
      argmax += out_step;
    }
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_ROI_POOL_ROI_POOL_MAXIMA_CPU_INL_H_
