// From a score to an integer that sorts as the score does, on CPU and CUDA alike: both rank boxes
// by these keys, so that they take them in one order.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace rcnn_ext {

// Unsigned keys that ascend as the numbers descend. As in torch.sort, -0 and 0 have one key, and
// all NaNs have one, which comes first.
RCNN_HOST_DEVICE uint32_t descending_key(float number) {
  if (number != number) return 0;
  uint32_t bits;
  const float positive_zero = number + 0.0f;
  memcpy(&bits, &positive_zero, sizeof(bits));
  return bits >> 31 ? bits : ~(bits | 0x80000000u);
}
RCNN_HOST_DEVICE uint64_t descending_key(double number) {
  if (number != number) return 0;
  uint64_t bits;
  const double positive_zero = number + 0.0;
  memcpy(&bits, &positive_zero, sizeof(bits));
  return bits >> 63 ? bits : ~(bits | uint64_t{1} << 63);
}
RCNN_HOST_DEVICE uint64_t descending_key(int64_t number) {
  return ~(static_cast<uint64_t>(number) ^ uint64_t{1} << 63);
}

}  // namespace rcnn_ext
