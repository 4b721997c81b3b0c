// The weights of RoIAlign, tabulated once for every RoI and shared by all its channels (CPU).
//
// Within a bin, taps ascend, and pixels of weight 0 are left out: that is the order in which every
// kernel adds, so that all give the same bits, and it keeps a NaN from bins that do not sample it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "../core/checks.h"
#include "../core/roi_math.h"
#include "../cpu/roi_order.h"
#include "roi_align.h"

namespace rcnn_ext {

// One term of a sum: a pixel of a bin, or a bin of a pixel.
template <class T>
struct Tap {
  int32_t place;
  T weight;
};

// The terms of several sums: those of sum i are taps [starts[i], starts[i + 1]).
template <class T>
struct CsrWeights {
  const int32_t* starts;
  const Tap<T>* taps;
};

constexpr int kPlanesAtOnce = 2;  // channels that share the loads of a table, forward, NCHW
constexpr int kBinBlock = 8;      // bins along x that kernels advance side by side
constexpr int kColumnBlock = 8;
constexpr int64_t kLaneColumns = 64;  // most columns that a kernel permutes in registers

// Weights of a block of bins along x, for kernels that keep the bins in the lanes of a register.
template <class T>
struct BinBlock {
  int32_t steps;
  // Step by step: the column that all lanes read ("columns"), or one a lane ("lanes"), counted from
  // the RoI's first column.
  const int32_t* columns;
  const T* weights;  // [steps, kBinBlock], or [steps, PW] where all bins are one block
};

// Weights of a block of columns in the bins [first_bin, last_bin) that reach them.
template <class T>
struct ColumnBlock {
  int32_t first_bin, last_bin;
  const T* weights;  // [last_bin - first_bin, kColumnBlock]
};

// The rows of pixels that bins reach: first those that one bin does, then those of two, then those
// of more. A kernel has code for each of these, and between rows in order of place the processor
// would have to guess each time.
struct RowOrder {
  const int32_t* rows;      // from first_row
  int32_t ones, twos, all;  // where they end
};

// What a kernel reads of a RoI. Only the members of the form asked for are set.
enum class TableForm {
  kTaps,           // y, x
  kBinColumns,     // and bin blocks whose lanes read the same columns
  kBinLanes,       // and, up to kLaneColumns columns, bin blocks whose lanes read their own taps
  kBinPixels,      // and one block of all bins, each with its own taps, for any number of columns
  kGradient,       // row lists and column lists
  kGradientBlocks  // row lists, their order, and column blocks
};

template <class T>
struct RoiTable {
  int64_t roi;                      // its place among the RoIs
  int64_t first_column, columns;    // a multiple of kColumnBlock unless the map is narrower
  CsrWeights<T> y, x;               // by bin: pixels. y has the average over the samples in it
  int64_t first_row, rows;          // that a bin reaches
  int64_t first_x, widths;          // columns that a bin reaches
  CsrWeights<T> by_row, by_column;  // by pixel, from first_row and first_x: bins
  RowOrder row_order;
  bool lanes;                           // how bin_blocks are read
  const BinBlock<T>* bin_blocks;        // [ceil(PW / kBinBlock)], or 1
  const ColumnBlock<T>* column_blocks;  // [ceil(columns / kColumnBlock)]
};

// The bins of a pooled map and its depth.
struct PooledShape {
  int64_t channels, height, width;
  int64_t bins() const { return height * width; }
};

// A feature map among the levels of a pyramid.
struct LevelShape {
  int64_t height, width;
  double spatial_scale;
};

// Memory that grows without moving: tables point into it.
template <class Item>
class Pool {
 public:
  Item* take(size_t count) {
    if (blocks_.empty() || used_ + count > blocks_.back().size()) {
      blocks_.emplace_back(std::max(count, kBlock));
      used_ = 0;
    }
    Item* const items = blocks_.back().data() + used_;
    used_ += count;
    return items;
  }
  Item* keep(const std::vector<Item>& items) {
    return std::copy(items.begin(), items.end(), take(items.size())) - items.size();
  }

 private:
  static constexpr size_t kBlock = 16384 / sizeof(Item);
  std::vector<std::vector<Item>> blocks_;
  size_t used_ = 0;
};

// Makes the tables of some RoIs, and holds what they point to.
template <class T>
class TableMaker {
 public:
  explicit TableMaker(const AlignOptions& options) : options_(options) {}

