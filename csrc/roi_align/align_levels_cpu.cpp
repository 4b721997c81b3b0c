// Shares out the work of align_kernels.h among threads. Contract: align_levels.h.
//
// Threads share out channels, RoIs or rows of which each number has one thread that sums it, in an
// order that the RoIs alone decide: the bits depend on nothing else.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "../common/dispatch.h"
#include "../common/host_device.h"
#include "../common/huge_pages.h"
#include "../common/intrinsics.h"
#include "../common/isa.h"
#include "align_levels.h"
#include "align_scratch.h"
#include "align_tables.h"

#define RCNN_ISA_SOURCE "../roi_align/align_kernels.h"
#include "../common/for_each_isa.h"

namespace rcnn_ext {
namespace {

constexpr int64_t kTileChannels = 16;  // that a task has

// About the number of cycles for which a second thread pays.
constexpr int64_t kTaskCycles = 100000;

int64_t grain(int64_t cycles) {
  return std::max<int64_t>(1, kTaskCycles / std::max<int64_t>(1, cycles));
}

void advise_on(Tensor& fresh) {
  advise_huge_pages(fresh.mutable_data_ptr(), fresh.numel() * fresh.element_size());
}

template <class T>
AlignTables<T> tabulate(const Tensor& rois, const std::vector<LevelShape>& levels,
                        int64_t batch_size, const AlignRequest& request, TableForm form) {
  const auto* data = static_cast<const T*>(rois.const_data_ptr());
  return AlignTables<T>(data, rois.size(0),
                        request.level_of.empty() ? nullptr : request.level_of.data(), levels,
                        batch_size, request.options, form);
}

// Calls function(begin, end, level, image) for every run of tables[begin, end) of one map.
template <class T, class Function>
void for_each_map(const AlignTables<T>& tables, int64_t levels, int64_t batch_size,
                  Function&& function) {
  for (int64_t level = 0; level < levels; ++level) {
    for (int64_t image = 0; image < batch_size; ++image) {
      const RoiTable<T>* const begin = tables.begin(level, image);
      const RoiTable<T>* const end = tables.end(level, image);
      if (begin != end) function(begin, end, level, image);
    }
  }
}

int64_t widest(const std::vector<LevelShape>& levels) {
  int64_t width = 0;
  for (const LevelShape& level : levels) width = std::max(width, level.width);
  return width;
}

// Feature pixels of a side of a RoI, within a map of `extent` pixels; 0 for NaN.
template <class T>
double pixels_of_side(T low, T high, double scale, int64_t extent) {
  const double first = std::max(0.0, static_cast<double>(low) * scale);
  const double last = std::min<double>(extent, static_cast<double>(high) * scale + 1);
  return last > first ? last - first : 0;
}

// Whether RoIs read the maps that they lie on so many times over that turning each pixel once pays.
// rois: [K, 5]
template <class T>
bool read_often(const T* rois, int64_t count, const AlignRequest& request,
                const std::vector<LevelShape>& levels, int64_t batch_size) {
  constexpr double kOften = 4.5;  // as measured: 3.3 readings lost, 5.6 and 6.2 gained
  std::vector<bool> met(levels.size() * batch_size, false);
  double read = 0;
  double there = 0;
  for (int64_t k = 0; k < count; ++k) {
    const T* const roi = rois + 5 * k;
    const int64_t level = request.level_of.empty() ? 0 : request.level_of[k];
    const LevelShape& map = levels[level];
    const int64_t group = level * batch_size + static_cast<int64_t>(roi[0]);
    if (!met[group]) there += static_cast<double>(map.height) * map.width;
    met[group] = true;
    read += pixels_of_side(roi[1], roi[3], map.spatial_scale, map.width) *
            pixels_of_side(roi[2], roi[4], map.spatial_scale, map.height);
  }
  return read >= kOften * there;
}

// Calls function(first channel, last channel, begin, end) with blocks of `size` channels and a part
// of the tables; where channels are few, threads share out the RoIs too.
template <class T, class Function>
void for_each_share(const AlignTables<T>& tables, int64_t channels, int64_t size, int64_t parts,
                    int64_t cycles, Function&& function) {
  const int64_t channel_tasks = (channels + size - 1) / size;
  parts = std::max<int64_t>(1, std::min(tables.size() / 16, parts / channel_tasks));
  torch::stable::parallel_for(0, channel_tasks * parts,
                              grain(cycles * size * tables.size() / parts),
                              [&](int64_t first, int64_t last) {
                                while (first < last) {
                                  // Neighbouring channels of the same RoIs at once.
                                  const int64_t part = first / channel_tasks;
                                  const int64_t stop = std::min(last, (part + 1) * channel_tasks);
                                  function((first - part * channel_tasks) * size,
                                           std::min(channels, (stop - part * channel_tasks) * size),
                                           tables.begin(0, 0) + tables.size() * part / parts,
                                           tables.begin(0, 0) + tables.size() * (part + 1) / parts);
                                  first = stop;
                                }
                              });
}

template <class Stored>
void align(const std::vector<Tensor>& maps, const Tensor& rois,
           const std::vector<LevelShape>& levels, bool channels_last, const AlignRequest& request,
           Tensor& output) {
  using T = accumulate_t<Stored>;
  const int64_t batch_size = maps[0].size(0);
  const PooledShape pooled{maps[0].size(1), request.options.pooled_height,
                           request.options.pooled_width};
  auto* const out = static_cast<Stored*>(output.mutable_data_ptr());
  const auto* const roi_data = static_cast<const T*>(rois.const_data_ptr());
  check_batch_indices(roi_data, rois.size(0), batch_size, request.op);
  // Short registers turn pixels at a loss, unless those have to be converted too.
  constexpr bool kConverts = !std::is_same_v<T, Stored>;
  const bool tiles = !channels_last && pooled.channels >= kTileChannels &&
                     (kConverts || active_isa() != Isa::kBaseline) &&
                     read_often(roi_data, rois.size(0), request, levels, batch_size);
  const bool permutes = std::is_same_v<T, float> && active_isa() == Isa::kAvx512;
  const TableForm form = channels_last ? TableForm::kTaps
                         : tiles       ? TableForm::kBinPixels
                         : permutes    ? TableForm::kBinLanes
                                       : TableForm::kBinColumns;
  const auto tables = tabulate<T>(rois, levels, batch_size, request, form);
  if (output.numel() == 0) return;
  advise_on(output);
  const auto image_of = [&](int64_t level, int64_t image) {
    return static_cast<const Stored*>(maps[level].const_data_ptr()) +
           image * pooled.channels * levels[level].height * levels[level].width;
  };
  // Calls function(begin, end, level, image) for the tables of each map among [first, last).
  const auto for_maps_within = [&](const RoiTable<T>* first, const RoiTable<T>* last,
                                   auto&& function) {
    for_each_map(
        tables, static_cast<int64_t>(levels.size()), batch_size,
        [&](const RoiTable<T>* begin, const RoiTable<T>* end, int64_t level, int64_t image) {
          begin = std::max(begin, first);
          end = std::min(end, last);
          if (begin < end) function(begin, end, level, image);
        });
  };
  // For a RoI and a channel, about.
  const int64_t cycles = 60 + 4 * pooled.bins();

  if (channels_last) {
    torch::stable::parallel_for(
        0, tables.size(), grain(cycles * pooled.channels), [&](int64_t first, int64_t last) {
          std::vector<PixelTap<T>> taps;
          for_maps_within(
              tables.begin(0, 0) + first, tables.begin(0, 0) + last,
              [&](const RoiTable<T>* begin, const RoiTable<T>* end, int64_t level, int64_t image) {
                RCNN_ON_THIS_CPU(align_whole_pixels(begin, end, image_of(level, image),
                                                    levels[level].width, pooled, taps, out));
              });
        });
    return;
  }
  if (tiles) {
    const bool large = output.numel() * static_cast<int64_t>(sizeof(Stored)) > kLargeResult;
    const int64_t parts = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
    for_each_share(
        tables, pooled.channels, kTileChannels, parts, cycles,
        [&](int64_t first, int64_t last, const RoiTable<T>* begin, const RoiTable<T>* end) {
          std::vector<RoiRun<RoiTable<T>, Stored>> runs;
          for_maps_within(
              begin, end,
              [&](const RoiTable<T>* from, const RoiTable<T>* to, int64_t level, int64_t image) {
                const LevelShape& map = levels[level];
                int64_t read = 0;
                for (const RoiTable<T>* table = from; table != to; ++table) {
                  read += table->rows * table->widths;
                }
                runs.push_back({from, to, image_of(level, image), map.height, map.width,
                                read >= map.height * map.width});
              });
          RCNN_ON_THIS_CPU(align_tiles<T>(runs, pooled, first, last, large, out));
        });
    return;
  }
  // Channels meet all RoIs of an image before the next ones, so that their planes stay in the
  // cache.
  constexpr int64_t kFewTasks = 32;
  for_each_share(
      tables, pooled.channels, kPlanesAtOnce, kFewTasks, cycles,
      [&](int64_t first, int64_t last, const RoiTable<T>* begin, const RoiTable<T>* end) {
        AlignScratch<T> scratch(widest(levels));
        for_maps_within(
            begin, end,
            [&](const RoiTable<T>* from, const RoiTable<T>* to, int64_t level, int64_t image) {
              RCNN_ON_THIS_CPU(align_channels(from, to, image_of(level, image),
                                              levels[level].height, levels[level].width, pooled,
                                              first, last, scratch, out));
            });
      });
}

template <class Stored>
void spread(const Tensor& grad, const Tensor& rois, const std::vector<LevelShape>& levels,
            bool channels_last, const AlignRequest& request, int64_t batch_size,
            std::vector<Tensor>& results) {
  using T = accumulate_t<Stored>;
  constexpr bool kInPlace = std::is_same_v<T, Stored>;
  const PooledShape pooled{grad.size(1), grad.size(2), grad.size(3)};
  const int64_t channels = pooled.channels;
  const auto* const upstream = static_cast<const Stored*>(grad.const_data_ptr());
  check_batch_indices(static_cast<const T*>(rois.const_data_ptr()), rois.size(0), batch_size,
                      request.op);
  const auto tables =
      tabulate<T>(rois, levels, batch_size, request,
                  channels_last ? TableForm::kGradient : TableForm::kGradientBlocks);
  for (size_t level = 0; level < levels.size(); ++level) {
    if (results[level].numel() == 0) continue;
    advise_on(results[level]);
    const int64_t height = levels[level].height;
    const int64_t width = levels[level].width;
    auto* const out = static_cast<Stored*>(results[level].mutable_data_ptr());
    const int64_t image_size = channels * height * width;
    for (int64_t image = 0; image < batch_size; ++image) {
      const RoiTable<T>* const begin = tables.begin(level, image);
      const RoiTable<T>* const end = tables.end(level, image);
      const int64_t cycles = (height * width + (end - begin) * pooled.bins() * 8) * channels / 4;
      if (channels_last) {
        torch::stable::parallel_for(
            0, height, grain(cycles / height), [&](int64_t first, int64_t last) {
              std::vector<T> sums(pooled.width * channels);
              std::vector<T> line(kInPlace ? 0 : width * channels);
              RCNN_ON_THIS_CPU(spread_lines(begin, end, upstream, width, pooled, first, last,
                                            sums.data(), line.data(), out + image * image_size));
            });
        continue;
      }
      const int64_t tasks = (channels + kPlanesAtOnce - 1) / kPlanesAtOnce;
      torch::stable::parallel_for(
          0, tasks, grain(cycles / tasks), [&](int64_t first, int64_t last) {
            SpreadScratch<T> scratch(width, pooled);
            std::vector<T> planes(kInPlace ? 0 : kPlanesAtOnce * height * width);
            for (int64_t c = first * kPlanesAtOnce; c < std::min(channels, last * kPlanesAtOnce);
                 c += kPlanesAtOnce) {
              RCNN_ON_THIS_CPU(spread_channels(begin, end, upstream, height, width, pooled, c,
                                               std::min<int64_t>(kPlanesAtOnce, channels - c),
                                               scratch, planes.data(),
                                               out + image * image_size + c * height * width));
            }
          });
    }
  }
}

}  // namespace

Tensor align_levels(const std::vector<Tensor>& levels, const AlignRequest& request) {
  const bool channels_last = is_channels_last(levels[0]);
  const ScalarType dtype = levels[0].scalar_type();
  const AlignOptions& options = request.options;
  std::vector<Tensor> maps;
  std::vector<LevelShape> shapes;
  for (size_t level = 0; level < levels.size(); ++level) {
    maps.push_back(dense_map_as(levels[level], channels_last));
    shapes.push_back({levels[level].size(2), levels[level].size(3), request.spatial_scales[level]});
  }
  const Tensor rois = contiguous_as(request.rois, accumulate_dtype(dtype));
  Tensor output = empty_map(
      levels[0], {rois.size(0), levels[0].size(1), options.pooled_height, options.pooled_width},
      dtype, channels_last);
  dispatch_floating(dtype, request.op, [&](auto tag) {
    align<type_of<decltype(tag)>>(maps, rois, shapes, channels_last, request, output);
  });
  return output;
}

std::vector<Tensor> align_levels_backward(const Tensor& grad,
                                          const std::vector<FeatureShape>& shapes,
                                          const AlignRequest& request, bool channels_last) {
  const ScalarType dtype = grad.scalar_type();
  const Tensor upstream = dense_map_as(grad, channels_last);
  const Tensor rois = contiguous_as(request.rois, accumulate_dtype(dtype));
  std::vector<LevelShape> levels;
  std::vector<Tensor> results;
  for (size_t level = 0; level < shapes.size(); ++level) {
    const FeatureShape& shape = shapes[level];
    levels.push_back({shape.height, shape.width, request.spatial_scales[level]});
    results.push_back(empty_map(grad, {shape.batch_size, shape.channels, shape.height, shape.width},
                                dtype, channels_last));
  }
  dispatch_floating(dtype, request.op, [&](auto tag) {
    spread<type_of<decltype(tag)>>(upstream, rois, levels, channels_last, request,
                                   shapes[0].batch_size, results);
  });
  return results;
}

}  // namespace rcnn_ext
