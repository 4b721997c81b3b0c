// RoIAlign on the CPU over one or more feature maps: what roi_align and multiscale_roi_align share.
#pragma once

#include <cstdint>
#include <vector>

#include "../core/stable_ops.h"
#include "roi_align.h"

namespace rcnn_ext {

// What to pool, checked by the caller except for batch indices.
struct RoiAlignRequest {
  const char* op;
  Tensor rois;                         // [K, 5]
  std::vector<int32_t> level_of;       // [K]; empty where there is one level
  std::vector<double> spatial_scales;  // of each level
  RoiAlignOptions options;             // but for its spatial_scale
};

// levels: [N, C, H, W] each -> [K, C, PH, PW] in the layout of the first
Tensor roi_align_levels(const std::vector<Tensor>& levels, const RoiAlignRequest& request);

// grad: [K, C, PH, PW] -> the gradient of every level, [N, C, H, W]
std::vector<Tensor> roi_align_backward_levels(const Tensor& grad,
                                              const std::vector<FeatureShape>& shapes,
                                              const RoiAlignRequest& request, bool channels_last);

}  // namespace rcnn_ext