  // box: (x1, y1, x2, y2), image pixels
  RoiTable<T> make(int64_t roi, const T* box, const LevelShape& level, TableForm form) {
    const T scale = static_cast<T>(level.spatial_scale);
    const auto y = make_align_axis(box[1], box[3], scale, options_.pooled_height,
                                   options_.sampling_ratio, options_.aligned, level.height);
    const auto x = make_align_axis(box[0], box[2], scale, options_.pooled_width,
                                   options_.sampling_ratio, options_.aligned, level.width);
    RoiTable<T> table{};
    table.roi = roi;
    const T count = align_sample_count(y, x);
    const Span rows = tabulate(y, options_.pooled_height, count, table.y);
    const Span columns = tabulate(x, options_.pooled_width, T(1), table.x);
    table.first_row = rows.first;
    table.rows = rows.size();
    table.first_x = columns.first;
    table.widths = columns.size();
    // Whole registers: beyond the last column, or before the first where the map ends.
    table.columns =
        std::min((columns.size() + kColumnBlock - 1) / kColumnBlock * kColumnBlock, level.width);
    table.first_column = std::min(columns.first, level.width - table.columns);
    switch (form) {
      case TableForm::kTaps: break;
      case TableForm::kBinColumns:
      case TableForm::kBinLanes: make_bin_blocks(table, form); break;
      case TableForm::kBinPixels:
        table.bin_blocks =
            bin_blocks_.keep({lanes(table, 0, options_.pooled_width, options_.pooled_width)});
        break;
      case TableForm::kGradient:
        table.by_row = transposed(table.y, options_.pooled_height, rows);
        table.by_column = transposed(table.x, options_.pooled_width, columns);
        break;
      case TableForm::kGradientBlocks:
        table.by_row = transposed(table.y, options_.pooled_height, rows);
        table.row_order = ordered(table.by_row, rows.size());
        make_column_blocks(table);
        break;
    }
    return table;
  }

 private:
  struct Span {
    int64_t first, last;
    int64_t size() const { return last - first; }
  };

  // The taps of all bins of an axis, and the pixels between the first and the last of them.
  Span tabulate(const AlignAxis<T>& axis, int64_t bins, T divisor, CsrWeights<T>& lists) {
    sums_.resize(std::max<size_t>(sums_.size(), axis.extent), T(0));
    taps_.clear();
    starts_.assign(1, 0);
    Span all{axis.extent, 0};
    for (int64_t bin = 0; bin < bins; ++bin) {
      const SampleRange range = samples_within(axis, bin, T(-1), T(axis.extent));
      Span span{axis.extent, 0};
      for (int64_t sample = range.first; sample < range.last; ++sample) {
        const AxisSample<T> at = interpolate(sample_position(axis, bin, sample), axis.extent);
        sums_[at.low] += at.weight_low;
        sums_[at.high] += at.weight_high;
        span = {std::min(span.first, at.low), std::max(span.last, at.high + 1)};
      }
      for (int64_t pixel = span.first; pixel < span.last; ++pixel) {
        if (sums_[pixel] == T(0)) continue;
        taps_.push_back({static_cast<int32_t>(pixel), sums_[pixel] / divisor});
        sums_[pixel] = T(0);
        all = {std::min(all.first, pixel), std::max(all.last, pixel + 1)};
      }
      starts_.push_back(static_cast<int32_t>(taps_.size()));
    }
    lists = {integers_.keep(starts_), tap_pool_.keep(taps_)};
    return all.size() > 0 ? all : Span{0, 0};
  }

  // From pixels of bins to bins of pixels.
  CsrWeights<T> transposed(const CsrWeights<T>& lists, int64_t bins, const Span& pixels) {
    int32_t* const starts = integers_.take(pixels.size() + 1);
    std::fill_n(starts, pixels.size() + 1, 0);
    const int32_t count = lists.starts[bins];
    for (int32_t t = 0; t < count; ++t) ++starts[lists.taps[t].place - pixels.first + 1];
    std::partial_sum(starts, starts + pixels.size() + 1, starts);
    Tap<T>* const taps = tap_pool_.take(count);
    starts_.assign(starts, starts + pixels.size());
    for (int64_t bin = 0; bin < bins; ++bin) {
      for (int32_t t = lists.starts[bin]; t < lists.starts[bin + 1]; ++t) {
        const Tap<T>& tap = lists.taps[t];
        taps[starts_[tap.place - pixels.first]++] = {static_cast<int32_t>(bin), tap.weight};
      }
    }
    return {starts, taps};
  }

