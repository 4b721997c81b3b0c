// RoIAlign on one CPU core, backward, for few channels or few bins. Compiled once per instruction
// set (foreach_target.h).
//
// Each bin adds to the pixels that it sampled, one by one: its weights are computed on the way, and
// no row of pixels is passed over between the few that a large bin samples. A pixel's gradient is a
// sum over RoIs in the order of the call, and over the bins of each in theirs.
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../core/map_strides.h"
#include "../core/roi_math.h"
#include "../cpu/targets.h"
#include "roi_align_weight_builder_cpu.h"
#include "roi_align_weights_cpu.h"

#if defined(RCNN_ROI_ALIGN_ROI_ALIGN_BACKWARD_FEW_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_ROI_ALIGN_ROI_ALIGN_BACKWARD_FEW_CPU_INL_H_
#undef RCNN_ROI_ALIGN_ROI_ALIGN_BACKWARD_FEW_CPU_INL_H_
#else
#define RCNN_ROI_ALIGN_ROI_ALIGN_BACKWARD_FEW_CPU_INL_H_
#endif

#include "../cpu/channel_block-inl.h"
#include "../cpu/simd-inl.h"
#include "roi_align_few_cpu-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Terms of a sum along an axis.
template <class T>
struct TapSpan {
  const Tap<T>*begin, *end;
};

// The taps of a bin with at most two samples whose weight is not 0: a NaN or an infinite gradient
// reaches no other pixel.
template <class T>
struct NonzeroTaps {
  Tap<T> taps[FewTaps<T>::kCount];
  int count;

  explicit NonzeroTaps(const FewTaps<T>& all) : count(0) {
    for (int i = 0; i < FewTaps<T>::kCount; ++i) {
      taps[count] = {static_cast<int32_t>(all.index[i]), all.weight[i]};
      // Not as a branch, which would often be mispredicted.
      count += all.weight[i] != T(0);
    }
  }
  TapSpan<T> span() const { return {taps, taps + count}; }
};

// Rows [first, last) of a map's gradient, in some channels.
template <class T>
struct GradientRows {
  T* data;                      // at row `first` of the first channel
  int64_t first, last;          // rows
  int64_t channel, row, pixel;  // elements from one to the next
};

// The taps along y, in ascending order, that lie in the rows.
template <class T>
RCNN_INLINE TapSpan<T> clip(TapSpan<T> y, const GradientRows<T>& rows) {
  while (y.begin != y.end && y.begin->index < rows.first) ++y.begin;
  while (y.begin != y.end && y.end[-1].index >= rows.last) --y.end;
  return y;
}

// Adds one bin of `channels` channels. y: in the rows; grad: at the first channel, `step` elements
// from one to the next. kColumns: the number of taps along x
template <int kColumns, class T, class Stored>
RCNN_INLINE void scatter_bin(const TapSpan<T>& y, const TapSpan<T>& x, const Stored* grad,
                             int64_t channels, int64_t step, const GradientRows<T>& rows) {
  T* plane = rows.data;
  for (int64_t c = 0; c < channels; ++c, plane += rows.channel) {
    const T upstream = static_cast<T>(grad[c * step]);
    T columns[kColumns];
    T* targets[kColumns];
    for (int i = 0; i < kColumns; ++i) {
      columns[i] = x.begin[i].weight * upstream;
      targets[i] = plane + x.begin[i].index * rows.pixel;
    }
    for (const Tap<T>* tap = y.begin; tap != y.end; ++tap) {
      const int64_t at = (tap->index - rows.first) * rows.row;
      for (int i = 0; i < kColumns; ++i) targets[i][at] += tap->weight * columns[i];
    }
  }
}

// scatter_bin() for any number of taps along x, from a few at a time.
template <class T, class Stored>
RCNN_INLINE void scatter_bin_of(const TapSpan<T>& y, const TapSpan<T>& x, const Stored* grad,
                                int64_t channels, int64_t step, const GradientRows<T>& rows) {
  constexpr int kMax = FewTaps<T>::kCount;
  for (const Tap<T>* begin = x.begin; begin != x.end;) {
    const Tap<T>* const end = begin + std::min<int64_t>(kMax, x.end - begin);
    const TapSpan<T> part{begin, end};
    switch (end - begin) {
      case 1: scatter_bin<1>(y, part, grad, channels, step, rows); break;
      case 2: scatter_bin<2>(y, part, grad, channels, step, rows); break;
      case 3: scatter_bin<3>(y, part, grad, channels, step, rows); break;
      default: scatter_bin<kMax>(y, part, grad, channels, step, rows);
    }
    begin = end;
  }
}

// Whether a RoI may have samples in the rows.
template <class T>
RCNN_INLINE bool may_reach_rows(const RoiAlignAxis<T>& y, int64_t bins, int64_t first,
                                int64_t last) {
  const T end = y.start + T(bins) * y.bin_size;
  const T bottom = T(y.extent - 1);
  // A sample reads the pixel above and below, and those beyond the map read its edge.
  const T low = std::min(std::max(std::min(y.start, end) - T(2), T(0)), bottom);
  const T high = std::min(std::max(std::max(y.start, end) + T(2), T(0)), bottom);
  return high >= T(first) && low < T(last);
}

