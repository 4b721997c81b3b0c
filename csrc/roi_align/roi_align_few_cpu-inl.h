// RoIAlign on one CPU core, forward, for few channels or few bins. Sums have the order of
// roi_align_forward_cpu-inl.h for NCHW maps, and so its bits, in either layout. Compiled once per
// instruction set (foreach_target.h).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "../core/map_strides.h"
#include "../core/roi_math.h"
#include "../cpu/targets.h"
#include "roi_align_weights_cpu.h"

#if defined(RCNN_ROI_ALIGN_ROI_ALIGN_FEW_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_ROI_ALIGN_ROI_ALIGN_FEW_CPU_INL_H_
#undef RCNN_ROI_ALIGN_ROI_ALIGN_FEW_CPU_INL_H_
#else
#define RCNN_ROI_ALIGN_ROI_ALIGN_FEW_CPU_INL_H_
#endif

#include "../cpu/simd-inl.h"
#include "roi_align_forward_cpu-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// The taps of a bin along an axis with at most two samples, in ascending order; those that are left
// over have weight 0.
template <class T>
struct FewTaps {
  static constexpr int kCount = 4;
  int64_t index[kCount];
  T weight[kCount];
};

// Whether the samples of every bin of an axis are those that few_taps() takes: else the RoI is
// degenerate, and samples_within() may leave some out.
template <class T>
RCNN_INLINE bool has_few_taps(const RoiAlignAxis<T>& axis) {
  const T size = std::fabs(axis.bin_size);
  return axis.extent > 0 && size >= T(1e-6) && size <= T(1e6) && std::fabs(axis.start) <= T(1e6);
}

// 1 / the number of samples of a bin. A power of two, so that multiplying by it rounds as dividing
// by the number does, in less time.
template <class T>
RCNN_INLINE T few_taps_share(const RoiAlignAxis<T>& y, const RoiAlignAxis<T>& x) {
  return (y.samples > T(1) ? T(0.5) : T(1)) * (x.samples > T(1) ? T(0.5) : T(1));
}

// Weights are multiplied by `share`.
template <class T>
RCNN_INLINE FewTaps<T> few_taps(const RoiAlignAxis<T>& axis, int64_t bin, T share) {
  const bool two = axis.samples > T(1);
  const T inverse = two ? T(0.5) : T(1);
  const T start = axis.start + T(bin) * axis.bin_size;
  // sample_position() without its division.
  const auto sample_at = [&](T middle) {
    return interpolate(start + middle * axis.bin_size * inverse, axis.extent);
  };
  const AxisSample<T> none{0, 0, T(0), T(0)};
  AxisSample<T> a = sample_at(T(0.5));
  AxisSample<T> b = two ? sample_at(T(1.5)) : none;
  if (axis.bin_size < T(0)) std::swap(a, b);
  FewTaps<T> taps{{a.low, a.high, b.low, b.high},
                  {a.weight_low, a.weight_high, b.weight_low, b.weight_high}};
  for (int i = 1; i < FewTaps<T>::kCount; ++i) {
    for (int earlier = 0; earlier < i; ++earlier) {
      const bool equal = taps.index[i] == taps.index[earlier];
      taps.weight[earlier] += equal ? taps.weight[i] : T(0);
      taps.weight[i] = equal ? T(0) : taps.weight[i];
    }
  }
  for (T& weight : taps.weight) weight *= share;
  return taps;
}

// One bin of one channel. With kExact, a pixel whose weight is 0 is left out: a NaN or an infinity
// counts only where its weight is not 0.
template <bool kExact, class T, class Stored>
RCNN_INLINE T combine_few_taps(const FewTaps<T>& y, const FewTaps<T>& x, const Stored* plane,
                               int64_t row, int64_t step) {
  constexpr int kCount = FewTaps<T>::kCount;
  T total = T(0);
  for (int tx = 0; tx < kCount; ++tx) {
    T column = T(0);
    if (kExact && x.weight[tx] == T(0)) continue;
    for (int ty = 0; ty < kCount; ++ty) {
      if (kExact && y.weight[ty] == T(0)) continue;
      column += y.weight[ty] * static_cast<T>(plane[y.index[ty] * row + x.index[tx] * step]);
    }
    total += x.weight[tx] * column;
  }
  return total;
}

