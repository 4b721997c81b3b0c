// The weights of the bins of RoIs for the pixels of a tile of a gather (roi_gather.cuh), along y
// and along x, in shared memory, for some RoIs and some of their bins at a time.
#pragma once

#include "../feature_levels.cuh"
#include "../launch.cuh"
#include "gather_tiles.cuh"

namespace rcnn_ext {

// Bins along an axis, and RoIs, whose weights are in shared memory at a time, and the shared memory
// meant for one RoI: some 20 KiB per block, so that three blocks of 7 x 7 or 14 x 14 bins leave
// most of a multiprocessor's memory to the L1 cache. Modeled, not measured on a device.
constexpr int kBinTile = 16;
constexpr int kMaxRoisPerRound = 16;
constexpr int kSharedBytesPerRoi = 1280;

// The weights of some RoIs in the tile, in shared memory. Masks have a bit for each bin.
template <class T>
struct TileWeights {
  T* y;               // [rois, y_bins, kTileHeight]
  T* x;               // [rois, x_bins, kWeightStride]
  unsigned* y_masks;  // [rois] bins with a weight for any row
  unsigned* x_masks;  // [rois, kTileWidth] bins with a weight for the column
};

template <class Shape, class T>
size_t gather_shared_bytes(const GatherPlan& plan, bool separable) {
  const size_t weights =
      separable ? (plan.y_bins * kTileHeight + plan.x_bins * Shape::kWeightStride) : 0;
  return plan.rois_per_round * (weights * sizeof(T) + (1 + Shape::kTileWidth) * sizeof(unsigned));
}

// Computes the weights of one bin of one RoI along one axis, and sets its bit in the masks. slot:
// of the RoI in the round
template <class Shape, class Pooling>
__device__ __forceinline__ void compute_bin_weights(
    const Pooling& pooling, const typename Pooling::Roi& roi, const GatherTask& task,
    const GatherPlan& plan, int slot, bool along_y, int bin, int first_bin,
    const TileWeights<typename Pooling::T>& weights) {
  using T = typename Pooling::T;
  const unsigned bit = 1u << bin;
  if (along_y) {
    bool any = false;
    T* const row = weights.y + (slot * plan.y_bins + bin) * kTileHeight;
    if constexpr (Pooling::kSeparable) {
      for (int r = 0; r < kTileHeight; ++r) row[r] = T(0);
    }
    pooling.visit_y(roi, first_bin + bin, task.tile_y, task.tile_y + kTileHeight,
                    [&](int64_t pixel, T weight) {
                      if (pixel < task.tile_y || pixel >= task.tile_y + kTileHeight) return;
                      if constexpr (Pooling::kSeparable) {
                        row[pixel - task.tile_y] += weight;
                      } else {
                        any = true;
                      }
                    });
    if constexpr (Pooling::kSeparable) {
      // Read back instead of recorded in the loop above, which this saves a register.
      for (int r = 0; r < kTileHeight; ++r) any |= row[r] > T(0);
    }
    if (!any) return;
    if constexpr (Pooling::kSeparable) {
      const T divisor = pooling.divisor(roi);
      for (int r = 0; r < kTileHeight; ++r) row[r] /= divisor;
    }
    atomicOr(weights.y_masks + slot, bit);
  } else {
    T* const row = weights.x + (slot * plan.x_bins + bin) * Shape::kWeightStride;
    unsigned* const masks = weights.x_masks + slot * Shape::kTileWidth;
    if constexpr (Pooling::kSeparable) {
      for (int c = 0; c < Shape::kTileWidth; ++c) row[c] = T(0);
    }
    pooling.visit_x(roi, first_bin + bin, task.tile_x, task.tile_x + Shape::kTileWidth,
                    [&](int64_t pixel, T weight) {
                      if (pixel < task.tile_x || pixel >= task.tile_x + Shape::kTileWidth) return;
                      if constexpr (Pooling::kSeparable) row[pixel - task.tile_x] += weight;
                      atomicOr(masks + (pixel - task.tile_x), bit);
                    });
  }
}

// Computes the weights of `count` RoIs for the bins from (ph0, pw0) on. All threads of the block
// call it.
template <class Shape, class Pooling, int kLevels>
__device__ __forceinline__ void compute_tile_weights(
    const Pooling& pooling, const FeatureLevels<typename Pooling::Stored, kLevels>& levels,
    const GatherTask& task, const GatherPlan& plan, const int64_t* overlapping, int count, int ph0,
    int pw0, const TileWeights<typename Pooling::T>& weights) {
  const int y_bins = min(plan.y_bins, plan.pooled_height - ph0);
  const int bins = y_bins + min(plan.x_bins, plan.pooled_width - pw0);
  for (int i = threadIdx.x; i < count * (1 + Shape::kTileWidth); i += kGatherThreads) {
    if (i < count) {
      weights.y_masks[i] = 0;
    } else {
      weights.x_masks[i - count] = 0;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count * bins; i += kGatherThreads) {
    const int slot = i / bins;
    const int bin = i % bins;
    const bool along_y = bin < y_bins;
    const auto roi = pooling.make_roi(pooling.rois + 5 * overlapping[slot],
                                      levels.spatial_scale(task.level), task.shape);
    compute_bin_weights<Shape>(pooling, roi, task, plan, slot, along_y,
                               along_y ? bin : bin - y_bins, along_y ? ph0 : pw0, weights);
  }
  __syncthreads();
}

}  // namespace rcnn_ext
