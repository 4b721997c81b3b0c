// RoIAlign on the CPU. Contracts: rcnn_ext/ops/roi_align.py and, over levels, roi_align_cpu.h.
//
// Which path runs, and why: roi_align_paths_cpu.h.
//
// Where a NaN or an infinity turns up, the channel of that RoI is computed again tap by tap
// (roi_align_exact, roi_align_backward_exact), so that it reaches only bins or pixels whose weight
// for it is not 0.
//
// Every sum has one thread and an order that the RoIs alone decide: for a memory layout, the bits
// depend neither on the path (but that of channels-last per pixel, which the number of channels
// decides, and of the direct gradient, which the arguments decide) nor on instruction sets or the
// number of threads.
#include "roi_align_cpu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../core/dispatch.h"
#include "../core/map_strides.h"
#include "../core/register.h"
#include "../cpu/huge_pages.h"
#include "../cpu/isa.h"
#include "../cpu/parallel.h"
#include "../cpu/prefetch.h"
#include "roi_align.h"
#include "roi_align_paths_cpu.h"
#include "roi_align_weight_builder_cpu.h"
#include "roi_align_weights_cpu.h"

#define RCNN_TARGET_INCLUDE "../roi_align/roi_align_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {
namespace {

void advise_huge_pages_for(Tensor& fresh) {
  advise_huge_pages(fresh.mutable_data_ptr(), fresh.numel() * fresh.element_size());
}

// layout_of(level, number of RoIs) -> WeightLayout
template <class T, class LayoutOf>
RoiAlignWeights<T> compute_weights(const Tensor& rois, const std::vector<LevelShape>& levels,
                                   int64_t batch_size, const RoiAlignRequest& request,
                                   LayoutOf&& layout_of) {
  const auto* data = rois.const_data_ptr<T>();
  return RoiAlignWeights<T>(data, rois.size(0),
                            request.level_of.empty() ? nullptr : request.level_of.data(), levels,
                            batch_size, request.options, layout_of);
}

// Calls function(begin, end, level, image) for the RoIs of each map among the sorted RoIs
// [first, last).
template <class T, class Function>
void for_each_map(const RoiAlignWeights<T>& weights, int64_t levels, int64_t batch_size,
                  int64_t first, int64_t last, Function&& function) {
  const RoiWeights<T>* const all = weights.begin(0, 0);
  for (int64_t level = 0; level < levels; ++level) {
    for (int64_t image = 0; image < batch_size; ++image) {
      const RoiWeights<T>* const begin = std::max(weights.begin(level, image), all + first);
      const RoiWeights<T>* const end = std::min(weights.end(level, image), all + last);
      if (begin < end) function(begin, end, level, image);
    }
  }
}

template <class Stored>
void run_forward(const std::vector<Tensor>& maps, const Tensor& rois,
                 const std::vector<LevelShape>& levels, bool channels_last,
                 const RoiAlignRequest& request, Tensor& output) {
  using T = accumulate_t<Stored>;
  const int64_t batch_size = maps[0].size(0);
  const PooledShape pooled{maps[0].size(1), request.options.pooled_height,
                           request.options.pooled_width};
  auto* const out = output.mutable_data_ptr<Stored>();
  const auto* const roi_data = rois.const_data_ptr<T>();
  check_batch_indices(roi_data, rois.size(0), batch_size, request.op);
  // Before the weights: without channels there may be any number of bins.
  if (output.numel() == 0) return;
  const int64_t roi_count = rois.size(0);
  const int64_t threads = torch::stable::get_num_threads();
  // Each split of the RoIs transposes the pixels it reads itself.
  const WorkGrid transposed_grid(pooled.channels, kChannelsPerTask, roi_count, threads);
  const auto image_of = [&](int64_t level, int64_t image) {
    return maps[level].const_data_ptr<Stored>() +
           image * pooled.channels * levels[level].height * levels[level].width;
  };
  // Estimated cycles per channel of a RoI.
  const int64_t cycles = 60 + 4 * pooled.bins();
  if (takes_few_taps(request.options, pooled, levels, roi_count, channels_last)) {
    const auto level_of = [&](int64_t k) {
      return request.level_of.empty() ? 0 : request.level_of[k];
    };
    torch::stable::parallel_for(
        0, roi_count, grain_size(cycles * pooled.channels), [&](int64_t first, int64_t last) {
          const auto map_of = [&](int64_t k) {
            const int64_t level = level_of(k);
            return FewMap<Stored>{image_of(level, static_cast<int64_t>(roi_data[5 * k])),
                                  levels[level].height, levels[level].width,
                                  levels[level].spatial_scale};
          };
          const auto take_irregular = [&](int64_t k) {
            WeightBuilder<T> builder(request.options);
            const LevelShape& level = levels[level_of(k)];
            const RoiWeights<T> roi =
                builder.build(k, roi_data + 5 * k + 1, level, WeightLayout::kChannelsLast);
            const MapStrides from =
                MapStrides::of(channels_last, pooled.channels, level.height * level.width);
            const MapStrides to = MapStrides::of(channels_last, pooled.channels, pooled.bins());
            for (int64_t c = 0; c < pooled.channels; ++c) {
              RCNN_DYNAMIC_DISPATCH(roi_align_exact(
                  roi, map_of(k).image + c * from.channel, level.width * from.pixel, pooled,
                  out + k * pooled.channels * pooled.bins() + c * to.channel, from.pixel,
                  to.pixel));
            }
          };
          RCNN_DYNAMIC_DISPATCH(roi_align_few_rois(roi_data, first, last, request.options, pooled,
                                                   channels_last, map_of, out, take_irregular));
        });
    return;
  }
  const bool has_permutes = std::is_same_v<T, float> && active_isa() == Isa::kAvx512;
  const auto weights =
      compute_weights<T>(rois, levels, batch_size, request, [&](int64_t level, int64_t count) {
        if (channels_last) return WeightLayout::kChannelsLast;
        if (pooled.channels >= kChannelsPerTask &&
            should_transpose(levels[level], count / transposed_grid.roi_splits, pooled.bins())) {
          return WeightLayout::kTransposedBlocks;
        }
        return has_permutes ? WeightLayout::kPermutedColumns : WeightLayout::kSharedColumns;
      });
  advise_huge_pages_for(output);
  const auto level_count = static_cast<int64_t>(levels.size());

  if (channels_last) {
    torch::stable::parallel_for(
        0, weights.size(), grain_size(cycles * pooled.channels), [&](int64_t first, int64_t last) {
          std::vector<WeightedPixel<T>> taps;
          std::vector<T> sums;
          for_each_map(
              weights, level_count, batch_size, first, last,
              [&](const RoiWeights<T>* begin, const RoiWeights<T>* end, int64_t level,
                  int64_t image) {
                if (pooled.channels < kChannelsPerTask) {
                  RCNN_DYNAMIC_DISPATCH(roi_align_channels_last_few(
                      begin, end, image_of(level, image), levels[level].width, pooled, sums, out));
                  return;
                }
                RCNN_DYNAMIC_DISPATCH(roi_align_channels_last(
                    begin, end, image_of(level, image), levels[level].width, pooled, taps, out));
              });
        });
    return;
  }
  const bool streaming = output.numel() * static_cast<int64_t>(sizeof(Stored)) > kStreamingBytes;
  parallel_for_2d(
      weights.has(WeightLayout::kTransposedBlocks)
          ? transposed_grid
          : WorkGrid(pooled.channels, kPlanesPerPass, roi_count, 4 * threads),
      cycles, [&](int64_t first, int64_t last, int64_t first_roi, int64_t last_roi) {
        std::vector<RoiSpan<RoiWeights<T>, Stored>> transposed_spans, plane_spans;
        for_each_map(
            weights, level_count, batch_size, first_roi, last_roi,
            [&](const RoiWeights<T>* begin, const RoiWeights<T>* end, int64_t level,
                int64_t image) {
              const LevelShape& map = levels[level];
              const bool is_transposed =
                  weights.layout(level, image) == WeightLayout::kTransposedBlocks;
              // From a quarter of the map on; untuned.
              const bool whole =
                  is_transposed || 4 * count_pixels_read(begin, end) >= map.height * map.width;
              (is_transposed ? transposed_spans : plane_spans)
                  .push_back({begin, end, image_of(level, image), map.height, map.width, whole});
            });
        if (!transposed_spans.empty()) {
          RCNN_DYNAMIC_DISPATCH(
              roi_align_transposed<T>(transposed_spans, pooled, first, last, streaming, out));
        }
        ForwardScratch<T> scratch(plane_spans.empty() ? 0 : max_width(levels));
        for (const auto& span : plane_spans) {
          RCNN_DYNAMIC_DISPATCH(roi_align_channels(span, pooled, first, last, scratch, out));
        }
      });
}

// The gradient of every map by roi_align_backward_few(): threads divide its rows.
template <class Stored, class T>
void run_backward_few(const Stored* grad, const T* rois, int64_t roi_count,
                      const std::vector<LevelShape>& levels, bool channels_last,
                      const RoiAlignRequest& request, const PooledShape& pooled, int64_t batch_size,
                      std::vector<Tensor>& results) {
  for (size_t level = 0; level < levels.size(); ++level) {
    const LevelShape& map = levels[level];
    if (results[level].numel() == 0) continue;
    advise_huge_pages_for(results[level]);
    auto* const out = results[level].mutable_data_ptr<Stored>();
    for (int64_t image = 0; image < batch_size; ++image) {
      const auto takes = [&](int64_t k) {
        return static_cast<int64_t>(rois[5 * k]) == image &&
               (request.level_of.empty() || request.level_of[k] == static_cast<int32_t>(level));
      };
      const int64_t cycles = (map.height * map.width / 4 + roi_count * pooled.bins() * 20) *
                             pooled.channels / map.height;
      torch::stable::parallel_for(
          0, map.height, grain_size(cycles), [&](int64_t first, int64_t last) {
            std::vector<T> scratch;
            RCNN_DYNAMIC_DISPATCH(roi_align_backward_few(
                rois, roi_count, map, request.options, pooled, channels_last, first, last, grad,
                scratch, out + image * pooled.channels * map.height * map.width, takes));
          });
    }
  }
}

template <class Stored>
void run_backward(const Tensor& grad, const Tensor& rois, const std::vector<LevelShape>& levels,
                  bool channels_last, const RoiAlignRequest& request, int64_t batch_size,
                  std::vector<Tensor>& results) {
  using T = accumulate_t<Stored>;
  constexpr bool kInPlace = std::is_same_v<T, Stored>;
  const PooledShape pooled{grad.size(1), grad.size(2), grad.size(3)};
  const int64_t channels = pooled.channels;
  const auto* const upstream = grad.const_data_ptr<Stored>();
  const auto* const roi_data = rois.const_data_ptr<T>();
  check_batch_indices(roi_data, rois.size(0), batch_size, request.op);
  if (channels == 0) return;
  const auto level_of = [&](int64_t k) -> const LevelShape& {
    return levels[request.level_of.empty() ? 0 : request.level_of[k]];
  };
  if (scatters_few_taps(request.options, pooled, channels_last, roi_data, rois.size(0), level_of)) {
    run_backward_few(upstream, roi_data, rois.size(0), levels, channels_last, request, pooled,
                     batch_size, results);
    return;
  }
  const auto weights = compute_weights<T>(rois, levels, batch_size, request, [&](int64_t, int64_t) {
    return channels_last ? WeightLayout::kBackwardRows : WeightLayout::kBackwardPlanes;
  });
  for (size_t level = 0; level < levels.size(); ++level) {
    if (results[level].numel() == 0) continue;
    advise_huge_pages_for(results[level]);
    const int64_t height = levels[level].height;
    const int64_t width = levels[level].width;
    auto* const out = results[level].mutable_data_ptr<Stored>();
    const int64_t image_size = channels * height * width;
    for (int64_t image = 0; image < batch_size; ++image) {
      const RoiWeights<T>* const begin = weights.begin(level, image);
      const RoiWeights<T>* const end = weights.end(level, image);
      const int64_t cycles = (height * width + (end - begin) * pooled.bins() * 8) * channels / 4;
      if (channels_last) {
        torch::stable::parallel_for(
            0, height, grain_size(cycles / height), [&](int64_t first, int64_t last) {
              std::vector<T> sums(pooled.width * channels);
              std::vector<T> line(kInPlace ? 0 : width * channels);
              RCNN_DYNAMIC_DISPATCH(roi_align_backward_rows(begin, end, upstream, width, pooled,
                                                            first, last, sums.data(), line.data(),
                                                            out + image * image_size));
            });
        continue;
      }
      const int64_t planes_per_pass = end - begin > kMaxRoisForOnePlane ? 4 : 1;
      const int64_t tasks = (channels + planes_per_pass - 1) / planes_per_pass;
      torch::stable::parallel_for(
          0, tasks, grain_size(cycles / tasks), [&](int64_t first, int64_t last) {
            BackwardScratch<T> scratch(width, pooled);
            std::vector<T> planes(kInPlace ? 0 : planes_per_pass * height * width);
            for (int64_t c = first * planes_per_pass;
                 c < std::min(channels, last * planes_per_pass); c += planes_per_pass) {
              RCNN_DYNAMIC_DISPATCH(roi_align_backward_planes(
                  begin, end, upstream, height, width, pooled, c,
                  std::min(planes_per_pass, channels - c), scratch, planes.data(),
                  out + image * image_size + c * height * width));
            }
          });
    }
  }
}

}  // namespace

