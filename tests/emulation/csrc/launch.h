// kernel<<<grid, block, shared_bytes>>>(parameters...), emulated.
#pragma once

#include <cuda_runtime.h>

#include <tuple>

#include "scheduler.h"

namespace rcnn_emulation {

template <class... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, Parameters... parameters) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  } call{kernel, {parameters...}};
  const auto run_thread = [](void* argument) {
    const Call& call = *static_cast<const Call*>(argument);
    std::apply(call.kernel, call.parameters);
  };
  run({name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, run_thread, &call});
}

}  // namespace rcnn_emulation
