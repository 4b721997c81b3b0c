// Matching of boxes to ground truth on CUDA. Contract: rcnn_ext/ops/match_boxes.py.
//
// match_kernel finds the best IoU of each box and the ground truth that has it: a thread keeps the
// best so far of its four boxes in registers, while its thread block iterates over tiles of
// ground truth boxes in shared memory. Without low-quality matches it applies the thresholds at
// once, and that is all.
//
// With low-quality matches it also finds the best IoU of each ground truth, as an atomic maximum of
// integers that order like the IoUs, so that the result does not depend on the schedule.
// low_quality_kernel then compares boxes and ground truth once more: a box whose IoU with a
// ground truth is that ground truth's best keeps its match, whatever the IoU; the thresholds apply
// to all others. No G x P matrix: memory is O(G + P). The host waits for nothing.
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../cuda/launch.cuh"
#include "match_boxes.h"

namespace rcnn_ext {
namespace {

// Threads per block, boxes per thread and ground truths in shared memory; untuned.
constexpr int kMatchThreads = 256;
constexpr int kBoxesPerThread = 4;
constexpr int kBoxesPerThreadBlock = kMatchThreads * kBoxesPerThread;
constexpr int kGtsPerTile = 128;
// 64 images of 40 bytes take 2560 of the 4096 bytes that kernel arguments may take.
constexpr int kImagesPerLaunch = 64;

// The images of one launch, passed as a kernel argument: no copy to the device precedes the launch.
struct MatchImages {
  MatchImage images[kImagesPerLaunch];
};

// Unsigned integers that order like the IoUs: NaN is above all others, and 0 below -infinity.
template <class Iou>
struct OrderedBitsOf;
template <>
struct OrderedBitsOf<float> {
  using type = unsigned;
};
template <>
struct OrderedBitsOf<double> {
  using type = unsigned long long;
};
template <class Iou>
using OrderedBits = typename OrderedBitsOf<Iou>::type;

template <class Iou>
constexpr OrderedBits<Iou> kSignBit = OrderedBits<Iou>(1) << (8 * sizeof(Iou) - 1);

template <class Iou>
__device__ __forceinline__ OrderedBits<Iou> to_ordered_bits(Iou iou) {
  if (iou != iou) return ~OrderedBits<Iou>(0);
  OrderedBits<Iou> bits;
  memcpy(&bits, &iou, sizeof(bits));
  return bits & kSignBit<Iou> ? ~bits : bits | kSignBit<Iou>;
}

template <class Iou>
__device__ __forceinline__ Iou from_ordered_bits(OrderedBits<Iou> ordered) {
  const OrderedBits<Iou> bits = ordered & kSignBit<Iou> ? ordered ^ kSignBit<Iou> : ~ordered;
  Iou iou;
  memcpy(&iou, &bits, sizeof(iou));
  return iou;
}

// The best IoU of each box and the index of the ground truth that has it. With kLowQuality, matches
// are written before thresholds, and gt_best [G], zeros at first, gets the best IoU of each ground
// truth. gt_boxes: [G, 4], boxes: [P, 4], matches and best: [R]
template <bool kLowQuality, class Stored>
__global__ void __launch_bounds__(kMatchThreads)
    match_kernel(const Stored* gt_boxes, const Stored* boxes, MatchImages batch,
                 MatchThresholds<iou_t<Stored>> thresholds, OrderedBits<iou_t<Stored>>* gt_best,
                 int64_t* matches, iou_t<Stored>* best) {
  using T = accumulate_t<Stored>;
  using Iou = iou_t<Stored>;
  __shared__ __align__(16) Box<T> tile_boxes[kGtsPerTile];
  __shared__ T tile_areas[kGtsPerTile];
  __shared__ OrderedBits<Iou> tile_best[kGtsPerTile];
  const MatchImage image = batch.images[blockIdx.y];

  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kBoxesPerThreadBlock;
       first < image.box_count; first += static_cast<int64_t>(gridDim.x) * kBoxesPerThreadBlock) {
    Box<T> box[kBoxesPerThread];
    T box_area[kBoxesPerThread];
    Iou best_iou[kBoxesPerThread];
    int index[kBoxesPerThread];
#pragma unroll
    for (int n = 0; n < kBoxesPerThread; ++n) {
      // A thread past the end repeats the last box, which changes no maximum.
      const int64_t i = min(first + n * kMatchThreads + threadIdx.x, image.box_count - 1);
      box[n] = load_box<T>(boxes + 4 * (image.first_box + i));
      box_area[n] = area(box[n]);
      best_iou[n] = -static_cast<Iou>(INFINITY);
      index[n] = 0;
    }
    for (int64_t tile = 0; tile < image.gt_count; tile += kGtsPerTile) {
      const int count =
          static_cast<int>(min(static_cast<int64_t>(kGtsPerTile), image.gt_count - tile));
      for (int g = threadIdx.x; g < count; g += kMatchThreads) {
        tile_boxes[g] = load_box<T>(gt_boxes + 4 * (image.first_gt + tile + g));
        tile_areas[g] = area(tile_boxes[g]);
        // A lower bound from other thread blocks, possibly outdated: any value is correct.
        if (kLowQuality) tile_best[g] = gt_best[image.first_gt + tile + g];
      }
      __syncthreads();
      for (int g = 0; g < count; ++g) {
        const Box<T> gt = tile_boxes[g];
        const T gt_area = tile_areas[g];
        Iou thread_best = -static_cast<Iou>(INFINITY);
#pragma unroll
        for (int n = 0; n < kBoxesPerThread; ++n) {
          const Iou iou = static_cast<Iou>(iou_with_areas(gt, gt_area, box[n], box_area[n]));
          if (is_better(iou, best_iou[n])) {
            best_iou[n] = iou;
            index[n] = static_cast<int>(tile) + g;
          }
          if (kLowQuality && is_better(iou, thread_best)) thread_best = iou;
        }
        if (kLowQuality) {
          // The compiler takes the maximum of a warp first. A look at the present value, to save
          // the atomic, would be a read beside others' atomics.
          atomicMax(&tile_best[g], to_ordered_bits(thread_best));
        }
      }
      __syncthreads();
      if (kLowQuality) {
        // The thread that publishes an entry also overwrites it for the next tile, so no barrier is
        // needed in between.
        for (int g = threadIdx.x; g < count; g += kMatchThreads) {
          atomicMax(gt_best + image.first_gt + tile + g, tile_best[g]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kBoxesPerThread; ++n) {
      const int64_t i = first + n * kMatchThreads + threadIdx.x;
      if (i < image.box_count) {
        const bool has_gt = image.gt_count > 0;
        const int64_t match = kLowQuality ? index[n] : thresholds(best_iou[n], index[n]);
        matches[image.first_result + i] = has_gt ? match : kBelowLowThreshold;
        best[image.first_result + i] = has_gt ? best_iou[n] : Iou(0);
      }
    }
  }
}

// Applies the thresholds to all boxes but the low-quality matches, those whose IoU with some ground
// truth is its best. gt_boxes: [G, 4], boxes: [P, 4], gt_best: [G], matches and best: [R]
template <class Stored>
__global__ void __launch_bounds__(kMatchThreads)
    low_quality_kernel(const Stored* gt_boxes, const Stored* boxes, MatchImages batch,
                       MatchThresholds<iou_t<Stored>> thresholds,
                       const OrderedBits<iou_t<Stored>>* gt_best, const iou_t<Stored>* best,
                       int64_t* matches) {
  using T = accumulate_t<Stored>;
  using Iou = iou_t<Stored>;
  __shared__ __align__(16) Box<T> tile_boxes[kGtsPerTile];
  __shared__ T tile_areas[kGtsPerTile];
  __shared__ Iou tile_best[kGtsPerTile];
  const MatchImage image = batch.images[blockIdx.y];
  if (image.gt_count == 0) return;

  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kBoxesPerThreadBlock;
       first < image.box_count; first += static_cast<int64_t>(gridDim.x) * kBoxesPerThreadBlock) {
    Box<T> box[kBoxesPerThread];
    Iou best_iou[kBoxesPerThread];
    bool is_low_quality[kBoxesPerThread];
#pragma unroll
    for (int n = 0; n < kBoxesPerThread; ++n) {
      const int64_t i = min(first + n * kMatchThreads + threadIdx.x, image.box_count - 1);
      box[n] = load_box<T>(boxes + 4 * (image.first_box + i));
      best_iou[n] = best[image.first_result + i];
      is_low_quality[n] = false;
    }
    for (int64_t tile = 0; tile < image.gt_count; tile += kGtsPerTile) {
      const int count =
          static_cast<int>(min(static_cast<int64_t>(kGtsPerTile), image.gt_count - tile));
      for (int g = threadIdx.x; g < count; g += kMatchThreads) {
        tile_boxes[g] = load_box<T>(gt_boxes + 4 * (image.first_gt + tile + g));
        tile_areas[g] = area(tile_boxes[g]);
        tile_best[g] = from_ordered_bits<Iou>(gt_best[image.first_gt + tile + g]);
      }
      __syncthreads();
      for (int g = 0; g < count; ++g) {
        const Iou gt_best_iou = tile_best[g];
#pragma unroll
        for (int n = 0; n < kBoxesPerThread; ++n) {
          // A box whose best IoU is below the ground truth's best cannot equal it: most divisions
          // are skipped.
          if (best_iou[n] < gt_best_iou) continue;
          const Iou iou =
              static_cast<Iou>(iou_with_areas(tile_boxes[g], tile_areas[g], box[n], area(box[n])));
          is_low_quality[n] = is_low_quality[n] || iou == gt_best_iou;
        }
      }
      __syncthreads();  // the next tile overwrites this one
    }
#pragma unroll
    for (int n = 0; n < kBoxesPerThread; ++n) {
      const int64_t i = first + n * kMatchThreads + threadIdx.x;
      if (i < image.box_count && !is_low_quality[n]) {
        int64_t& match = matches[image.first_result + i];
        match = thresholds(best_iou[n], match);
      }
    }
  }
}

// gt_boxes: [G, 4], boxes: [P, 4] -> matches and best IoUs, [R] both
std::tuple<Tensor, Tensor> match_boxes_cuda(const Tensor& gt_boxes, std::vector<int64_t> gt_counts,
                                            const Tensor& boxes, std::vector<int64_t> box_counts,
                                            double high_threshold, double low_threshold,
                                            bool allow_low_quality_matches) {
  const std::vector<MatchImage> images =
      check_match_boxes(gt_boxes, gt_counts, boxes, box_counts, high_threshold, low_threshold);
  const CudaScope scope(boxes);
  const ScalarType dtype = boxes.scalar_type();
  const int64_t count = result_count(images);
  Tensor matches = empty_on_device_of(boxes, {count}, ScalarType::Long);
  Tensor best = empty_on_device_of(boxes, {count}, iou_dtype(dtype));
  if (count == 0) return {matches, best};
  const Tensor dense_gts = contiguous_as(gt_boxes, dtype);
  const Tensor dense_boxes = contiguous_as(boxes, dtype);
  Tensor gt_best =
      empty_on_device_of(boxes, {allow_low_quality_matches ? gt_boxes.size(0) : 0},
                         dtype == ScalarType::Double ? ScalarType::Long : ScalarType::Int);
  torch::stable::zero_(gt_best);

  dispatch_floating_and_int64(dtype, "match_boxes", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using Iou = iou_t<Stored>;
    const auto* gt_data = dense_gts.const_data_ptr<Stored>();
    const auto* box_data = dense_boxes.const_data_ptr<Stored>();
    auto* match_data = matches.mutable_data_ptr<int64_t>();
    auto* best_data = best.mutable_data_ptr<Iou>();
    // Untyped, since the bits are unsigned and the dtype is signed.
    auto* gt_best_data = static_cast<OrderedBits<Iou>*>(gt_best.mutable_data_ptr());
    const MatchThresholds<Iou> thresholds{static_cast<Iou>(high_threshold),
                                          static_cast<Iou>(low_threshold)};
    for (size_t begin = 0; begin < images.size(); begin += kImagesPerLaunch) {
      const size_t end = std::min(images.size(), begin + kImagesPerLaunch);
      MatchImages batch{};
      int64_t max_boxes = 0;
      for (size_t i = begin; i < end; ++i) {
        batch.images[i - begin] = images[i];
        max_boxes = std::max(max_boxes, images[i].box_count);
      }
      if (max_boxes == 0) continue;
      const LaunchShape shape{
          dim3(stride_grid(max_boxes, kBoxesPerThreadBlock), static_cast<unsigned>(end - begin)),
          dim3(kMatchThreads)};
      if (allow_low_quality_matches) {
        launch("match_boxes", match_kernel<true, Stored>, shape, scope, gt_data, box_data, batch,
               thresholds, gt_best_data, match_data, best_data);
        launch("match_boxes: low_quality", low_quality_kernel<Stored>, shape, scope, gt_data,
               box_data, batch, thresholds, static_cast<const OrderedBits<Iou>*>(gt_best_data),
               static_cast<const Iou*>(best_data), match_data);
      } else {
        launch("match_boxes", match_kernel<false, Stored>, shape, scope, gt_data, box_data, batch,
               thresholds, gt_best_data, match_data, best_data);
      }
    }
  });
  return {matches, best};
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) {
  RCNN_REGISTER(m, "match_boxes", match_boxes_cuda, gt_boxes, gt_counts, boxes);
}
