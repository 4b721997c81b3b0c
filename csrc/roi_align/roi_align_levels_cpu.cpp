// Divides the work of roi_align_cpu-inl.h among threads. Contract: roi_align_levels_cpu.h.
//
// Threads share out channels, RoIs or rows of which each number has one thread that sums it, in an
// order that the RoIs alone decide: the bits depend on nothing else.
#include "roi_align_levels_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/dispatch.h"
#include "../core/host_device.h"
#include "../cpu/huge_pages.h"
#include "../cpu/intrinsics.h"
#include "../cpu/isa.h"
#include "../cpu/prefetch.h"
#include "roi_align_scratch_cpu.h"
#include "roi_align_weights_cpu.h"

#define RCNN_TARGET_INCLUDE "../roi_align/roi_align_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {
namespace {

constexpr int64_t kTileChannels = 16;  // that a task has
// More RoIs than pages of memory that a processor knows the places of: gradients then spread
// several channels at once, which lie side by side in what is read. Of fewer RoIs they spread one,
// whose plane alone stays in the second cache.
constexpr int64_t kManyRois = 4000;

void advise_on(Tensor& fresh) {
  advise_huge_pages(fresh.mutable_data_ptr(), fresh.numel() * fresh.element_size());
}

template <class T, class FormOf>
AlignTables<T> tabulate(const Tensor& rois, const std::vector<LevelShape>& levels,
                        int64_t batch_size, const AlignRequest& request, FormOf&& form_of) {
  const auto* data = rois.const_data_ptr<T>();
  return AlignTables<T>(data, rois.size(0),
                        request.level_of.empty() ? nullptr : request.level_of.data(), levels,
                        batch_size, request.options, form_of);
}

// Calls function(begin, end, level, image) for the tables of each map among those in [first, last).
template <class T, class Function>
void for_each_map(const AlignTables<T>& tables, int64_t levels, int64_t batch_size, int64_t first,
                  int64_t last, Function&& function) {
  const RoiTable<T>* const all = tables.begin(0, 0);
  for (int64_t level = 0; level < levels; ++level) {
    for (int64_t image = 0; image < batch_size; ++image) {
      const RoiTable<T>* const begin = std::max(tables.begin(level, image), all + first);
      const RoiTable<T>* const end = std::min(tables.end(level, image), all + last);
      if (begin < end) function(begin, end, level, image);
    }
  }
}

int64_t widest(const std::vector<LevelShape>& levels) {
  int64_t width = 0;
  for (const LevelShape& level : levels) width = std::max(width, level.width);
  return width;
}

template <class T>
int64_t pixels_read(const RoiTable<T>* begin, const RoiTable<T>* end) {
  int64_t count = 0;
  for (; begin != end; ++begin) count += begin->rows * begin->columns;
  return count;
}

// Whether turning every pixel of a map pays.
bool turning_pays(const LevelShape& map, int64_t rois, int64_t bins) {
  constexpr int64_t kPixelsABin = 5;  // as measured: 4.8 gained, 9.7 lost
  return map.height * map.width <= kPixelsABin * rois * bins;
}

template <class Stored>
void align(const std::vector<Tensor>& maps, const Tensor& rois,
           const std::vector<LevelShape>& levels, bool channels_last, const AlignRequest& request,
           Tensor& output) {
  using T = accumulate_t<Stored>;
  const int64_t batch_size = maps[0].size(0);
  const PooledShape pooled{maps[0].size(1), request.options.pooled_height,
                           request.options.pooled_width};
  auto* const out = output.mutable_data_ptr<Stored>();
  const auto* const roi_data = rois.const_data_ptr<T>();
  check_batch_indices(roi_data, rois.size(0), batch_size, request.op);
  const int64_t roi_count = rois.size(0);
  const int64_t threads = torch::stable::get_num_threads();
  // Each part of the RoIs turns its own pixels.
  const WorkGrid by_tiles(pooled.channels, kTileChannels, roi_count, threads);
  const bool permutes = std::is_same_v<T, float> && active_isa() == Isa::kAvx512;
  const auto tables =
      tabulate<T>(rois, levels, batch_size, request, [&](int64_t level, int64_t count) {
        if (channels_last) return TableForm::kTaps;
        if (pooled.channels >= kTileChannels &&
            turning_pays(levels[level], count / by_tiles.parts, pooled.bins())) {
          return TableForm::kBinPixels;
        }
        return permutes ? TableForm::kBinLanes : TableForm::kBinColumns;
      });
  if (output.numel() == 0) return;
  advise_on(output);
  const auto image_of = [&](int64_t level, int64_t image) {
    return maps[level].const_data_ptr<Stored>() +
           image * pooled.channels * levels[level].height * levels[level].width;
  };
  const auto level_count = static_cast<int64_t>(levels.size());
  // For a RoI and a channel, about.
  const int64_t cycles = 60 + 4 * pooled.bins();

  if (channels_last) {
    torch::stable::parallel_for(
        0, tables.size(), grain(cycles * pooled.channels), [&](int64_t first, int64_t last) {
          std::vector<PixelTap<T>> taps;
          for_each_map(
              tables, level_count, batch_size, first, last,
              [&](const RoiTable<T>* begin, const RoiTable<T>* end, int64_t level, int64_t image) {
                RCNN_DYNAMIC_DISPATCH(align_whole_pixels(begin, end, image_of(level, image),
                                                         levels[level].width, pooled, taps, out));
              });
        });
    return;
  }
  const bool large = output.numel() * static_cast<int64_t>(sizeof(Stored)) > kLargeResult;
  parallel_for_2d(
      tables.has(TableForm::kBinPixels)
          ? by_tiles
          : WorkGrid(pooled.channels, kPlanesAtOnce, roi_count, 4 * threads),
      cycles, [&](int64_t first, int64_t last, int64_t first_roi, int64_t last_roi) {
        std::vector<RoiSpan<RoiTable<T>, Stored>> tiles, planes;
        for_each_map(
            tables, level_count, batch_size, first_roi, last_roi,
            [&](const RoiTable<T>* begin, const RoiTable<T>* end, int64_t level, int64_t image) {
              const LevelShape& map = levels[level];
              const bool tiled = tables.form(level, image) == TableForm::kBinPixels;
              const bool whole = tiled || 4 * pixels_read(begin, end) >= map.height * map.width;
              (tiled ? tiles : planes)
                  .push_back({begin, end, image_of(level, image), map.height, map.width, whole});
            });
        if (!tiles.empty()) {
          RCNN_DYNAMIC_DISPATCH(align_tiles<T>(tiles, pooled, first, last, large, out));
        }
        AlignScratch<T> scratch(planes.empty() ? 0 : widest(levels));
        for (const auto& run : planes) {
          RCNN_DYNAMIC_DISPATCH(align_channels(run, pooled, first, last, scratch, out));
        }
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
  const auto* const upstream = grad.const_data_ptr<Stored>();
  check_batch_indices(rois.const_data_ptr<T>(), rois.size(0), batch_size, request.op);
  const auto tables = tabulate<T>(rois, levels, batch_size, request, [&](int64_t, int64_t) {
    return channels_last ? TableForm::kGradient : TableForm::kGradientBlocks;
  });
  for (size_t level = 0; level < levels.size(); ++level) {
    if (results[level].numel() == 0) continue;
    advise_on(results[level]);
    const int64_t height = levels[level].height;
    const int64_t width = levels[level].width;
    auto* const out = results[level].mutable_data_ptr<Stored>();
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
              RCNN_DYNAMIC_DISPATCH(spread_lines(begin, end, upstream, width, pooled, first, last,
                                                 sums.data(), line.data(),
                                                 out + image * image_size));
            });
        continue;
      }
      const int64_t at_once = end - begin > kManyRois ? 4 : 1;
      const int64_t tasks = (channels + at_once - 1) / at_once;
      torch::stable::parallel_for(
          0, tasks, grain(cycles / tasks), [&](int64_t first, int64_t last) {
            SpreadScratch<T> scratch(width, pooled);
            std::vector<T> planes(kInPlace ? 0 : at_once * height * width);
            for (int64_t c = first * at_once; c < std::min(channels, last * at_once);
                 c += at_once) {
              RCNN_DYNAMIC_DISPATCH(spread_channels(
                  begin, end, upstream, height, width, pooled, c, std::min(at_once, channels - c),
                  scratch, planes.data(), out + image * image_size + c * height * width));
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
