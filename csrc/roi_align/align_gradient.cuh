// The derivative of RoIAlign on CUDA.
#pragma once

#include "../common/roi_gather.cuh"
#include "align_cuda.cuh"

namespace rcnn_ext {

// The Pooling of roi_gather.cuh.
template <class Stored>
struct AlignGradient {
  using T = accumulate_t<Stored>;
  using Roi = AlignRoi<T>;
  const Stored* grad;  // [K, C, PH, PW]
  const T* rois;       // [K, 5]
  AlignOptions options;
  FeatureShape shape;

  RCNN_HOST_DEVICE Roi roi(int64_t k) const {
    return make_align_roi(rois + 5 * k, options, options.spatial_scale, shape);
  }
  RCNN_HOST_DEVICE static bool spans(const AlignAxis<T>& axis, int64_t bins, int64_t first,
                                     int64_t last) {
    const T end = axis.start + T(bins) * axis.bin_size;
    // A sample reaches less than a pixel, and rounding moves it by less than another.
    const T slack = T(2) + (std::fabs(axis.start) + std::fabs(end)) * T(1e-5);
    return (axis.start < end ? axis.start : end) - slack <= T(last) &&
           (axis.start < end ? end : axis.start) + slack >= T(first);
  }
  RCNN_HOST_DEVICE bool touches(const Roi& roi, int64_t image, const Tile& tile) const {
    return roi.batch == image && spans(roi.y, options.pooled_height, tile.y, tile.y_end) &&
           spans(roi.x, options.pooled_width, tile.x, tile.x_end);
  }
  RCNN_HOST_DEVICE T y_weight(const Roi& roi, int64_t bin, int64_t y) const {
    return align_weight(roi.y, bin, y) / roi.count;
  }
  RCNN_HOST_DEVICE T x_weight(const Roi& roi, int64_t bin, int64_t x) const {
    return align_weight(roi.x, bin, x);
  }
  RCNN_HOST_DEVICE T gradient(const Roi&, int64_t element, int64_t, T y_weight, T x_weight) const {
    return y_weight * x_weight * static_cast<T>(grad[element]);
  }
};

}  // namespace rcnn_ext
