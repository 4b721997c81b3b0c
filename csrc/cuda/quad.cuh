// How a block pools a RoI from a map in NCHW: a warp takes four channels of some bins, and four
// lanes share a bin. Each takes a quarter of its columns, for all four channels, so that a load of
// the warp reads whole stretches of a few rows; in the end lane i of the four has channel i.
#pragma once

#include <algorithm>

#include "block_primitives.cuh"

namespace rcnn_ext {

constexpr int kQuadsPerWarp = kWarpSize / kQuad;
constexpr int kRoiThreads = 256;
constexpr int kRoiWarps = kRoiThreads / kWarpSize;
constexpr int kStagedBins = 64;    // results of a warp, before it writes them in one piece
constexpr int kManyBlocks = 1024;  // fewer RoIs than this are split between blocks
constexpr int kContiguous = 0;     // NCHW, instead of a number of channels in a load

// Results of a warp: [kQuad, kStagedBins].
template <class Stored>
using Staged = Stored (*)[kStagedBins];

// What a warp takes at once.
struct QuadUnit {
  int64_t first_channel;
  int channels;  // up to kQuad
  int first_bin;
  int bins;  // up to kStagedBins
};

// Calls work(unit) for what the calling warp takes of a RoI that `parts` blocks share.
template <class Work>
__device__ __forceinline__ void for_each_unit(int part, int parts, int64_t channels, int bins,
                                              Work work) {
  const int groups = (bins + kStagedBins - 1) / kStagedBins;
  const int64_t units = (channels + kQuad - 1) / kQuad * groups;
  const int64_t step = static_cast<int64_t>(parts) * kRoiWarps;
  for (int64_t i = static_cast<int64_t>(part) * kRoiWarps + threadIdx.x / kWarpSize; i < units;
       i += step) {
    QuadUnit unit;
    unit.first_bin = static_cast<int>(i % groups) * kStagedBins;
    unit.bins = min(kStagedBins, bins - unit.first_bin);
    unit.first_channel = i / groups * kQuad;
    unit.channels =
        static_cast<int>(min(static_cast<int64_t>(kQuad), channels - unit.first_channel));
    work(unit);
  }
}

// Calls visit(bin, ph, pw, inside) for the bins of the calling lane's quad, counted from the unit's
// first; without `inside` there is none any more, but its lanes have to exchange.
template <class Visit>
__device__ __forceinline__ void for_each_bin(const QuadUnit& unit, int width, Visit visit) {
  int bin = threadIdx.x % kWarpSize / kQuad;
  int ph = (unit.first_bin + bin) / width;
  int pw = (unit.first_bin + bin) % width;
  for (int pass = 0; pass < unit.bins; pass += kQuadsPerWarp) {
    visit(bin, ph, pw, bin < unit.bins);
    bin += kQuadsPerWarp;
    for (pw += kQuadsPerWarp; pw >= width; pw -= width) ++ph;
  }
}

// Writes what the warp has staged. out: [C, bins]. All lanes call it, between two __syncwarp().
template <class Stored>
__device__ __forceinline__ void write_staged(const QuadUnit& unit, int bins,
                                             const Stored (*staged)[kStagedBins], Stored* out) {
  for (int c = 0; c < unit.channels; ++c) {
    Stored* const target = out + (unit.first_channel + c) * bins + unit.first_bin;
    for (int i = threadIdx.x % kWarpSize; i < unit.bins; i += kWarpSize) target[i] = staged[c][i];
  }
}

// Where the unit's planes begin, in bytes from the first; one too many is the last again.
template <class Stored>
__device__ __forceinline__ void find_planes(const QuadUnit& unit, int64_t pixels,
                                            int64_t (&offsets)[kQuad]) {
#pragma unroll
  for (int c = 0; c < kQuad; ++c) {
    offsets[c] = min(c, unit.channels - 1) * pixels * static_cast<int64_t>(sizeof(Stored));
  }
}

// Blocks that share a RoI, so that few RoIs fill a device too. vector: channels in a load, or
// kContiguous
inline int roi_parts(int64_t roi_count, int64_t channels, int64_t bins, int vector) {
  const int64_t most =
      vector == kContiguous
          ? ceil_div(ceil_div(channels, kQuad) * ceil_div(bins, kStagedBins), kRoiWarps)
          : ceil_div(channels / std::max(vector, 1) * bins, kRoiThreads);
  return static_cast<int>(std::clamp(most_blocks(kManyBlocks) / roi_count, int64_t{1}, most));
}

}  // namespace rcnn_ext
