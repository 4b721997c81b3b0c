// 3x3 convolution by Winograd's algorithm on the CPU. Contract: rcnn_ext/ops/conv_winograd.py.
//
// The tiles of the output are divided into ranges whose transformed inputs stay in the L2 cache.
// Of a range, the inputs are transformed, then multiplied by the weights, one matrix product for
// each position in a tile, and the products transformed back, some blocks of output channels at a
// time.
#include "conv_winograd_cpu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../cpu/huge_pages.h"
#include "../cpu/parallel.h"
#include "conv_winograd.h"

#define RCNN_TARGET_BF16
#define RCNN_TARGET_INCLUDE "../conv_winograd/conv_winograd_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {
namespace {

// A multiple of the rows of every instruction set's product.
constexpr int64_t kRowMultiple = 12;

// How a convolution is divided: into ranges of tiles, and where these are fewer than the threads,
// also by output channels, so that several threads transform the same inputs. Sizes were measured
// on an AMD EPYC (Zen 5, 1 MB of L2 per core) with AVX-512, 2026-11.
struct WinogradPlan {
  int64_t tiles, ranges, splits;
  int64_t max_tiles;   // per range
  int64_t max_blocks;  // of output channels at once

  WinogradPlan(int64_t tiles, int64_t tile_bytes, int64_t weight_bytes, int64_t positions,
               int64_t blocks)
      : tiles(tiles) {
    constexpr int64_t kValueBytes = 768 << 10;
    constexpr int64_t kSumBytes = 512 << 10;
    constexpr int64_t kMaxTiles = 8 * kRowMultiple;
    // Each range reads all weights. Those beyond a share of the L3 cache come from memory, which
    // takes longer than the values' way through the L2 cache.
    constexpr int64_t kCachedWeights = 16 << 20;
    const int64_t min_tiles = weight_bytes > kCachedWeights ? 6 * kRowMultiple : kRowMultiple;
    const int64_t fitting = kValueBytes / tile_bytes / kRowMultiple * kRowMultiple;
    ranges = ceil_div(tiles, std::max(min_tiles, std::min(kMaxTiles, fitting)));
    const int64_t threads = torch::stable::get_num_threads();
    // Whole rounds of the threads, where a round is not most of the work.
    if (ranges > threads) ranges = round_up(ranges, threads);
    constexpr int64_t kMaxSplits = 4;
    splits = std::min({ceil_div(threads, ranges), kMaxSplits, blocks});
    max_tiles = ceil_div(tiles, ranges);
    const int64_t block_bytes = positions * max_tiles * kWinogradOutputBlock * sizeof(float);
    max_blocks = std::max<int64_t>(1, std::min(blocks, kSumBytes / block_bytes));
  }
  // Tiles and blocks of one of the ranges * splits tasks.
  WinogradRange task(int64_t index, int64_t blocks) const {
    const int64_t range = index / splits;
    const int64_t split = index % splits;
    const int64_t begin = tiles * range / ranges;
    return {begin, tiles * (range + 1) / ranges - begin, blocks * split / splits,
            blocks * (split + 1) / splits};
  }
};

template <int kTile, class Stored>
void convolve(const WinogradConv<Stored>& conv, int64_t batch_size) {
  constexpr int64_t kPositions = (kTile + 2) * (kTile + 2);
  const int64_t blocks = ceil_div(conv.out_channels, kWinogradOutputBlock);
  const auto bytes = static_cast<int64_t>(sizeof(Stored));
  const WinogradPlan plan(
      batch_size * conv.tile_rows * conv.tile_columns, kPositions * conv.depth * bytes,
      kPositions * conv.depth * blocks * kWinogradOutputBlock * bytes, kPositions, blocks);
  const int64_t rows = round_up(plan.max_tiles, kRowMultiple);
  const WinogradStrides values(rows, conv.depth, bytes);
  const WinogradStrides sums(rows, plan.max_blocks * kWinogradOutputBlock, sizeof(float));
  const int64_t value_bytes = kPositions * values.position * bytes;
  const int64_t sum_bytes = kPositions * sums.position * static_cast<int64_t>(sizeof(float));
  torch::stable::parallel_for(0, plan.ranges * plan.splits, 1, [&](int64_t first, int64_t last) {
    auto* const memory =
        static_cast<char*>(WinogradScratch::of_this_thread().reserve(value_bytes + sum_bytes));
    for (int64_t i = first; i < last; ++i) {
      const WinogradRange range = plan.task(i, blocks);
      RCNN_DYNAMIC_DISPATCH_BF16(convolve_range<kTile>(
          conv, range, plan.max_blocks, values, reinterpret_cast<Stored*>(memory), sums,
          reinterpret_cast<float*>(memory + value_bytes)));
    }
  });
}

// Whether the memory of two tensors has a byte in common; both are dense.
bool overlap(const Tensor& a, const Tensor& b) {
  const auto begin = [](const Tensor& t) {
    return reinterpret_cast<uintptr_t>(t.const_data_ptr());
  };
  const auto bytes = [](const Tensor& t) {
    return static_cast<uintptr_t>(t.numel()) * static_cast<uintptr_t>(t.element_size());
  };
  return begin(a) < begin(b) + bytes(b) && begin(b) < begin(a) + bytes(a);
}

// Writes the convolution to `out`, which check_conv3x3_winograd_out allows.
void convolve_into(const Tensor& out, const Tensor& x, const Tensor& packed,
                   const std::optional<Tensor>& bias, const std::optional<Tensor>& other, bool relu,
                   int64_t tile) {
  if (out.numel() == 0) return;
  const ScalarType dtype = x.scalar_type();
  const Tensor dense_x = dense_map_as(x, true);
  const Tensor dense_packed = contiguous_as(packed, dtype);
  std::optional<Tensor> dense_bias, dense_other;
  if (bias.has_value()) dense_bias = contiguous_as(*bias, ScalarType::Float);
  if (other.has_value()) dense_other = dense_map_as(*other, true);
  constexpr const char* kOp = "conv3x3_winograd_out";
  RCNN_CHECK(!overlap(out, dense_x), kOp, ": expected out in other memory than x");
  RCNN_CHECK(!overlap(out, dense_packed), kOp, ": expected out in other memory than packed");
  RCNN_CHECK(!dense_bias.has_value() || !overlap(out, *dense_bias), kOp,
             ": expected out in other memory than bias");
  // Each element of other is read before the element of out in its place is written, and by the
  // same thread.
  RCNN_CHECK(!dense_other.has_value() || !overlap(out, *dense_other) ||
                 dense_other->const_data_ptr() == out.const_data_ptr(),
             kOp, ": expected out either in the memory of other or apart from it");

  const auto run = [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    const WinogradConv<Stored> conv{
        dense_x.const_data_ptr<Stored>(),
        dense_packed.const_data_ptr<Stored>(),
        dense_bias.has_value() ? dense_bias->const_data_ptr<float>() : nullptr,
        dense_other.has_value() ? dense_other->const_data_ptr<Stored>() : nullptr,
        out.mutable_data_ptr<Stored>(),
        relu,
        x.size(2),
        x.size(3),
        x.size(1),
        out.size(1),
        packed.size(2),
        ceil_div(x.size(2), tile),
        ceil_div(x.size(3), tile)};
    if constexpr (std::is_same_v<Stored, float>) {
      if (tile == 4) return convolve<4>(conv, x.size(0));
    }
    convolve<2>(conv, x.size(0));
  };
  if (dtype == ScalarType::Float) {
    run(TypeTag<float>{});
  } else {
    run(TypeTag<BFloat16>{});
  }
}

// x: [N, C, H, W], packed: [(tile + 2)^2, out_blocks, padded_in, 32], bias: [O],
// other: [N, O, H, W] -> [N, O, H, W], channels-last
Tensor conv3x3_winograd_cpu(const Tensor& x, const Tensor& packed,
                            const std::optional<Tensor>& bias, const std::optional<Tensor>& other,
                            bool relu, int64_t tile, int64_t out_channels) {
  constexpr const char* kOp = "conv3x3_winograd";
  if (bias.has_value()) check_readable(*bias, kOp, "bias", 0);
  if (other.has_value()) check_readable(*other, kOp, "other", 0);
  check_conv3x3_winograd(x, packed, bias, other, tile, out_channels, kOp);
  const Tensor out =
      empty_map(x, {x.size(0), out_channels, x.size(2), x.size(3)}, x.scalar_type(), true);
  if (out.numel() > 0) advise_huge_pages(out.mutable_data_ptr(), out.numel() * out.element_size());
  convolve_into(out, x, packed, bias, other, relu, tile);
  return out;
}

// The same, into `out`: [N, O, H, W], channels-last.
void conv3x3_winograd_out_cpu(const Tensor& out, const Tensor& x, const Tensor& packed,
                              const std::optional<Tensor>& bias, const std::optional<Tensor>& other,
                              bool relu, int64_t tile) {
  constexpr const char* kOp = "conv3x3_winograd_out";
  if (bias.has_value()) check_readable(*bias, kOp, "bias", 0);
  if (other.has_value()) check_readable(*other, kOp, "other", 0);
  RCNN_CHECK(out.dim() == 4, kOp, ": expected out of shape [N, O, H, W], got ", shape_of(out));
  check_conv3x3_winograd(x, packed, bias, other, tile, out.size(1), kOp);
  RCNN_CHECK(out.size(0) == x.size(0) && out.size(2) == x.size(2) && out.size(3) == x.size(3), kOp,
             ": expected out of shape [", x.size(0), ", O, ", x.size(2), ", ", x.size(3), "], got ",
             shape_of(out));
  RCNN_CHECK(out.scalar_type() == x.scalar_type(), kOp, ": expected x and out of one dtype, got ",
             name_of(x.scalar_type()), " and ", name_of(out.scalar_type()));
  check_same_device(out, x, kOp, "out", "x");
  RCNN_CHECK(dense_map_as(out, true).const_data_ptr() == out.const_data_ptr(), kOp,
             ": expected out with channels last, without gaps");
  convolve_into(out, x, packed, bias, other, relu, tile);
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  RCNN_REGISTER(m, "conv3x3_winograd", conv3x3_winograd_cpu, x, packed);
  RCNN_REGISTER(m, "conv3x3_winograd_out", conv3x3_winograd_out_cpu, out, x, packed);
}
