// The pixels of every bin of a RoI, tabulated once and shared by all channels (CPU).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../core/roi_math.h"
#include "../cpu/roi_order.h"
#include "roi_pool.h"

namespace rcnn_ext {

constexpr int64_t kPoolChannels = 16;  // that a task has, NCHW

struct RoiBins {
  int64_t roi, batch;  // its place among the RoIs, and its image
  std::vector<PixelRange> y, x;
  std::vector<int64_t> empty;    // bins without a pixel
  int64_t column_count;          // of the widest bin
  std::vector<int32_t> columns;  // [column_count, PW]; a narrower bin repeats its last column
};

// What the ranges of a RoI's bins give for all its channels.
inline void tabulate_columns(RoiBins& bins) {
  const auto is_empty = [](const PixelRange& range) { return range.first >= range.last; };
  for (size_t bin = 0; bin < bins.y.size() * bins.x.size(); ++bin) {
    if (is_empty(bins.y[bin / bins.x.size()]) || is_empty(bins.x[bin % bins.x.size()])) {
      bins.empty.push_back(static_cast<int64_t>(bin));
    }
  }
  int64_t left = std::numeric_limits<int64_t>::max();
  int64_t right = 0;
  bins.column_count = 0;
  for (const PixelRange& xs : bins.x) {
    if (is_empty(xs)) continue;
    bins.column_count = std::max(bins.column_count, xs.last - xs.first);
    left = std::min(left, xs.first);
    right = std::max(right, xs.last);
  }
  for (int64_t column = 0; column < bins.column_count; ++column) {
    for (const PixelRange& xs : bins.x) {
      // An empty bin reads another's pixel.
      const int64_t at = std::min(xs.first + column, xs.last - 1);
      bins.columns.push_back(static_cast<int32_t>(std::min(std::max(at, left), right - 1)));
    }
  }
}

// rois: [K, 5] with valid batch indices. Those of one image together and neighbours near each
// other.
template <class T>
std::vector<RoiBins> tabulate_bins(const T* rois, int64_t count, const PoolOptions& options,
                                   const FeatureShape& shape) {
  const T scale = static_cast<T>(options.spatial_scale);
  const std::vector<RoiSortKey> order = sort_for_locality(rois, count, [&](int64_t k) {
    return LevelPlace{static_cast<int64_t>(rois[5 * k]), options.spatial_scale};
  });
  std::vector<RoiBins> tables(count);
  constexpr int64_t kRoisPerTask = 64;
  torch::stable::parallel_for(0, count, kRoisPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      RoiBins& bins = tables[i];
      bins.roi = order[i].roi;
      bins.batch = order[i].group;
      const T* const roi = rois + 5 * bins.roi;
      const auto y = make_pool_axis(roi[2], roi[4], scale, options.pooled_height, shape.height);
      const auto x = make_pool_axis(roi[1], roi[3], scale, options.pooled_width, shape.width);
      for (int64_t ph = 0; ph < options.pooled_height; ++ph) bins.y.push_back(pool_bin(y, ph));
      for (int64_t pw = 0; pw < options.pooled_width; ++pw) bins.x.push_back(pool_bin(x, pw));
      tabulate_columns(bins);
    }
  });
  return tables;
}

}  // namespace rcnn_ext
