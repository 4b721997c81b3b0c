// RoIPool on CUDA. Contract: rcnn_ext/ops/roi_pool.py.
#include "../core/dispatch.h"
#include "../core/register.h"
#include "../core/roi_math.h"
#include "../core/stable_ops.h"
#include "../cuda/launch.cuh"
#include "../cuda/quad.cuh"
#include "../cuda/roi_gather/roi_gather.cuh"
#include "../cuda/vector_access.cuh"
#include "roi_pool.h"

namespace rcnn_ext {
namespace {

// A RoI divided into bins.
template <class T>
struct PoolRoi {
  int64_t batch;  // -1: outside the batch
  PoolAxis<T> y, x;
};

// roi: [5] (batch index, x1, y1, x2, y2), image pixels
template <class T>
RCNN_HOST_DEVICE PoolRoi<T> make_pool_roi(const T* roi, const PoolOptions& options,
                                          double spatial_scale, const FeatureShape& shape) {
  const T scale = static_cast<T>(spatial_scale);
  return {roi_batch_index(roi[0], shape.batch_size),
          make_pool_axis(roi[2], roi[4], scale, options.pooled_height, shape.height),
          make_pool_axis(roi[1], roi[3], scale, options.pooled_width, shape.width)};
}

// A maximum and its pixel; pixel -1: none yet.
template <class T>
struct Maximum {
  T value;
  int pixel;
};

// The maximum of two parts of a bin: the greater value or a NaN, and of equal ones the first pixel.
template <class T>
__device__ __forceinline__ Maximum<T> first_maximum(Maximum<T> a, Maximum<T> b) {
  if (a.pixel < 0) return b;
  if (b.pixel < 0) return a;
  const bool ordered = a.pixel < b.pixel;
  const Maximum<T> earlier = choose(ordered, a, b);
  const Maximum<T> later = choose(ordered, b, a);
  return choose(takes_over(later.value, earlier.value), later, earlier);
}

// How a launch divides the work.
struct PoolPlan {
  PoolOptions options;
  int64_t roi_count;
  int splits;      // blocks that share a RoI
  bool tabulated;  // the bins' ranges are in shared memory
};

// The ranges of the bins of the current RoI.
template <class T>
struct PoolBins {
  PoolRoi<T> roi;
  const PixelRange* table;  // [PH + PW], or null: computed for each bin

