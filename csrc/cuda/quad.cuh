// Division of labor in a block that pools a RoI from a map in NCHW: a warp takes four channels of
// some bins, and a quad of lanes shares a bin. Each lane takes a quarter of the bin's columns, for
// all four channels, so that a load of the warp reads contiguous pieces of a few rows; a reduction
// over the quad then leaves channel i to lane i.
#pragma once

#include <algorithm>

#include "block_primitives.cuh"

namespace rcnn_ext {

constexpr int kQuadsPerWarp = kWarpSize / kQuad;
constexpr int kRoiThreads = 256;  // per block; untuned
constexpr int kRoiWarps = kRoiThreads / kWarpSize;
constexpr int kStagedBins = 64;  // results that a warp stages in shared memory; untuned
// Fewer RoIs than this are split between blocks: some eight blocks for each of a large device's 132
// multiprocessors. Modeled, not measured.
constexpr int kTargetBlocks = 1024;
constexpr int kContiguous = 0;  // NCHW, in place of a number of channels per load

// Results of a warp: [kQuad, kStagedBins].
template <class Stored>
using Staged = Stored (*)[kStagedBins];

// The channels and bins of a RoI that a warp takes at once.
struct WarpTile {
  int64_t first_channel;
  int channels;  // up to kQuad
  int first_bin;
  int bins;  // up to kStagedBins
};

// Calls work(tile) for the tiles of the calling warp in a RoI that `splits` blocks share.
template <class Work>
__device__ __forceinline__ void for_each_warp_tile(int split, int splits, int64_t channels,
                                                   int bins, Work work) {
  const int groups = (bins + kStagedBins - 1) / kStagedBins;
  const int64_t tiles = (channels + kQuad - 1) / kQuad * groups;
  const int64_t step = static_cast<int64_t>(splits) * kRoiWarps;
  for (int64_t i = static_cast<int64_t>(split) * kRoiWarps + warp_index(); i < tiles; i += step) {
    WarpTile tile;
    tile.first_bin = static_cast<int>(i % groups) * kStagedBins;
    tile.bins = min(kStagedBins, bins - tile.first_bin);
    tile.first_channel = i / groups * kQuad;
    tile.channels =
        static_cast<int>(min(static_cast<int64_t>(kQuad), channels - tile.first_channel));
    work(tile);
  }
}

// Calls visit(bin, ph, pw, inside) for the bins of the calling lane's quad, counted from the tile's
// first. Where `inside` is false there is no such bin, but its lanes have to take part in
// exchanges.
template <class Visit>
__device__ __forceinline__ void for_each_bin(const WarpTile& tile, int width, Visit visit) {
  int bin = lane_index() / kQuad;
  int ph = (tile.first_bin + bin) / width;
  int pw = (tile.first_bin + bin) % width;
  for (int pass = 0; pass < tile.bins; pass += kQuadsPerWarp) {
    visit(bin, ph, pw, bin < tile.bins);
    bin += kQuadsPerWarp;
    for (pw += kQuadsPerWarp; pw >= width; pw -= width) ++ph;
  }
}

// Writes the results that the warp has staged. out: [C, bins]. All lanes call it, between two
// __syncwarp().
template <class Stored>
__device__ __forceinline__ void write_staged(const WarpTile& tile, int bins,
                                             const Stored (*staged)[kStagedBins], Stored* out) {
  for (int c = 0; c < tile.channels; ++c) {
    Stored* const target = out + (tile.first_channel + c) * bins + tile.first_bin;
    for (int i = lane_index(); i < tile.bins; i += kWarpSize) target[i] = staged[c][i];
  }
}

// Where the channels of the tile begin, in bytes from the first; beyond the last channel, the last.
template <class Stored>
__device__ __forceinline__ void find_plane_offsets(const WarpTile& tile, int64_t pixels,
                                                   int64_t (&offsets)[kQuad]) {
#pragma unroll
  for (int c = 0; c < kQuad; ++c) {
    offsets[c] = min(c, tile.channels - 1) * pixels * static_cast<int64_t>(sizeof(Stored));
  }
}

// The number of blocks that share a RoI, so that few RoIs fill a device too. vector: channels per
// load, or kContiguous
inline int splits_per_roi(int64_t roi_count, int64_t channels, int64_t bins, int vector) {
  const int64_t max_splits =
      vector == kContiguous
          ? ceil_div(ceil_div(channels, kQuad) * ceil_div(bins, kStagedBins), kRoiWarps)
          : ceil_div(channels / std::max(vector, 1) * bins, kRoiThreads);
  return static_cast<int>(
      std::clamp(max_blocks(kTargetBlocks) / roi_count, int64_t{1}, max_splits));
}

}  // namespace rcnn_ext
