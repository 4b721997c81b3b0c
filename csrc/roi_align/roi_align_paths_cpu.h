// Which path of RoIAlign runs on the CPU, decided for each feature map. Figures: AMD EPYC with
// AVX-512, one core, 2026-11, float32 unless they say otherwise.
//
// clang-format off
// | forward path            | function                  | when                                       |
// |-------------------------|---------------------------|--------------------------------------------|
// | direct                  | roi_align_few             | see takes_few_taps()                       |
// | channels-last per pixel | roi_align_channels_last   | channels-last, at least 16 channels        |
// | channels-last separable | roi_align_channels_last_  | channels-last, fewer channels              |
// |                         |   few                     |                                            |
// | transposed blocks       | roi_align_transposed      | NCHW, at least 16 channels, and at most    |
// |                         |                           | 5 pixels of the map per bin                |
// | separable               | roi_align_channels        | all other NCHW maps; along x:              |
// |   with permutes         |   combine_lanes           | AVX-512, float32 sums, at most 64 columns  |
// |   with shared columns   |   combine_columns         | otherwise                                  |
//
// | backward path           | function                  | when                                       |
// |-------------------------|---------------------------|--------------------------------------------|
// | direct                  | roi_align_backward_few    | see scatters_few_taps()                    |
// | by rows                 | roi_align_backward_rows   | all other channels-last maps               |
// | by plane                | roi_align_backward_planes | all other NCHW maps                        |
// | by four planes          | roi_align_backward_planes | of these, with more than 4000 RoIs on one  |
// clang-format on
//
// Why:
// - Direct: for few bins the weights are computed where they are used, as laying them out and
//   sorting the RoIs would cost more than the sums. 64 RoIs, 1 x 1 bins, 16 channels: 58 -> 16 us.
// - Channels-last separable: with few channels, most lanes would be empty per pixel. Sums have the
//   order of NCHW maps. 128 RoIs, 14 x 14 bins, 3 channels: 3.7 -> 0.5 ms.
// - Channels-last per pixel: a bin adds whole pixels, whose channels are neighbors in memory.
// - Transposed blocks: with channels in lanes, no columns have to be gathered; but every pixel of
//   the map is transposed, which gained at 4.8 pixels per bin and lost at 9.7 (kMaxPixelsPerBin;
//   bins of the RoIs of one split). Over 4 levels 28.4 -> 24.3 ms, in bfloat16 24.7 -> 18.3 ms,
//   together with non-temporal stores of results above 8 MB (kStreamingBytes). Bins of at most 4
//   x 4 taps (kMaxStaticTaps) have unrolled kernels: with AVX2 22.8 -> 19.2 ms.
// - Separable: rows of pixels are summed along y and the sums along x, so that a pixel is read
//   once per row of bins. Two planes share a RoI's weights (kPlanesPerPass), unless a plane has
//   more than 1000 bytes per RoI (kBytesPerRoi): two planes and the next two would not fit the
//   cache.
// - With permutes: each lane reads the columns of its own bin out of at most four registers
//   (kMaxPermutedColumns), in as many steps as a bin has taps. With shared columns all lanes read
//   one column, in as many steps as the bins of a block have columns together.
// - Direct, backward: each bin adds to the pixels that it sampled, and no row of pixels between
//   them is passed over. 512 RoIs, 3 x 3 bins, 1 channel: 261 -> 125 us; 128 RoIs of up to 200
//   pixels, 14 x 14 bins, 3 channels-last channels: 3.0 -> 1.2 ms. Smaller bins add to the same
//   pixels: with 28 x 28 of a pixel each, 7 channels, it lost (0.6 -> 2.3 ms; kMinPixelsPerBin).
// - By rows: a thread takes rows of the map and visits the RoIs of each, so that one row of sums
//   stays in the cache.
// - By plane: one plane stays in L2, where four planes of a large map would not: 30.4 -> 29 ms.
// - By four planes (kMaxRoisForOnePlane): what is read for one channel of so many RoIs lies on more
//   pages than the TLB has entries, and the channels of a RoI are neighbors in it. 10,000 RoIs:
//   216 -> 152 ms.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "roi_align.h"
#include "roi_align_weight_builder_cpu.h"
#include "roi_align_weights_cpu.h"