  RowOrder ordered(const CsrWeights<T>& by_row, int64_t count) {
    int32_t* const rows = integers_.take(count);
    int32_t ends[3];
    int32_t end = 0;
    for (int32_t kind = 1; kind <= 3; ++kind) {
      for (int32_t row = 0; row < count; ++row) {
        const int32_t bins = by_row.starts[row + 1] - by_row.starts[row];
        if (std::min(bins, 3) == kind) rows[end++] = row;
      }
      ends[kind - 1] = end;
    }
    return {rows, ends[0], ends[1], ends[2]};
  }

  void make_bin_blocks(RoiTable<T>& table, TableForm form) {
    const int64_t bins = options_.pooled_width;
    const int64_t blocks = (bins + kBinBlock - 1) / kBinBlock;
    BinBlock<T>* const made = bin_blocks_.take(blocks);
    table.lanes = form == TableForm::kBinLanes && table.columns <= kLaneColumns;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block * kBinBlock;
      const int64_t last = std::min(bins, first + kBinBlock);
      made[block] =
          table.lanes ? lanes(table, first, last, kBinBlock) : columns(table, first, last);
    }
    table.bin_blocks = made;
  }

  // stride: of the rows of columns and weights
  BinBlock<T> lanes(const RoiTable<T>& table, int64_t first, int64_t last, int64_t stride) {
    int32_t steps = 0;
    for (int64_t bin = first; bin < last; ++bin) {
      steps = std::max(steps, table.x.starts[bin + 1] - table.x.starts[bin]);
    }
    int32_t* const columns = integers_.take(steps * stride);
    T* const weights = weights_.take(steps * stride);
    // Beyond its last tap a bin reads, with no weight, a column that others read too.
    std::fill_n(columns, steps * stride, static_cast<int32_t>(table.first_x - table.first_column));
    std::fill_n(weights, steps * stride, T(0));
    for (int64_t bin = first; bin < last; ++bin) {
      const int32_t start = table.x.starts[bin];
      for (int32_t t = start; t < table.x.starts[bin + 1]; ++t) {
        const int64_t at = (t - start) * stride + bin - first;
        columns[at] = table.x.taps[t].place - static_cast<int32_t>(table.first_column);
        weights[at] = table.x.taps[t].weight;
      }
    }
    return {steps, columns, weights};
  }

  BinBlock<T> columns(const RoiTable<T>& table, int64_t first, int64_t last) {
    steps_.assign(table.columns, -1);
    const int32_t begin = table.x.starts[first];
    const int32_t end = table.x.starts[last];
    for (int32_t t = begin; t < end; ++t) steps_[table.x.taps[t].place - table.first_column] = 0;
    int32_t count = 0;
    for (int32_t& step : steps_) step = step < 0 ? -1 : count++;
    int32_t* const columns = integers_.take(count);
    T* const weights = weights_.take(count * kBinBlock);
    std::fill_n(weights, count * kBinBlock, T(0));
    for (int64_t bin = first; bin < last; ++bin) {
      for (int32_t t = table.x.starts[bin]; t < table.x.starts[bin + 1]; ++t) {
        const auto column = static_cast<int32_t>(table.x.taps[t].place - table.first_column);
        columns[steps_[column]] = column;
        weights[steps_[column] * kBinBlock + bin - first] = table.x.taps[t].weight;
      }
    }
    return {count, columns, weights};
  }

