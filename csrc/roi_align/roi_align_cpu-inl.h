// RoIAlign on one CPU core: what a thread does. Compiled once per instruction set
// (foreach_target.h).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../cpu/prefetch.h"
#include "../cpu/roi_order.h"
#include "../cpu/targets.h"
#include "roi_align.h"
#include "roi_align_weights_cpu.h"

#if defined(RCNN_ROI_ALIGN_ROI_ALIGN_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_ROI_ALIGN_ROI_ALIGN_CPU_INL_H_
#undef RCNN_ROI_ALIGN_ROI_ALIGN_CPU_INL_H_
#else
#define RCNN_ROI_ALIGN_ROI_ALIGN_CPU_INL_H_
#endif

#include "../cpu/channel_block-inl.h"
#include "../cpu/simd-inl.h"
#include "roi_align_backward_cpu-inl.h"
#include "roi_align_backward_few_cpu-inl.h"
#include "roi_align_few_cpu-inl.h"
#include "roi_align_forward_cpu-inl.h"
#include "roi_align_transposed_cpu-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// RoIs are sorted for locality, so consecutive pooled maps are scattered in memory and the hardware
// prefetcher does not predict them: they are prefetched this many RoIs ahead.
constexpr int64_t kPrefetchRois = 2;  // untuned

// All RoIs of a span for channels [first, last), kPlanes channels at a time. out: [K, C, PH, PW]
template <int kPlanes, class T, class Stored>
void roi_align_channels_n(const RoiSpan<RoiWeights<T>, Stored>& span, const PooledShape& pooled,
                          int64_t first, int64_t last, ForwardScratch<T>& scratch, Stored* out) {
  const int64_t plane = span.height * span.width;
  const int64_t bins = pooled.bins();
  for (int64_t c = first; c < last; c += kPlanes) {
    const Stored* const planes = span.image + c * plane;
    const int64_t count = std::min<int64_t>(kPlanes, last - c);
    const int64_t next_count = span.whole ? std::min<int64_t>(kPlanes, last - c - count) : 0;
    Prefetcher<Stored> next_planes(planes + (next_count > 0 ? count * plane : 0),
                                   next_count * plane, span.end - span.begin);
    for (const RoiWeights<T>* roi = span.begin; roi != span.end; ++roi) {
      next_planes.advance();
      Stored* const target = out + (roi->index * pooled.channels + c) * bins;
      if (span.end - roi > kPrefetchRois) {
        prefetch_range<true>(out + (roi[kPrefetchRois].index * pooled.channels + c) * bins,
                             count * bins);
      }
      if (count == kPlanes) {
        roi_align_planes<kPlanes>(*roi, planes, plane, span.width, pooled, scratch, target);
      } else {
        for (int64_t i = 0; i < count; ++i) {
          roi_align_planes<1>(*roi, planes + i * plane, plane, span.width, pooled, scratch,
                              target + i * bins);
        }
      }
    }
  }
}

// All RoIs of a span for channels [first, last), NCHW. out: [K, C, PH, PW]
template <class T, class Stored>
void roi_align_channels(const RoiSpan<RoiWeights<T>, Stored>& span, const PooledShape& pooled,
                        int64_t first, int64_t last, ForwardScratch<T>& scratch, Stored* out) {
  // With few RoIs, the planes in use and the next ones should fit the cache together, so that
  // planes come one by one. With many, the weights of a RoI should serve several planes.
  constexpr int64_t kBytesPerRoi = 1000;  // untuned
  const int64_t bytes = span.height * span.width * static_cast<int64_t>(sizeof(Stored));
  if (bytes > kBytesPerRoi * (span.end - span.begin)) {
    roi_align_channels_n<1>(span, pooled, first, last, scratch, out);
  } else {
    roi_align_channels_n<kPlanesPerPass>(span, pooled, first, last, scratch, out);
  }
}

