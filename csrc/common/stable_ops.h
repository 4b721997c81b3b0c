// PyTorch operators that the kernels call, through the stable ABI's dispatcher.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "checks.h"

namespace rcnn_ext {

using torch::headeronly::MemoryFormat;

inline Tensor empty_on_device_of(const Tensor& like, std::initializer_list<int64_t> shape,
                                 ScalarType dtype, MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()),
                              dtype, std::nullopt, like.device(), std::nullopt, format);
}

// The tensor itself where it already has the dtype and is contiguous.
inline Tensor contiguous_as(const Tensor& tensor, ScalarType dtype) {
  const Tensor converted =
      tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
  return converted.is_contiguous() ? converted : torch::stable::contiguous(converted);
}

// Dense with channels innermost and no copy needed to read it so: [N, C, H, W]. A tensor that is
// both (C = 1, or H = W = 1) counts as contiguous; rcnn_ext/ops/_layout.py states the same rule for
// fake tensors.
inline bool is_channels_last(const Tensor& tensor) {
  if (tensor.is_contiguous()) return false;
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

// A feature map or pooled map that a kernel can index: dense, in either layout.
struct DenseMap {
  Tensor tensor;
  bool channels_last;
};

inline DenseMap dense_map(const Tensor& tensor) {
  if (is_channels_last(tensor)) return {tensor, true};
  return {tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor), false};
}

// A dense map in the layout asked for.
inline Tensor dense_map_as(const Tensor& tensor, bool channels_last) {
  const MemoryFormat format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return torch::stable::contiguous(tensor, format);
}

inline Tensor empty_map(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype,
                        bool channels_last) {
  return empty_on_device_of(like, shape, dtype,
                            channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// Indices that sort a vector; equal values keep their order, NaN counts as the largest number.
inline Tensor stable_argsort(const Tensor& values, bool descending) {
  return std::get<1>(torch::stable::sort(values, /*stable=*/true, /*dim=*/0, descending));
}

// A tensor of one int64, read by the host: on CUDA a synchronisation.
inline int64_t read_number(const Tensor& tensor) {
  int64_t number = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_item_int64(tensor.get(), &number));
  return number;
}

// The values where mask is true. On CUDA this synchronises: the size of the result is data.
inline Tensor masked_select(const Tensor& values, const Tensor& mask) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(values),
                                    torch::stable::detail::from(mask)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::masked_select", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// PyTorch's own functions, where a kernel's results are to have their bits.
inline Tensor sigmoid(const Tensor& values) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(values)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sigmoid", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor exponential(const Tensor& values) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(values)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::exp", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Along the last axis.
inline Tensor softmax(const Tensor& values) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(values),
                                    torch::stable::detail::from(values.dim() - 1),
                                    torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::_softmax", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace rcnn_ext
