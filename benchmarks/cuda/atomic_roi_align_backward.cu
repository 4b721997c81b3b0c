// The backward pass of RoIAlign by atomic additions, which the gather of
// csrc/cuda/roi_gather/roi_gather.cuh is measured against: made to be fast, but its last bits
// depend on the order of the threads. No part of the package; `rcnn_ext/bench/atomic.py` loads it.
//
// It is the forward pass transposed: a block takes a RoI, or a part of it, collects the taps of
// its bins once for all channels, with consecutive samples of one pixel merged, and adds each
// bin's gradient to the pixels that the bin reads. Channels-last, the lanes of a warp add to
// consecutive channels, 16 bytes each; in NCHW four lanes share a bin, so that those of a warp add
// to contiguous pieces of a few rows.
//
// Half types are summed in float32, as this package does everywhere, and rounded in the end: sums
// kept in bfloat16 would not grow any more by what is below a 256th of them.
#include <type_traits>
#include <vector>

#include "../../csrc/core/stable_ops.h"
#include "../../csrc/multiscale_roi_align/multiscale_roi_align.h"
#include "../../csrc/multiscale_roi_align/multiscale_roi_align_cuda.cuh"
#include "../../csrc/roi_align/roi_align_forward_cuda_kernels.cuh"

namespace rcnn_ext {
namespace {

template <class T>
__device__ __forceinline__ T* at(T* from, int64_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<char*>(from) + bytes);
}

// Adds to kCount consecutive elements, at once where the device can.
template <int kCount, class T>
__device__ __forceinline__ void add_vector(T* target, const T (&values)[kCount]) {
#if defined(RCNN_EMULATION) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
  if constexpr (kCount == 4 && std::is_same_v<T, float>) {
    atomicAdd(reinterpret_cast<float4*>(target),
              make_float4(values[0], values[1], values[2], values[3]));
  } else
#endif
  {
#pragma unroll
    for (int c = 0; c < kCount; ++c) atomicAdd(target + c, values[c]);
  }
}

// Channels-last: a thread adds kVecSize channels of a bin at once. grad: [PH, PW, C], image: [H, W,
// C]
template <int kVecSize, class T, class Stored>
__device__ __forceinline__ void scatter_channels_last(const SharedTaps<T>& taps,
                                                      const RoiAlignPlan& plan, int split,
                                                      int64_t channels, const Stored* grad,
                                                      T* image) {
  const int64_t width = plan.options.pooled_width;
  const int64_t vectors = channels / kVecSize;
  const int64_t units = vectors * plan.options.pooled_height * width;
  const int64_t step = static_cast<int64_t>(plan.splits) * kRoiThreads;
  for (int64_t unit = static_cast<int64_t>(split) * kRoiThreads + threadIdx.x; unit < units;
       unit += step) {
    const int64_t bin = unit / vectors;
    const int ph = static_cast<int>(bin / width);
    const int pw = static_cast<int>(bin % width);
    const auto grads = load_vector<kVecSize>(grad + unit * kVecSize);
    T* const first = image + unit % vectors * kVecSize;
    const OffsetTap<T>* const y_taps = taps.y_taps + ph * plan.max_y_taps;
    const OffsetTap<T>* const x_taps = taps.x_taps + pw * plan.max_x_taps;
    const int y_count = taps.y_counts[ph];
    const int x_count = taps.x_counts[pw];
    for (int i = 0; i < y_count; ++i) {
      const OffsetTap<T> y = y_taps[i];
      T* const row = at(first, y.offset);
      for (int j = 0; j < x_count; ++j) {
        const OffsetTap<T> x = x_taps[j];
        const T weight = y.weight * x.weight;
        T values[kVecSize];
#pragma unroll
        for (int c = 0; c < kVecSize; ++c) values[c] = weight * static_cast<T>(grads.values[c]);
        add_vector<kVecSize>(at(row, x.offset), values);
      }
    }
  }
}

// NCHW: the lanes of a quad take every fourth column of a bin. grad: [C, PH, PW], image: [C, H, W]
template <class T, class Stored>
__device__ __forceinline__ void scatter_contiguous(const SharedTaps<T>& taps,
                                                   const RoiAlignPlan& plan, int split,
                                                   int64_t channels, int64_t pixels,
                                                   const Stored* grad, T* image) {
  const int quad_lane = threadIdx.x % kQuad;
  const int width = static_cast<int>(plan.options.pooled_width);
  const int bins = static_cast<int>(plan.options.pooled_height) * width;
  for_each_warp_tile(split, plan.splits, channels, bins, [&](const WarpTile& tile) {
    T* const first = image + tile.first_channel * pixels;
    const Stored* const tile_grad = grad + tile.first_channel * bins + tile.first_bin;
    int64_t planes[kQuad];
    find_plane_offsets<T>(tile, pixels, planes);
    for_each_bin(tile, width, [&](int bin, int ph, int pw, bool inside) {
      if (!inside) return;
      T grads[kQuad];
#pragma unroll
      for (int c = 0; c < kQuad; ++c) {
        grads[c] = c < tile.channels ? static_cast<T>(tile_grad[int64_t{c} * bins + bin]) : T(0);
      }
      const OffsetTap<T>* const y_taps = taps.y_taps + ph * plan.max_y_taps;
      const OffsetTap<T>* const x_taps = taps.x_taps + pw * plan.max_x_taps;
      const int y_count = taps.y_counts[ph];
      const int x_count = taps.x_counts[pw];
      for (int j = quad_lane; j < x_count; j += kQuad) {
        const OffsetTap<T> x = x_taps[j];
        T* const column = at(first, x.offset);
        for (int i = 0; i < y_count; ++i) {
          const OffsetTap<T> y = y_taps[i];
          T* const pixel = at(column, y.offset);
          const T weight = y.weight * x.weight;
#pragma unroll
          for (int c = 0; c < kQuad; ++c) {
            if (c < tile.channels) atomicAdd(at(pixel, planes[c]), weight * grads[c]);
          }
        }
      }
    });
  });
}

// Bins with more taps than fit shared memory. grad: [C, PH, PW], image: [C, H, W]
template <class T, class Stored>
__device__ __forceinline__ void scatter_without_taps(const RoiAlignRoi<T>& roi,
                                                     const RoiAlignPlan& plan, int split,
                                                     int64_t channels, const MapStrides& target,
                                                     int64_t row_stride, const MapStrides& pooled,
                                                     const Stored* grad, T* image) {
  const int64_t width = plan.options.pooled_width;
  const int64_t bins = plan.options.pooled_height * width;
  const bool channels_last = pooled.channel == 1;
  const int64_t step = static_cast<int64_t>(plan.splits) * kRoiThreads;
  for (int64_t o = static_cast<int64_t>(split) * kRoiThreads + threadIdx.x; o < channels * bins;
       o += step) {
    const int64_t channel = channels_last ? o % channels : o / bins;
    const int64_t bin = channels_last ? o / channels : o % bins;
    T* const plane = image + channel * target.channel;
    const T value = static_cast<T>(grad[channel * pooled.channel + bin * pooled.pixel]) / roi.count;
    visit_samples(roi.y, bin / width, T(-1), T(roi.y.extent), [&](int64_t y, T y_weight) {
      T* const row = plane + y * row_stride;
      visit_samples(roi.x, bin % width, T(-1), T(roi.x.extent), [&](int64_t x, T x_weight) {
        atomicAdd(row + x * target.pixel, y_weight * x_weight * value);
      });
    });
  }
}

// levels: sums to add to; rois: [K, 5], grad: [K, C, PH, PW]; maps in NCHW (kVecSize: kContiguous)
// or channels-last, with kVecSize channels at once.
template <class Stored, int kVecSize, int kLevels>
__global__ void __launch_bounds__(kRoiThreads, sizeof(accumulate_t<Stored>) == 8 ? 2 : 4)
    atomic_roi_align_kernel(FeatureLevels<accumulate_t<Stored>, kLevels> levels,
                            const accumulate_t<Stored>* rois, RoiAlignPlan plan,
                            const Stored* grad) {
  using T = accumulate_t<Stored>;
  RCNN_DYNAMIC_SHARED(unsigned char, shared);
  constexpr bool kChannelsLast = kVecSize != kContiguous;
  constexpr int64_t kBytes = sizeof(T);
  const int64_t bins = plan.options.pooled_height * plan.options.pooled_width;
  const SharedTaps<T> taps = lay_out_taps<T>(plan, shared);

  __shared__ RoiAlignTask<T> task;
  for (int64_t index = blockIdx.x; index < plan.roi_count * plan.splits; index += gridDim.x) {
    if (threadIdx.x == 0) task = find_roi_align_task(levels, rois, plan, index);
    __syncthreads();
    const FeatureShape& shape = task.shape;
    const int64_t pixels = shape.height * shape.width;
    const MapStrides target = MapStrides::of(kChannelsLast, shape.channels, pixels);
    const int64_t row_stride = shape.width * target.pixel;
    const bool collected =
        collect_roi_taps(task.roi, plan, row_stride * kBytes, target.pixel * kBytes, taps);
    if (task.roi.batch >= 0) {
      T* const image = levels.map(task.level) + task.roi.batch * shape.channels * pixels;
      const Stored* const roi_grad = grad + task.k * shape.channels * bins;
      if (!collected) {
        scatter_without_taps(task.roi, plan, task.split, shape.channels, target, row_stride,
                             MapStrides::of(kChannelsLast, shape.channels, bins), roi_grad, image);
      } else if constexpr (kChannelsLast) {
        scatter_channels_last<kVecSize>(taps, plan, task.split, shape.channels, roi_grad, image);
      } else {
        scatter_contiguous(taps, plan, task.split, shape.channels, pixels, roi_grad, image);
      }
    }
    __syncthreads();  // the next RoI overwrites the taps
  }
}

template <class Stored, int kVecSize, int kLevels>
void launch_atomic_roi_align_kernel(const char* name,
                                    const FeatureLevels<accumulate_t<Stored>, kLevels>& levels,
                                    const accumulate_t<Stored>* rois, int64_t roi_count,
                                    const RoiAlignOptions& options, const CudaScope& scope,
                                    const Stored* grad) {
  const RoiAlignPlan plan = plan_roi_align(roi_count, levels.channels, options, kVecSize);
  launch(name, atomic_roi_align_kernel<Stored, kVecSize, kLevels>,
         {dim3(stride_grid(roi_count * plan.splits, 1)), dim3(kRoiThreads),
          taps_bytes<accumulate_t<Stored>>(plan)},
         scope, levels, rois, plan, grad);
}

// levels: zeros, not all without elements; grad: [K, C, PH, PW] in their layout, K > 0
template <class Stored, int kLevels>
void launch_atomic_roi_align(const char* name,
                             const FeatureLevels<accumulate_t<Stored>, kLevels>& levels,
                             bool channels_last, const accumulate_t<Stored>* rois,
                             int64_t roi_count, const RoiAlignOptions& options,
                             const CudaScope& scope, const Stored* grad) {
  constexpr int kVecSize = 16 / sizeof(accumulate_t<Stored>);
  const auto run = [&](auto vector) {
    launch_atomic_roi_align_kernel<Stored, decltype(vector)::value>(name, levels, rois, roi_count,
                                                                    options, scope, grad);
  };
  if (!channels_last) {
    run(std::integral_constant<int, kContiguous>{});
  } else if (can_vectorize(grad, levels.channels, kVecSize)) {  // and so do sums, fresh as they are
    run(std::integral_constant<int, kVecSize>{});
  } else {
    run(std::integral_constant<int, 1>{});
  }
}

// Zeros to sum in.
Tensor zero_map(const Tensor& grad, const FeatureShape& shape, bool channels_last) {
  Tensor sums = empty_map(grad, {shape.batch_size, shape.channels, shape.height, shape.width},
                          accumulate_dtype(grad.scalar_type()), channels_last);
  torch::stable::zero_(sums);
  return sums;
}

Tensor rounded(const Tensor& sums, ScalarType dtype) {
  return sums.scalar_type() == dtype ? sums : torch::stable::to(sums, dtype);
}

// As roi_align_backward.
Tensor atomic_roi_align_backward(const Tensor& grad, const Tensor& rois, double spatial_scale,
                                 int64_t pooled_height, int64_t pooled_width, int64_t batch_size,
                                 int64_t channels, int64_t height, int64_t width,
                                 int64_t sampling_ratio, bool aligned, bool channels_last) {
  const RoiAlignOptions options{spatial_scale, pooled_height, pooled_width, sampling_ratio,
                                aligned};
  const FeatureShape shape{batch_size, channels, height, width};
  check_roi_align_backward(grad, rois, shape, options);
  const CudaScope scope(grad);
  const ScalarType dtype = grad.scalar_type();
  const Tensor upstream = dense_map_as(grad, channels_last);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  const Tensor sums = zero_map(grad, shape, channels_last);
  if (sums.numel() == 0 || grad.numel() == 0) return rounded(sums, dtype);
  dispatch_floating(dtype, "atomic_roi_align_backward", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    launch_atomic_roi_align("atomic_roi_align_backward",
                            one_level(sums.mutable_data_ptr<T>(), shape, spatial_scale),
                            channels_last, dense_rois.const_data_ptr<T>(), rois.size(0), options,
                            scope, upstream.const_data_ptr<Stored>());
  });
  return rounded(sums, dtype);
}

