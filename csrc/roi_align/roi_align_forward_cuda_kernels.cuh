// RoIAlign on CUDA: a block pools a RoI, or a part of it, from its level of a pyramid. The taps of
// every bin along y and along x are collected once, in shared memory, and serve all channels.
#pragma once

#include <algorithm>

#include "../core/map_strides.h"
#include "../cuda/quad.cuh"
#include "../cuda/vector_access.cuh"
#include "roi_align_cuda.cuh"

namespace rcnn_ext {

// Maximum number of taps of a RoI along one axis in shared memory: at 16 bytes each, 16 KiB per
// block for both axes. Modeled, not measured.
constexpr int kMaxTaps = 512;

// A row or column that a bin reads.
template <class T>
struct alignas(16) OffsetTap {
  int64_t offset;  // in bytes
  T weight;
};

// How a launch divides the work.
struct RoiAlignPlan {
  RoiAlignOptions options;
  int64_t roi_count;
  int splits;                  // blocks that share a RoI
  int max_y_taps, max_x_taps;  // capacity for the taps of one bin; 0: no taps in shared memory
};

// The taps of the current RoI, in shared memory.
template <class T>
struct SharedTaps {
  OffsetTap<T>* y_taps;  // [PH, max_y_taps]
  OffsetTap<T>* x_taps;  // [PW, max_x_taps]
  int* y_counts;         // [PH]
  int* x_counts;         // [PW]
};

// The bytes of shared memory that the warps stage results in, in front of the taps.
template <class Stored, int kVecSize>
constexpr size_t kStagedBytes =
    kVecSize == kContiguous ? kRoiWarps * kQuad * kStagedBins * sizeof(Stored) : 0;

template <class T>
size_t taps_bytes(const RoiAlignPlan& plan) {
  if (plan.max_y_taps == 0 || plan.max_x_taps == 0) return 0;
  const size_t height = static_cast<size_t>(plan.options.pooled_height);
  const size_t width = static_cast<size_t>(plan.options.pooled_width);
  return (height * plan.max_y_taps + width * plan.max_x_taps) * sizeof(OffsetTap<T>) +
         (height + width) * sizeof(int);
}

// memory: of taps_bytes
template <class T>
__device__ __forceinline__ SharedTaps<T> lay_out_taps(const RoiAlignPlan& plan,
                                                      unsigned char* memory) {
  SharedTaps<T> taps;
  taps.y_taps = reinterpret_cast<OffsetTap<T>*>(memory);
  taps.x_taps = taps.y_taps + plan.options.pooled_height * plan.max_y_taps;
  taps.y_counts = reinterpret_cast<int*>(taps.x_taps + plan.options.pooled_width * plan.max_x_taps);
  taps.x_counts = taps.y_counts + plan.options.pooled_height;
  return taps;
}

// Collects the taps of a bin along one axis, with consecutive samples of one pixel merged. Returns
// whether they fit `capacity`.
template <class T>
__device__ __forceinline__ bool collect_bin_taps(const RoiAlignAxis<T>& axis, int64_t bin,
                                                 int64_t bytes, T divisor, int capacity,
                                                 OffsetTap<T>* taps, int* count) {
  int used = 0;
  bool fits = true;
  visit_samples(axis, bin, T(-1), T(axis.extent), [&](int64_t pixel, T weight) {
    const int64_t offset = pixel * bytes;
    // A sample that shares pixels with the one before finds them among the last two.
    for (int back = 1; back <= 2; ++back) {
      if (used >= back && taps[used - back].offset == offset) {
        taps[used - back].weight += weight;
        return;
      }
    }
    if (used < capacity) {
      taps[used++] = {offset, weight};
    } else {
      fits = false;
    }
  });
  for (int i = 0; i < used; ++i) taps[i].weight /= divisor;
  *count = used;
  return fits;
}

// Collects the taps of a RoI, and returns whether they fit. All threads of the block call it.
template <class T>
__device__ __forceinline__ bool collect_roi_taps(const RoiAlignRoi<T>& roi,
                                                 const RoiAlignPlan& plan, int64_t row_bytes,
                                                 int64_t pixel_bytes, const SharedTaps<T>& taps) {
  bool fits = roi.batch >= 0 && plan.max_y_taps > 0 && plan.max_x_taps > 0;
  if (fits) {
    const int height = static_cast<int>(plan.options.pooled_height);
    const int width = static_cast<int>(plan.options.pooled_width);
    for (int i = threadIdx.x; i < height + width; i += kRoiThreads) {
      const bool along_y = i < height;
      const int bin = along_y ? i : i - height;
      RoiAlignAxis<T> axis = roi.x;
      int capacity = plan.max_x_taps;
      if (along_y) {  // not by ?:, which would put both into local memory to choose an address
        axis = roi.y;
        capacity = plan.max_y_taps;
      }
      // The average is taken along y alone.
      fits &=
          collect_bin_taps(axis, bin, along_y ? row_bytes : pixel_bytes, along_y ? roi.count : T(1),
                           capacity, (along_y ? taps.y_taps : taps.x_taps) + bin * capacity,
                           (along_y ? taps.y_counts : taps.x_counts) + bin);
    }
  }
  return !__syncthreads_or(!fits);
}

// The sum over the samples of a bin, without taps. plane: one channel of the RoI's image
template <class T, class Stored>
__device__ __forceinline__ T sum_samples(const RoiAlignRoi<T>& roi, const Stored* plane,
                                         int64_t row_stride, int64_t pixel_stride, int64_t ph,
                                         int64_t pw) {
  T sum = T(0);
  visit_samples(roi.y, ph, T(-1), T(roi.y.extent), [&](int64_t y, T y_weight) {
    const Stored* const row = plane + y * row_stride;
    visit_samples(roi.x, pw, T(-1), T(roi.x.extent), [&](int64_t x, T x_weight) {
      sum += y_weight * x_weight * static_cast<T>(row[x * pixel_stride]);
    });
  });
  return sum / roi.count;
}

// Pools a part of a RoI sample by sample: it has more taps than fit shared memory, or a batch index
// outside the batch, and then reads nothing and gives zeros. image: [C, H, W] of the RoI, out: [C,
// PH, PW]
template <class T, class Stored>
__device__ __forceinline__ void pool_without_taps(const RoiAlignRoi<T>& roi,
                                                  const RoiAlignPlan& plan, int split,
                                                  int64_t channels, const MapStrides& source,
                                                  int64_t row_stride, const MapStrides& pooled,
                                                  const Stored* image, Stored* out) {
  const int64_t width = plan.options.pooled_width;
  const int64_t bins = plan.options.pooled_height * width;
  const bool channels_last = pooled.channel == 1;
  const int64_t step = static_cast<int64_t>(plan.splits) * kRoiThreads;
  for (int64_t o = static_cast<int64_t>(split) * kRoiThreads + threadIdx.x; o < channels * bins;
       o += step) {
    const int64_t channel = channels_last ? o % channels : o / bins;
    const int64_t bin = channels_last ? o / channels : o % bins;
    T sum = T(0);
    if (roi.batch >= 0) {
      sum = sum_samples(roi, image + channel * source.channel, row_stride, source.pixel,
                        bin / width, bin % width);
    }
    out[channel * pooled.channel + bin * pooled.pixel] = static_cast<Stored>(sum);
  }
}

// Channels-last: a thread reads kVecSize channels of a bin per load.
template <int kVecSize, class T, class Stored>
__device__ __forceinline__ void pool_channels_last(const SharedTaps<T>& taps,
                                                   const RoiAlignPlan& plan, int split,
                                                   int64_t channels, const Stored* image,
                                                   Stored* out) {
  const int64_t width = plan.options.pooled_width;
  const int64_t vectors = channels / kVecSize;
  const int64_t units = vectors * plan.options.pooled_height * width;
  const int64_t step = static_cast<int64_t>(plan.splits) * kRoiThreads;
  for (int64_t unit = static_cast<int64_t>(split) * kRoiThreads + threadIdx.x; unit < units;
       unit += step) {
    const int64_t bin = unit / vectors;
    const int ph = static_cast<int>(bin / width);
    const int pw = static_cast<int>(bin % width);
    const Stored* const first = image + (unit % vectors) * kVecSize;
    const OffsetTap<T>* const y_taps = taps.y_taps + ph * plan.max_y_taps;
    const OffsetTap<T>* const x_taps = taps.x_taps + pw * plan.max_x_taps;
    const int y_count = taps.y_counts[ph];
    const int x_count = taps.x_counts[pw];
    T sums[kVecSize];
#pragma unroll
    for (int c = 0; c < kVecSize; ++c) sums[c] = T(0);
    for (int i = 0; i < y_count; ++i) {
      const OffsetTap<T> y = y_taps[i];
      const Stored* const row = advance_bytes(first, y.offset);
      T row_sums[kVecSize];
#pragma unroll
      for (int c = 0; c < kVecSize; ++c) row_sums[c] = T(0);
#pragma unroll 4
      for (int j = 0; j < x_count; ++j) {
        const OffsetTap<T> x = x_taps[j];
        const AlignedVector<Stored, kVecSize> pixel =
            load_vector<kVecSize>(advance_bytes(row, x.offset));
#pragma unroll
        for (int c = 0; c < kVecSize; ++c) {
          row_sums[c] = std::fma(x.weight, static_cast<T>(pixel.values[c]), row_sums[c]);
        }
      }
#pragma unroll
      for (int c = 0; c < kVecSize; ++c) sums[c] = std::fma(y.weight, row_sums[c], sums[c]);
    }
    AlignedVector<Stored, kVecSize> result;
#pragma unroll
    for (int c = 0; c < kVecSize; ++c) result.values[c] = static_cast<Stored>(sums[c]);
    store_vector<kVecSize>(out + unit * kVecSize, result);
  }
}

// NCHW: the lanes of a quad take every fourth column of a bin.
template <class T, class Stored>
__device__ __forceinline__ void pool_contiguous(const SharedTaps<T>& taps, const RoiAlignPlan& plan,
                                                int split, int64_t channels, int64_t pixels,
                                                const Stored* image, Staged<Stored> staged,
                                                Stored* out) {
  const int quad_lane = threadIdx.x % kQuad;
  const int width = static_cast<int>(plan.options.pooled_width);
  const int bins = static_cast<int>(plan.options.pooled_height) * width;
  for_each_warp_tile(split, plan.splits, channels, bins, [&](const WarpTile& tile) {
    const Stored* const first = image + tile.first_channel * pixels;
    int64_t planes[kQuad];
    find_plane_offsets<Stored>(tile, pixels, planes);
    for_each_bin(tile, width, [&](int bin, int ph, int pw, bool inside) {
      T sums[kQuad] = {};
      if (inside) {
        const OffsetTap<T>* const y_taps = taps.y_taps + ph * plan.max_y_taps;
        const OffsetTap<T>* const x_taps = taps.x_taps + pw * plan.max_x_taps;
        const int y_count = taps.y_counts[ph];
        const int x_count = taps.x_counts[pw];
        for (int j = quad_lane; j < x_count; j += kQuad) {
          const OffsetTap<T> x = x_taps[j];
          const Stored* const column = advance_bytes(first, x.offset);
          T column_sums[kQuad] = {};
#pragma unroll 2
          for (int i = 0; i < y_count; ++i) {
            const OffsetTap<T> y = y_taps[i];
            const Stored* const pixel = advance_bytes(column, y.offset);
#pragma unroll
            for (int c = 0; c < kQuad; ++c) {
              const T value = static_cast<T>(*advance_bytes(pixel, planes[c]));
              column_sums[c] = std::fma(y.weight, value, column_sums[c]);
            }
          }
#pragma unroll
          for (int c = 0; c < kQuad; ++c) sums[c] = std::fma(x.weight, column_sums[c], sums[c]);
        }
      }
      const T sum = quad_reduce_scatter(
          sums, [](T a, T b) { return a + b; },
          [](T value, int mask) { return shuffle_xor(value, mask); });
      if (inside) staged[quad_lane][bin] = static_cast<Stored>(sum);
    });
    __syncwarp();
    write_staged(tile, bins, staged, out);
    __syncwarp();  // the next bins overwrite what is staged
  });
}

// The work of a block at a time: a RoI, or a part of it.
template <class T>
struct RoiAlignTask {
  int64_t k;
  int split, level;
  FeatureShape shape;  // of the level
  RoiAlignRoi<T> roi;
};

template <class T, class Stored, int kLevels>
__device__ __forceinline__ RoiAlignTask<T> find_roi_align_task(
    const FeatureLevels<Stored, kLevels>& levels, const T* rois, const RoiAlignPlan& plan,
    int64_t index) {
  RoiAlignTask<T> task;
  task.k = index / plan.splits;
  task.split = static_cast<int>(index % plan.splits);
  const T* const roi = rois + 5 * task.k;
  task.level = levels.level_of(roi);
  task.shape = levels.shape(task.level);
  task.roi = make_roi_align_roi(roi, plan.options, levels.spatial_scale(task.level), task.shape);
  return task;
}

// rois: [K, 5], out: [K, C, PH, PW]; maps in NCHW (kVecSize: kContiguous) or channels-last, with
// kVecSize channels per load. The launch bounds cap the registers at what ptxas needs for sm_90
// without spills; not measured on a device.
template <class Stored, int kVecSize, int kLevels>
__global__ void __launch_bounds__(kRoiThreads, sizeof(accumulate_t<Stored>) == 8 ? 2 : 4)
    roi_align_kernel(FeatureLevels<const Stored, kLevels> levels, const accumulate_t<Stored>* rois,
                     RoiAlignPlan plan, Stored* out) {
  using T = accumulate_t<Stored>;
  RCNN_DYNAMIC_SHARED(unsigned char, shared);
  constexpr bool kChannelsLast = kVecSize != kContiguous;
  constexpr int64_t kBytes = sizeof(Stored);
  const int64_t bins = plan.options.pooled_height * plan.options.pooled_width;
  const SharedTaps<T> taps = lay_out_taps<T>(plan, shared + kStagedBytes<Stored, kVecSize>);

  __shared__ RoiAlignTask<T> task;  // in shared memory, to save registers
  for (int64_t index = blockIdx.x; index < plan.roi_count * plan.splits; index += gridDim.x) {
    if (threadIdx.x == 0) task = find_roi_align_task(levels, rois, plan, index);
    __syncthreads();
    const FeatureShape& shape = task.shape;
    const int64_t pixels = shape.height * shape.width;
    const MapStrides source = MapStrides::of(kChannelsLast, shape.channels, pixels);
    const int64_t row_stride = shape.width * source.pixel;
    const bool collected =
        collect_roi_taps(task.roi, plan, row_stride * kBytes, source.pixel * kBytes, taps);
    const Stored* const image =
        levels.map(task.level) + max(task.roi.batch, int64_t{0}) * shape.channels * pixels;
    Stored* const target = out + task.k * shape.channels * bins;
    if (!collected) {
      pool_without_taps(task.roi, plan, task.split, shape.channels, source, row_stride,
                        MapStrides::of(kChannelsLast, shape.channels, bins), image, target);
    } else if constexpr (kChannelsLast) {
      pool_channels_last<kVecSize>(taps, plan, task.split, shape.channels, image, target);
    } else {
      const auto staged = reinterpret_cast<Staged<Stored>>(shared);
      pool_contiguous(taps, plan, task.split, shape.channels, pixels, image,
                      staged + warp_index() * kQuad, target);
    }
    __syncthreads();  // the next RoI overwrites the taps
  }
}

// The capacity for the taps of one bin: what a sampling ratio needs at most, or an equal share of
// kMaxTaps.
inline int max_taps_per_bin(int64_t bins, int64_t sampling_ratio) {
  const int64_t share = kMaxTaps / bins;
  return static_cast<int>(sampling_ratio > 0 ? std::min(share, 2 * sampling_ratio) : share);
}

// vector: channels per load, or kContiguous
inline RoiAlignPlan plan_roi_align(int64_t roi_count, int64_t channels,
                                   const RoiAlignOptions& options, int vector) {
  const int64_t bins = options.pooled_height * options.pooled_width;
  return {options, roi_count, splits_per_roi(roi_count, channels, bins, vector),
          max_taps_per_bin(options.pooled_height, options.sampling_ratio),
          max_taps_per_bin(options.pooled_width, options.sampling_ratio)};
}

template <class Stored, int kVecSize, int kLevels>
void launch_roi_align_kernel(const char* name, const FeatureLevels<const Stored, kLevels>& levels,
                             const accumulate_t<Stored>* rois, int64_t roi_count,
                             const RoiAlignOptions& options, const CudaScope& scope, Stored* out) {
  const RoiAlignPlan plan = plan_roi_align(roi_count, levels.channels, options, kVecSize);
  launch(name, roi_align_kernel<Stored, kVecSize, kLevels>,
         {dim3(stride_grid(roi_count * plan.splits, 1)), dim3(kRoiThreads),
          kStagedBytes<Stored, kVecSize> + taps_bytes<accumulate_t<Stored>>(plan)},
         scope, levels, rois, plan, out);
}

// levels: not without elements; rois: [K, 5], out: [K, C, PH, PW]
template <class Stored, int kLevels>
void launch_align(const char* name, const FeatureLevels<const Stored, kLevels>& levels,
                  int level_count, bool channels_last, const accumulate_t<Stored>* rois,
                  int64_t roi_count, const RoiAlignOptions& options, const CudaScope& scope,
                  Stored* out) {
  constexpr int kVecSize = 16 / sizeof(Stored);
  bool vectorized = can_vectorize(out, levels.channels, kVecSize);
  for (int i = 0; i < level_count; ++i) {
    vectorized = vectorized && can_vectorize(levels.data[i], levels.channels, kVecSize);
  }
  const auto run = [&](auto vector) {
    launch_roi_align_kernel<Stored, decltype(vector)::value>(name, levels, rois, roi_count, options,
                                                             scope, out);
  };
  if (!channels_last) {
    run(std::integral_constant<int, kContiguous>{});
  } else if (vectorized) {
    run(std::integral_constant<int, kVecSize>{});
  } else {
    run(std::integral_constant<int, 1>{});
  }
}

}  // namespace rcnn_ext