Tensor roi_align_levels(const std::vector<Tensor>& levels, const RoiAlignRequest& request) {
  const bool channels_last = is_channels_last(levels[0]);
  const ScalarType dtype = levels[0].scalar_type();
  const RoiAlignOptions& options = request.options;
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
    run_forward<type_of<decltype(tag)>>(maps, rois, shapes, channels_last, request, output);
  });
  return output;
}

std::vector<Tensor> roi_align_backward_levels(const Tensor& grad,
                                              const std::vector<FeatureShape>& shapes,
                                              const RoiAlignRequest& request, bool channels_last) {
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
    run_backward<type_of<decltype(tag)>>(upstream, rois, levels, channels_last, request,
                                         shapes[0].batch_size, results);
  });
  return results;
}

namespace {

// input: [N, C, H, W], rois: [K, 5] (batch index, x1, y1, x2, y2; image pixels) -> [K, C, PH, PW]
Tensor roi_align_cpu(const Tensor& input, const Tensor& rois, double spatial_scale,
                     int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                     bool aligned) {
  const RoiAlignOptions options{spatial_scale, pooled_height, pooled_width, sampling_ratio,
                                aligned};
  check_roi_align(input, rois, options);
  return roi_align_levels({input}, {"roi_align", rois, {}, {spatial_scale}, options});
}

// grad: [K, C, PH, PW], rois: [K, 5] -> gradient of the input, [N, C, H, W]
Tensor roi_align_backward_cpu(const Tensor& grad, const Tensor& rois, double spatial_scale,
                              int64_t pooled_height, int64_t pooled_width, int64_t batch_size,
                              int64_t channels, int64_t height, int64_t width,
                              int64_t sampling_ratio, bool aligned, bool channels_last) {
  const RoiAlignOptions options{spatial_scale, pooled_height, pooled_width, sampling_ratio,
                                aligned};
  const FeatureShape shape{batch_size, channels, height, width};
  check_roi_align_backward(grad, rois, shape, options);
  return roi_align_backward_levels(
      grad, {shape}, {"roi_align_backward", rois, {}, {spatial_scale}, options}, channels_last)[0];
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  RCNN_REGISTER(m, "roi_align", roi_align_cpu, input, rois);
  RCNN_REGISTER(m, "roi_align_backward", roi_align_backward_cpu, grad, rois);
}