// RoIs [first, last) of all, by roi_align_few(), unless they are irregular: then left(k) is called.
// rois: [K, 5]; map_of(k) -> FewMap
template <class T, class Stored, class MapOf, class Left>
void roi_align_few_rois(const T* rois, int64_t first, int64_t last, const RoiAlignOptions& options,
                        const PooledShape& pooled, bool channels_last, MapOf&& map_of, Stored* out,
                        Left&& left) {
  std::vector<FewTaps<T>> columns;
  for (int64_t k = first; k < last; ++k) {
    const T* const box = rois + 5 * k + 1;
    const FewMap<Stored> map = map_of(k);
    const T scale = static_cast<T>(map.spatial_scale);
    const auto y = make_roi_align_axis(box[1], box[3], scale, pooled.height, options.sampling_ratio,
                                       options.aligned, map.height);
    const auto x = make_roi_align_axis(box[0], box[2], scale, pooled.width, options.sampling_ratio,
                                       options.aligned, map.width);
    if (has_few_taps(y) && has_few_taps(x)) {
      roi_align_few(y, x, map.image, map.width, pooled, channels_last, columns,
                    out + k * pooled.channels * pooled.bins());
    } else {
      left(k);
    }
  }
}

// RoIs of an image of few channels, NHWC. image: [H, W, C], out: [K, PH, PW, C]
template <class T, class Stored>
void roi_align_channels_last_few(const RoiWeights<T>* begin, const RoiWeights<T>* end,
                                 const Stored* image, int64_t width, const PooledShape& pooled,
                                 std::vector<T>& sums, Stored* out) {
  for (const RoiWeights<T>* roi = begin; roi != end; ++roi) {
    roi_align_few_channels_last(*roi, image, width, pooled, sums,
                                out + roi->index * pooled.bins() * pooled.channels);
  }
}

// RoIs of an image, NHWC. image: [H, W, C], out: [K, PH, PW, C]
template <class T, class Stored>
void roi_align_channels_last(const RoiWeights<T>* begin, const RoiWeights<T>* end,
                             const Stored* image, int64_t width, const PooledShape& pooled,
                             std::vector<WeightedPixel<T>>& taps, Stored* out) {
  for (const RoiWeights<T>* roi = begin; roi != end; ++roi) {
    roi_align_pixels(*roi, image, width, pooled, taps,
                     out + roi->index * pooled.bins() * pooled.channels);
  }
}

// The gradient of `count` channels of an image from channel `first` on, NCHW.
// grad: [K, C, PH, PW], out: [count, H, W], planes: scratch [count, H, W] unless T is stored
template <class T, class Stored>
void roi_align_backward_planes(const RoiWeights<T>* begin, const RoiWeights<T>* end,
                               const Stored* grad, int64_t height, int64_t width,
                               const PooledShape& pooled, int64_t first, int64_t count,
                               BackwardScratch<T>& scratch, T* planes, Stored* out) {
  const int64_t plane = height * width;
  if constexpr (std::is_same_v<T, Stored>) planes = out;
  std::fill_n(planes, count * plane, T(0));
  const auto gradient_of = [&](const RoiWeights<T>& roi) {
    return grad + (roi.index * pooled.channels + first) * pooled.bins();
  };
  for (const RoiWeights<T>* roi = begin; roi != end; ++roi) {
    if (end - roi > kPrefetchRois) {
      prefetch_range<false>(gradient_of(roi[kPrefetchRois]), count * pooled.bins());
    }
    for (int64_t c = 0; c < count; ++c) {
      roi_align_backward_plane(*roi, gradient_of(*roi) + c * pooled.bins(), pooled, scratch,
                               planes + c * plane, width);
    }
  }
  if constexpr (!std::is_same_v<T, Stored>) store_all(out, planes, count * plane);
}

// The gradient of rows [first, last) of an image, NHWC. grad: [K, PH, PW, C], out: [H, W, C]
// line: scratch [W, C] unless T is stored, sums: scratch [PW, C]
template <class T, class Stored>
void roi_align_backward_rows(const RoiWeights<T>* begin, const RoiWeights<T>* end,
                             const Stored* grad, int64_t width, const PooledShape& pooled,
                             int64_t first, int64_t last, T* sums, T* line, Stored* out) {
  const int64_t size = width * pooled.channels;
  for (int64_t y = first; y < last; ++y) {
    Stored* const target = out + y * size;
    if constexpr (std::is_same_v<T, Stored>) line = target;
    std::fill_n(line, size, T(0));
    for (const RoiWeights<T>* roi = begin; roi != end; ++roi) {
      if (y < roi->first_row || y >= roi->first_row + roi->rows) continue;
      roi_align_backward_row(*roi, grad + roi->index * pooled.bins() * pooled.channels, pooled, y,
                             sums, line);
    }
    if constexpr (!std::is_same_v<T, Stored>) store_all(target, line, size);
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_ROI_ALIGN_ROI_ALIGN_CPU_INL_H_
