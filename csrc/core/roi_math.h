// Geometry of regions of interest: where RoIAlign samples, with which weights, and which pixels a
// RoIPool bin covers. Used by CPU and CUDA, forward and backward. Coordinates are feature pixels
// unless a name says image.
//
// RoIAlign is separable: the weight of pixel (y, x) in bin (ph, pw) is the product of a weight in y
// and a weight in x, each the sum over the samples of the bin along that axis.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace rcnn_ext {

// One axis (y or x) of a RoI that RoIAlign divides into bins.
template <class T>
struct RoiAlignAxis {
  T start;         // of the RoI, feature pixels
  T bin_size;      // feature pixels
  T samples;       // along this axis in each bin; a whole number, kept as T since it may be huge
  int64_t extent;  // pixels of the feature map along this axis
};

// `image_start` and `image_end` are image pixels. He et al., "Mask R-CNN", ICCV 2017; `aligned`
// shifts by half a pixel, as in detectron2 and torchvision.
template <class T>
RCNN_HOST_DEVICE RoiAlignAxis<T> make_roi_align_axis(T image_start, T image_end, T spatial_scale,
                                                     int64_t bins, int64_t sampling_ratio,
                                                     bool aligned, int64_t extent) {
  const T offset = aligned ? T(0.5) : T(0);
  const T start = image_start * spatial_scale - offset;
  T length = (image_end * spatial_scale - offset) - start;
  if (!aligned) length = length < T(1) ? T(1) : length;  // torchvision's minimum; NaN stays NaN
  RoiAlignAxis<T> axis;
  axis.start = start;
  axis.bin_size = length / T(bins);
  axis.samples = sampling_ratio > 0 ? T(sampling_ratio) : T(std::ceil(length / T(bins)));
  axis.extent = extent;
  return axis;
}

// Number of samples a bin is averaged over: max(y samples * x samples, 1).
template <class T>
RCNN_HOST_DEVICE T roi_align_sample_count(const RoiAlignAxis<T>& y, const RoiAlignAxis<T>& x) {
  const T count = y.samples * x.samples;
  return count > T(1) ? count : T(1);
}

template <class T>
RCNN_HOST_DEVICE T sample_position(const RoiAlignAxis<T>& axis, int64_t bin, int64_t sample) {
  return axis.start + T(bin) * axis.bin_size + (T(sample) + T(0.5)) * axis.bin_size / axis.samples;
}

// The two pixels that a sample reads along one axis; weight_low + weight_high is 1, or 0 where the
// sample lies more than a pixel outside the feature map (or is NaN).
template <class T>
struct AxisSample {
  int64_t low, high;
  T weight_low, weight_high;
};

template <class T>
RCNN_HOST_DEVICE AxisSample<T> interpolate(T position, int64_t extent) {
  if (!(position >= T(-1) && position <= T(extent))) return {0, 0, T(0), T(0)};
  if (position < T(0)) position = T(0);
  const int64_t low = static_cast<int64_t>(position);
  if (low >= extent - 1) return {extent - 1, extent - 1, T(1), T(0)};
  const T high_weight = position - T(low);
  return {low, low + 1, T(1) - high_weight, high_weight};
}

// The samples of a bin: a half-open range.
struct SampleRange {
  int64_t first, last;
};

// The samples of `bin` whose position may lie in [lowest, highest]. A bin of a degenerate RoI can
// hold a number of samples beyond any counter while all but a few miss the feature map; loops run
// over this range instead. It may be a sample or two too wide, so the caller still tests each.
template <class T>
RCNN_HOST_DEVICE SampleRange samples_within(const RoiAlignAxis<T>& axis, int64_t bin, T lowest,
                                            T highest) {
  // A map without pixels, NaN geometry and inverted adaptive RoIs have no samples.
  if (axis.extent == 0 || !(axis.samples >= T(1)) || !(axis.bin_size - axis.bin_size == T(0)))
    return {0, 0};
  const T bin_start = axis.start + T(bin) * axis.bin_size;
  T first = T(0);
  T last = axis.samples;
  const T spacing = axis.bin_size / axis.samples;
  if (spacing != T(0)) {
    const T a = (lowest - bin_start) / spacing;
    const T b = (highest - bin_start) / spacing;
    if (a - a != T(0) || b - b != T(0)) return {0, 0};  // the map is beyond any sample
    // Rounding of the position shifts it by some units in the last place of the largest term.
    constexpr T kRelativeRounding = sizeof(T) == 4 ? T(1e-6) : T(1e-15);
    const T slack = T(2) + std::fabs(a) * kRelativeRounding + std::fabs(b) * kRelativeRounding;
    const T from = std::floor((a < b ? a : b) - slack);
    const T to = std::ceil((a < b ? b : a) + slack);
    if (from > first) first = from;
    if (to < last) last = to;
  }
  // Sample indices this large have no fraction left in T, and the slack above would turn them into
  // a range of millions of samples. 2^24 and 2^40, as in the reference.
  constexpr T kMaxSampleIndex = sizeof(T) == 4 ? T(16777216.0) : T(1099511627776.0);
  if (!(first < last) || !(first < kMaxSampleIndex)) return {0, 0};
  if (!(last < kMaxSampleIndex)) last = kMaxSampleIndex;
  return {static_cast<int64_t>(first), static_cast<int64_t>(last)};
}

