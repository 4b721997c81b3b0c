// The pixels of every bin of a RoI as CPU kernels read them: computed once, shared by all channels.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../core/roi_math.h"
#include "../cpu/roi_order.h"
#include "roi_pool.h"

namespace rcnn_ext {

constexpr int64_t kChannelsPerTask = 16;  // the lanes of the widest register

struct RoiBins {
  int64_t index, batch;  // among the RoIs; its image
  std::vector<PixelRange> y, x;
  std::vector<int64_t> empty;    // bins without a pixel
  int64_t column_count;          // of the widest bin
  std::vector<int32_t> columns;  // [column_count, PW]; a narrower bin repeats its last column
};

// Computes what follows from the ranges of a RoI's bins: empty bins and columns.
inline void compute_columns(RoiBins& bins) {
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

// The bins of all RoIs, in the order of sort_for_locality(). rois: [K, 5] with valid batch indices
template <class T>
std::vector<RoiBins> compute_bins(const T* rois, int64_t count, const PoolOptions& options,
                                  const FeatureShape& shape) {
  const T scale = static_cast<T>(options.spatial_scale);
  const std::vector<RoiSortKey> order = sort_for_locality(rois, count, [&](int64_t k) {
    return RoiMap{static_cast<int64_t>(rois[5 * k]), options.spatial_scale};
  });
  std::vector<RoiBins> bins_of_rois(count);
  constexpr int64_t kRoisPerTask = 64;
  torch::stable::parallel_for(0, count, kRoisPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      RoiBins& bins = bins_of_rois[i];
      bins.index = order[i].roi;
      bins.batch = order[i].map;
      const T* const roi = rois + 5 * bins.index;
      const auto y = make_pool_axis(roi[2], roi[4], scale, options.pooled_height, shape.height);
      const auto x = make_pool_axis(roi[1], roi[3], scale, options.pooled_width, shape.width);
      for (int64_t ph = 0; ph < options.pooled_height; ++ph) bins.y.push_back(pool_bin(y, ph));
      for (int64_t pw = 0; pw < options.pooled_width; ++pw) bins.x.push_back(pool_bin(x, pw));
      compute_columns(bins);
    }
  });
  return bins_of_rois;
}

}  // namespace rcnn_ext
