// <cuda_fp16.h> of the emulated build: the part that kernels use, over
// PyTorch's half, which is plain C++. (CUDA's own header would tie the build to a toolkit.)
#pragma once

#include <torch/headeronly/util/Half.h>

#include "half_pairs.h"

using __half = c10::Half;
using half = __half;
RCNN_HALF_PAIR(__half, __half2)
using half2 = __half2;

inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline float __half2float(__half x) { return x; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline float2 __half22float2(__half2 pair) { return {pair.x, pair.y}; }
