// The order in which CPU kernels take RoIs, and how threads share them out.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

namespace rcnn_ext {

// A RoI's feature map, and the tile of it that the RoI's centre lies in.
struct RoiSortKey {
  int64_t group;
  float y, x;
  int64_t roi;
  bool operator<(const RoiSortKey& other) const {
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
std::vector<RoiSortKey> sort_for_locality(const T* rois, int64_t count, MapOf&& map_of) {
  std::vector<RoiSortKey> order(count);
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
struct RoiSpan {
  const Roi *begin, *end;
  const Stored* image;  // [C, H, W]
  int64_t height, width;
  bool whole;  // whether they read so much of it that all of it is brought
};

// About the number of cycles for which a second thread pays.
constexpr int64_t kTaskCycles = 100000;

// How many tasks of so many cycles a thread takes at least.
inline int64_t grain(int64_t cycles) {
  return std::max<int64_t>(1, kTaskCycles / std::max<int64_t>(1, cycles));
}

// Blocks of `size` channels of all RoIs; where they are fewer than `shares`, parts of the RoIs too.
struct WorkGrid {
  int64_t channels, size, rois;
  int64_t blocks, parts;

  WorkGrid(int64_t channels, int64_t size, int64_t rois, int64_t shares)
      : channels(channels),
        size(size),
        rois(rois),
        blocks(std::max<int64_t>(1, (channels + size - 1) / size)) {
    constexpr int64_t kFewestRois = 16;
    parts = std::max<int64_t>(1, std::min(rois / kFewestRois, (shares + blocks - 1) / blocks));
  }
};

// Calls function(first channel, last channel, first RoI, last RoI) for all shares, on all threads.
// cycles: of a channel of a RoI, about
template <class Function>
void parallel_for_2d(const WorkGrid& sharing, int64_t cycles, Function&& function) {
  const int64_t blocks = sharing.blocks;
  const int64_t parts = sharing.parts;
  torch::stable::parallel_for(
      0, blocks * parts, grain(cycles * sharing.size * sharing.rois / parts),
      [&](int64_t first, int64_t last) {
        while (first < last) {
          // Neighbouring channels of the same RoIs at once.
          const int64_t part = first / blocks;
          const int64_t stop = std::min(last, (part + 1) * blocks);
          function((first - part * blocks) * sharing.size,
                   std::min(sharing.channels, (stop - part * blocks) * sharing.size),
                   sharing.rois * part / parts, sharing.rois * (part + 1) / parts);
          first = stop;
        }
      });
}

// Bytes of a result of which the caches would not keep much.
constexpr int64_t kLargeResult = int64_t{1} << 23;

}  // namespace rcnn_ext
