// The arguments of conv3x3_winograd, checked. Contract: rcnn_ext/ops/conv_winograd.py.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

#include "../core/checks.h"

namespace rcnn_ext {

// Packed weights are padded with zeros to whole blocks of output channels, and to whole vectors of
// input channels; rcnn_ext/reference/conv_winograd.py has the same numbers.
constexpr int64_t kWinogradOutputBlock = 32;
constexpr int64_t kWinogradInputBlock = 16;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// x: [N, C, H, W], packed: [(tile + 2)^2, out_blocks, padded_in, 32], bias: [O],
// other: [N, O, H, W]
inline void check_conv3x3_winograd(const Tensor& x, const Tensor& packed,
                                   const std::optional<Tensor>& bias,
                                   const std::optional<Tensor>& other, int64_t tile,
                                   int64_t out_channels, const char* op) {
  const ScalarType dtype = x.scalar_type();
  RCNN_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, op,
             ": expected x to be float32 or bfloat16, got ", name_of(dtype));
  RCNN_CHECK(x.dim() == 4, op, ": expected x of shape [N, C, H, W], got ", shape_of(x));
  RCNN_CHECK(x.size(1) > 0, op, ": expected x of at least one channel, got ", shape_of(x));
  check_side_lengths(x.size(2), x.size(3), op);
  const bool is_float = dtype == ScalarType::Float;
  RCNN_CHECK(tile == 2 || (tile == 4 && is_float), op, ": expected a tile of ",
             is_float ? "2 or 4 for float32" : "2 for bfloat16", ", got ", tile);
  RCNN_CHECK(out_channels > 0, op, ": expected positive out_channels, got ", out_channels);
  const int64_t positions = (tile + 2) * (tile + 2);
  const int64_t blocks = ceil_div(out_channels, kWinogradOutputBlock);
  const int64_t depth = round_up(x.size(1), kWinogradInputBlock);
  RCNN_CHECK(packed.dim() == 4 && packed.size(0) == positions && packed.size(1) == blocks &&
                 packed.size(2) == depth && packed.size(3) == kWinogradOutputBlock,
             op, ": expected packed weights of shape [", positions, ", ", blocks, ", ", depth, ", ",
             kWinogradOutputBlock, "] for ", x.size(1), " channels, ", out_channels,
             " output channels and a tile of ", tile, ", got ", shape_of(packed));
  RCNN_CHECK(packed.scalar_type() == dtype, op, ": expected x and packed of one dtype, got ",
             name_of(dtype), " and ", name_of(packed.scalar_type()));
  check_same_device(packed, x, op, "packed", "x");
  if (bias.has_value()) {
    RCNN_CHECK(bias->dim() == 1 && bias->size(0) == out_channels, op, ": expected bias of shape [",
               out_channels, "], got ", shape_of(*bias));
    check_floating(*bias, op, "bias");
    check_same_device(*bias, x, op, "bias", "x");
  }
  if (other.has_value()) {
    RCNN_CHECK(other->dim() == 4 && other->size(0) == x.size(0) && other->size(1) == out_channels &&
                   other->size(2) == x.size(2) && other->size(3) == x.size(3),
               op, ": expected other of shape [", x.size(0), ", ", out_channels, ", ", x.size(2),
               ", ", x.size(3), "], got ", shape_of(*other));
    RCNN_CHECK(other->scalar_type() == dtype, op, ": expected x and other of one dtype, got ",
               name_of(dtype), " and ", name_of(other->scalar_type()));
    check_same_device(*other, x, op, "other", "x");
  }
}

}  // namespace rcnn_ext
