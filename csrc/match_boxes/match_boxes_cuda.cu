// Matching of boxes to ground truth on CUDA. Contract: rcnn_ext/ops/match_boxes.py.
//
// A thread keeps the best ground truth of its boxes while the block goes through tiles of ground
// truth in shared memory. For low-quality matches the best IoU of each ground truth is a maximum of
// ordered bits, which comes out the same in any order; a second kernel then finds the boxes that
// have it. No N x M matrix and no synchronisation with the host.
#include "../core/stable_ops.h"
#include "../cuda/launch.cuh"
#include "match_boxes.h"

namespace rcnn_ext {
namespace {

constexpr int kThreads = 256;
constexpr int kBoxesPerThread = 4;
constexpr int kBoxesPerBlock = kThreads * kBoxesPerThread;
constexpr int kTile = 128;  // ground truth boxes
constexpr int kImagesPerLaunch = 64;

// As a kernel's argument, so that nothing is copied to the device before.
struct MatchImages {
  MatchImage images[kImagesPerLaunch];
};

// Unsigned numbers in the order of the IoUs: NaN above all, and 0 below -infinity.
template <class Iou>
struct PeakBits;
template <>
struct PeakBits<float> {
  using type = unsigned;
};
template <>
struct PeakBits<double> {
  using type = unsigned long long;
};
template <class Iou>
using Bits = typename PeakBits<Iou>::type;

template <class Iou>
constexpr Bits<Iou> kSignBit = Bits<Iou>(1) << (8 * sizeof(Iou) - 1);

template <class Iou>
__device__ __forceinline__ Bits<Iou> to_ordered_bits(Iou iou) {
  if (iou != iou) return ~Bits<Iou>(0);
  Bits<Iou> bits;
  memcpy(&bits, &iou, sizeof(bits));
  return bits & kSignBit<Iou> ? ~bits : bits | kSignBit<Iou>;
}

template <class Iou>
__device__ __forceinline__ Iou from_ordered_bits(Bits<Iou> ordered) {
  const Bits<Iou> bits = ordered & kSignBit<Iou> ? ordered ^ kSignBit<Iou> : ~ordered;
  Iou iou;
  memcpy(&iou, &bits, sizeof(iou));
  return iou;
}

// Finds the best ground truth of each box. With kLowQuality matches are left without thresholds,
// and peaks [G], 0 at first, take the best IoUs of the ground truth. gt_boxes: [G, 4], boxes: [P,
// 4], matches and best: [R]
template <bool kLowQuality, class Stored>
__global__ void __launch_bounds__(kThreads)
    match_kernel(const Stored* gt_boxes, const Stored* boxes, MatchImages batch,
                 MatchThresholds<MatchIou_t<Stored>> thresholds, Bits<MatchIou_t<Stored>>* peaks,
                 int64_t* matches, MatchIou_t<Stored>* best) {
  using T = accumulate_t<Stored>;
  using Iou = MatchIou_t<Stored>;
  __shared__ __align__(16) Box<T> tile_boxes[kTile];
  __shared__ T tile_areas[kTile];
  __shared__ Bits<Iou> tile_peaks[kTile];
  const MatchImage image = batch.images[blockIdx.y];

  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kBoxesPerBlock; first < image.box_count;
       first += static_cast<int64_t>(gridDim.x) * kBoxesPerBlock) {
    Box<T> box[kBoxesPerThread];
    T box_area[kBoxesPerThread];
    Iou best_iou[kBoxesPerThread];
    int index[kBoxesPerThread];
#pragma unroll
    for (int n = 0; n < kBoxesPerThread; ++n) {
      // Past the end the last box again: that changes no maximum.
      const int64_t i = min(first + n * kThreads + threadIdx.x, image.box_count - 1);
      box[n] = load_box<T>(boxes + 4 * (image.first_box + i));
      box_area[n] = area(box[n]);
      best_iou[n] = -static_cast<Iou>(INFINITY);
      index[n] = 0;
    }
    for (int64_t tile = 0; tile < image.gt_count; tile += kTile) {
      const int count = static_cast<int>(min(static_cast<int64_t>(kTile), image.gt_count - tile));
      for (int g = threadIdx.x; g < count; g += kThreads) {
        tile_boxes[g] = load_box<T>(gt_boxes + 4 * (image.first_gt + tile + g));
        tile_areas[g] = area(tile_boxes[g]);
        // What other blocks have found so far: whatever it is, less to do.
        if (kLowQuality) tile_peaks[g] = peaks[image.first_gt + tile + g];
      }
      __syncthreads();
      for (int g = 0; g < count; ++g) {
        const Box<T> gt = tile_boxes[g];
        const T gt_area = tile_areas[g];
        Iou peak = -static_cast<Iou>(INFINITY);
#pragma unroll
        for (int n = 0; n < kBoxesPerThread; ++n) {
          const Iou iou = static_cast<Iou>(iou_with_areas(gt, gt_area, box[n], box_area[n]));
          if (beats(iou, best_iou[n])) {
            best_iou[n] = iou;
            index[n] = static_cast<int>(tile) + g;
          }
          if (kLowQuality && beats(iou, peak)) peak = iou;
        }
        if (kLowQuality) {
          const Bits<Iou> bits = to_ordered_bits(peak);
          if (bits > tile_peaks[g]) atomicMax(&tile_peaks[g], bits);
        }
      }
      __syncthreads();
      if (kLowQuality) {
        // Each by the thread that loads its successor: no barrier before the next tile.
        for (int g = threadIdx.x; g < count; g += kThreads) {
          atomicMax(peaks + image.first_gt + tile + g, tile_peaks[g]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kBoxesPerThread; ++n) {
      const int64_t i = first + n * kThreads + threadIdx.x;
      if (i < image.box_count) {
        const bool any = image.gt_count > 0;
        const int64_t match = kLowQuality ? index[n] : thresholds(best_iou[n], index[n]);
        matches[image.first_result + i] = any ? match : kBelowLowThreshold;
        best[image.first_result + i] = any ? best_iou[n] : Iou(0);
      }
    }
  }
}

// Applies the thresholds to the boxes that no ground truth overlaps best.
template <class Stored>
__global__ void __launch_bounds__(kThreads)
    claim_kernel(const Stored* gt_boxes, const Stored* boxes, MatchImages batch,
                 MatchThresholds<MatchIou_t<Stored>> thresholds,
                 const Bits<MatchIou_t<Stored>>* peaks, const MatchIou_t<Stored>* best,
                 int64_t* matches) {
  using T = accumulate_t<Stored>;
  using Iou = MatchIou_t<Stored>;
  __shared__ __align__(16) Box<T> tile_boxes[kTile];
  __shared__ T tile_areas[kTile];
  __shared__ Iou tile_peaks[kTile];
  const MatchImage image = batch.images[blockIdx.y];
  if (image.gt_count == 0) return;

  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kBoxesPerBlock; first < image.box_count;
       first += static_cast<int64_t>(gridDim.x) * kBoxesPerBlock) {
    Box<T> box[kBoxesPerThread];
    Iou best_iou[kBoxesPerThread];
    bool claimed[kBoxesPerThread];
#pragma unroll
    for (int n = 0; n < kBoxesPerThread; ++n) {
      const int64_t i = min(first + n * kThreads + threadIdx.x, image.box_count - 1);
      box[n] = load_box<T>(boxes + 4 * (image.first_box + i));
      best_iou[n] = best[image.first_result + i];
      claimed[n] = false;
    }
    for (int64_t tile = 0; tile < image.gt_count; tile += kTile) {
      const int count = static_cast<int>(min(static_cast<int64_t>(kTile), image.gt_count - tile));
      for (int g = threadIdx.x; g < count; g += kThreads) {
        tile_boxes[g] = load_box<T>(gt_boxes + 4 * (image.first_gt + tile + g));
        tile_areas[g] = area(tile_boxes[g]);
        tile_peaks[g] = from_ordered_bits<Iou>(peaks[image.first_gt + tile + g]);
      }
      __syncthreads();
      for (int g = 0; g < count; ++g) {
        const Iou peak = tile_peaks[g];
#pragma unroll
        for (int n = 0; n < kBoxesPerThread; ++n) {
          // A box whose best IoU is lower has no such IoU: that spares most divisions.
          if (best_iou[n] < peak) continue;
          const Iou iou =
              static_cast<Iou>(iou_with_areas(tile_boxes[g], tile_areas[g], box[n], area(box[n])));
          claimed[n] = claimed[n] || iou == peak;
        }
      }
      __syncthreads();  // the next tile overwrites this one
    }
#pragma unroll
    for (int n = 0; n < kBoxesPerThread; ++n) {
      const int64_t i = first + n * kThreads + threadIdx.x;
      if (i < image.box_count && !claimed[n]) {
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
  Tensor best = empty_on_device_of(boxes, {count}, accumulate_dtype(dtype));
  if (count == 0) return {matches, best};
  const Tensor dense_gts = contiguous_as(gt_boxes, dtype);
  const Tensor dense_boxes = contiguous_as(boxes, dtype);
  const bool wide = dtype == ScalarType::Double;
  Tensor peaks = empty_on_device_of(boxes, {allow_low_quality_matches ? gt_boxes.size(0) : 0},
                                    wide ? ScalarType::Long : ScalarType::Int);
  torch::stable::zero_(peaks);

  dispatch_floating_and_int64(dtype, "match_boxes", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using Iou = MatchIou_t<Stored>;
    const auto* gt_data = dense_gts.const_data_ptr<Stored>();
    const auto* box_data = dense_boxes.const_data_ptr<Stored>();
    auto* match_data = matches.mutable_data_ptr<int64_t>();
    auto* best_data = best.mutable_data_ptr<Iou>();
    auto* peak_data = static_cast<Bits<Iou>*>(peaks.mutable_data_ptr());
    const MatchThresholds<Iou> thresholds{static_cast<Iou>(high_threshold),
                                          static_cast<Iou>(low_threshold)};
    for (size_t begin = 0; begin < images.size(); begin += kImagesPerLaunch) {
      const size_t end = std::min(images.size(), begin + kImagesPerLaunch);
      MatchImages batch{};
      int64_t most_boxes = 0;
      for (size_t i = begin; i < end; ++i) {
        batch.images[i - begin] = images[i];
        most_boxes = std::max(most_boxes, images[i].box_count);
      }
      if (most_boxes == 0) continue;
      const LaunchShape shape{
          dim3(stride_grid(most_boxes, kBoxesPerBlock), static_cast<unsigned>(end - begin)),
          dim3(kThreads)};
      if (allow_low_quality_matches) {
        launch("match_boxes", match_kernel<true, Stored>, shape, scope, gt_data, box_data, batch,
               thresholds, peak_data, match_data, best_data);
        launch("match_boxes: claim", claim_kernel<Stored>, shape, scope, gt_data, box_data, batch,
               thresholds, static_cast<const Bits<Iou>*>(peak_data),
               static_cast<const Iou*>(best_data), match_data);
      } else {
        launch("match_boxes", match_kernel<false, Stored>, shape, scope, gt_data, box_data, batch,
               thresholds, peak_data, match_data, best_data);
      }
    }
  });
  return {matches, best};
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) { m.impl("match_boxes", TORCH_BOX(&rcnn_ext::match_boxes_cuda)); }
