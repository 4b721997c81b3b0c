// The order in which CPU kernels take RoIs.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

namespace rcnn_ext {

// A RoI's feature map, and the tile of it that the RoI's centre lies in.
struct RoiPlace {
  int64_t group;
  float y, x;
  int64_t roi;
  bool operator<(const RoiPlace& other) const {
    return std::tie(group, y, x, roi) < std::tie(other.group, other.y, other.x, other.roi);
  }
};

struct LevelPlace {
  int64_t group;
  double spatial_scale;
};

// Of twice a centre in image pixels. Anything orders NaN, and alike every time.
template <class T>
float roi_tile(T twice_centre, double spatial_scale) {
  constexpr float kTile = 32;  // feature pixels
  const float place = static_cast<float>(twice_centre * static_cast<T>(spatial_scale));
  if (!(place > 0)) return 0;
  return std::floor(place / (2 * kTile));
}

// The RoIs of one feature map together and neighbours near each other, so that a kernel finds most
// of what a RoI reads in the cache. rois: [K, 5]; map_of(k) -> LevelPlace
template <class T, class MapOf>
std::vector<RoiPlace> sort_by_place(const T* rois, int64_t count, MapOf&& map_of) {
  std::vector<RoiPlace> order(count);
  for (int64_t k = 0; k < count; ++k) {
    const T* const roi = rois + 5 * k;
    const LevelPlace map = map_of(k);
    order[k] = {map.group, roi_tile(roi[2] + roi[4], map.spatial_scale),
                roi_tile(roi[1] + roi[3], map.spatial_scale), k};
  }
  std::sort(order.begin(), order.end());
  return order;
}

// Some of the RoIs of one image on one feature map, in that order.
template <class Roi, class Stored>
struct RoiRun {
  const Roi *begin, *end;
  const Stored* image;  // [C, H, W]
  int64_t height, width;
  bool covers;  // whether together they read about all of it
};

// Bytes of a result of which the caches would not keep much.
constexpr int64_t kLargeResult = int64_t{1} << 24;

}  // namespace rcnn_ext
