// Gradients of RoI operators as a gather: a block owns a tile of a feature map, goes through the
// RoIs whose footprints overlap the tile in order, and writes each gradient element once. No
// atomics on the gradient, no zero-fill pass, and the sum of an element always has the same order.
// All levels of a pyramid are one launch.
//
// A Pooling is what differs between the operators:
//
//   using Stored, T, Roi: element type of the maps, type of the sums, geometry of a RoI on its map
//
//   const T* rois: [K, 5]
//
//   Roi make_roi(roi, spatial_scale, shape), Footprint footprint(roi)
//
//   void visit_y(roi, bin, first, last, visit), visit_x(...): visit(pixel, weight) for the
//   weights of the bin for the pixels in [first, last), and perhaps for some beyond; none is 0
//
//   bool can_load_vectors<count>(channels): whether the pooled maps can be read `count` channels at
//   once
//
//   static constexpr bool kSeparable: a bin gives a pixel its gradient times both weights
//
//   if so: const Stored* grad: [K, C, PH, PW], T divisor(roi): of the weights along y
//
//   if not: void accumulate(element, channels, channel_stride, pixel, row_step, sums): adds the
//   gradient of one bin to a column
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
#include "roi_footprint.cuh"

namespace rcnn_ext {

// What a thread sums: a column of the tile, for up to kThreadChannels channels.
struct ThreadSlice {
  int column;  // of the tile
  int valid;   // of its channels that exist
  int64_t first_channel;
};

template <class T, bool kLanesAreChannels>
__device__ __forceinline__ ThreadSlice find_slice(const GatherTask& task) {
  constexpr int kChannels = GatherShape<T, kLanesAreChannels>::kThreadChannels;
  const int warp = warp_index();
  const int lane = lane_index();
  const int64_t first = task.first_channel + (kLanesAreChannels ? lane : warp) * kChannels;
  const int64_t left = max(int64_t{0}, task.shape.channels - first);
  return {kLanesAreChannels ? warp : lane,
          static_cast<int>(min(static_cast<int64_t>(kChannels), left)), first};
}

// Compacts in order those of the RoIs [base, base + kGatherThreads) whose footprints overlap the
// tile, and returns their count. All threads of the block call it.
template <class Shape>
__device__ __forceinline__ int find_overlapping_rois(const GatherTask& task, const GatherPlan& plan,
                                                     const FootprintTable& footprints, int64_t base,
                                                     int64_t* overlapping,
                                                     int (&warp_counts)[kGatherWarps]) {
  const int64_t candidate = base + threadIdx.x;
  bool overlaps = candidate < plan.roi_count && footprints.keys[candidate] == task.key;
  if (overlaps) {
    const int4 box = footprints.boxes[candidate];
    overlaps = box.x < task.tile_y + kTileHeight && box.y > task.tile_y &&
               box.z < task.tile_x + Shape::kTileWidth && box.w > task.tile_x;
  }
  const BlockCount counts = block_count_flags(overlaps, warp_counts);
  if (overlaps) overlapping[counts.before] = candidate;
  __syncthreads();
  return counts.total;
}

// Adds the gradients of the overlapping RoIs' bins to the thread's column.
template <bool kLanesAreChannels, class Pooling, class T, int kChannels>
__device__ __forceinline__ void accumulate_rois(const Pooling& pooling, const GatherTask& task,
                                                const GatherPlan& plan, const int64_t* overlapping,
                                                int count, int ph0, int pw0,
                                                const TileWeights<T>& weights,
                                                T (&sums)[kTileHeight][kChannels]) {
  using Shape = GatherShape<T, kLanesAreChannels>;
  const ThreadSlice slice = find_slice<T, kLanesAreChannels>(task);
  if (slice.valid == 0) return;
  for (int slot = 0; slot < count; ++slot) {
    const unsigned x_mask = weights.x_masks[slot * Shape::kTileWidth + slice.column];
    if (x_mask == 0) continue;
    const int64_t map =
        overlapping[slot] * task.shape.channels * plan.pooled_height * plan.pooled_width +
        slice.first_channel * plan.pooled.channel;
    for (unsigned ys = weights.y_masks[slot]; ys != 0; ys &= ys - 1) {
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
          pooling.template accumulate<kLanesAreChannels>(
              element, slice.valid, plan.pooled.channel,
              task.tile_y * task.shape.width + task.tile_x + slice.column, task.shape.width, sums);
        } else {
          const T weight =
              weights.x[(slot * plan.x_bins + pw) * Shape::kWeightStride + slice.column];
          AlignedVector<typename Pooling::Stored, kChannels> grads;
          if constexpr (kLanesAreChannels) {
            grads = load_vector<kChannels>(pooling.grad + element);
          } else {
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
              grads.values[c] = c < slice.valid ? pooling.grad[element + c * plan.pooled.channel]
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
        const T* const y_weights = weights.y + (slot * plan.y_bins + ph) * kTileHeight;
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
__device__ __forceinline__ void store_column(const GatherTask& task, const GatherPlan& plan,
                                             const T (&sums)[kTileHeight][kChannels], Stored* map) {
  const ThreadSlice slice = find_slice<T, kLanesAreChannels>(task);
  const FeatureShape& shape = task.shape;
  const int64_t x = task.tile_x + slice.column;
  if (x >= shape.width || slice.valid == 0) return;
  const MapStrides strides =
      MapStrides::of(plan.channels_last, shape.channels, shape.height * shape.width);
  Stored* target = map + task.image * shape.channels * shape.height * shape.width +
                   slice.first_channel * strides.channel +
                   (task.tile_y * shape.width + x) * strides.pixel;
#pragma unroll
  for (int r = 0; r < kTileHeight; ++r) {
    if (task.tile_y + r < shape.height) {
      if (plan.vectorized) {
        AlignedVector<Stored, kChannels> vector;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) vector.values[c] = static_cast<Stored>(sums[r][c]);
        store_vector<kChannels>(target, vector);
      } else {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          if (c < slice.valid) target[c * strides.channel] = static_cast<Stored>(sums[r][c]);
        }
      }
      target += shape.width * strides.pixel;
    }
  }
}

// levels: the gradients to write. The launch bounds cap the registers at what ptxas needs for sm_90
// without spills; not measured on a device.
template <class Pooling, int kLevels, bool kLanesAreChannels>
__global__ void __launch_bounds__(kGatherThreads,
                                  sizeof(typename Pooling::T) == 4 && Pooling::kSeparable ? 3 : 2)
    roi_gather_kernel(Pooling pooling, FeatureLevels<typename Pooling::Stored, kLevels> levels,
                      GatherPlan plan, FootprintTable footprints) {
  using T = typename Pooling::T;
  using Shape = GatherShape<T, kLanesAreChannels>;
  __shared__ GatherTask task;                      // in shared memory, to save registers
  __shared__ int64_t overlapping[kGatherThreads];  // RoIs whose footprints overlap the tile
  __shared__ int warp_counts[kGatherWarps];
  RCNN_DYNAMIC_SHARED(unsigned char, shared);
  TileWeights<T> weights;
  weights.y = reinterpret_cast<T*>(shared);
  weights.x =
      weights.y + (Pooling::kSeparable ? plan.rois_per_round * plan.y_bins * kTileHeight : 0);
  weights.y_masks = reinterpret_cast<unsigned*>(
      weights.x +
      (Pooling::kSeparable ? plan.rois_per_round * plan.x_bins * Shape::kWeightStride : 0));
  weights.x_masks = weights.y_masks + plan.rois_per_round;

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
      const int2 range = footprints.key_ranges[base / kGatherThreads];
      if (task.key < range.x || task.key > range.y) continue;
      const int total =
          find_overlapping_rois<Shape>(task, plan, footprints, base, overlapping, warp_counts);
      for (int first = 0; first < total; first += plan.rois_per_round) {
        const int count = min(plan.rois_per_round, total - first);
        for (int ph0 = 0; ph0 < plan.pooled_height; ph0 += plan.y_bins) {
          for (int pw0 = 0; pw0 < plan.pooled_width; pw0 += plan.x_bins) {
            compute_tile_weights<Shape>(pooling, levels, task, plan, overlapping + first, count,
                                        ph0, pw0, weights);
            accumulate_rois<kLanesAreChannels>(pooling, task, plan, overlapping + first, count, ph0,
                                               pw0, weights, sums);
            __syncthreads();  // the next RoIs or bins overwrite the weights
          }
        }
      }
      // The next round writes to `overlapping` only after a barrier, and this round read it before
      // another.
    }
    store_column<kLanesAreChannels>(task, plan, sums, levels.map(task.level));
    __syncthreads();  // the next task overwrites this one
  }
}

template <bool kLanesAreChannels, class Pooling, int kLevels>
void launch_roi_gather_kernel(const char* name, const Pooling& pooling,
                              const FeatureLevels<typename Pooling::Stored, kLevels>& levels,
                              GatherPlan plan, const FootprintTable& footprints,
                              const CudaScope& scope) {
  using Shape = GatherShape<typename Pooling::T, kLanesAreChannels>;
  plan.tasks = 0;
  for (int level = 0; level < plan.level_count; ++level) {
    plan.tasks += count_tasks<Shape>(levels, level);
    plan.vectorized = plan.vectorized &&
                      can_vectorize(levels.map(level), levels.channels, Shape::kThreadChannels);
  }
  plan.rois_per_round = 1;
  const size_t bytes_per_roi =
      gather_shared_bytes<Shape, typename Pooling::T>(plan, Pooling::kSeparable);
  plan.rois_per_round = static_cast<int>(std::clamp(
      kMaxRoisPerRound * kSharedBytesPerRoi / bytes_per_roi, size_t{1}, size_t{kMaxRoisPerRound}));
  launch(name, roi_gather_kernel<Pooling, kLevels, kLanesAreChannels>,
         {dim3(stride_grid(plan.tasks, 1)), dim3(kGatherThreads),
          gather_shared_bytes<Shape, typename Pooling::T>(plan, Pooling::kSeparable)},
         scope, pooling, levels, plan, footprints);
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
  const FootprintTable footprints{reinterpret_cast<int4*>(words),
                                  reinterpret_cast<int2*>(words + 4 * roi_count),
                                  words + 4 * roi_count + 2 * chunks};
  if (roi_count > 0) {
    launch(name, find_footprints<Pooling, typename Pooling::Stored, kLevels>,
           {dim3(stride_grid(chunks, 1)), dim3(kGatherThreads)}, scope, pooling, levels, roi_count,
           footprints);
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
  plan.vectorized = channels_last;
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "channels of a thread fill 16 bytes");
  constexpr int kChannels = GatherShape<T, true>::kThreadChannels;
  if (pooled_channels_last && pooling.template can_load_vectors<kChannels>(levels.channels)) {
    launch_roi_gather_kernel<true>(name, pooling, levels, plan, footprints, scope);
  } else {
    launch_roi_gather_kernel<false>(name, pooling, levels, plan, footprints, scope);
  }
}

}  // namespace rcnn_ext
