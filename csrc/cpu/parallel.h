// How threads divide the work of CPU kernels: channels and RoIs.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace rcnn_ext {

// Minimum cycles of work that justify waking another thread: some 30 us at 3 GHz. An estimate, like
// the cycles that callers pass.
constexpr int64_t kMinCyclesPerTask = 100000;

// The grain size of parallel_for for items of so many cycles each.
inline int64_t grain_size(int64_t cycles) {
  return std::max<int64_t>(1, kMinCyclesPerTask / std::max<int64_t>(1, cycles));
}

// Blocks of `block_size` channels of all RoIs; where there are fewer blocks than `min_tasks`, the
// RoIs are split too.
struct WorkGrid {
  int64_t channels, block_size, rois;
  int64_t blocks, roi_splits;

  WorkGrid(int64_t channels, int64_t block_size, int64_t rois, int64_t min_tasks)
      : channels(channels),
        block_size(block_size),
        rois(rois),
        blocks(std::max<int64_t>(1, (channels + block_size - 1) / block_size)) {
    // Per split, as each transposes or prefetches its own pixels; untuned.
    constexpr int64_t kMinRois = 16;
    roi_splits = std::max<int64_t>(1, std::min(rois / kMinRois, (min_tasks + blocks - 1) / blocks));
  }
};

// Calls function(first channel, last channel, first RoI, last RoI) for all cells of the grid, on
// all threads; neighboring cells may come in one call. cycles: per channel of a RoI, about
template <class Function>
void parallel_for_2d(const WorkGrid& grid, int64_t cycles, Function&& function) {
  const int64_t blocks = grid.blocks;
  const int64_t splits = grid.roi_splits;
  torch::stable::parallel_for(
      0, blocks * splits, grain_size(cycles * grid.block_size * grid.rois / splits),
      [&](int64_t first, int64_t last) {
        while (first < last) {
          // Neighboring channels of the same RoIs go in one call.
          const int64_t split = first / blocks;
          const int64_t stop = std::min(last, (split + 1) * blocks);
          function((first - split * blocks) * grid.block_size,
                   std::min(grid.channels, (stop - split * blocks) * grid.block_size),
                   grid.rois * split / splits, grid.rois * (split + 1) / splits);
          first = stop;
        }
      });
}

}  // namespace rcnn_ext
