// Decoding of predicted deltas to boxes: what decides the coordinates of every proposal and
// detection, on CPU and CUDA alike. Contract: rcnn_ext/models/box_coder.py; the order of the
// operations is that of torchvision's BoxCoder, so that the two give the same bits.
#pragma once

#include "box_math.h"
#include "host_device.h"

namespace rcnn_ext {

// The normalization of deltas: a prediction is (delta + shift) / weight, element by element.
template <class T>
struct BoxCoder {
  T weights[4];
  T shifts[4];
  T max_log_ratio;
};

// Deltas without their normalization: the shift of the center in units of the sides, and the
// logarithms of the ratios of the sides.
template <class T>
struct BoxDeltas {
  T dx, dy, log_width, log_height;
};

// torch.clamp(max=limit): NaN stays NaN.
template <class T>
RCNN_HOST_DEVICE T clamp_max(T value, T limit) {
  return value > limit ? limit : value;
}

// The four deltas lie `stride` elements apart.
template <class T, class Stored>
RCNN_HOST_DEVICE BoxDeltas<T> load_deltas(const Stored* deltas, int64_t stride,
                                          const BoxCoder<T>& coder) {
  const auto at = [&](int c) {
    return (static_cast<T>(deltas[c * stride]) + coder.shifts[c]) / coder.weights[c];
  };
  return {at(0), at(1), clamp_max(at(2), coder.max_log_ratio),
          clamp_max(at(3), coder.max_log_ratio)};
}

// `width_ratio` and `height_ratio` are the exponentials of the deltas' logarithms: the caller
// computes them, since a library of vector functions takes many at once.
template <class T>
RCNN_HOST_DEVICE Box<T> decode_box(const Box<T>& anchor, const BoxDeltas<T>& deltas, T width_ratio,
                                   T height_ratio) {
  const T width = anchor.x2 - anchor.x1;
  const T height = anchor.y2 - anchor.y1;
  const T x = deltas.dx * width + (anchor.x1 + T(0.5) * width);
  const T y = deltas.dy * height + (anchor.y1 + T(0.5) * height);
  const T half_width = T(0.5) * (width_ratio * width);
  const T half_height = T(0.5) * (height_ratio * height);
  return {x - half_width, y - half_height, x + half_width, y + half_height};
}

// torch.clamp(0, limit): NaN stays NaN.
template <class T>
RCNN_HOST_DEVICE T clamp_coordinate(T value, T limit) {
  return clamp_max(value < T(0) ? T(0) : value, limit);
}

template <class T>
RCNN_HOST_DEVICE Box<T> clip_box(const Box<T>& box, T image_width, T image_height) {
  return {clamp_coordinate(box.x1, image_width), clamp_coordinate(box.y1, image_height),
          clamp_coordinate(box.x2, image_width), clamp_coordinate(box.y2, image_height)};
}

// Never true for a box with a NaN.
template <class T>
RCNN_HOST_DEVICE bool has_min_size(const Box<T>& box, T min_size) {
  return box.x2 - box.x1 >= min_size && box.y2 - box.y1 >= min_size;
}

}  // namespace rcnn_ext
