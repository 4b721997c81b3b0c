// <cuda_runtime.h> of the emulated build: CUDA's keywords, types, built-in
// variables and functions, implemented on a CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "scheduler.h"
#include "vectors.h"

#define __global__
#define __device__
#define __host__
// One block runs at a time, so its shared variables are those of the function. The scheduler finds
// them in the symbol table and fills them with poison before each block.
#define __shared__ static
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __grid_constant__

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#include "atomics.h"
#include "device_math.h"
#include "warp.h"
