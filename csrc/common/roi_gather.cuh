// Gradients of RoI operators as a gather: a block owns a tile of the feature map, meets the RoIs
// that touch the tile in order, and writes each gradient element once. No atomics, no zero-fill
// pass, and the sum of an element always has the same order.
//
// A Pooling says what differs between the operators:
//   using Roi                              geometry of a RoI, both axes
//   Roi roi(k)                             geometry of RoI k
//   bool touches(roi, n, tile)             may the RoI reach the tile of image n?
//   T y_weight(roi, bin, y), x_weight(roi, bin, x)   0 where the bin does not reach the row or
//   column T gradient(roi, element, pixel, y_weight, x_weight)   what the bin gives the pixel
#pragma once

#include "cuda_utils.cuh"
#include "dispatch.h"
#include "map_strides.h"
#include "roi_math.h"

namespace rcnn_ext {

// Pixels [y, y_end) x [x, x_end).
struct Tile {
  int64_t y, x, y_end, x_end;
};

constexpr int kGatherThreads = 256;
constexpr int kGatherWarps = kGatherThreads / kWarpSize;
constexpr int kChannelsPerThread = 8;
constexpr int kBinTile = 16;  // bins along an axis whose weights are in shared memory at a time

// Neighbouring threads write neighbouring elements: pixels of a row, or channels of a pixel.
template <bool kChannelsLast>
struct GatherShape {
  static constexpr int kTileHeight = kChannelsLast ? 2 : 8;
  static constexpr int kTileWidth = kChannelsLast ? 4 : 32;
  static constexpr int kChannels =
      kChannelsLast ? kWarpSize * kChannelsPerThread : kChannelsPerThread;
  static constexpr int kChannelStep = kChannelsLast ? kWarpSize : 1;
};

// out: [N, C, H, W]. The pooled maps are indexed by `pooled`.
template <class Pooling, class Stored, bool kChannelsLast>
__global__ void __launch_bounds__(kGatherThreads)
    roi_gather_kernel(Pooling pooling, int64_t roi_count, FeatureShape shape, int64_t pooled_height,
                      int64_t pooled_width, MapStrides pooled, Stored* out) {
  using T = accumulate_t<Stored>;
  using Shape = GatherShape<kChannelsLast>;
  __shared__ int64_t hits[kGatherThreads];  // RoIs that touch the tile, in order
  __shared__ int warp_hits[kGatherWarps];
  __shared__ T y_weights[kBinTile][Shape::kTileHeight];
  __shared__ T x_weights[kBinTile][Shape::kTileWidth];

  const int thread = threadIdx.x;
  const int warp = thread / kWarpSize;
  const int lane = thread % kWarpSize;
  const int64_t tiles_x = (shape.width + Shape::kTileWidth - 1) / Shape::kTileWidth;
  const int64_t tiles_y = (shape.height + Shape::kTileHeight - 1) / Shape::kTileHeight;
  const int64_t channel_blocks = (shape.channels + Shape::kChannels - 1) / Shape::kChannels;
  const int64_t tasks = tiles_x * tiles_y * channel_blocks * shape.batch_size;
  const int64_t pixels = shape.height * shape.width;
  const MapStrides strides = MapStrides::of(kChannelsLast, shape.channels, pixels);

  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const int64_t tile_x = task % tiles_x * Shape::kTileWidth;
    const int64_t tile_y = task / tiles_x % tiles_y * Shape::kTileHeight;
    const int64_t first_channel =
        task / (tiles_x * tiles_y) % channel_blocks * Shape::kChannels + (kChannelsLast ? lane : 0);
    const int64_t image = task / (tiles_x * tiles_y * channel_blocks);
    // It may reach beyond the map, where every weight is 0.
    const Tile tile{tile_y, tile_x, tile_y + Shape::kTileHeight, tile_x + Shape::kTileWidth};
    // This thread's pixel of the tile.
    const int row = kChannelsLast ? warp / Shape::kTileWidth : thread / Shape::kTileWidth;
    const int column = kChannelsLast ? warp % Shape::kTileWidth : thread % Shape::kTileWidth;
    const int64_t y = tile_y + row;
    const int64_t x = tile_x + column;
    const bool inside = y < shape.height && x < shape.width;
    T sums[kChannelsPerThread];
    for (int c = 0; c < kChannelsPerThread; ++c) sums[c] = T(0);

    for (int64_t base = 0; base < roi_count; base += kGatherThreads) {
      // The RoIs of this round that touch the tile, compacted in order.
      const int64_t candidate = base + thread;
      const bool hit =
          candidate < roi_count && pooling.touches(pooling.roi(candidate), image, tile);
      const unsigned ballot = __ballot_sync(kFullWarp, hit);
      if (lane == 0) warp_hits[warp] = __popc(ballot);
      __syncthreads();
      int before = 0;
      int total = 0;
      for (int w = 0; w < kGatherWarps; ++w) {
        if (w == warp) before = total;
        total += warp_hits[w];
      }
      if (hit) hits[before + __popc(ballot & ((1u << lane) - 1u))] = candidate;
      __syncthreads();

      for (int h = 0; h < total; ++h) {
        const int64_t k = hits[h];
        const auto roi = pooling.roi(k);
        for (int64_t ph0 = 0; ph0 < pooled_height; ph0 += kBinTile) {
          for (int64_t pw0 = 0; pw0 < pooled_width; pw0 += kBinTile) {
            const int y_bins =
                static_cast<int>(min(static_cast<int64_t>(kBinTile), pooled_height - ph0));
            const int x_bins =
                static_cast<int>(min(static_cast<int64_t>(kBinTile), pooled_width - pw0));
            for (int i = thread; i < y_bins * Shape::kTileHeight; i += kGatherThreads) {
              const int r = i % Shape::kTileHeight;
              const int bin = i / Shape::kTileHeight;
              y_weights[bin][r] = pooling.y_weight(roi, ph0 + bin, tile_y + r);
            }
            for (int i = thread; i < x_bins * Shape::kTileWidth; i += kGatherThreads) {
              const int r = i % Shape::kTileWidth;
              const int bin = i / Shape::kTileWidth;
              x_weights[bin][r] = pooling.x_weight(roi, pw0 + bin, tile_x + r);
            }
            __syncthreads();
            if (inside) {
              for (int ph = 0; ph < y_bins; ++ph) {
                const T y_weight = y_weights[ph][row];
                if (y_weight == T(0)) continue;
                for (int pw = 0; pw < x_bins; ++pw) {
                  const T x_weight = x_weights[pw][column];
                  if (x_weight == T(0)) continue;
                  const int64_t bin = (ph0 + ph) * pooled_width + pw0 + pw;
                  const int64_t element =
                      k * shape.channels * pooled_height * pooled_width + bin * pooled.pixel;
#pragma unroll
                  for (int c = 0; c < kChannelsPerThread; ++c) {
                    const int64_t channel = first_channel + c * Shape::kChannelStep;
                    if (channel < shape.channels) {
                      sums[c] += pooling.gradient(roi, element + channel * pooled.channel,
                                                  y * shape.width + x, y_weight, x_weight);
                    }
                  }
                }
              }
            }
            __syncthreads();  // the next bins overwrite the weights
          }
        }
      }
      // The next round overwrites the hits after a barrier, and the last of them was read before
      // one.
    }
    if (inside) {
      Stored* target =
          out + image * shape.channels * pixels + (y * shape.width + x) * strides.pixel;
      for (int c = 0; c < kChannelsPerThread; ++c) {
        const int64_t channel = first_channel + c * Shape::kChannelStep;
        if (channel < shape.channels) {
          target[channel * strides.channel] = static_cast<Stored>(sums[c]);
        }
      }
    }
  }
}

template <class Stored, bool kChannelsLast, class Pooling>
void launch_roi_gather(const char* name, const Pooling& pooling, int64_t roi_count,
                       const FeatureShape& shape, int64_t pooled_height, int64_t pooled_width,
                       bool pooled_channels_last, const CudaScope& scope, Stored* out) {
  using Shape = GatherShape<kChannelsLast>;
  const int64_t tasks = ceil_div(shape.width, Shape::kTileWidth) *
                        ceil_div(shape.height, Shape::kTileHeight) *
                        ceil_div(shape.channels, Shape::kChannels) * shape.batch_size;
  launch(name, roi_gather_kernel<Pooling, Stored, kChannelsLast>,
         {dim3(stride_grid(tasks, 1)), dim3(kGatherThreads)}, scope, pooling, roi_count, shape,
         pooled_height, pooled_width,
         MapStrides::of(pooled_channels_last, shape.channels, pooled_height * pooled_width), out);
}

}  // namespace rcnn_ext
