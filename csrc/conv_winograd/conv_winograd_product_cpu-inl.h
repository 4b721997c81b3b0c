// The matrix products of Winograd's convolution, compiled once per instruction set
// (foreach_target.h): rows are tiles, the depth is the input channels, columns are output channels.
// A sum is taken in the order of the input channels whatever the number of rows at once.
#include <cstdint>
#include <cstring>

#include "../cpu/simd-inl.h"
#include "../cpu/targets.h"
#include "conv_winograd_cpu.h"
#include "conv_winograd_transforms_cpu-inl.h"

#if defined(RCNN_CONV_WINOGRAD_CONV_WINOGRAD_PRODUCT_CPU_INL_H_) == \
    defined(RCNN_TARGET_TOGGLE)  // once per target
#ifdef RCNN_CONV_WINOGRAD_CONV_WINOGRAD_PRODUCT_CPU_INL_H_
#undef RCNN_CONV_WINOGRAD_CONV_WINOGRAD_PRODUCT_CPU_INL_H_
#else
#define RCNN_CONV_WINOGRAD_CONV_WINOGRAD_PRODUCT_CPU_INL_H_
#endif

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Rows and vectors of columns whose sums fill the registers, and rows for what remains.
constexpr int kProductRows = RCNN_ISA >= 2 ? 12 : 6;
constexpr int kFewProductRows = RCNN_ISA >= 2 ? 4 : 2;
constexpr int kProductVecs = 2;
constexpr int kProductColumns = kProductVecs * kWinogradLanes;
static_assert(kWinogradOutputBlock % kProductColumns == 0, "blocks are whole products");

// One step of the depth: float32 takes a channel, bfloat16 a pair of channels.
template <class Stored>
struct ProductStep;

template <>
struct ProductStep<float> {
  static constexpr int kChannels = 1;
  using Weights = WinogradVec;

  static RCNN_INLINE Weights load(const float* weights) {
    return LoadU<float, kWinogradLanes>(weights);
  }
  static RCNN_INLINE WinogradVec add(const float* value, const Weights& weights,
                                     const WinogradVec& sum) {
    return MulAdd(*value, weights, sum);
  }
};

template <>
struct ProductStep<BFloat16> {
  static constexpr int kChannels = 2;
#if RCNN_ISA >= 3
  using Weights = __m512bh;

  static RCNN_INLINE Weights load(const BFloat16* weights) {
    Weights pairs;
    std::memcpy(&pairs, weights, sizeof(pairs));
    return pairs;
  }
  static RCNN_INLINE WinogradVec add(const BFloat16* value, const Weights& weights,
                                     const WinogradVec& sum) {
    int pair;
    std::memcpy(&pair, value, sizeof(pair));
    return (WinogradVec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), weights);
  }
#else
  // The two weights of each column.
  struct Weights {
    WinogradVec first, second;
  };

  static RCNN_INLINE Weights load(const BFloat16* weights) {
    float numbers[2][kWinogradLanes];
#if defined(__GNUC__)
    Vec<uint32_t, kWinogradLanes> pairs;
    std::memcpy(&pairs, weights, sizeof(pairs));
    const auto first = pairs << 16;
    const auto second = pairs & 0xffff0000u;
    std::memcpy(numbers[0], &first, sizeof(first));
    std::memcpy(numbers[1], &second, sizeof(second));
#else
    for (int i = 0; i < 2 * kWinogradLanes; ++i) {
      numbers[i % 2][i / 2] = static_cast<float>(weights[i]);
    }
#endif
    return {LoadU<float, kWinogradLanes>(numbers[0]), LoadU<float, kWinogradLanes>(numbers[1])};
  }
  static RCNN_INLINE WinogradVec add(const BFloat16* value, const Weights& weights,
                                     const WinogradVec& sum) {
    return MulAdd(static_cast<float>(value[1]), weights.second,
                  MulAdd(static_cast<float>(value[0]), weights.first, sum));
  }
#endif
};

// sums[kRows][kProductColumns] = values[kRows][depth] * weights[depth][kProductColumns]
// weights: of all kWinogradOutputBlock columns, from the first column wanted
template <int kRows, class Stored>
RCNN_NO_INLINE void multiply_rows(const Stored* values, int64_t value_stride, int64_t depth,
                                  const Stored* weights, float* sums, int64_t sum_stride) {
  using Step = ProductStep<Stored>;
  WinogradVec totals[kRows][kProductVecs] = {};
  for (int64_t k = 0; k < depth; k += Step::kChannels) {
    typename Step::Weights columns[kProductVecs];
#if defined(__GNUC__)
#pragma GCC unroll 2
#endif
    for (int v = 0; v < kProductVecs; ++v) {
      columns[v] = Step::load(weights + v * kWinogradLanes * Step::kChannels);
    }
    weights += kWinogradOutputBlock * Step::kChannels;
#if defined(__GNUC__)
#pragma GCC unroll 12
#endif
    for (int r = 0; r < kRows; ++r) {
#if defined(__GNUC__)
#pragma GCC unroll 2
#endif
      for (int v = 0; v < kProductVecs; ++v) {
        totals[r][v] = Step::add(values + r * value_stride + k, columns[v], totals[r][v]);
      }
    }
  }
#if defined(__GNUC__)
#pragma GCC unroll 12
#endif
  for (int r = 0; r < kRows; ++r) {
#if defined(__GNUC__)
#pragma GCC unroll 2
#endif
    for (int v = 0; v < kProductVecs; ++v) {
      StoreU<kWinogradLanes, float>(sums + r * sum_stride + v * kWinogradLanes, totals[r][v]);
    }
  }
}

// The products of one position: all rows, and the blocks of columns of a range.
// rows: a multiple of kFewProductRows
template <class Stored>
inline void multiply_position(const Stored* values, int64_t value_stride, int64_t rows,
                              int64_t depth, const Stored* weights, int64_t blocks, float* sums,
                              int64_t sum_stride) {
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t column = 0; column < kWinogradOutputBlock; column += kProductColumns) {
      const Stored* const panel =
          weights + block * depth * kWinogradOutputBlock + column * ProductStep<Stored>::kChannels;
      float* const out = sums + block * kWinogradOutputBlock + column;
      int64_t row = 0;
      for (; row + kProductRows <= rows; row += kProductRows) {
        multiply_rows<kProductRows>(values + row * value_stride, value_stride, depth, panel,
                                    out + row * sum_stride, sum_stride);
      }
      for (; row < rows; row += kFewProductRows) {
        multiply_rows<kFewProductRows>(values + row * value_stride, value_stride, depth, panel,
                                       out + row * sum_stride, sum_stride);
      }
    }
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_CONV_WINOGRAD_CONV_WINOGRAD_PRODUCT_CPU_INL_H_
