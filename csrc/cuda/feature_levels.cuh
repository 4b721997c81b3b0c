// The feature maps of a pyramid, or the only one, in the parameters of a kernel.
#pragma once

#include "../core/checks.h"
#include "../core/host_device.h"
#include "../core/roi_math.h"

namespace rcnn_ext {

template <class Element, int kLevels>
struct FeatureLevels {
  Element* data[kLevels];  // [N, C, H, W], all in one layout
  int64_t heights[kLevels], widths[kLevels];
  double spatial_scales[kLevels];
  int64_t batch_size, channels;
  PyramidRule rule;

  // The index of a level in the arrays, a constant where there is one level: an index known only at
  // run time would put the arrays into local memory.
  RCNN_HOST_DEVICE static int slot(int level) { return kLevels == 1 ? 0 : level; }
  RCNN_HOST_DEVICE Element* map(int level) const { return data[slot(level)]; }
  RCNN_HOST_DEVICE double spatial_scale(int level) const { return spatial_scales[slot(level)]; }
  RCNN_HOST_DEVICE FeatureShape shape(int level) const {
    return {batch_size, channels, heights[slot(level)], widths[slot(level)]};
  }
  // roi: [5] (batch index, x1, y1, x2, y2), image pixels
  template <class T>
  RCNN_HOST_DEVICE int level_of(const T* roi) const {
    return kLevels == 1 ? 0 : static_cast<int>(pyramid_level(roi, rule));
  }
};

// The only map of an operator without a pyramid. shape: not without elements
template <class Element>
FeatureLevels<Element, 1> one_level(Element* data, const FeatureShape& shape,
                                    double spatial_scale) {
  return {{data}, {shape.height}, {shape.width}, {spatial_scale}, shape.batch_size, shape.channels,
          {}};
}

}  // namespace rcnn_ext