// As multiscale_roi_align_backward.
std::vector<Tensor> atomic_multiscale_roi_align_backward(
    const Tensor& grad, const Tensor& rois, const std::vector<double>& spatial_scales,
    int64_t pooled_height, int64_t pooled_width, int64_t batch_size, int64_t channels,
    const std::vector<int64_t>& heights, const std::vector<int64_t>& widths, int64_t sampling_ratio,
    bool aligned, double canonical_scale, int64_t canonical_level, bool channels_last) {
  const PyramidOptions options{spatial_scales,
                               {1.0, pooled_height, pooled_width, sampling_ratio, aligned},
                               canonical_scale,
                               canonical_level};
  const auto shapes = check_multiscale_roi_align_backward(grad, rois, batch_size, channels, heights,
                                                          widths, options);
  const CudaScope scope(grad);
  const ScalarType dtype = grad.scalar_type();
  const Tensor upstream = dense_map_as(grad, channels_last);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  std::vector<Tensor> sums;
  for (const FeatureShape& shape : shapes) sums.push_back(zero_map(grad, shape, channels_last));
  if (grad.numel() > 0 && batch_size > 0) {
    dispatch_floating(dtype, "atomic_multiscale_roi_align_backward", [&](auto tag) {
      using Stored = type_of<decltype(tag)>;
      using T = accumulate_t<Stored>;
      launch_atomic_roi_align("atomic_multiscale_roi_align_backward",
                              pyramid_levels<T>(sums, options), channels_last,
                              dense_rois.const_data_ptr<T>(), rois.size(0), options.align, scope,
                              upstream.const_data_ptr<Stored>());
    });
  }
  std::vector<Tensor> results;
  for (const Tensor& map : sums) results.push_back(rounded(map, dtype));
  return results;
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) {
  m.impl("atomic_roi_align_backward", TORCH_BOX(&rcnn_ext::atomic_roi_align_backward));
  m.impl("atomic_multiscale_roi_align_backward",
         TORCH_BOX(&rcnn_ext::atomic_multiscale_roi_align_backward));
}