  __device__ __forceinline__ PixelRange rows(int64_t ph) const {
    return table != nullptr ? table[ph] : pool_bin(roi.y, ph);
  }
  __device__ __forceinline__ PixelRange columns(int64_t pooled_height, int64_t pw) const {
    return table != nullptr ? table[pooled_height + pw] : pool_bin(roi.x, pw);
  }
};

// Channels-last: a thread reads kVecSize channels of a bin per load.
template <int kVecSize, class T, class Stored>
__device__ __forceinline__ void pool_channels_last(const PoolBins<T>& bins, const PoolPlan& plan,
                                                   int split, const FeatureShape& shape,
                                                   const Stored* image, Stored* out,
                                                   int32_t* argmax) {
  const int64_t width = plan.options.pooled_width;
  const int64_t vectors = shape.channels / kVecSize;
  const int64_t units = vectors * plan.options.pooled_height * width;
  const int64_t step = static_cast<int64_t>(plan.splits) * kRoiThreads;
  for (int64_t unit = static_cast<int64_t>(split) * kRoiThreads + threadIdx.x; unit < units;
       unit += step) {
    const int64_t bin = unit / vectors;
    const PixelRange ys = bins.rows(bin / width);
    const PixelRange xs = bins.columns(plan.options.pooled_height, bin % width);
    const Stored* const first = image + unit % vectors * kVecSize;
    T maxima[kVecSize] = {};
    int pixels[kVecSize];
#pragma unroll
    for (int c = 0; c < kVecSize; ++c) pixels[c] = -1;
    for (int64_t y = ys.first; y < ys.last; ++y) {
      for (int64_t x = xs.first; x < xs.last; ++x) {
        const int64_t pixel = y * shape.width + x;
        const auto vector = load_vector<kVecSize>(first + pixel * shape.channels);
#pragma unroll
        for (int c = 0; c < kVecSize; ++c) {
          const T value = static_cast<T>(vector.values[c]);
          if (pixels[c] < 0 || takes_over(value, maxima[c])) {
            maxima[c] = value;
            pixels[c] = static_cast<int>(pixel);
          }
        }
      }
    }
    AlignedVector<Stored, kVecSize> result;
#pragma unroll
    for (int c = 0; c < kVecSize; ++c) result.values[c] = static_cast<Stored>(maxima[c]);
    constexpr int kPixels = kVecSize < 4 ? kVecSize : 4;  // in a store of 16 bytes
#pragma unroll
    for (int c = 0; c < kVecSize; c += kPixels) {
      AlignedVector<int32_t, kPixels> vector;
#pragma unroll
      for (int i = 0; i < kPixels; ++i) vector.values[i] = pixels[c + i];
      store_vector<kPixels>(argmax + unit * kVecSize + c, vector);
    }
    store_vector<kVecSize>(out + unit * kVecSize, result);
  }
}

// NCHW: the lanes of a quad take every fourth column of a bin.
template <class T, class Stored>
__device__ __forceinline__ void pool_contiguous(const PoolBins<T>& bins, const PoolPlan& plan,
                                                int split, const FeatureShape& shape,
                                                const Stored* image, Staged<Stored> staged,
                                                Staged<int32_t> staged_pixels, Stored* out,
                                                int32_t* argmax) {
  const int quad_lane = threadIdx.x % kQuad;
  const int width = static_cast<int>(plan.options.pooled_width);
  const int bin_count = static_cast<int>(plan.options.pooled_height) * width;
  const int64_t plane = shape.height * shape.width;
  for_each_warp_tile(split, plan.splits, shape.channels, bin_count, [&](const WarpTile& tile) {
    const Stored* const first = image + tile.first_channel * plane;
    int64_t planes[kQuad];
    find_plane_offsets<Stored>(tile, plane, planes);
    for_each_bin(tile, width, [&](int bin, int ph, int pw, bool inside) {
      Maximum<T> maxima[kQuad];
#pragma unroll
      for (int c = 0; c < kQuad; ++c) maxima[c] = {T(0), -1};
      if (inside) {
        const PixelRange ys = bins.rows(ph);
        const PixelRange xs = bins.columns(plan.options.pooled_height, pw);
        for (int64_t y = ys.first; y < ys.last; ++y) {
          for (int64_t x = xs.first + quad_lane; x < xs.last; x += kQuad) {
            const int pixel = static_cast<int>(y * shape.width + x);
#pragma unroll
            for (int c = 0; c < kQuad; ++c) {
              const T value = static_cast<T>(*advance_bytes(first + pixel, planes[c]));
              if (maxima[c].pixel < 0 || takes_over(value, maxima[c].value)) {
                maxima[c] = {value, pixel};
              }
            }
          }
        }
      }
      const Maximum<T> maximum = quad_reduce_scatter(
          maxima, [](Maximum<T> a, Maximum<T> b) { return first_maximum(a, b); },
          [](Maximum<T> mine, int mask) {
            mine.value = shuffle_xor(mine.value, mask);
            mine.pixel = shuffle_xor(mine.pixel, mask);
            return mine;
          });
      if (inside) {
        staged[quad_lane][bin] = static_cast<Stored>(maximum.value);
        staged_pixels[quad_lane][bin] = maximum.pixel;
      }
    });
    __syncwarp();
    write_staged(tile, bin_count, staged, out);
    write_staged(tile, bin_count, staged_pixels, argmax);
    __syncwarp();  // the next bins overwrite what is staged
  });
}

// A block pools a RoI, or a part of it. A RoI with a bad batch index reads nothing and gives zeros.
// input: [N, C, H, W], rois: [K, 5], out and argmax: [K, C, PH, PW], maps in
// NCHW (kVecSize: kContiguous) or channels-last, with kVecSize channels per load
template <class Stored, int kVecSize>
__global__ void __launch_bounds__(kRoiThreads)
    roi_pool_kernel(const Stored* input, const accumulate_t<Stored>* rois, FeatureShape shape,
                    PoolPlan plan, Stored* out, int32_t* argmax) {
  using T = accumulate_t<Stored>;
  constexpr bool kContiguousMaps = kVecSize == kContiguous;
  constexpr int kStagedWarps = kContiguousMaps ? kRoiWarps : 1;
  __shared__ int32_t staged_pixels[kStagedWarps * kQuad][kStagedBins];
  __shared__ Stored staged[kStagedWarps * kQuad][kStagedBins];
  RCNN_DYNAMIC_SHARED(PixelRange, table);
  const int64_t height = plan.options.pooled_height;
  const int64_t width = plan.options.pooled_width;
  const int64_t map = shape.channels * height * width;
  for (int64_t task = blockIdx.x; task < plan.roi_count * plan.splits; task += gridDim.x) {
    const int64_t k = task / plan.splits;
    const int split = static_cast<int>(task % plan.splits);
    PoolRoi<T> roi = make_pool_roi(rois + 5 * k, plan.options, plan.options.spatial_scale, shape);
    if (roi.batch < 0) roi.y.valid = roi.x.valid = false;  // every bin is empty
    if (plan.tabulated) {
      for (int i = threadIdx.x; i < height + width; i += kRoiThreads) {
        table[i] = i < height ? pool_bin(roi.y, i) : pool_bin(roi.x, i - height);
      }
    }
    __syncthreads();
    const PoolBins<T> bins{roi, plan.tabulated ? table : nullptr};
    const Stored* const image =
        input + max(roi.batch, int64_t{0}) * shape.channels * shape.height * shape.width;
    if constexpr (kContiguousMaps) {
      const int first = warp_index() * kQuad;
      pool_contiguous(bins, plan, split, shape, image, staged + first, staged_pixels + first,
                      out + k * map, argmax + k * map);
    } else {
      pool_channels_last<kVecSize>(bins, plan, split, shape, image, out + k * map,
                                   argmax + k * map);
    }
    __syncthreads();  // the next RoI overwrites the table
  }
}

template <class Stored>
void launch_roi_pool(const Stored* input, const accumulate_t<Stored>* rois, int64_t roi_count,
                     const FeatureShape& shape, const PoolOptions& options, bool channels_last,
                     const CudaScope& scope, Stored* out, int32_t* argmax) {
  constexpr int kVecSize = 16 / sizeof(Stored);
  constexpr int64_t kMaxTabulatedBins = 1024;  // 16 KiB of ranges; untuned
  const auto run = [&](auto vector) {
    constexpr int kChannels = decltype(vector)::value;
    const int64_t bins = options.pooled_height * options.pooled_width;
    RCNN_CHECK(bins <= int64_t{1} << 30,
               "roi_pool: expected an output size of at most 2^30 bins, got ",
               options.pooled_height, " x ", options.pooled_width);
    const PoolPlan plan{options, roi_count,
                        splits_per_roi(roi_count, shape.channels, bins, kChannels),
                        options.pooled_height + options.pooled_width <= kMaxTabulatedBins};
    const size_t table = static_cast<size_t>(options.pooled_height + options.pooled_width);
    launch("roi_pool", roi_pool_kernel<Stored, kChannels>,
           {dim3(stride_grid(roi_count * plan.splits, 1)), dim3(kRoiThreads),
            plan.tabulated ? table * sizeof(PixelRange) : 0},
           scope, input, rois, shape, plan, out, argmax);
  };
  if (!channels_last) {
    run(std::integral_constant<int, kContiguous>{});
  } else if (can_vectorize(input, shape.channels, kVecSize) &&
             can_vectorize(out, shape.channels, kVecSize) &&
             can_vectorize(argmax, shape.channels, kVecSize < 4 ? kVecSize : 4)) {
    run(std::integral_constant<int, kVecSize>{});
  } else {
    run(std::integral_constant<int, 1>{});
  }
}

// input: [N, C, H, W], rois: [K, 5] (batch index, x1, y1, x2, y2; image pixels)
// -> maxima [K, C, PH, PW] and their pixels y * W + x, int32 [K, C, PH, PW] (-1: empty bin)
std::tuple<Tensor, Tensor> roi_pool_cuda(const Tensor& input, const Tensor& rois,
                                         double spatial_scale, int64_t pooled_height,
                                         int64_t pooled_width) {
  const PoolOptions options{spatial_scale, pooled_height, pooled_width};
  check_roi_pool(input, rois, options);
  const CudaScope scope(input);
  const FeatureShape shape{input.size(0), input.size(1), input.size(2), input.size(3)};
  const ScalarType dtype = input.scalar_type();
  const DenseMap features = dense_map(input);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  Tensor output = empty_map(input, {rois.size(0), shape.channels, pooled_height, pooled_width},
                            dtype, features.channels_last);
  Tensor argmax = empty_map(input, {rois.size(0), shape.channels, pooled_height, pooled_width},
                            ScalarType::Int, features.channels_last);
  if (output.numel() == 0) return {output, argmax};
  dispatch_floating(dtype, "roi_pool", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    launch_roi_pool(features.tensor.const_data_ptr<Stored>(),
                    dense_rois.const_data_ptr<accumulate_t<Stored>>(), rois.size(0), shape, options,
                    features.channels_last, scope, output.mutable_data_ptr<Stored>(),
                    argmax.mutable_data_ptr<int32_t>());
  });
  return {output, argmax};
}

// The Pooling of roi_gather.cuh: a bin gives its gradient to the pixel of its maximum.
template <class StoredType>
struct PoolGradient {
  using Stored = StoredType;
  using T = accumulate_t<Stored>;
  using Roi = PoolRoi<T>;
  static constexpr bool kSeparable = false;
  const Stored* grad;     // [K, C, PH, PW]
  const T* rois;          // [K, 5]
  const int32_t* argmax;  // [K, C, PH, PW], in the layout of grad
  PoolOptions options;

