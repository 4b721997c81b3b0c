// The maps of a pyramid as an argument of a kernel.
#pragma once

#include <type_traits>
#include <vector>

#include "../cuda/feature_levels.cuh"
#include "multiscale_roi_align.h"

namespace rcnn_ext {

// maps: [N, C, H, W] each, finest first, all dense in one layout
template <class Element>
FeatureLevels<Element, kMaxLevels> pyramid_levels(const std::vector<Tensor>& maps,
                                                  const PyramidOptions& options) {
  FeatureLevels<Element, kMaxLevels> levels{};
  for (size_t level = 0; level < maps.size(); ++level) {
    if constexpr (std::is_const_v<Element>) {
      levels.data[level] = maps[level].const_data_ptr<std::remove_const_t<Element>>();
    } else {
      levels.data[level] = maps[level].mutable_data_ptr<Element>();
    }
    levels.heights[level] = maps[level].size(2);
    levels.widths[level] = maps[level].size(3);
    levels.spatial_scales[level] = options.spatial_scales[level];
  }
  levels.batch_size = maps[0].size(0);
  levels.channels = maps[0].size(1);
  levels.rule = options.rule();
  return levels;
}

}  // namespace rcnn_ext
