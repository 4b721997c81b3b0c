// The interface to the CUDA runtime that all kernels of this package use: stream, launch, dynamic
// shared memory and registration. Kernels use nothing else of the CUDA host interface, so that
// tests/emulation/csrc/host.h, which answers to the same names, can run them on a CPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../core/checks.h"

#if defined(RCNN_EMULATION)
#include "../../tests/emulation/csrc/host.h"
#else

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

// Registers the operators of a .cu file: RCNN_CUDA_LIBRARY(m) { m.impl(...); }
#define RCNN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CUDA, m)

// Declares `name`, a pointer to the launch's dynamic shared memory, aligned for any vector type.
#define RCNN_DYNAMIC_SHARED(Type, name)                                \
  extern __shared__ __align__(16) unsigned char rcnn_dynamic_shared[]; \
  Type* const name = reinterpret_cast<Type*>(rcnn_dynamic_shared)

namespace rcnn_ext {

// Makes a tensor's device current for the scope's lifetime, and holds the stream to launch on.
class CudaScope {
 public:
  explicit CudaScope(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    RCNN_CHECK_CALL(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

template <class... Parameters>
void start_kernel(const char*, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                  size_t shared_bytes, const CudaScope& scope, Parameters... parameters) {
  constexpr size_t kSharedByDefault = 48 * 1024;
  if (shared_bytes > kSharedByDefault) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared_bytes)));
  }
  kernel<<<grid, block, shared_bytes, scope.stream()>>>(parameters...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// The upper limit of blocks for a grid-stride loop. The emulator has a lower one, so that such
// loops take several rounds on small inputs too.
inline int64_t max_blocks(int64_t limit) { return limit; }

}  // namespace rcnn_ext

#endif

namespace rcnn_ext {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;
};

// Launches kernel(args...) and checks that it was accepted. `name` is for the message.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape,
            const CudaScope& scope, Arguments... arguments) {
  RCNN_CHECK(shape.grid.x > 0 && shape.grid.y > 0 && shape.grid.z > 0 &&
                 shape.grid.x <= 2147483647u && shape.grid.y <= 65535u && shape.grid.z <= 65535u,
             name, ": a grid of ", shape.grid.x, " x ", shape.grid.y, " x ", shape.grid.z,
             " blocks cannot be launched");
  start_kernel<Parameters...>(name, kernel, shape.grid, shape.block, shape.shared_bytes, scope,
                              static_cast<Parameters>(arguments)...);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks for a grid-stride loop over `count` elements: enough to fill any device, and few enough
// for any grid.
inline unsigned stride_grid(int64_t count, int64_t threads_per_block) {
  return static_cast<unsigned>(
      std::min(ceil_div(count, threads_per_block), max_blocks(int64_t{1} << 20)));
}

}  // namespace rcnn_ext
