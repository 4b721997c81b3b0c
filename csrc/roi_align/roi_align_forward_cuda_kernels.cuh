// RoIAlign on CUDA: a block pools a RoI, or a part of it, from a map of one level or of its own.
// The taps of every bin along y and along x are worked out once and serve all channels.
#pragma once

#include <algorithm>

#include "../core/map_strides.h"
#include "../cuda/quad.cuh"
#include "../cuda/vector_access.cuh"
#include "roi_align_cuda.cuh"

namespace rcnn_ext {

constexpr int kMostTaps = 512;  // of a RoI along an axis in shared memory

// A pixel that a bin reads along one axis.
template <class T>
struct alignas(16) PixelTap {
  int64_t offset;  // of its row or column, in bytes
  T weight;
};

// How a launch divides the work.
struct AlignPlan {
  AlignOptions options;
  int64_t roi_count;
  int parts;             // blocks that share a RoI
  int y_slots, x_slots;  // taps that a bin has room for; 0: no tables at all
};

// The tables of the RoI at hand, in shared memory.
template <class T>
struct AlignTables {
  PixelTap<T>* y_taps;  // [PH, y_slots]
  PixelTap<T>* x_taps;  // [PW, x_slots]
  int* y_counts;        // [PH]
  int* x_counts;        // [PW]
};

// What the warps stage in front of the tables.
template <class Stored, int kVector>
constexpr size_t kStagedBytes =
    kVector == kContiguous ? kRoiWarps * kQuad * kStagedBins * sizeof(Stored) : 0;

template <class T>
size_t tables_bytes(const AlignPlan& plan) {
  if (plan.y_slots == 0 || plan.x_slots == 0) return 0;
  const size_t height = static_cast<size_t>(plan.options.pooled_height);
  const size_t width = static_cast<size_t>(plan.options.pooled_width);
  return (height * plan.y_slots + width * plan.x_slots) * sizeof(PixelTap<T>) +
         (height + width) * sizeof(int);
}

// memory: of tables_bytes
template <class T>
__device__ __forceinline__ AlignTables<T> place_tables(const AlignPlan& plan,
                                                       unsigned char* memory) {
  AlignTables<T> tables;
  tables.y_taps = reinterpret_cast<PixelTap<T>*>(memory);
  tables.x_taps = tables.y_taps + plan.options.pooled_height * plan.y_slots;
  tables.y_counts =
      reinterpret_cast<int*>(tables.x_taps + plan.options.pooled_width * plan.x_slots);
  tables.x_counts = tables.y_counts + plan.options.pooled_height;
  return tables;
}

// The taps of a bin along one axis, with neighbouring samples of one pixel joined.
// Returns whether there was room.
template <class T>
__device__ __forceinline__ bool tabulate_bin(const AlignAxis<T>& axis, int64_t bin, int64_t bytes,
                                             T divisor, int slots, PixelTap<T>* taps, int* count) {
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
    if (used < slots) {
      taps[used++] = {offset, weight};
    } else {
      fits = false;
    }
  });
  for (int i = 0; i < used; ++i) taps[i].weight /= divisor;
  *count = used;
  return fits;
}

// Whether the tables of the RoI fit. All threads of the block call it.
template <class T>
__device__ __forceinline__ bool tabulate_roi(const AlignRoi<T>& roi, const AlignPlan& plan,
                                             int64_t row_bytes, int64_t pixel_bytes,
                                             const AlignTables<T>& tables) {
  bool fits = roi.batch >= 0 && plan.y_slots > 0 && plan.x_slots > 0;
  if (fits) {
    const int height = static_cast<int>(plan.options.pooled_height);
    const int width = static_cast<int>(plan.options.pooled_width);
    for (int i = threadIdx.x; i < height + width; i += kRoiThreads) {
      const bool along_y = i < height;
      const int bin = along_y ? i : i - height;
      AlignAxis<T> axis = roi.x;
      int slots = plan.x_slots;
      if (along_y) {  // not by ?:, which would put both into memory to choose an address
        axis = roi.y;
        slots = plan.y_slots;
      }
      // The average is taken along y alone.
      fits &= tabulate_bin(axis, bin, along_y ? row_bytes : pixel_bytes, along_y ? roi.count : T(1),
                           slots, (along_y ? tables.y_taps : tables.x_taps) + bin * slots,
                           (along_y ? tables.y_counts : tables.x_counts) + bin);
    }
  }
  return !__syncthreads_or(!fits);
}

