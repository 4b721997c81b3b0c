// Four lanes that share a bin of a RoI, and four channels. Where channels lie apart in memory
// (NCHW) each lane takes a quarter of the bin's columns, for all four channels; in the end lane i
// of the four gets the result of channel i.
#pragma once

#include "cuda_utils.cuh"

namespace rcnn_ext {

constexpr int kQuad = 4;
constexpr int kQuadsPerWarp = kWarpSize / kQuad;

// parts: of this lane, one a channel. combine(mine, other): the same whichever of two lanes calls
// it. exchange(value, mask): the value of the lane whose index differs in the bits of the mask.
template <class Part, class Combine, class Exchange>
__device__ __forceinline__ Part reduce_quad(const Part (&parts)[kQuad], Combine combine,
                                            Exchange exchange) {
  const bool odd = threadIdx.x & 1;
  const bool upper = threadIdx.x & 2;
  // A lane keeps the channels of its parity and hands the others over, then halves once more.
  const Part low = combine(odd ? parts[1] : parts[0], exchange(odd ? parts[0] : parts[1], 1));
  const Part high = combine(odd ? parts[3] : parts[2], exchange(odd ? parts[2] : parts[3], 1));
  return combine(upper ? high : low, exchange(upper ? low : high, 2));
}

}  // namespace rcnn_ext
