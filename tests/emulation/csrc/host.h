// The host side of csrc/cuda/launch.cuh in the emulated build: the names of that header,
// implemented on a CPU. Compiled with `g++ -x c++ -DRCNN_EMULATION -I tests/emulation/csrc`;
// tests/helpers/emulation/build.py does it. The operators become a library of their own,
// rcnn_ext_emulated, on the CPU dispatch key.
//
// Device-wide primitives need no emulation: csrc/core/stable_ops.h sorts, selects and gathers
// through PyTorch's dispatcher, which runs its CPU operators for the CPU tensors of this build.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "launch.h"

#define RCNN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(rcnn_ext_emulated, CPU, m)
#define RCNN_DYNAMIC_SHARED(Type, name) \
  Type* const name = static_cast<Type*>(::rcnn_emulation::dynamic_shared())

namespace rcnn_ext {

// There is no device to make current and no stream.
class CudaScope {
 public:
  explicit CudaScope(const torch::stable::Tensor&) {}
};

template <class... Parameters>
void start_kernel(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                  size_t shared_bytes, const CudaScope&, Parameters... parameters) {
  rcnn_emulation::launch<Parameters...>(name, kernel, grid, block, shared_bytes, parameters...);
}

// For most seeds so few that every grid-stride loop takes several rounds.
inline int64_t max_blocks(int64_t limit) { return rcnn_emulation::max_blocks(limit); }

}  // namespace rcnn_ext
