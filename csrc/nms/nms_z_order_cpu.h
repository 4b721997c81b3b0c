// Boxes of a segment by place, and the work on several segments, on the CPU: for operators in which
// a box changes all that it overlaps (soft_nms, non_max_merging).
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../core/box_math.h"
#include "nms_score_order_cpu.h"

namespace rcnn_ext {

inline Order identity_order(int64_t count) {
  Order order = uninitialized<uint32_t>(count);
  std::iota(order.get(), order.get() + count, 0u);
  return order;
}

// The bits of a 16-bit number with a zero before each.
inline uint32_t interleave_zeros(uint32_t number) {
  number = (number | number << 8) & 0x00ff00ffu;
  number = (number | number << 4) & 0x0f0f0f0fu;
  number = (number | number << 2) & 0x33333333u;
  return (number | number << 1) & 0x55555555u;
}

// The order of a segment's boxes along the Z-order curve through their centers, so that consecutive
// boxes are neighbors in the image. Boxes of one group of `group_size` are not sorted.
template <class T>
Order order_by_z_curve(const Box<T>* boxes, const uint32_t* box_indices, int64_t count,
                       int64_t group_size) {
  if (count <= group_size) return identity_order(count);
  double low_x = INFINITY, low_y = INFINITY, high_x = -INFINITY, high_y = -INFINITY;
  for (int64_t i = 0; i < count; ++i) {
    const Box<T>& box = boxes[box_indices[i]];
    if (!is_finite(box)) continue;
    low_x = std::min(low_x, static_cast<double>(box.x1));
    low_y = std::min(low_y, static_cast<double>(box.y1));
    high_x = std::max(high_x, static_cast<double>(box.x2));
    high_y = std::max(high_y, static_cast<double>(box.y2));
  }
  const auto cell = [](double center, double low, double high) {
    const double at = (center - low) / (high - low) * 65535;
    return at > 0 ? static_cast<uint32_t>(std::min(at, 65535.0)) : 0u;  // NaN, too
  };
  return order_by_key<IndexedKey32>(count, [&](int64_t i) {
    const Box<T>& box = boxes[box_indices[i]];
    const double x = box.x1 * 0.5 + box.x2 * 0.5;
    const double y = box.y1 * 0.5 + box.y2 * 0.5;
    return interleave_zeros(cell(x, low_x, high_x)) | interleave_zeros(cell(y, low_y, high_y)) << 1;
  });
}

// Call run(begin, end) with the ranks of every segment, on several threads where the pairs of boxes
// are many. starts: the first ranks of the segments, then the box count.
template <class Run>
void parallel_for_segments(const std::vector<int64_t>& starts, const Run& run) {
  // From this many pairs of boxes on, other threads should save more than waking them costs: an
  // estimate.
  constexpr double kMinParallelPairs = 1e5;
  const auto segments = static_cast<int64_t>(starts.size()) - 1;
  double pairs = 0;
  for (int64_t s = 0; s < segments; ++s) {
    const auto size = static_cast<double>(starts[s + 1] - starts[s]);
    pairs += size * size;
  }
  const int64_t threads = pairs < kMinParallelPairs ? 1 : torch::stable::get_num_threads();
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(threads, segments), 1, [&](int64_t, int64_t) {
    for (int64_t s = next++; s < segments; s = next++) run(starts[s], starts[s + 1]);
  });
}

}  // namespace rcnn_ext
