// Computes the weights of RoIAlign for CPU kernels.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../core/roi_math.h"
#include "../cpu/arena.h"
#include "../cpu/roi_order.h"
#include "roi_align.h"
#include "roi_align_weights_cpu.h"

namespace rcnn_ext {

// A feature map among the levels of a pyramid.
struct LevelShape {
  int64_t height, width;
  double spatial_scale;
};

inline int64_t max_width(const std::vector<LevelShape>& levels) {
  int64_t width = 0;
  for (const LevelShape& level : levels) width = std::max(width, level.width);
  return width;
}

// Computes the weights of some RoIs, and holds what they point to.
template <class T>
class WeightBuilder {
 public:
  explicit WeightBuilder(const RoiAlignOptions& options) : options_(options) {}

  // index: among the RoIs; box: (x1, y1, x2, y2), image pixels
  RoiWeights<T> build(int64_t index, const T* box, const LevelShape& level, WeightLayout layout) {
    const T scale = static_cast<T>(level.spatial_scale);
    const auto y = make_roi_align_axis(box[1], box[3], scale, options_.pooled_height,
                                       options_.sampling_ratio, options_.aligned, level.height);
    const auto x = make_roi_align_axis(box[0], box[2], scale, options_.pooled_width,
                                       options_.sampling_ratio, options_.aligned, level.width);
    RoiWeights<T> roi{};
    roi.index = index;
    const T count = roi_align_sample_count(y, x);
    const Range rows = axis_weights(y, options_.pooled_height, count, roi.y);
    const Range columns = axis_weights(x, options_.pooled_width, T(1), roi.x);
    roi.first_row = rows.first;
    roi.rows = rows.size();
    roi.first_x = columns.first;
    roi.x_count = columns.size();
    // Kernels read whole registers: beyond the last column, or before the first where the map ends.
    roi.columns =
        std::min((columns.size() + kColumnBlock - 1) / kColumnBlock * kColumnBlock, level.width);
    roi.first_column = std::min(columns.first, level.width - roi.columns);
    switch (layout) {
      case WeightLayout::kChannelsLast: break;
      case WeightLayout::kSharedColumns:
      case WeightLayout::kPermutedColumns: make_bin_weights(roi, layout); break;
      case WeightLayout::kTransposedBlocks:
        roi.bin_weights = bin_weights_.copy(
            {per_lane_columns(roi, 0, options_.pooled_width, options_.pooled_width)});
        break;
      case WeightLayout::kBackwardRows:
        roi.by_row = csr_to_csc(roi.y, options_.pooled_height, rows);
        roi.by_column = csr_to_csc(roi.x, options_.pooled_width, columns);
        break;
      case WeightLayout::kBackwardPlanes:
        roi.by_row = csr_to_csc(roi.y, options_.pooled_height, rows);
        roi.rows_by_tap_count = sort_by_tap_count(roi.by_row, rows.size());
        make_column_weights(roi);
        break;
    }
    return roi;
  }

 private:
  struct Range {
    int64_t first, last;
    int64_t size() const { return last - first; }
  };

  // Sums the weights of the samples of every bin of an axis by pixel. Returns the range of their
  // pixels.
  Range axis_weights(const RoiAlignAxis<T>& axis, int64_t bins, T divisor, CsrWeights<T>& by_bin) {
    sums_.resize(std::max<size_t>(sums_.size(), axis.extent), T(0));
    taps_.clear();
    starts_.assign(1, 0);
    Range all{axis.extent, 0};
    for (int64_t bin = 0; bin < bins; ++bin) {
      const SampleRange samples = samples_within(axis, bin, T(-1), T(axis.extent));
      Range range{axis.extent, 0};
      for (int64_t sample = samples.first; sample < samples.last; ++sample) {
        const AxisSample<T> at = interpolate(sample_position(axis, bin, sample), axis.extent);
        sums_[at.low] += at.weight_low;
        sums_[at.high] += at.weight_high;
        range = {std::min(range.first, at.low), std::max(range.last, at.high + 1)};
      }
      for (int64_t pixel = range.first; pixel < range.last; ++pixel) {
        if (sums_[pixel] == T(0)) continue;
        taps_.push_back({static_cast<int32_t>(pixel), sums_[pixel] / divisor});
        sums_[pixel] = T(0);
        all = {std::min(all.first, pixel), std::max(all.last, pixel + 1)};
      }
      starts_.push_back(static_cast<int32_t>(taps_.size()));
    }
    by_bin = {indices_.copy(starts_), tap_arena_.copy(taps_)};
    return all.size() > 0 ? all : Range{0, 0};
  }