  void make_column_blocks(RoiTable<T>& table) {
    const int64_t bins = options_.pooled_width;
    const int64_t blocks = (table.columns + kColumnBlock - 1) / kColumnBlock;
    ColumnBlock<T>* const made = column_blocks_.take(blocks);
    for (int64_t block = 0; block < blocks; ++block) {
      made[block] = {static_cast<int32_t>(bins), 0, nullptr};
    }
    const auto visit = [&](auto&& each) {
      for (int64_t bin = 0; bin < bins; ++bin) {
        for (int32_t t = table.x.starts[bin]; t < table.x.starts[bin + 1]; ++t) {
          const int64_t column = table.x.taps[t].place - table.first_column;
          each(made[column / kColumnBlock], static_cast<int32_t>(bin), column % kColumnBlock,
               table.x.taps[t].weight);
        }
      }
    };
    visit([](ColumnBlock<T>& block, int32_t bin, int64_t, T) {
      block.first_bin = std::min(block.first_bin, bin);
      block.last_bin = std::max(block.last_bin, bin + 1);
    });
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t size = std::max(0, made[block].last_bin - made[block].first_bin) * kColumnBlock;
      made[block].weights = std::fill_n(weights_.take(size), size, T(0)) - size;
    }
    visit([](ColumnBlock<T>& block, int32_t bin, int64_t lane, T weight) {
      const_cast<T*>(block.weights)[(bin - block.first_bin) * kColumnBlock + lane] = weight;
    });
    table.column_blocks = made;
  }

  AlignOptions options_;
  Pool<int32_t> integers_;
  Pool<T> weights_;
  Pool<Tap<T>> tap_pool_;
  Pool<BinBlock<T>> bin_blocks_;
  Pool<ColumnBlock<T>> column_blocks_;
  // Scratch.
  std::vector<T> sums_;  // [extent], zero between bins
  std::vector<Tap<T>> taps_;
  std::vector<int32_t> starts_, steps_;
};

// The tables of all RoIs, in the order of sort_for_locality().
template <class T>
class AlignTables {
 public:
  // rois: [K, 5] with valid batch indices; level_of: [K], or null for a single level;
  // form_of(level, number of RoIs) -> TableForm of the tables of a map
  template <class FormOf>
  AlignTables(const T* rois, int64_t count, const int32_t* level_of,
              const std::vector<LevelShape>& levels, int64_t batch_size,
              const AlignOptions& options, FormOf&& form_of)
      : batch_size_(batch_size), group_starts_(levels.size() * batch_size + 1, 0) {
    const std::vector<RoiSortKey> order = sort_for_locality(rois, count, [&](int64_t k) {
      const int64_t level = level_of ? level_of[k] : 0;
      const int64_t group = level * batch_size + static_cast<int64_t>(rois[5 * k]);
      ++group_starts_[group + 1];
      return LevelPlace{group, levels[level].spatial_scale};
    });
    for (size_t group = 0; group + 1 < group_starts_.size(); ++group) {
      forms_.push_back(form_of(static_cast<int64_t>(group) / batch_size, group_starts_[group + 1]));
    }
    std::partial_sum(group_starts_.begin(), group_starts_.end(), group_starts_.begin());
    constexpr int64_t kRoisPerTask = 64;
    const int64_t tasks = (count + kRoisPerTask - 1) / kRoisPerTask;
    tables_.resize(count);
    makers_.reserve(tasks);
    for (int64_t t = 0; t < tasks; ++t) makers_.emplace_back(options);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kRoisPerTask; i < std::min(count, end * kRoisPerTask); ++i) {
        const RoiSortKey& key = order[i];
        tables_[i] = makers_[i / kRoisPerTask].make(
            key.roi, rois + 5 * key.roi + 1, levels[key.group / batch_size], forms_[key.group]);
      }
    });
  }

  int64_t size() const { return static_cast<int64_t>(tables_.size()); }
  // The RoIs of an image on a level: [begin, end).
  const RoiTable<T>* begin(int64_t level, int64_t image) const {
    return tables_.data() + group_starts_[level * batch_size_ + image];
  }
  const RoiTable<T>* end(int64_t level, int64_t image) const {
    return tables_.data() + group_starts_[level * batch_size_ + image + 1];
  }
  // Whether the tables of a map have this form.
  bool has(TableForm form) const {
    return std::find(forms_.begin(), forms_.end(), form) != forms_.end();
  }
  TableForm form(int64_t level, int64_t image) const { return forms_[level * batch_size_ + image]; }

 private:
  int64_t batch_size_;
  std::vector<int64_t> group_starts_;
  std::vector<TableForm> forms_;
  std::vector<TableMaker<T>> makers_;
  std::vector<RoiTable<T>> tables_;
};

}  // namespace rcnn_ext
