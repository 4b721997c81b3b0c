// PyTorch operators that the kernels call, through the stable ABI's dispatcher.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>

#include "checks.h"
#include "memory_limit.h"

namespace rcnn_ext {

using torch::headeronly::MemoryFormat;

inline Tensor empty_on_device_of(const Tensor& like, std::initializer_list<int64_t> shape,
                                 ScalarType dtype, MemoryFormat format = MemoryFormat::Contiguous) {
  check_fits_memory(shape, element_size_of(dtype), like.is_cpu());
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()),
                              dtype, std::nullopt, like.device(), std::nullopt, format);
}

// The tensor as a contiguous one of a dtype: itself where it already is.
inline Tensor contiguous_as(const Tensor& tensor, ScalarType dtype) {
  const Tensor converted =
      tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
  return converted.is_contiguous() ? converted : torch::stable::contiguous(converted);
}

// Dense with channels innermost and no copy needed to read it so: [N, C, H, W]. A tensor that is
// both (C = 1, or H = W = 1) counts as contiguous; rcnn_ext/_memory_format.py states the same rule
// for fake tensors.
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

// A dense map in the given layout.
inline Tensor dense_map_as(const Tensor& tensor, bool channels_last) {
  // Asked first: a call of the dispatcher takes as long as a small kernel.
  if (channels_last ? is_channels_last(tensor) : tensor.is_contiguous()) return tensor;
  const MemoryFormat format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return torch::stable::contiguous(tensor, format);
}

inline Tensor empty_map(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype,
                        bool channels_last) {
  return empty_on_device_of(like, shape, dtype,
                            channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// Calls an operator by name, for those that torch/csrc/stable/ops.h of torch 2.11 lacks, with all
// arguments of its schema in order, defaults included. Returns the operator's one tensor.
template <class... Arguments>
Tensor call_operator(const char* name, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  RCNN_CHECK_CALL(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

struct Sorted {
  Tensor values, indices;
};

// Sorts along an axis; equal values keep their order. NaN counts as the largest number on the CPU;
// on CUDA the bits of a NaN decide.
inline Sorted stable_sort(const Tensor& values, int64_t axis, bool descending) {
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(values), torch::stable::detail::from(std::optional<bool>(true)),
      torch::stable::detail::from(axis), torch::stable::detail::from(descending)};
  RCNN_CHECK_CALL(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// Indices that sort a vector.
inline Tensor stable_argsort(const Tensor& values, bool descending) {
  return stable_sort(values, 0, descending).indices;
}

// values[indices], along the first axis.
inline Tensor select_rows(const Tensor& values, const Tensor& indices) {
  return call_operator("aten::index_select", values, int64_t{0}, indices);
}

// A tensor of one int64, read by the host: on CUDA this synchronizes.
inline int64_t read_number(const Tensor& tensor) {
  int64_t number = 0;
  RCNN_CHECK_CALL(aoti_torch_item_int64(tensor.get(), &number));
  return number;
}

// The values where mask is true. On CUDA this synchronizes: the size of the result is data.
inline Tensor masked_select(const Tensor& values, const Tensor& mask) {
  return call_operator("aten::masked_select", values, mask);
}

// PyTorch's own functions, for results that have to equal PyTorch's bit for bit.
inline Tensor sigmoid(const Tensor& values) { return call_operator("aten::sigmoid", values); }

inline Tensor exponential(const Tensor& values) { return call_operator("aten::exp", values); }

// Softmax along the last axis.
inline Tensor softmax(const Tensor& values) {
  return call_operator("aten::_softmax", values, values.dim() - 1, false);
}

}  // namespace rcnn_ext
