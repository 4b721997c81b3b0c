// Gradients of RoI operators as a gather: a block owns a tile of a feature map, meets the RoIs that
// reach the tile in order, and writes each gradient element once. No atomics on the gradient, no
// zero-fill pass, and the sum of an element always has the same order. All levels of a pyramid are
// one launch.
//
// A Pooling says what differs between the operators:
//
//   using Stored, T, Roi: as stored, as computed in, geometry of a RoI on its map
//
//   const T* rois: [K, 5]
//
//   Roi make_roi(roi, spatial_scale, shape), ReachedPixels reach(roi)
//
//   void visit_y(roi, bin, first, last, visit), visit_x(...): visit(pixel, weight) for what the bin
//   takes of the pixels in [first, last), and perhaps for some beyond; weights are not 0
//
//   bool takes<count>(channels): whether the pooled maps can be read `count` channels at once
//
//   static constexpr bool kSeparable: a bin gives a pixel its gradient times both weights
//
//   if so: const Stored* grad: [K, C, PH, PW], T divisor(roi): of the weights along y
//
//   if not: void add(element, channels, channel_stride, pixel, row_step, sums): of one bin to a
//   column
#pragma once

#include <algorithm>
#include <limits>

#include "../../core/dispatch.h"
#include "../../core/map_strides.h"
#include "../../core/stable_ops.h"
#include "../block_primitives.cuh"
#include "../feature_levels.cuh"
#include "../launch.cuh"
#include "../vector_access.cuh"
#include "gather_tiles.cuh"
#include "gather_weights.cuh"
#include "roi_reach.cuh"

namespace rcnn_ext {

// What a thread sums: a column of the tile, and up to kThreadChannels channels.
struct ThreadPlace {
  int column;  // of the tile
  int valid;   // channels that there are
  int64_t first_channel;
};

template <class T, bool kLanesAreChannels>
__device__ __forceinline__ ThreadPlace find_place(const GatherTask& task) {
  constexpr int kChannels = GatherShape<T, kLanesAreChannels>::kThreadChannels;
  const int warp = warp_index();
  const int lane = lane_index();
  const int64_t first = task.first_channel + (kLanesAreChannels ? lane : warp) * kChannels;
  const int64_t left = max(int64_t{0}, task.shape.channels - first);
  return {kLanesAreChannels ? warp : lane,
          static_cast<int>(min(static_cast<int64_t>(kChannels), left)), first};
}

// Of the RoIs [base, base + kGatherThreads), compacts in order those that reach the tile.
// All threads of the block call it. Returns their number.
template <class Shape>
__device__ __forceinline__ int find_hits(const GatherTask& task, const GatherPlan& plan,
                                         const ReachTable& reach, int64_t base, int64_t* hits,
                                         int (&warp_hits)[kGatherWarps]) {
  const int64_t candidate = base + threadIdx.x;
  bool hit = candidate < plan.roi_count && reach.keys[candidate] == task.key;
  if (hit) {
    const int4 box = reach.boxes[candidate];
    hit = box.x < task.tile_y + kTileHeight && box.y > task.tile_y &&
          box.z < task.tile_x + Shape::kTileWidth && box.w > task.tile_x;
  }
  const BlockCount counts = block_count_flags(hit, warp_hits);
  if (hit) hits[counts.before] = candidate;
  __syncthreads();
  return counts.total;
}

// Adds what those RoIs' bins give to the thread's column.
template <bool kLanesAreChannels, class Pooling, class T, int kChannels>
__device__ __forceinline__ void add_hits(const Pooling& pooling, const GatherTask& task,
                                         const GatherPlan& plan, const int64_t* hits, int count,
                                         int ph0, int pw0, const TileWeights<T>& weights,
                                         T (&sums)[kTileHeight][kChannels]) {
  using Shape = GatherShape<T, kLanesAreChannels>;
  const ThreadPlace place = find_place<T, kLanesAreChannels>(task);
  if (place.valid == 0) return;
  for (int hit = 0; hit < count; ++hit) {
    const unsigned x_mask = weights.x_masks[hit * Shape::kTileWidth + place.column];
    if (x_mask == 0) continue;
    const int64_t map = hits[hit] * task.shape.channels * plan.pooled_height * plan.pooled_width +
                        place.first_channel * plan.pooled.channel;
    for (unsigned ys = weights.y_masks[hit]; ys != 0; ys &= ys - 1) {
      const int ph = __ffs(static_cast<int>(ys)) - 1;
      const int64_t row_of_bins =
          map + (static_cast<int64_t>(ph0 + ph) * plan.pooled_width + pw0) * plan.pooled.pixel;
      T row[kChannels];  // of the bins in y, weighted along x
#pragma unroll
      for (int c = 0; c < kChannels; ++c) row[c] = T(0);
      for (unsigned xs = x_mask; xs != 0; xs &= xs - 1) {
        const int pw = __ffs(static_cast<int>(xs)) - 1;
        const int64_t element = row_of_bins + pw * plan.pooled.pixel;
        if constexpr (!Pooling::kSeparable) {
          pooling.template add<kLanesAreChannels>(
              element, place.valid, plan.pooled.channel,
              task.tile_y * task.shape.width + task.tile_x + place.column, task.shape.width, sums);
        } else {
          const T weight =
              weights.x[(hit * plan.x_bins + pw) * Shape::kWeightStride + place.column];
          Pack<typename Pooling::Stored, kChannels> grads;
          if constexpr (kLanesAreChannels) {
            grads = load_pack<kChannels>(pooling.grad + element);
          } else {
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
              grads.values[c] = c < place.valid ? pooling.grad[element + c * plan.pooled.channel]
                                                : typename Pooling::Stored(0);
            }
          }
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            row[c] = std::fma(weight, static_cast<T>(grads.values[c]), row[c]);
          }
        }
      }
      if constexpr (Pooling::kSeparable) {
        const T* const y_weights = weights.y + (hit * plan.y_bins + ph) * kTileHeight;
#pragma unroll
        for (int r = 0; r < kTileHeight; ++r) {
          const T weight = y_weights[r];
          if (weight != T(0)) {  // or a NaN would reach pixels that the bin does not sample
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
              sums[r][c] = std::fma(weight, row[c], sums[r][c]);
            }
          }
        }
      }
    }
  }
}

