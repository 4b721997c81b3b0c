// Sizes and memory of conv3x3_winograd on the CPU, whatever the instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "conv_winograd.h"

namespace rcnn_ext {

// The convolution, maps channels-last. A tile is kTile x kTile outputs, made of (kTile + 2)^2
// inputs; tiles are numbered by image, row and column.
template <class Stored>
struct WinogradConv {
  const Stored* x;       // [N, H, W, C]
  const Stored* packed;  // [positions, out_blocks, depth, 32]; bfloat16 in pairs of channels
  const float* bias;     // [O] or null
  const Stored* other;   // [N, H, W, O] or null
  Stored* out;           // [N, H, W, O]
  bool relu;
  int64_t height, width, in_channels, out_channels;
  int64_t depth;  // in_channels, padded
  int64_t tile_rows, tile_columns;
};

// One thread's share: the tiles [first, first + count) and the blocks of output channels
// [first_block, last_block).
struct WinogradRange {
  int64_t first, count;
  int64_t first_block, last_block;
};

// Where transformed tiles lie: position p of tile t at p * position_stride + t * tile_stride. Both
// strides are odd multiples of a cache line, so that what is read or written together does not
// share the same few sets of the L1 cache.
struct WinogradStrides {
  int64_t position, tile;

  WinogradStrides(int64_t tiles, int64_t channels, int64_t bytes) {
    const int64_t line = 64 / bytes;
    const auto odd_lines = [line](int64_t count) { return (ceil_div(count, line) | 1) * line; };
    tile = odd_lines(channels);
    position = odd_lines(tiles * tile);
  }
};

// Memory of a thread that is kept from call to call, for the largest call so far.
class WinogradScratch {
 public:
  // At least so many bytes, at a multiple of 64; what they hold is lost.
  void* reserve(int64_t bytes) {
    if (bytes > bytes_) {
      memory_.reset();
      memory_.reset(new char[bytes + kAlignment]);
      bytes_ = bytes;
    }
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return reinterpret_cast<void*>(round_up(address, kAlignment));
  }
  static WinogradScratch& of_this_thread() {
    static thread_local WinogradScratch scratch;
    return scratch;
  }

 private:
  static constexpr int64_t kAlignment = 64;
  std::unique_ptr<char[]> memory_;
  int64_t bytes_ = 0;
};

}  // namespace rcnn_ext
