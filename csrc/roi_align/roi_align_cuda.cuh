// Shared by forward and backward of roi_align and multiscale_roi_align on CUDA: where a RoI lies on
// its feature map, and which pixels its samples read with which weights.
#pragma once

#include "../core/dispatch.h"
#include "../core/roi_math.h"
#include "../cuda/feature_levels.cuh"
#include "../cuda/launch.cuh"
#include "roi_align.h"

namespace rcnn_ext {

// A RoI divided into bins.
template <class T>
struct RoiAlignRoi {
  int64_t batch;  // -1: outside the batch
  RoiAlignAxis<T> y, x;
  T count;  // samples a bin is averaged over
};

// roi: [5] (batch index, x1, y1, x2, y2), image pixels
template <class T>
RCNN_HOST_DEVICE RoiAlignRoi<T> make_roi_align_roi(const T* roi, const RoiAlignOptions& options,
                                                   double spatial_scale,
                                                   const FeatureShape& shape) {
  const T scale = static_cast<T>(spatial_scale);
  RoiAlignRoi<T> result;
  result.batch = roi_batch_index(roi[0], shape.batch_size);
  result.y = make_roi_align_axis(roi[2], roi[4], scale, options.pooled_height,
                                 options.sampling_ratio, options.aligned, shape.height);
  result.x = make_roi_align_axis(roi[1], roi[3], scale, options.pooled_width,
                                 options.sampling_ratio, options.aligned, shape.width);
  result.count = roi_align_sample_count(result.y, result.x);
  return result;
}

// Calls visit(pixel, weight) for both pixels of each sample of a bin whose position may lie in
// [lowest, highest], along one axis. A pixel of weight 0 is left out, so that a NaN there does not
// spread.
template <class T, class Visit>
__device__ __forceinline__ void visit_samples(const RoiAlignAxis<T>& axis, int64_t bin, T lowest,
                                              T highest, Visit visit) {
  const SampleRange range = samples_within(axis, bin, lowest, highest);
  for (int64_t sample = range.first; sample < range.last; ++sample) {
    const AxisSample<T> at = interpolate(sample_position(axis, bin, sample), axis.extent);
    if (at.weight_low != T(0)) visit(at.low, at.weight_low);
    if (at.weight_high != T(0)) visit(at.high, at.weight_high);
  }
}

}  // namespace rcnn_ext