// Writes the thread's column. map: [N, C, H, W] of the task's level
template <bool kLanesAreChannels, class T, class Stored, int kChannels>
__device__ __forceinline__ void write_column(const GatherTask& task, const GatherPlan& plan,
                                             const T (&sums)[kTileHeight][kChannels], Stored* map) {
  const ThreadPlace place = find_place<T, kLanesAreChannels>(task);
  const FeatureShape& shape = task.shape;
  const int64_t x = task.tile_x + place.column;
  if (x >= shape.width || place.valid == 0) return;
  const MapStrides strides =
      MapStrides::of(plan.channels_last, shape.channels, shape.height * shape.width);
  Stored* target = map + task.image * shape.channels * shape.height * shape.width +
                   place.first_channel * strides.channel +
                   (task.tile_y * shape.width + x) * strides.pixel;
#pragma unroll
  for (int r = 0; r < kTileHeight; ++r) {
    if (task.tile_y + r < shape.height) {
      if (plan.packs) {
        Pack<Stored, kChannels> pack;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) pack.values[c] = static_cast<Stored>(sums[r][c]);
        store_pack<kChannels>(target, pack);
      } else {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          if (c < place.valid) target[c * strides.channel] = static_cast<Stored>(sums[r][c]);
        }
      }
      target += shape.width * strides.pixel;
    }
  }
}

// levels: the gradients to write
template <class Pooling, int kLevels, bool kLanesAreChannels>
__global__ void __launch_bounds__(kGatherThreads,
                                  sizeof(typename Pooling::T) == 4 && Pooling::kSeparable ? 3 : 2)
    roi_gather_kernel(Pooling pooling, FeatureLevels<typename Pooling::Stored, kLevels> levels,
                      GatherPlan plan, ReachTable reach) {
  using T = typename Pooling::T;
  using Shape = GatherShape<T, kLanesAreChannels>;
  __shared__ GatherTask task;               // read where needed, instead of kept in registers
  __shared__ int64_t hits[kGatherThreads];  // RoIs that reach the tile, in order
  __shared__ int warp_hits[kGatherWarps];
  RCNN_DYNAMIC_SHARED(unsigned char, shared);
  TileWeights<T> weights;
  weights.y = reinterpret_cast<T*>(shared);
  weights.x = weights.y + (Pooling::kSeparable ? plan.hits * plan.y_bins * kTileHeight : 0);
  weights.y_masks = reinterpret_cast<unsigned*>(
      weights.x + (Pooling::kSeparable ? plan.hits * plan.x_bins * Shape::kWeightStride : 0));
  weights.x_masks = weights.y_masks + plan.hits;

  for (int64_t index = blockIdx.x; index < plan.tasks; index += gridDim.x) {
    if (threadIdx.x == 0) task = find_task<Shape>(levels, plan.level_count, index);
    __syncthreads();
    T sums[kTileHeight][Shape::kThreadChannels];
#pragma unroll
    for (int r = 0; r < kTileHeight; ++r) {
#pragma unroll
      for (int c = 0; c < Shape::kThreadChannels; ++c) sums[r][c] = T(0);
    }
    for (int64_t base = 0; base < plan.roi_count; base += kGatherThreads) {
      const int2 span = reach.spans[base / kGatherThreads];
      if (task.key < span.x || task.key > span.y) continue;
      const int total = find_hits<Shape>(task, plan, reach, base, hits, warp_hits);
      for (int first = 0; first < total; first += plan.hits) {
        const int count = min(plan.hits, total - first);
        for (int ph0 = 0; ph0 < plan.pooled_height; ph0 += plan.y_bins) {
          for (int pw0 = 0; pw0 < plan.pooled_width; pw0 += plan.x_bins) {
            weigh_hits<Shape>(pooling, levels, task, plan, hits + first, count, ph0, pw0, weights);
            add_hits<kLanesAreChannels>(pooling, task, plan, hits + first, count, ph0, pw0, weights,
                                        sums);
            __syncthreads();  // the next RoIs or bins overwrite the weights
          }
        }
      }
      // The next round writes to the hits after a barrier, and the last of them was read before
      // one.
    }
    write_column<kLanesAreChannels>(task, plan, sums, levels.map(task.level));
    __syncthreads();  // the next task overwrites this one
  }
}

