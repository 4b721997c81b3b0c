// The transforms of Winograd's convolution F(m x m, 3 x 3) for m = 2 and 4 (Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", CVPR 2016), compiled once per instruction set
// (foreach_target.h). Unlike other kernels they use fused multiply-adds where the instruction set
// has them.
#include <cstdint>

#include "../cpu/simd-inl.h"
#include "../cpu/targets.h"

#if defined(RCNN_CONV_WINOGRAD_CONV_WINOGRAD_TRANSFORMS_CPU_INL_H_) == \
    defined(RCNN_TARGET_TOGGLE)  // once per target
#ifdef RCNN_CONV_WINOGRAD_CONV_WINOGRAD_TRANSFORMS_CPU_INL_H_
#undef RCNN_CONV_WINOGRAD_CONV_WINOGRAD_TRANSFORMS_CPU_INL_H_
#else
#define RCNN_CONV_WINOGRAD_CONV_WINOGRAD_TRANSFORMS_CPU_INL_H_
#endif

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

constexpr int kWinogradLanes = kLanes<float>;
using WinogradVec = Vec<float, kWinogradLanes>;

// a * b + c, rounded once where the instruction set can.
RCNN_INLINE WinogradVec MulAdd(const WinogradVec& a, const WinogradVec& b, const WinogradVec& c) {
#if RCNN_ISA >= 2
  return (WinogradVec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif RCNN_ISA == 1
  return (WinogradVec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

RCNN_INLINE WinogradVec MulAdd(float a, const WinogradVec& b, const WinogradVec& c) {
  return MulAdd(Set<kWinogradLanes>(a), b, c);
}

template <int kTile>
struct WinogradTransform;

template <>
struct WinogradTransform<2> {
  static RCNN_INLINE void input(WinogradVec (&d)[4]) {
    const WinogradVec d1 = d[1];
    d[0] = d[0] - d[2];
    d[1] = d1 + d[2];
    d[2] = d[2] - d1;
    d[3] = d1 - d[3];
  }
  static RCNN_INLINE void output(const WinogradVec (&m)[4], WinogradVec (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

template <>
struct WinogradTransform<4> {
  static RCNN_INLINE void input(WinogradVec (&d)[6]) {
    const WinogradVec even = MulAdd(-4.f, d[2], d[4]);
    const WinogradVec odd = MulAdd(-4.f, d[1], d[3]);
    const WinogradVec even_difference = d[4] - d[2];
    const WinogradVec odd_difference = d[3] - d[1];
    d[0] = MulAdd(4.f, d[0], MulAdd(-5.f, d[2], d[4]));
    d[5] = MulAdd(4.f, d[1], MulAdd(-5.f, d[3], d[5]));
    d[1] = even + odd;
    d[2] = even - odd;
    d[3] = MulAdd(2.f, odd_difference, even_difference);
    d[4] = MulAdd(-2.f, odd_difference, even_difference);
  }
  static RCNN_INLINE void output(const WinogradVec (&m)[6], WinogradVec (&y)[4]) {
    const WinogradVec sum = m[1] + m[2];
    const WinogradVec difference = m[1] - m[2];
    const WinogradVec double_sum = m[3] + m[4];
    const WinogradVec double_difference = m[3] - m[4];
    y[0] = m[0] + sum + double_sum;
    y[1] = MulAdd(2.f, double_difference, difference);
    y[2] = MulAdd(4.f, double_sum, sum);
    y[3] = MulAdd(8.f, double_difference, difference) + m[5];
  }
};

// Transforms one vector of channels of a tile whose first input is pixel (y, x). With kInside no
// input lies outside the map, and the vector is whole; otherwise outside inputs and the channels
// from `channels` on are 0.
// to: (kTile + 2)^2 vectors, `position_stride` apart
template <int kTile, bool kInside, class Stored>
RCNN_INLINE void transform_input_vec(const Stored* from, int64_t y, int64_t x, int64_t height,
                                     int64_t width, int64_t channels_per_pixel, int64_t channels,
                                     Stored* to, int64_t position_stride) {
  constexpr int kSide = kTile + 2;
  WinogradVec rows[kSide][kSide];
#if defined(__GNUC__)
#pragma GCC unroll 6
#endif
  for (int j = 0; j < kSide; ++j) {
    WinogradVec column[kSide];
#if defined(__GNUC__)
#pragma GCC unroll 6
#endif
    for (int i = 0; i < kSide; ++i) {
      const int64_t offset = ((y + i) * width + x + j) * channels_per_pixel;
      if (kInside) {
        column[i] = LoadU<float, kWinogradLanes>(from + offset);
      } else if (y + i >= 0 && y + i < height && x + j >= 0 && x + j < width) {
        column[i] = LoadN<float, kWinogradLanes>(from + offset, channels);
      } else {
        column[i] = WinogradVec{};
      }
    }
    WinogradTransform<kTile>::input(column);
#if defined(__GNUC__)
#pragma GCC unroll 6
#endif
    for (int i = 0; i < kSide; ++i) rows[i][j] = column[i];
  }
#if defined(__GNUC__)
#pragma GCC unroll 6
#endif
  for (int i = 0; i < kSide; ++i) {
    WinogradTransform<kTile>::input(rows[i]);
#if defined(__GNUC__)
#pragma GCC unroll 6
#endif
    for (int j = 0; j < kSide; ++j) {
      StoreU<kWinogradLanes, float>(to + (i * kSide + j) * position_stride, rows[i][j]);
    }
  }
}

// Transforms the products of one vector of output channels to outputs[kTile][kTile].
// from: (kTile + 2)^2 vectors, `position_stride` apart
template <int kTile>
RCNN_INLINE void transform_output_vec(const float* from, int64_t position_stride,
                                      WinogradVec (&outputs)[kTile][kTile]) {
  constexpr int kSide = kTile + 2;
  WinogradVec rows[kTile][kSide];
#if defined(__GNUC__)
#pragma GCC unroll 6
#endif
  for (int j = 0; j < kSide; ++j) {
    WinogradVec column[kSide], transformed[kTile];
#if defined(__GNUC__)
#pragma GCC unroll 6
#endif
    for (int i = 0; i < kSide; ++i) {
      column[i] = LoadU<float, kWinogradLanes>(from + (i * kSide + j) * position_stride);
    }
    WinogradTransform<kTile>::output(column, transformed);
#if defined(__GNUC__)
#pragma GCC unroll 4
#endif
    for (int i = 0; i < kTile; ++i) rows[i][j] = transformed[i];
  }
#if defined(__GNUC__)
#pragma GCC unroll 4
#endif
  for (int i = 0; i < kTile; ++i) WinogradTransform<kTile>::output(rows[i], outputs[i]);
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_CONV_WINOGRAD_CONV_WINOGRAD_TRANSFORMS_CPU_INL_H_