// Assigns RoIs to the levels of a pyramid by their size. Levels are numbered by log2 of their
// stride.
struct PyramidRule {
  int64_t finest, coarsest;  // level
  double canonical_scale;    // side of a RoI, image pixels
  int64_t canonical_level;   // that such a RoI is pooled from
  int64_t levels;            // feature maps
};

// The index of a RoI's level among the feature maps, finest first. Lin et al., "Feature Pyramid
// Networks", CVPR 2017, equation 1; in torchvision's order of operations, with its epsilon of 1e-6,
// without which a RoI of exactly the canonical side might round down a level. NaN goes to the
// finest.
// roi: [5] (batch index, x1, y1, x2, y2), image pixels
template <class T>
RCNN_HOST_DEVICE int64_t pyramid_level(const T* roi, const PyramidRule& rule) {
  const T side = std::sqrt((roi[3] - roi[1]) * (roi[4] - roi[2]));
  const T level =
      std::floor(T(rule.canonical_level) + std::log2(side / T(rule.canonical_scale)) + T(1e-6));
  if (!(level > T(rule.finest))) return 0;
  const int64_t index =
      (level < T(rule.coarsest) ? static_cast<int64_t>(level) : rule.coarsest) - rule.finest;
  return index < rule.levels ? index : rule.levels - 1;
}

// One axis of a RoI that RoIPool divides into bins. Girshick, "Fast R-CNN", ICCV 2015.
template <class T>
struct PoolAxis {
  int64_t start;   // rounded, feature pixels
  T bin_size;      // feature pixels
  int64_t extent;  // pixels of the feature map along this axis
  bool valid;      // false where the RoI is NaN, infinite or beyond any feature map
};

template <class T>
RCNN_HOST_DEVICE PoolAxis<T> make_pool_axis(T image_start, T image_end, T spatial_scale,
                                            int64_t bins, int64_t extent) {
  const T start = std::round(image_start * spatial_scale);
  const T end = std::round(image_end * spatial_scale);
  constexpr T kMaxPosition = T(1073741824.0);  // 2^30: sums of two still fit 32 bits
  PoolAxis<T> axis{0, T(1), extent, false};
  if (!(start > -kMaxPosition && start < kMaxPosition && end > -kMaxPosition && end < kMaxPosition))
    return axis;
  axis.start = static_cast<int64_t>(start);
  const int64_t length = static_cast<int64_t>(end) - axis.start + 1;
  axis.bin_size = T(length > 1 ? length : 1) / T(bins);
  axis.valid = true;
  return axis;
}

// The pixels of a RoIPool bin along one axis: a half-open range, clipped to the feature map.
struct PixelRange {
  int64_t first, last;
};

template <class T>
RCNN_HOST_DEVICE PixelRange pool_bin(const PoolAxis<T>& axis, int64_t bin) {
  if (!axis.valid) return {0, 0};
  int64_t first = static_cast<int64_t>(std::floor(T(bin) * axis.bin_size)) + axis.start;
  int64_t last = static_cast<int64_t>(std::ceil(T(bin + 1) * axis.bin_size)) + axis.start;
  first = first < 0 ? 0 : first > axis.extent ? axis.extent : first;
  last = last < 0 ? 0 : last > axis.extent ? axis.extent : last;
  return {first, last};
}

// The batch index of a RoI, or -1 where it is NaN or outside [0, batch_size).
template <class T>
RCNN_HOST_DEVICE int64_t roi_batch_index(T stored, int64_t batch_size) {
  if (!(stored >= T(0) && stored < T(batch_size))) return -1;
  return static_cast<int64_t>(stored);
}

}  // namespace rcnn_ext
