// Winograd's convolution of a range of tiles, compiled once per instruction set (foreach_target.h).
#include <cstdint>
#include <cstring>

#include "../cpu/simd-inl.h"
#include "../cpu/targets.h"
#include "conv_winograd_cpu.h"
#include "conv_winograd_product_cpu-inl.h"
#include "conv_winograd_transforms_cpu-inl.h"

#if defined(RCNN_CONV_WINOGRAD_CONV_WINOGRAD_CPU_INL_H_) == \
    defined(RCNN_TARGET_TOGGLE)  // once per target
#ifdef RCNN_CONV_WINOGRAD_CONV_WINOGRAD_CPU_INL_H_
#undef RCNN_CONV_WINOGRAD_CONV_WINOGRAD_CPU_INL_H_
#else
#define RCNN_CONV_WINOGRAD_CONV_WINOGRAD_CPU_INL_H_
#endif

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Image, first row and first column of outputs of a tile.
struct WinogradTile {
  int64_t image, y, x;

  template <int kTile, class Stored>
  static WinogradTile at(const WinogradConv<Stored>& conv, int64_t index) {
    const int64_t row = index / conv.tile_columns;
    return {row / conv.tile_rows, row % conv.tile_rows * kTile, index % conv.tile_columns * kTile};
  }
};

// Transforms the inputs of `count` tiles; further rows, up to `rows`, become 0.
template <int kTile, class Stored>
inline void transform_inputs(const WinogradConv<Stored>& conv, int64_t first, int64_t count,
                             int64_t rows, const WinogradStrides& strides, Stored* values) {
  constexpr int kSide = kTile + 2;
  for (int64_t t = 0; t < count; ++t) {
    const auto tile = WinogradTile::at<kTile>(conv, first + t);
    const int64_t y = tile.y - 1;
    const int64_t x = tile.x - 1;
    const bool inside = y >= 0 && y + kSide <= conv.height && x >= 0 && x + kSide <= conv.width;
    const int64_t image = tile.image * conv.height * conv.width * conv.in_channels;
    for (int64_t c = 0; c < conv.depth; c += kWinogradLanes) {
      const int64_t channels = conv.in_channels - c;
      const Stored* const from = conv.x + image + c;
      Stored* const to = values + t * strides.tile + c;
      if (inside && channels >= kWinogradLanes) {
        transform_input_vec<kTile, true>(from, y, x, conv.height, conv.width, conv.in_channels,
                                         channels, to, strides.position);
      } else {
        transform_input_vec<kTile, false>(from, y, x, conv.height, conv.width, conv.in_channels,
                                          channels, to, strides.position);
      }
    }
  }
  for (int p = 0; p < kSide * kSide; ++p) {
    for (int64_t t = count; t < rows; ++t) {
      std::memset(static_cast<void*>(values + p * strides.position + t * strides.tile), 0,
                  conv.depth * sizeof(Stored));
    }
  }
}

// Transforms the sums of `count` tiles back and stores their outputs in the output channels of
// `blocks` blocks, with bias, sum and ReLU.
template <int kTile, class Stored>
inline void transform_outputs(const WinogradConv<Stored>& conv, int64_t first, int64_t count,
                              int64_t first_block, int64_t blocks, const WinogradStrides& strides,
                              const float* sums) {
  constexpr int kN = kWinogradLanes;
  const int64_t first_channel = first_block * kWinogradOutputBlock;
  const int64_t channels =
      std::min(blocks * kWinogradOutputBlock, conv.out_channels - first_channel);
  for (int64_t t = 0; t < count; ++t) {
    const auto tile = WinogradTile::at<kTile>(conv, first + t);
    const int64_t rows = std::min<int64_t>(kTile, conv.height - tile.y);
    const int64_t columns = std::min<int64_t>(kTile, conv.width - tile.x);
    const int64_t pixel = (tile.image * conv.height + tile.y) * conv.width + tile.x;
    for (int64_t c = 0; c < channels; c += kN) {
      WinogradVec outputs[kTile][kTile];
      transform_output_vec<kTile>(sums + t * strides.tile + c, strides.position, outputs);
      const int64_t left = channels - c;
      const int64_t channel = first_channel + c;
      const WinogradVec bias =
          conv.bias ? LoadN<float, kN>(conv.bias + channel, left) : WinogradVec{};
#if defined(__GNUC__)
#pragma GCC unroll 4
#endif
      for (int i = 0; i < kTile; ++i) {
        if (i >= rows) continue;
#if defined(__GNUC__)
#pragma GCC unroll 4
#endif
        for (int j = 0; j < kTile; ++j) {
          if (j >= columns) continue;
          const int64_t at = (pixel + i * conv.width + j) * conv.out_channels + channel;
          WinogradVec value = outputs[i][j] + bias;
          if (conv.other) value = value + LoadN<float, kN>(conv.other + at, left);
          // The order of the arguments keeps NaN.
          if (conv.relu) value = Max<kN, float>(WinogradVec{}, value);
          StoreN<kN, float>(conv.out + at, value, left);
        }
      }
    }
  }
}

// Computes the outputs of a range.
// values, sums: memory for the transformed inputs and their products of all the range's tiles, the
// latter of `max_blocks` blocks at once
template <int kTile, class Stored>
inline void convolve_range(const WinogradConv<Stored>& conv, const WinogradRange& range,
                           int64_t max_blocks, const WinogradStrides& value_strides, Stored* values,
                           const WinogradStrides& sum_strides, float* sums) {
  constexpr int kPositions = (kTile + 2) * (kTile + 2);
  const int64_t rows = round_up(range.count, kFewProductRows);
  transform_inputs<kTile>(conv, range.first, range.count, rows, value_strides, values);
  const int64_t all_blocks = ceil_div(conv.out_channels, kWinogradOutputBlock);
  const int64_t block_size = conv.depth * kWinogradOutputBlock;
  for (int64_t block = range.first_block; block < range.last_block; block += max_blocks) {
    const int64_t blocks = std::min(max_blocks, range.last_block - block);
    for (int p = 0; p < kPositions; ++p) {
      multiply_position(values + p * value_strides.position, value_strides.tile, rows, conv.depth,
                        conv.packed + (p * all_blocks + block) * block_size, blocks,
                        sums + p * sum_strides.position, sum_strides.tile);
    }
    transform_outputs<kTile>(conv, range.first, range.count, block, blocks, sum_strides, sums);
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_CONV_WINOGRAD_CONV_WINOGRAD_CPU_INL_H_