namespace rcnn_ext {

// Channels per task on transposed blocks, and the minimum number of channels for which transposing
// saves time: the lanes of the widest register.
constexpr int64_t kChannelsPerTask = 16;
// With more RoIs on a map than this, the gradient takes four planes at a time.
constexpr int64_t kMaxRoisForOnePlane = 4000;
// Results per RoI, and bins, up to which weights are computed where they are used.
constexpr int64_t kMaxFewResults = 64;
constexpr int64_t kMaxFewBins = 9;

// Whether to transpose every pixel of a map to blocks of channels.
inline bool should_transpose(const LevelShape& map, int64_t rois, int64_t bins) {
  constexpr int64_t kMaxPixelsPerBin = 5;
  return map.height * map.width <= kMaxPixelsPerBin * rois * bins;
}

template <class T>
int64_t count_pixels_read(const RoiWeights<T>* begin, const RoiWeights<T>* end) {
  int64_t count = 0;
  for (; begin != end; ++begin) count += begin->rows * begin->columns;
  return count;
}

// Whether all RoIs are taken without storing weights: at most two samples along a bin, and few
// results per RoI, or so few bins that neither rows nor registers of bins would be filled.
inline bool takes_few_taps(const RoiAlignOptions& options, const PooledShape& pooled,
                           const std::vector<LevelShape>& levels, int64_t rois,
                           bool channels_last) {
  if (options.sampling_ratio < 1 || options.sampling_ratio > 2) return false;
  const bool few_channels = pooled.channels < kChannelsPerTask;
  if (channels_last && !few_channels) return false;
  if (pooled.channels * pooled.bins() <= kMaxFewResults) return true;
  if (pooled.bins() > kMaxFewBins) return false;
  if (few_channels) return !channels_last;
  return std::none_of(levels.begin(), levels.end(), [&](const LevelShape& level) {
    return should_transpose(level, rois, pooled.bins());
  });
}

// Whether the RoIs have many pixels per bin on average, most of which two samples do not touch.
// rois: [K, 5]; level_of(k) -> LevelShape
template <class T, class LevelOf>
bool has_large_bins(const T* rois, int64_t count, int64_t bins, LevelOf&& level_of) {
  constexpr int64_t kMinPixelsPerBin = 4;
  double pixels = 0;
  for (int64_t k = 0; k < count; ++k) {
    const LevelShape& level = level_of(k);
    // Of a RoI beyond the map, or without a size, that of the map.
    const auto side = [&](T first, T last, int64_t extent) {
      const double length =
          std::fabs(static_cast<double>(last) - static_cast<double>(first)) * level.spatial_scale;
      return length < static_cast<double>(extent) ? length : static_cast<double>(extent);
    };
    const T* const box = rois + 5 * k + 1;
    pixels += side(box[1], box[3], level.height) * side(box[0], box[2], level.width);
  }
  return pixels >= static_cast<double>(kMinPixelsPerBin * count * bins);
}

// Whether each bin's gradient goes to its pixels one by one: at most two samples along a bin, and
// few results per RoI; or large bins, and few of them in few channels, or so few channels that in a
// channels-last row even half a register of them would not be filled.
template <class T, class LevelOf>
bool scatters_few_taps(const RoiAlignOptions& options, const PooledShape& pooled,
                       bool channels_last, const T* rois, int64_t count, LevelOf&& level_of) {
  constexpr int64_t kMinChannelsOfRow = 8;
  if (options.sampling_ratio < 1 || options.sampling_ratio > 2) return false;
  if (pooled.channels * pooled.bins() <= kMaxFewResults) return true;
  if (channels_last ? pooled.channels >= kMinChannelsOfRow
                    : pooled.channels >= kChannelsPerTask || pooled.bins() > kMaxFewBins) {
    return false;
  }
  return has_large_bins(rois, count, pooled.bins(), level_of);
}

}  // namespace rcnn_ext
