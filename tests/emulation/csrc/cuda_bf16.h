// <cuda_bf16.h> of the emulated build; see cuda_fp16.h.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include "half_pairs.h"

using __nv_bfloat16 = c10::BFloat16;
RCNN_HALF_PAIR(__nv_bfloat16, __nv_bfloat162)

inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {pair.x, pair.y}; }