// Adds RoIs to rows of the gradient of an image on a level. rois: [K, 5]; takes(k) -> whether a RoI
// is of this image and level; grad: [K, C, PH, PW] with strides `from`
template <class T, class Stored, class Takes>
void scatter_rois(const T* rois, int64_t roi_count, const LevelShape& level,
                  const RoiAlignOptions& options, const PooledShape& pooled, const MapStrides& from,
                  const Stored* grad, const GradientRows<T>& rows, Takes&& takes) {
  std::vector<NonzeroTaps<T>> columns;
  columns.reserve(pooled.width);
  const T scale = static_cast<T>(level.spatial_scale);
  for (int64_t k = 0; k < roi_count; ++k) {
    if (!takes(k)) continue;
    const T* const box = rois + 5 * k + 1;
    const Stored* const upstream = grad + k * pooled.channels * pooled.bins();
    const auto y = make_roi_align_axis(box[1], box[3], scale, pooled.height, options.sampling_ratio,
                                       options.aligned, level.height);
    const auto x = make_roi_align_axis(box[0], box[2], scale, pooled.width, options.sampling_ratio,
                                       options.aligned, level.width);
    const auto scatter = [&](int64_t bin, const TapSpan<T>& ys, const TapSpan<T>& xs) {
      scatter_bin_of(ys, xs, upstream + bin * from.pixel, pooled.channels, from.channel, rows);
    };
    if (RCNN_UNLIKELY(!has_few_taps(y) || !has_few_taps(x))) {
      WeightBuilder<T> builder(options);
      const RoiWeights<T> roi = builder.build(k, box, level, WeightLayout::kChannelsLast);
      for (int64_t bin = 0; bin < pooled.bins(); ++bin) {
        const int32_t* const ys = roi.y.starts + bin / pooled.width;
        const int32_t* const xs = roi.x.starts + bin % pooled.width;
        scatter(bin, clip<T>({roi.y.taps + ys[0], roi.y.taps + ys[1]}, rows),
                {roi.x.taps + xs[0], roi.x.taps + xs[1]});
      }
      continue;
    }
    if (!may_reach_rows(y, pooled.height, rows.first, rows.last)) continue;
    const T share = few_taps_share(y, x);
    columns.clear();
    for (int64_t pw = 0; pw < pooled.width; ++pw) columns.emplace_back(few_taps(x, pw, T(1)));
    for (int64_t ph = 0; ph < pooled.height; ++ph) {
      const NonzeroTaps<T> taps(few_taps(y, ph, share));
      const TapSpan<T> ys = clip(taps.span(), rows);
      for (int64_t pw = 0; pw < pooled.width && ys.begin != ys.end; ++pw) {
        scatter(ph * pooled.width + pw, ys, columns[pw].span());
      }
    }
  }
}

// Rows [first, last) of the gradient of an image on a level, all channels: arguments as those of
// scatter_rois(). out: [C, H, W] or [H, W, C]; scratch: of a tile, unless T is stored
template <class T, class Stored, class Takes>
void roi_align_backward_few(const T* rois, int64_t roi_count, const LevelShape& level,
                            const RoiAlignOptions& options, const PooledShape& pooled,
                            bool channels_last, int64_t first, int64_t last, const Stored* grad,
                            std::vector<T>& scratch, Stored* out, Takes&& takes) {
  constexpr bool kInPlace = std::is_same_v<T, Stored>;
  constexpr int64_t kTileBytes = 1 << 19;  // half of L2
  const MapStrides from = MapStrides::of(channels_last, pooled.channels, pooled.bins());
  // Channels of channels-last rows lie together.
  const int64_t lines = channels_last ? 1 : pooled.channels;
  const int64_t line = level.width * (channels_last ? pooled.channels : 1);
  const int64_t tile_rows =
      kInPlace
          ? last - first
          : std::max<int64_t>(1, kTileBytes / (lines * line * static_cast<int64_t>(sizeof(T))));
  for (int64_t y = first; y < last; y += tile_rows) {
    const int64_t stop = std::min(last, y + tile_rows);
    const int64_t size = (stop - y) * line;  // of the tile in a plane
    const int64_t plane = level.height * line;
    Stored* const target = out + y * line;
    GradientRows<T> rows{nullptr, y, stop, 0, line, channels_last ? pooled.channels : 1};
    if constexpr (kInPlace) {
      rows.data = target;
      rows.channel = channels_last ? 1 : plane;
      for (int64_t i = 0; i < lines; ++i) std::fill_n(target + i * plane, size, T(0));
    } else {
      scratch.assign(lines * size, T(0));
      rows.data = scratch.data();
      rows.channel = channels_last ? 1 : size;
    }
    scatter_rois(rois, roi_count, level, options, pooled, from, grad, rows, takes);
    if constexpr (!kInPlace) {
      for (int64_t i = 0; i < lines; ++i) {
        store_all(target + i * plane, scratch.data() + i * size, size);
      }
    }
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_ROI_ALIGN_ROI_ALIGN_BACKWARD_FEW_CPU_INL_H_
