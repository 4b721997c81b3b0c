// How a gather (roi_gather.cuh) divides its work: feature maps into tasks, which are a tile and
// some of its channels, and what a task does at a time.
#pragma once

#include "../../core/map_strides.h"
#include "../feature_levels.cuh"
#include "../launch.cuh"
#include "roi_footprint.cuh"

namespace rcnn_ext {

constexpr int kGatherThreads = kFootprintThreads;  // RoIs that a round tests for overlap
constexpr int kGatherWarps = kGatherThreads / kWarpSize;
constexpr int kTileHeight = 8;  // pixels, all summed in registers by one thread; untuned

// A thread sums a column of the tile for some channels. Consecutive lanes take what the pooled maps
// store consecutively: the channels of a bin (channels-last), or the bins of a channel (NCHW), that
// is columns.
template <class T, bool kLanesAreChannels>
struct GatherShape {
  static constexpr int kTileWidth = kLanesAreChannels ? kGatherWarps : kWarpSize;
  static constexpr int kThreadChannels = 16 / sizeof(T);
  static constexpr int kBlockChannels =
      kThreadChannels * (kLanesAreChannels ? kWarpSize : kGatherWarps);
  static constexpr int kWeightStride = kTileWidth + 1;  // or bins would share a memory bank
};

// How a launch divides the work.
struct GatherPlan {
  int64_t roi_count;
  int64_t tasks;
  int pooled_height, pooled_width;
  int level_count;
  int rois_per_round;  // RoIs whose weights are in shared memory at a time
  int y_bins, x_bins;  // bins whose weights are in shared memory at a time
  MapStrides pooled;
  bool channels_last;  // layout of the gradients written
  bool vectorized;     // gradients are written in vectors of channels
};

// A tile of a level, and some of its channels.
struct GatherTask {
  int level, key;
  int64_t image, tile_y, tile_x, first_channel;
  FeatureShape shape;
};

// The number of tasks of a level.
template <class Shape, class Stored, int kLevels>
RCNN_HOST_DEVICE int64_t count_tasks(const FeatureLevels<Stored, kLevels>& levels, int level) {
  const FeatureShape shape = levels.shape(level);
  const int64_t tiles_x = (shape.width + Shape::kTileWidth - 1) / Shape::kTileWidth;
  const int64_t tiles_y = (shape.height + kTileHeight - 1) / kTileHeight;
  const int64_t blocks = (levels.channels + Shape::kBlockChannels - 1) / Shape::kBlockChannels;
  return tiles_x * tiles_y * blocks * levels.batch_size;
}

// The task of an index. Coarse levels come first: their tiles overlap the most RoIs, and the
// longest tasks should not begin last.
template <class Shape, class Stored, int kLevels>
__device__ __forceinline__ GatherTask find_task(const FeatureLevels<Stored, kLevels>& levels,
                                                int level_count, int64_t task) {
  int level = level_count - 1;
  for (; level > 0; --level) {
    const int64_t count = count_tasks<Shape>(levels, level);
    if (task < count) break;
    task -= count;
  }
  const FeatureShape shape = levels.shape(level);
  const int64_t tiles_x = (shape.width + Shape::kTileWidth - 1) / Shape::kTileWidth;
  const int64_t tiles_y = (shape.height + kTileHeight - 1) / kTileHeight;
  const int64_t blocks = (levels.channels + Shape::kBlockChannels - 1) / Shape::kBlockChannels;
  GatherTask found;
  found.level = level;
  found.shape = shape;
  found.tile_x = task % tiles_x * Shape::kTileWidth;
  task /= tiles_x;
  found.tile_y = task % tiles_y * kTileHeight;
  task /= tiles_y;
  found.first_channel = task % blocks * Shape::kBlockChannels;
  found.image = task / blocks;
  found.key = static_cast<int>(level * levels.batch_size + found.image);
  return found;
}

}  // namespace rcnn_ext