  // From the pixels of every bin to the bins of every pixel. Bins ascend in each.
  CsrWeights<T> csr_to_csc(const CsrWeights<T>& by_bin, int64_t bins, const Range& pixels) {
    int32_t* const starts = indices_.allocate(pixels.size() + 1);
    std::fill_n(starts, pixels.size() + 1, 0);
    const int32_t count = by_bin.starts[bins];
    for (int32_t t = 0; t < count; ++t) ++starts[by_bin.taps[t].index - pixels.first + 1];
    std::partial_sum(starts, starts + pixels.size() + 1, starts);
    Tap<T>* const taps = tap_arena_.allocate(count);
    starts_.assign(starts, starts + pixels.size());
    for (int64_t bin = 0; bin < bins; ++bin) {
      for (int32_t t = by_bin.starts[bin]; t < by_bin.starts[bin + 1]; ++t) {
        const Tap<T>& tap = by_bin.taps[t];
        taps[starts_[tap.index - pixels.first]++] = {static_cast<int32_t>(bin), tap.weight};
      }
    }
    return {starts, taps};
  }

  // by_row: [count]
  RowsByTapCount sort_by_tap_count(const CsrWeights<T>& by_row, int64_t count) {
    int32_t* const rows = indices_.allocate(count);
    int32_t ends[3];
    int32_t end = 0;
    for (int32_t taps = 1; taps <= 3; ++taps) {
      for (int32_t row = 0; row < count; ++row) {
        const int32_t bins = by_row.starts[row + 1] - by_row.starts[row];
        if (std::min(bins, 3) == taps) rows[end++] = row;
      }
      ends[taps - 1] = end;
    }
    return {rows, ends[0], ends[1], ends[2]};
  }

  void make_bin_weights(RoiWeights<T>& roi, WeightLayout layout) {
    const int64_t bins = options_.pooled_width;
    const int64_t blocks = (bins + kBinBlock - 1) / kBinBlock;
    BinWeights<T>* const made = bin_weights_.allocate(blocks);
    roi.permuted = layout == WeightLayout::kPermutedColumns && roi.columns <= kMaxPermutedColumns;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block * kBinBlock;
      const int64_t last = std::min(bins, first + kBinBlock);
      made[block] = roi.permuted ? per_lane_columns(roi, first, last, kBinBlock)
                                 : shared_columns(roi, first, last);
    }
    roi.bin_weights = made;
  }

  // A column of its own for every lane per step. stride: of the rows of columns and weights
  BinWeights<T> per_lane_columns(const RoiWeights<T>& roi, int64_t first, int64_t last,
                                 int64_t stride) {
    int32_t steps = 0;
    for (int64_t bin = first; bin < last; ++bin) {
      steps = std::max(steps, roi.x.starts[bin + 1] - roi.x.starts[bin]);
    }
    int32_t* const columns = indices_.allocate(steps * stride);
    T* const weights = weights_.allocate(steps * stride);
    // Beyond its last tap a bin reads, with no weight, a column that others read too.
    std::fill_n(columns, steps * stride, static_cast<int32_t>(roi.first_x - roi.first_column));
    std::fill_n(weights, steps * stride, T(0));
    for (int64_t bin = first; bin < last; ++bin) {
      const int32_t start = roi.x.starts[bin];
      for (int32_t t = start; t < roi.x.starts[bin + 1]; ++t) {
        const int64_t at = (t - start) * stride + bin - first;
        columns[at] = roi.x.taps[t].index - static_cast<int32_t>(roi.first_column);
        weights[at] = roi.x.taps[t].weight;
      }
    }
    return {steps, columns, weights};
  }

  // A column for all lanes per step.
  BinWeights<T> shared_columns(const RoiWeights<T>& roi, int64_t first, int64_t last) {
    steps_.assign(roi.columns, -1);
    const int32_t begin = roi.x.starts[first];
    const int32_t end = roi.x.starts[last];
    for (int32_t t = begin; t < end; ++t) steps_[roi.x.taps[t].index - roi.first_column] = 0;
    int32_t count = 0;
    for (int32_t& step : steps_) step = step < 0 ? -1 : count++;
    int32_t* const columns = indices_.allocate(count);
    T* const weights = weights_.allocate(count * kBinBlock);
    std::fill_n(weights, count * kBinBlock, T(0));
    for (int64_t bin = first; bin < last; ++bin) {
      for (int32_t t = roi.x.starts[bin]; t < roi.x.starts[bin + 1]; ++t) {
        const auto column = static_cast<int32_t>(roi.x.taps[t].index - roi.first_column);
        columns[steps_[column]] = column;
        weights[steps_[column] * kBinBlock + bin - first] = roi.x.taps[t].weight;
      }
    }
    return {count, columns, weights};
  }

