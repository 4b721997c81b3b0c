// The footprint of each RoI, that is the pixels that it may have sampled, computed once for all
// tiles of a gather (roi_gather.cuh).
#pragma once

#include <limits>

#include "../feature_levels.cuh"
#include "../launch.cuh"

namespace rcnn_ext {

constexpr int kFootprintThreads = 256;  // untuned

// Pixels [y, y_end) x [x, x_end) that a RoI may have sampled.
struct Footprint {
  int y, y_end, x, x_end;
};

// The result of find_footprints. A key stands for a level and an image, -1 for an empty footprint.
struct FootprintTable {
  int4* boxes;       // [K] a Footprint each
  int2* key_ranges;  // lowest and highest key of each kFootprintThreads RoIs
  int* keys;         // [K]
};

template <class Pooling, class Stored, int kLevels>
__global__ void __launch_bounds__(kFootprintThreads)
    find_footprints(Pooling pooling, FeatureLevels<Stored, kLevels> levels, int64_t roi_count,
                    FootprintTable table) {
  __shared__ int lowest, highest;
  for (int64_t chunk = blockIdx.x; chunk * kFootprintThreads < roi_count; chunk += gridDim.x) {
    if (threadIdx.x == 0) {
      lowest = std::numeric_limits<int>::max();
      highest = -1;
    }
    __syncthreads();
    const int64_t k = chunk * kFootprintThreads + threadIdx.x;
    if (k < roi_count) {
      const auto* const data = pooling.rois + 5 * k;
      const int level = levels.level_of(data);
      const auto roi = pooling.make_roi(data, levels.spatial_scale(level), levels.shape(level));
      const Footprint box = pooling.footprint(roi);
      const bool any = roi.batch >= 0 && box.y < box.y_end && box.x < box.x_end;
      const int key = any ? static_cast<int>(level * levels.batch_size + roi.batch) : -1;
      table.boxes[k] = make_int4(box.y, box.y_end, box.x, box.x_end);
      table.keys[k] = key;
      if (any) {
        atomicMin(&lowest, key);
        atomicMax(&highest, key);
      }
    }
    __syncthreads();
    // Only this thread touches the two before the next barrier.
    if (threadIdx.x == 0) table.key_ranges[chunk] = make_int2(lowest, highest);
  }
}

}  // namespace rcnn_ext
