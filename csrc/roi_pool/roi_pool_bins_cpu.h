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

// The bins of a RoI along one axis.
struct PixelRanges {
  const PixelRange *first, *last;
  const PixelRange* begin() const { return first; }
  const PixelRange* end() const { return last; }
  const PixelRange& front() const { return *first; }
  const PixelRange& back() const { return last[-1]; }
  const PixelRange& operator[](size_t bin) const { return first[bin]; }
  size_t size() const { return last - first; }
  // Pixels of all bins; one that two bins share counts twice.
  int64_t pixels() const {
    int64_t count = 0;
    for (const PixelRange& range : *this) count += std::max<int64_t>(0, range.last - range.first);
    return count;
  }
  // Pixels from the first bin to the last.
  int64_t extent() const { return std::max<int64_t>(0, back().last - front().first); }
};

struct RoiBins {
  int64_t index, batch;  // among the RoIs; its image
  PixelRanges y, x;
  // The rest is for transposed blocks: see compute_columns().
  std::vector<int64_t> empty;    // bins without a pixel
  int64_t column_count = 0;      // of the widest bin
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

constexpr int64_t kRoisPerTask = 64;  // when bins are computed

// The bins of all RoIs, in the order of sort_for_locality() if `sorted`.
class BinsOfRois {
 public:
  // rois: [K, 5] with valid batch indices
  template <class T>
  BinsOfRois(const T* rois, int64_t count, const PoolOptions& options, const FeatureShape& shape,
             bool sorted)
      : ranges_(count * (options.pooled_height + options.pooled_width)), rois_(count) {
    const T scale = static_cast<T>(options.spatial_scale);
    std::vector<RoiSortKey> order;
    if (sorted) {
      order = sort_for_locality(rois, count, [&](int64_t k) {
        return RoiMap{static_cast<int64_t>(rois[5 * k]), options.spatial_scale};
      });
    }
    torch::stable::parallel_for(0, count, kRoisPerTask, [&](int64_t begin, int64_t end) {
      PixelRange* range = ranges_.data() + begin * (options.pooled_height + options.pooled_width);
      for (int64_t i = begin; i < end; ++i) {
        RoiBins& bins = rois_[i];
        bins.index = sorted ? order[i].roi : i;
        const T* const roi = rois + 5 * bins.index;
        bins.batch = static_cast<int64_t>(roi[0]);
        const auto y = make_pool_axis(roi[2], roi[4], scale, options.pooled_height, shape.height);
        const auto x = make_pool_axis(roi[1], roi[3], scale, options.pooled_width, shape.width);
        bins.y = {range, range + options.pooled_height};
        for (int64_t ph = 0; ph < options.pooled_height; ++ph) *range++ = pool_bin(y, ph);
        bins.x = {range, range + options.pooled_width};
        for (int64_t pw = 0; pw < options.pooled_width; ++pw) *range++ = pool_bin(x, pw);
      }
    });
  }

  void compute_all_columns() {
    torch::stable::parallel_for(0, static_cast<int64_t>(rois_.size()), kRoisPerTask,
                                [&](int64_t begin, int64_t end) {
                                  for (int64_t i = begin; i < end; ++i) compute_columns(rois_[i]);
                                });
  }

  const RoiBins* begin() const { return rois_.data(); }
  const RoiBins* end() const { return rois_.data() + rois_.size(); }

 private:
  std::vector<PixelRange> ranges_;
  std::vector<RoiBins> rois_;
};

}  // namespace rcnn_ext
