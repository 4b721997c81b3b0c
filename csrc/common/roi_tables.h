// What all channels of a RoI share, tabulated once for every RoI (CPU).
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

namespace rcnn_ext {

// rois: [K, 5] -> K tables. A Table has tabulate(roi, options, shape).
template <class Table, class T, class Options, class Shape>
std::vector<Table> tabulate_rois(const T* rois, int64_t count, const Options& options,
                                 const Shape& shape) {
  constexpr int64_t kRoisPerTask = 64;
  std::vector<Table> tables(count);
  torch::stable::parallel_for(0, count, kRoisPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) tables[k].tabulate(rois + 5 * k, options, shape);
  });
  return tables;
}

}  // namespace rcnn_ext
