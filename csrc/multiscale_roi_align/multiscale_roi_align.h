// The arguments of multiscale_roi_align, checked for CPU and CUDA.
#pragma once

#include <cmath>
#include <vector>

#include "../core/checks.h"
#include "../core/roi_math.h"
#include "../roi_align/roi_align.h"

namespace rcnn_ext {

// A map of 2^31 pixels per side can be halved 31 times, which makes 32 levels.
constexpr int64_t kMaxLevels = 32;

struct PyramidOptions {
  std::vector<double> spatial_scales;
  RoiAlignOptions align;
  double canonical_scale;
  int64_t canonical_level;

  PyramidRule rule() const {
    return {static_cast<int64_t>(-std::log2(spatial_scales.front())),
            static_cast<int64_t>(-std::log2(spatial_scales.back())), canonical_scale,
            canonical_level, static_cast<int64_t>(spatial_scales.size())};
  }
};

inline void check_pyramid(const PyramidOptions& options, size_t levels, const char* op) {
  RCNN_CHECK(levels >= 1 && static_cast<int64_t>(levels) <= kMaxLevels, op, ": expected 1 to ",
             kMaxLevels, " levels, got ", levels);
  RCNN_CHECK(options.spatial_scales.size() == levels, op,
             ": expected a spatial_scale for each of the ", levels, " levels, got ",
             options.spatial_scales.size());
  for (const double scale : options.spatial_scales) check_spatial_scale(scale, op);
  RCNN_CHECK(options.spatial_scales.front() >= options.spatial_scales.back(), op,
             ": expected the finest level first, got spatial_scales from ",
             options.spatial_scales.front(), " to ", options.spatial_scales.back());
  check_pooled_size(options.align.pooled_height, options.align.pooled_width, op);
  check_sampling_ratio(options.align.sampling_ratio, op);
  RCNN_CHECK(
      options.canonical_scale > 0 && options.canonical_scale <= std::numeric_limits<float>::max(),
      op, ": expected a positive, finite canonical_scale, got ", options.canonical_scale);
}

inline void check_multiscale_roi_align(const std::vector<Tensor>& inputs, const Tensor& rois,
                                       const PyramidOptions& options) {
  const char* const op = "multiscale_roi_align";
  check_pyramid(options, inputs.size(), op);
  for (const Tensor& input : inputs) {
    check_roi_arguments(input, rois, op);
    RCNN_CHECK(input.scalar_type() == inputs[0].scalar_type() &&
                   input.size(0) == inputs[0].size(0) && input.size(1) == inputs[0].size(1),
               op, ": expected inputs of one dtype, batch size and depth, got ",
               name_of(inputs[0].scalar_type()), " ", shape_of(inputs[0]), " and ",
               name_of(input.scalar_type()), " ", shape_of(input));
  }
}

// The shapes of the levels, from the arguments of the backward operator.
inline std::vector<FeatureShape> check_multiscale_roi_align_backward(
    const Tensor& grad, const Tensor& rois, int64_t batch_size, int64_t channels,
    const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
    const PyramidOptions& options) {
  const char* const op = "multiscale_roi_align_backward";
  check_pyramid(options, heights.size(), op);
  RCNN_CHECK(heights.size() == widths.size(), op, ": expected as many heights as widths, got ",
             heights.size(), " and ", widths.size());
  std::vector<FeatureShape> shapes;
  for (size_t level = 0; level < heights.size(); ++level) {
    shapes.push_back({batch_size, channels, heights[level], widths[level]});
    check_feature_shape(shapes.back(), op);
  }
  check_pooled_gradient(grad, rois, channels, options.align.pooled_height,
                        options.align.pooled_width, op);
  return shapes;
}

}  // namespace rcnn_ext