  void make_column_weights(RoiWeights<T>& roi) {
    const int64_t bins = options_.pooled_width;
    const int64_t blocks = (roi.columns + kColumnBlock - 1) / kColumnBlock;
    ColumnWeights<T>* const made = column_weights_.allocate(blocks);
    for (int64_t block = 0; block < blocks; ++block) {
      made[block] = {static_cast<int32_t>(bins), 0, nullptr};
    }
    const auto for_each_tap = [&](auto&& function) {
      for (int64_t bin = 0; bin < bins; ++bin) {
        for (int32_t t = roi.x.starts[bin]; t < roi.x.starts[bin + 1]; ++t) {
          const int64_t column = roi.x.taps[t].index - roi.first_column;
          function(made[column / kColumnBlock], static_cast<int32_t>(bin), column % kColumnBlock,
                   roi.x.taps[t].weight);
        }
      }
    };
    for_each_tap([](ColumnWeights<T>& block, int32_t bin, int64_t, T) {
      block.first_bin = std::min(block.first_bin, bin);
      block.last_bin = std::max(block.last_bin, bin + 1);
    });
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t size = std::max(0, made[block].last_bin - made[block].first_bin) * kColumnBlock;
      made[block].weights = std::fill_n(weights_.allocate(size), size, T(0)) - size;
    }
    for_each_tap([](ColumnWeights<T>& block, int32_t bin, int64_t lane, T weight) {
      const_cast<T*>(block.weights)[(bin - block.first_bin) * kColumnBlock + lane] = weight;
    });
    roi.column_weights = made;
  }

  RoiAlignOptions options_;
  Arena<int32_t> indices_;
  Arena<T> weights_;
  Arena<Tap<T>> tap_arena_;
  Arena<BinWeights<T>> bin_weights_;
  Arena<ColumnWeights<T>> column_weights_;
  // Scratch.
  std::vector<T> sums_;  // [extent], zero between bins
  std::vector<Tap<T>> taps_;
  std::vector<int32_t> starts_, steps_;
};

// The weights of all RoIs, in the order of sort_for_locality().
template <class T>
class RoiAlignWeights {
 public:
  // rois: [K, 5] with valid batch indices; level_of: [K], or null for a single level;
  // layout_of(level, number of RoIs) -> WeightLayout of the RoIs of a map
  template <class LayoutOf>
  RoiAlignWeights(const T* rois, int64_t count, const int32_t* level_of,
                  const std::vector<LevelShape>& levels, int64_t batch_size,
                  const RoiAlignOptions& options, LayoutOf&& layout_of)
      : batch_size_(batch_size), map_starts_(levels.size() * batch_size + 1, 0) {
    const std::vector<RoiSortKey> order = sort_for_locality(rois, count, [&](int64_t k) {
      const int64_t level = level_of ? level_of[k] : 0;
      const int64_t map = level * batch_size + static_cast<int64_t>(rois[5 * k]);
      ++map_starts_[map + 1];
      return RoiMap{map, levels[level].spatial_scale};
    });
    for (size_t map = 0; map + 1 < map_starts_.size(); ++map) {
      layouts_.push_back(layout_of(static_cast<int64_t>(map) / batch_size, map_starts_[map + 1]));
    }
    std::partial_sum(map_starts_.begin(), map_starts_.end(), map_starts_.begin());
    constexpr int64_t kRoisPerTask = 64;  // a builder each, whatever the number of threads
    const int64_t tasks = (count + kRoisPerTask - 1) / kRoisPerTask;
    weights_.resize(count);
    builders_.reserve(tasks);
    for (int64_t t = 0; t < tasks; ++t) builders_.emplace_back(options);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kRoisPerTask; i < std::min(count, end * kRoisPerTask); ++i) {
        const RoiSortKey& key = order[i];
        weights_[i] = builders_[i / kRoisPerTask].build(
            key.roi, rois + 5 * key.roi + 1, levels[key.map / batch_size], layouts_[key.map]);
      }
    });
  }

  int64_t size() const { return static_cast<int64_t>(weights_.size()); }
  // The RoIs of an image on a level: [begin, end).
  const RoiWeights<T>* begin(int64_t level, int64_t image) const {
    return weights_.data() + map_starts_[level * batch_size_ + image];
  }
  const RoiWeights<T>* end(int64_t level, int64_t image) const {
    return weights_.data() + map_starts_[level * batch_size_ + image + 1];
  }
  // Whether the weights of any map have this layout.
  bool has(WeightLayout layout) const {
    return std::find(layouts_.begin(), layouts_.end(), layout) != layouts_.end();
  }
  WeightLayout layout(int64_t level, int64_t image) const {
    return layouts_[level * batch_size_ + image];
  }

 private:
  int64_t batch_size_;
  std::vector<int64_t> map_starts_;
  std::vector<WeightLayout> layouts_;
  std::vector<WeightBuilder<T>> builders_;
  std::vector<RoiWeights<T>> weights_;
};

}  // namespace rcnn_ext
