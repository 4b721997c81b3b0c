// The strides of a dense map in either layout.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace rcnn_ext {

// The strides of a map [N, C, H, W] or [K, C, PH, PW] from channel to channel and from pixel to
// pixel, in elements.
struct MapStrides {
  int64_t channel, pixel;
  RCNN_HOST_DEVICE static MapStrides of(bool channels_last, int64_t channels, int64_t pixels) {
    return channels_last ? MapStrides{1, channels} : MapStrides{pixels, 1};
  }
};

}  // namespace rcnn_ext
