// The order in which CPU kernels take RoIs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

namespace rcnn_ext {

// A RoI's feature map, and the tile of it that the RoI's center lies in.
struct RoiSortKey {
  int64_t map;  // of an image on a level
  float tile_y, tile_x;
  int64_t roi;
  bool operator<(const RoiSortKey& other) const {
    return std::tie(map, tile_y, tile_x, roi) <
           std::tie(other.map, other.tile_y, other.tile_x, other.roi);
  }
};

// The feature map that a RoI is pooled from.
struct RoiMap {
  int64_t index;
  double spatial_scale;
};

// The tile that a center lies in along one axis; twice_center: image pixels. NaN goes to the first.
template <class T>
float sort_tile(T twice_center, double spatial_scale) {
  constexpr float kTilePixels = 32;  // untuned
  const float twice_position = static_cast<float>(twice_center * static_cast<T>(spatial_scale));
  if (!(twice_position > 0)) return 0;
  return std::floor(twice_position / (2 * kTilePixels));
}

// Sorts RoIs by feature map and then by tile, so that a kernel finds most of what a RoI reads in
// the cache, where the RoI before brought it. rois: [K, 5]; map_of(k) -> RoiMap
template <class T, class MapOf>
std::vector<RoiSortKey> sort_for_locality(const T* rois, int64_t count, MapOf&& map_of) {
  std::vector<RoiSortKey> order(count);
  for (int64_t k = 0; k < count; ++k) {
    const T* const roi = rois + 5 * k;
    const RoiMap map = map_of(k);
    order[k] = {map.index, sort_tile(roi[2] + roi[4], map.spatial_scale),
                sort_tile(roi[1] + roi[3], map.spatial_scale), k};
  }
  std::sort(order.begin(), order.end());
  return order;
}

// Consecutive RoIs in the order of sort_for_locality(), all of one image on one level.
template <class Roi, class Stored>
struct RoiSpan {
  const Roi *begin, *end;
  const Stored* image;  // [C, H, W]
  int64_t height, width;
  bool whole;  // whether they read so much of the map that all of it is transposed or prefetched
};

}  // namespace rcnn_ext