template <bool kLanesAreChannels, class Pooling, int kLevels>
void launch_roi_gather_kernel(const char* name, const Pooling& pooling,
                              const FeatureLevels<typename Pooling::Stored, kLevels>& levels,
                              GatherPlan plan, const ReachTable& reach, const CudaScope& scope) {
  using Shape = GatherShape<typename Pooling::T, kLanesAreChannels>;
  plan.tasks = 0;
  for (int level = 0; level < plan.level_count; ++level) {
    plan.tasks += count_tasks<Shape>(levels, level);
    plan.packs =
        plan.packs && takes_packs(levels.map(level), levels.channels, Shape::kThreadChannels);
  }
  plan.hits = 1;
  const size_t bytes_per_hit =
      gather_shared_bytes<Shape, typename Pooling::T>(plan, Pooling::kSeparable);
  plan.hits = static_cast<int>(
      std::clamp(kMostHits * kHitBytes / bytes_per_hit, size_t{1}, size_t{kMostHits}));
  launch(name, roi_gather_kernel<Pooling, kLevels, kLanesAreChannels>,
         {dim3(stride_grid(plan.tasks, 1)), dim3(kGatherThreads),
          gather_shared_bytes<Shape, typename Pooling::T>(plan, Pooling::kSeparable)},
         scope, pooling, levels, plan, reach);
}

// levels: the gradients to write, not all without elements, in one layout.
template <class Pooling, int kLevels>
void launch_roi_gather(const char* name, const Pooling& pooling, const Tensor& like,
                       const FeatureLevels<typename Pooling::Stored, kLevels>& levels,
                       int level_count, bool channels_last, int64_t roi_count,
                       int64_t pooled_height, int64_t pooled_width, bool pooled_channels_last,
                       const CudaScope& scope) {
  using T = typename Pooling::T;
  RCNN_CHECK(levels.batch_size <= std::numeric_limits<int32_t>::max() / kLevels, name,
             ": expected a batch of at most ", std::numeric_limits<int32_t>::max() / kLevels,
             " images, got ", levels.batch_size);
  RCNN_CHECK(std::max(pooled_height, pooled_width) <= (1 << 20), name,
             ": expected a gradient of at most 2^20 rows and columns, got ", pooled_height, " x ",
             pooled_width);
  const int64_t chunks = ceil_div(roi_count, kGatherThreads);
  const Tensor workspace = empty_on_device_of(like, {5 * roi_count + 2 * chunks}, ScalarType::Int);
  auto* const words = workspace.mutable_data_ptr<int>();
  const ReachTable reach{reinterpret_cast<int4*>(words),
                         reinterpret_cast<int2*>(words + 4 * roi_count),
                         words + 4 * roi_count + 2 * chunks};
  if (roi_count > 0) {
    launch(name, find_reach<Pooling, typename Pooling::Stored, kLevels>,
           {dim3(stride_grid(chunks, 1)), dim3(kGatherThreads)}, scope, pooling, levels, roi_count,
           reach);
  }
  GatherPlan plan{};
  plan.roi_count = roi_count;
  plan.pooled_height = static_cast<int>(pooled_height);
  plan.pooled_width = static_cast<int>(pooled_width);
  plan.level_count = level_count;
  plan.y_bins = static_cast<int>(std::min<int64_t>(pooled_height, kBinTile));
  plan.x_bins = static_cast<int>(std::min<int64_t>(pooled_width, kBinTile));
  plan.pooled = MapStrides::of(pooled_channels_last, levels.channels, pooled_height * pooled_width);
  plan.channels_last = channels_last;
  plan.packs = channels_last;
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "channels of a thread fill 16 bytes");
  constexpr int kChannels = GatherShape<T, true>::kThreadChannels;
  if (pooled_channels_last && pooling.template takes<kChannels>(levels.channels)) {
    launch_roi_gather_kernel<true>(name, pooling, levels, plan, reach, scope);
  } else {
    launch_roi_gather_kernel<false>(name, pooling, levels, plan, reach, scope);
  }
}

}  // namespace rcnn_ext