// The bins of one RoI in all channels, where a bin has at most two samples along each axis.
// image: [C, H, W], or [H, W, C] with the strides of such a map; columns: scratch [PW]; out: the
// RoI's [C, PH, PW] or [PH, PW, C]
//
// Weights are not stored: for so few bins, computing them costs less than laying them out.
template <class T, class Stored>
void roi_align_few(const RoiAlignAxis<T>& y, const RoiAlignAxis<T>& x, const Stored* image,
                   int64_t width, const PooledShape& pooled, bool channels_last,
                   std::vector<FewTaps<T>>& columns, Stored* out) {
  const MapStrides from = MapStrides::of(channels_last, pooled.channels, y.extent * x.extent);
  const MapStrides to = MapStrides::of(channels_last, pooled.channels, pooled.bins());
  const T share = few_taps_share(y, x);
  columns.resize(pooled.width);
  for (int64_t pw = 0; pw < pooled.width; ++pw) columns[pw] = few_taps(x, pw, T(1));
  for (int64_t ph = 0; ph < pooled.height; ++ph) {
    const FewTaps<T> rows = few_taps(y, ph, share);
    for (int64_t pw = 0; pw < pooled.width; ++pw) {
      const FewTaps<T>& column = columns[pw];
      Stored* const target = out + (ph * pooled.width + pw) * to.pixel;
      for (int64_t c = 0; c < pooled.channels; ++c) {
        const Stored* const plane = image + c * from.channel;
        T total = combine_few_taps<false>(rows, column, plane, width * from.pixel, from.pixel);
        if (RCNN_UNLIKELY(!(total * T(0) == T(0)))) {
          total = combine_few_taps<true>(rows, column, plane, width * from.pixel, from.pixel);
        }
        target[c * to.channel] = static_cast<Stored>(total);
      }
    }
  }
}

// A bin of kN channels, or fewer, from sums along y. sums: at the first channel of the first
// column that the RoI reads
template <int kN, class T, class Stored>
RCNN_INLINE void combine_columns_of_channels(const Tap<T>* begin, const Tap<T>* end, const T* sums,
                                             int64_t channels, int64_t count, Stored* out) {
  Vec<T, kN> total{};
  for (const Tap<T>* tap = begin; tap != end; ++tap) {
    total += Set<kN>(tap->weight) * LoadU<T, kN>(sums + tap->index * channels);
  }
  StoreN<kN, T>(out, total, count);
}

// One RoI of few channels, NHWC: rows are summed along y with columns and channels in lanes, and
// the sums along x with channels in lanes. Only taps whose weight is not 0 are read.
// image: [H, W, C], sums: scratch of a row of the map, out: [PH, PW, C]
template <class T, class Stored>
inline void roi_align_few_channels_last(const RoiWeights<T>& roi, const Stored* image,
                                        int64_t width, const PooledShape& pooled,
                                        std::vector<T>& sums, Stored* out) {
  constexpr int kN = kLanes<T>;
  constexpr int kQuarter = 16 / static_cast<int>(sizeof(T));
  const int64_t channels = pooled.channels;
  const int64_t row = width * channels;
  sums.resize(std::max<size_t>(sums.size(), row + kN));
  const int64_t count =
      std::min((roi.x_count * channels + kColumnBlock - 1) / kColumnBlock * kColumnBlock, row);
  const int64_t first = std::min(roi.first_x * channels, row - count);
  for (int64_t ph = 0; ph < pooled.height; ++ph) {
    combine_rows<1>(
        RowSums<T, Stored>{roi.y.taps + roi.y.starts[ph], roi.y.taps + roi.y.starts[ph + 1],
                           image + first, 0, row, sums.data(), 0},
        count);
    for (int64_t pw = 0; pw < pooled.width; ++pw) {
      const Tap<T>* const begin = roi.x.taps + roi.x.starts[pw];
      const Tap<T>* const end = roi.x.taps + roi.x.starts[pw + 1];
      const auto combine = [&](auto lanes) {
        constexpr int kStep = decltype(lanes)::value;
        for (int64_t c = 0; c < channels; c += kStep) {
          combine_columns_of_channels<kStep>(begin, end, sums.data() - first + c, channels,
                                             channels - c, out + c);
        }
      };
      if (channels <= kQuarter) {
        combine(std::integral_constant<int, kQuarter>());
      } else {
        combine(std::integral_constant<int, kN>());
      }
      out += channels;
    }
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_ROI_ALIGN_ROI_ALIGN_FEW_CPU_INL_H_
