// The derivative of RoIAlign on CUDA: the Pooling of roi_gather.cuh.
#pragma once

#include "../cuda/roi_gather/roi_gather.cuh"
#include "roi_align_cuda.cuh"

namespace rcnn_ext {

template <class StoredType>
struct RoiAlignGradient {
  using Stored = StoredType;
  using T = accumulate_t<Stored>;
  using Roi = RoiAlignRoi<T>;
  static constexpr bool kSeparable = true;
  const Stored* grad;  // [K, C, PH, PW]
  const T* rois;       // [K, 5]
  RoiAlignOptions options;

  __device__ __forceinline__ Roi make_roi(const T* roi, double spatial_scale,
                                          const FeatureShape& shape) const {
    return make_roi_align_roi(roi, options, spatial_scale, shape);
  }
  __device__ __forceinline__ Footprint footprint(const Roi& roi) const {
    Footprint box{0, 0, 0, 0};
    footprint_along(roi.y, options.pooled_height, &box.y, &box.y_end);
    footprint_along(roi.x, options.pooled_width, &box.x, &box.x_end);
    return box;
  }
  template <int kCount>
  bool can_load_vectors(int64_t channels) const {
    return can_vectorize(grad, channels, kCount);
  }
  template <class Visit>
  __device__ __forceinline__ void visit_y(const Roi& roi, int64_t bin, int64_t first, int64_t last,
                                          Visit visit) const {
    visit_samples(roi.y, bin, T(first) - T(1), T(last), visit);
  }
  template <class Visit>
  __device__ __forceinline__ void visit_x(const Roi& roi, int64_t bin, int64_t first, int64_t last,
                                          Visit visit) const {
    visit_samples(roi.x, bin, T(first) - T(1), T(last), visit);
  }
  __device__ __forceinline__ T divisor(const Roi& roi) const { return roi.count; }

 private:
  // Finds the pixels [first, last) that samples along an axis may read; leaves both alone where
  // there are none.
  __device__ __forceinline__ static void footprint_along(const RoiAlignAxis<T>& axis, int64_t bins,
                                                         int* first, int* last) {
    const T end = axis.start + T(bins) * axis.bin_size;
    // A sample reads pixels less than a pixel away, and rounding moves it by less than another.
    const T slack = T(2) + (std::fabs(axis.start) + std::fabs(end)) * T(1e-5);
    const T lowest = (axis.start < end ? axis.start : end) - slack;
    const T highest = (axis.start < end ? end : axis.start) + slack;
    const T extent = static_cast<T>(axis.extent);
    if (!(lowest < extent && highest >= T(0))) return;  // NaN too
    *first = lowest > T(0) ? static_cast<int>(lowest) : 0;
    *last = highest < extent - T(1) ? static_cast<int>(highest) + 1 : static_cast<int>(axis.extent);
  }
};

}  // namespace rcnn_ext