  __device__ __forceinline__ Roi make_roi(const T* roi, double spatial_scale,
                                          const FeatureShape& shape) const {
    return make_pool_roi(roi, options, spatial_scale, shape);
  }
  __device__ __forceinline__ Footprint footprint(const Roi& roi) const {
    if (!roi.y.valid || !roi.x.valid) return {0, 0, 0, 0};
    return {static_cast<int>(pool_bin(roi.y, 0).first),
            static_cast<int>(pool_bin(roi.y, options.pooled_height - 1).last),
            static_cast<int>(pool_bin(roi.x, 0).first),
            static_cast<int>(pool_bin(roi.x, options.pooled_width - 1).last)};
  }
  template <int kCount>
  bool can_load_vectors(int64_t channels) const {
    return can_vectorize(grad, channels, kCount) && can_vectorize(argmax, channels, kCount);
  }
  template <class Visit>
  __device__ __forceinline__ void visit_y(const Roi& roi, int64_t bin, int64_t first, int64_t last,
                                          Visit visit) const {
    visit_bin(roi.y, bin, first, last, visit);
  }
  template <class Visit>
  __device__ __forceinline__ void visit_x(const Roi& roi, int64_t bin, int64_t first, int64_t last,
                                          Visit visit) const {
    visit_bin(roi.x, bin, first, last, visit);
  }
  // Adds the gradient of a bin to the pixels `pixel`, `pixel + row_step`, ... of a column.
  template <bool kVectors, int kRows, int kChannels>
  __device__ __forceinline__ void accumulate(int64_t element, int channels, int64_t channel_stride,
                                             int64_t pixel, int64_t row_step,
                                             T (&sums)[kRows][kChannels]) const {
    AlignedVector<int32_t, kChannels> maxima;
    AlignedVector<Stored, kChannels> grads;
    if constexpr (kVectors) {
      maxima = load_vector<kChannels>(argmax + element);
      grads = load_vector<kChannels>(grad + element);
    } else {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        maxima.values[c] = c < channels ? argmax[element + c * channel_stride] : -1;
        grads.values[c] = c < channels ? grad[element + c * channel_stride] : Stored(0);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (maxima.values[c] == pixel) sums[r][c] += static_cast<T>(grads.values[c]);
      }
      pixel += row_step;
    }
  }