// The sum over the samples of a bin, without tables. plane: one channel of the RoI's image
template <class T, class Stored>
__device__ __forceinline__ T sum_samples(const AlignRoi<T>& roi, const Stored* plane,
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

// A part of a RoI by on-the-fly sums: more taps than the tables hold, or a RoI of no image, which
// reads nothing and gives zeros. image: [C, H, W] of the RoI, out: [C, PH, PW]
template <class T, class Stored>
__device__ __forceinline__ void pool_without_tables(const AlignRoi<T>& roi, const AlignPlan& plan,
                                                    int part, int64_t channels,
                                                    const MapStrides& source, int64_t row_stride,
                                                    const MapStrides& pooled, const Stored* image,
                                                    Stored* out) {
  const int64_t width = plan.options.pooled_width;
  const int64_t bins = plan.options.pooled_height * width;
  const bool channels_last = pooled.channel == 1;
  const int64_t step = static_cast<int64_t>(plan.parts) * kRoiThreads;
  for (int64_t o = static_cast<int64_t>(part) * kRoiThreads + threadIdx.x; o < channels * bins;
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

// Channels-last: a thread takes kVector channels of a bin in each load.
template <int kVector, class T, class Stored>
__device__ __forceinline__ void pool_channels_last(const AlignTables<T>& tables,
                                                   const AlignPlan& plan, int part,
                                                   int64_t channels, const Stored* image,
                                                   Stored* out) {
  const int64_t width = plan.options.pooled_width;
  const int64_t vectors = channels / kVector;
  const int64_t units = vectors * plan.options.pooled_height * width;
  const int64_t step = static_cast<int64_t>(plan.parts) * kRoiThreads;
  for (int64_t unit = static_cast<int64_t>(part) * kRoiThreads + threadIdx.x; unit < units;
       unit += step) {
    const int64_t bin = unit / vectors;
    const int ph = static_cast<int>(bin / width);
    const int pw = static_cast<int>(bin % width);
    const Stored* const first = image + (unit % vectors) * kVector;
    const PixelTap<T>* const y_taps = tables.y_taps + ph * plan.y_slots;
    const PixelTap<T>* const x_taps = tables.x_taps + pw * plan.x_slots;
    const int y_count = tables.y_counts[ph];
    const int x_count = tables.x_counts[pw];
    T sums[kVector];
#pragma unroll
    for (int c = 0; c < kVector; ++c) sums[c] = T(0);
    for (int i = 0; i < y_count; ++i) {
      const PixelTap<T> y = y_taps[i];
      const Stored* const row = advance(first, y.offset);
      T row_sums[kVector];
#pragma unroll
      for (int c = 0; c < kVector; ++c) row_sums[c] = T(0);
#pragma unroll 4
      for (int j = 0; j < x_count; ++j) {
        const PixelTap<T> x = x_taps[j];
        const Pack<Stored, kVector> pixel = load_pack<kVector>(advance(row, x.offset));
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
          row_sums[c] = std::fma(x.weight, static_cast<T>(pixel.values[c]), row_sums[c]);
        }
      }
#pragma unroll
      for (int c = 0; c < kVector; ++c) sums[c] = std::fma(y.weight, row_sums[c], sums[c]);
    }
    Pack<Stored, kVector> result;
#pragma unroll
    for (int c = 0; c < kVector; ++c) result.values[c] = static_cast<Stored>(sums[c]);
    store_pack<kVector>(out + unit * kVector, result);
  }
}

// NCHW: the lanes of a quad take the columns of a bin in turn.
template <class T, class Stored>
__device__ __forceinline__ void pool_contiguous(const AlignTables<T>& tables, const AlignPlan& plan,
                                                int part, int64_t channels, int64_t pixels,
                                                const Stored* image, Staged<Stored> staged,
                                                Stored* out) {
  const int turn = threadIdx.x % kQuad;
  const int width = static_cast<int>(plan.options.pooled_width);
  const int bins = static_cast<int>(plan.options.pooled_height) * width;
  for_each_unit(part, plan.parts, channels, bins, [&](const QuadUnit& unit) {
    const Stored* const first = image + unit.first_channel * pixels;
    int64_t planes[kQuad];
    find_planes<Stored>(unit, pixels, planes);
    for_each_bin(unit, width, [&](int bin, int ph, int pw, bool inside) {
      T sums[kQuad] = {};
      if (inside) {
        const PixelTap<T>* const y_taps = tables.y_taps + ph * plan.y_slots;
        const PixelTap<T>* const x_taps = tables.x_taps + pw * plan.x_slots;
        const int y_count = tables.y_counts[ph];
        const int x_count = tables.x_counts[pw];
        for (int j = turn; j < x_count; j += kQuad) {
          const PixelTap<T> x = x_taps[j];
          const Stored* const column = advance(first, x.offset);
          T column_sums[kQuad] = {};
#pragma unroll 2
          for (int i = 0; i < y_count; ++i) {
            const PixelTap<T> y = y_taps[i];
            const Stored* const pixel = advance(column, y.offset);
#pragma unroll
            for (int c = 0; c < kQuad; ++c) {
              const T value = static_cast<T>(*advance(pixel, planes[c]));
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
      if (inside) staged[turn][bin] = static_cast<Stored>(sum);
    });
    __syncwarp();
    write_staged(unit, bins, staged, out);
    __syncwarp();  // the next bins overwrite what is staged
  });
}

// What a block does at a time: a RoI, or a part of it.
template <class T>
struct AlignTask {
  int64_t k;
  int part, level;
  FeatureShape shape;  // of the level
  AlignRoi<T> roi;
};

template <class T, class Stored, int kLevels>
__device__ __forceinline__ AlignTask<T> find_align_task(
    const FeatureLevels<Stored, kLevels>& levels, const T* rois, const AlignPlan& plan,
    int64_t index) {
  AlignTask<T> task;
  task.k = index / plan.parts;
  task.part = static_cast<int>(index % plan.parts);
  const T* const roi = rois + 5 * task.k;
  task.level = levels.level_of(roi);
  task.shape = levels.shape(task.level);
  task.roi = make_align_roi(roi, plan.options, levels.spatial_scale(task.level), task.shape);
  return task;
}

// rois: [K, 5], out: [K, C, PH, PW]; maps in NCHW (kVector: kContiguous) or channels-last, with
// kVector channels in a load.
template <class Stored, int kVector, int kLevels>
__global__ void __launch_bounds__(kRoiThreads, sizeof(accumulate_t<Stored>) == 8 ? 2 : 4)
    align_kernel(FeatureLevels<const Stored, kLevels> levels, const accumulate_t<Stored>* rois,
                 AlignPlan plan, Stored* out) {
  using T = accumulate_t<Stored>;
  RCNN_DYNAMIC_SHARED(unsigned char, shared);
  constexpr bool kChannelsLast = kVector != kContiguous;
  constexpr int64_t kBytes = sizeof(Stored);
  const int64_t bins = plan.options.pooled_height * plan.options.pooled_width;
  const AlignTables<T> tables = place_tables<T>(plan, shared + kStagedBytes<Stored, kVector>);

  __shared__ AlignTask<T> task;  // read where needed, instead of kept in registers
  for (int64_t index = blockIdx.x; index < plan.roi_count * plan.parts; index += gridDim.x) {
    if (threadIdx.x == 0) task = find_align_task(levels, rois, plan, index);
    __syncthreads();
    const FeatureShape& shape = task.shape;
    const int64_t pixels = shape.height * shape.width;
    const MapStrides source = MapStrides::of(kChannelsLast, shape.channels, pixels);
    const int64_t row_stride = shape.width * source.pixel;
    const bool tabulated =
        tabulate_roi(task.roi, plan, row_stride * kBytes, source.pixel * kBytes, tables);
    const Stored* const image =
        levels.map(task.level) + max(task.roi.batch, int64_t{0}) * shape.channels * pixels;
    Stored* const target = out + task.k * shape.channels * bins;
    if (!tabulated) {
      pool_without_tables(task.roi, plan, task.part, shape.channels, source, row_stride,
                          MapStrides::of(kChannelsLast, shape.channels, bins), image, target);
    } else if constexpr (kChannelsLast) {
      pool_channels_last<kVector>(tables, plan, task.part, shape.channels, image, target);
    } else {
      const auto staged = reinterpret_cast<Staged<Stored>>(shared);
      pool_contiguous(tables, plan, task.part, shape.channels, pixels, image,
                      staged + warp_index() * kQuad, target);
    }
    __syncthreads();  // the next RoI overwrites the tables
  }
}

// Room for the taps of a bin: what a sampling ratio takes at most, or what there is.
inline int align_slots(int64_t bins, int64_t sampling_ratio) {
  const int64_t room = kMostTaps / bins;
  return static_cast<int>(sampling_ratio > 0 ? std::min(room, 2 * sampling_ratio) : room);
}

// vector: channels in a load, or kContiguous
inline AlignPlan plan_align(int64_t roi_count, int64_t channels, const AlignOptions& options,
                            int vector) {
  const int64_t bins = options.pooled_height * options.pooled_width;
  return {options, roi_count, roi_parts(roi_count, channels, bins, vector),
          align_slots(options.pooled_height, options.sampling_ratio),
          align_slots(options.pooled_width, options.sampling_ratio)};
}

template <class Stored, int kVector, int kLevels>
void launch_align_kernel(const char* name, const FeatureLevels<const Stored, kLevels>& levels,
                         const accumulate_t<Stored>* rois, int64_t roi_count,
                         const AlignOptions& options, const CudaScope& scope, Stored* out) {
  const AlignPlan plan = plan_align(roi_count, levels.channels, options, kVector);
  launch(name, align_kernel<Stored, kVector, kLevels>,
         {dim3(stride_grid(roi_count * plan.parts, 1)), dim3(kRoiThreads),
          kStagedBytes<Stored, kVector> + tables_bytes<accumulate_t<Stored>>(plan)},
         scope, levels, rois, plan, out);
}

// levels: not without elements; rois: [K, 5], out: [K, C, PH, PW]
template <class Stored, int kLevels>
void launch_align(const char* name, const FeatureLevels<const Stored, kLevels>& levels,
                  int level_count, bool channels_last, const accumulate_t<Stored>* rois,
                  int64_t roi_count, const AlignOptions& options, const CudaScope& scope,
                  Stored* out) {
  constexpr int kVector = 16 / sizeof(Stored);
  bool packs = takes_packs(out, levels.channels, kVector);
  for (int i = 0; i < level_count; ++i) {
    packs = packs && takes_packs(levels.data[i], levels.channels, kVector);
  }
  const auto run = [&](auto vector) {
    launch_align_kernel<Stored, decltype(vector)::value>(name, levels, rois, roi_count, options,
                                                         scope, out);
  };
  if (!channels_last) {
    run(std::integral_constant<int, kContiguous>{});
  } else if (packs) {
    run(std::integral_constant<int, kVector>{});
  } else {
    run(std::integral_constant<int, 1>{});
  }
}

}  // namespace rcnn_ext