 private:
  template <class Visit>
  __device__ __forceinline__ static void visit_bin(const PoolAxis<T>& axis, int64_t bin,
                                                   int64_t first, int64_t last, Visit visit) {
    const PixelRange range = pool_bin(axis, bin);
    for (int64_t p = max(range.first, first); p < min(range.last, last); ++p) visit(p, T(1));
  }
};

// grad, argmax: [K, C, PH, PW], rois: [K, 5] -> gradient of the input, [N, C, H, W]
Tensor roi_pool_backward_cuda(const Tensor& grad, const Tensor& argmax, const Tensor& rois,
                              double spatial_scale, int64_t batch_size, int64_t channels,
                              int64_t height, int64_t width, bool channels_last) {
  const FeatureShape shape{batch_size, channels, height, width};
  check_roi_pool_backward(grad, argmax, rois, shape, spatial_scale);
  const CudaScope scope(grad);
  const ScalarType dtype = grad.scalar_type();
  const DenseMap upstream = dense_map(grad);
  const Tensor pixels_of_maxima = dense_map_as(argmax, upstream.channels_last);
  const Tensor dense_rois = contiguous_as(rois, accumulate_dtype(dtype));
  const PoolOptions options{spatial_scale, grad.size(2), grad.size(3)};
  Tensor result = empty_map(grad, {batch_size, channels, height, width}, dtype, channels_last);
  if (result.numel() == 0) return result;
  dispatch_floating(dtype, "roi_pool_backward", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    const PoolGradient<Stored> pooling{upstream.tensor.const_data_ptr<Stored>(),
                                       dense_rois.const_data_ptr<accumulate_t<Stored>>(),
                                       pixels_of_maxima.const_data_ptr<int32_t>(), options};
    launch_roi_gather("roi_pool_backward", pooling, grad,
                      one_level(result.mutable_data_ptr<Stored>(), shape, spatial_scale), 1,
                      channels_last, rois.size(0), options.pooled_height, options.pooled_width,
                      upstream.channels_last, scope);
  });
  return result;
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) {
  RCNN_REGISTER(m, "roi_pool", roi_pool_cuda, input, rois);
  RCNN_REGISTER(m, "roi_pool_backward", roi_pool_backward_cuda, grad, argmax, rois);
}
