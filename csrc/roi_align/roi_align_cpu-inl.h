// RoIAlign on one CPU core: what a thread does. Compiled once per instruction set
// (foreach_target.h).
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../cpu/prefetch.h"
#include "../cpu/roi_order.h"
#include "../cpu/targets.h"
#include "roi_align_scratch_cpu.h"
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
#include "roi_align_forward_cpu-inl.h"
#include "roi_align_transposed_cpu-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

constexpr int64_t kRoisAhead = 2;  // that prefetch_range() runs before the work

// Brings the lines of `count` elements that a RoI to come reads or writes. RoIs are in
// order of place, so that their pooled maps lie anywhere, and the processor guesses none of them.
template <bool kWrite, class Stored>
RCNN_INLINE void prefetch_range(const Stored* from, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(Stored);
  for (int64_t i = 0; i < count; i += kLine) prefetch<kWrite>(from + i);
  prefetch<kWrite>(from + count - 1);
}

// kPlanes channels at a time.
template <int kPlanes, class T, class Stored>
void align_channels_by(const RoiSpan<RoiTable<T>, Stored>& run, const PooledShape& pooled,
                       int64_t first, int64_t last, AlignScratch<T>& scratch, Stored* out) {
  const int64_t plane = run.height * run.width;
  const int64_t bins = pooled.bins();
  for (int64_t c = first; c < last; c += kPlanes) {
    const Stored* const planes = run.image + c * plane;
    const int64_t count = std::min<int64_t>(kPlanes, last - c);
    const int64_t next_count = run.whole ? std::min<int64_t>(kPlanes, last - c - count) : 0;
    Prefetcher<Stored> ahead(planes + (next_count > 0 ? count * plane : 0), next_count * plane,
                             run.end - run.begin);
    for (const RoiTable<T>* table = run.begin; table != run.end; ++table) {
      ahead.fetch();
      Stored* const target = out + (table->roi * pooled.channels + c) * bins;
      if (run.end - table > kRoisAhead) {
        prefetch_range<true>(out + (table[kRoisAhead].roi * pooled.channels + c) * bins,
                             count * bins);
      }
      if (count == kPlanes) {
        align_planes<kPlanes>(*table, planes, plane, run.width, pooled, scratch, target);
      } else {
        for (int64_t i = 0; i < count; ++i) {
          align_planes<1>(*table, planes + i * plane, plane, run.width, pooled, scratch,
                          target + i * bins);
        }
      }
    }
  }
}

// All RoIs of a run for channels [first, last), NCHW. out: [K, C, PH, PW]
template <class T, class Stored>
void align_channels(const RoiSpan<RoiTable<T>, Stored>& run, const PooledShape& pooled,
                    int64_t first, int64_t last, AlignScratch<T>& scratch, Stored* out) {
  // With few RoIs, planes come no faster than they are used: those in use and the next ones should
  // fit the cache. With many, the weights of a RoI should serve several planes.
  constexpr int64_t kBytesARoi = 1000;
  const int64_t bytes = run.height * run.width * static_cast<int64_t>(sizeof(Stored));
  if (bytes > kBytesARoi * (run.end - run.begin)) {
    align_channels_by<1>(run, pooled, first, last, scratch, out);
  } else {
    align_channels_by<kPlanesAtOnce>(run, pooled, first, last, scratch, out);
  }
}

// RoIs of an image, NHWC. image: [H, W, C], out: [K, PH, PW, C]
template <class T, class Stored>
void align_whole_pixels(const RoiTable<T>* begin, const RoiTable<T>* end, const Stored* image,
                        int64_t width, const PooledShape& pooled, std::vector<PixelTap<T>>& taps,
                        Stored* out) {
  for (const RoiTable<T>* table = begin; table != end; ++table) {
    align_pixels(*table, image, width, pooled, taps,
                 out + table->roi * pooled.bins() * pooled.channels);
  }
}

// The gradient of `count` channels of an image from channel `first` on, NCHW.
// grad: [K, C, PH, PW], out: [count, H, W], planes: scratch [count, H, W] unless T is stored
template <class T, class Stored>
void spread_channels(const RoiTable<T>* begin, const RoiTable<T>* end, const Stored* grad,
                     int64_t height, int64_t width, const PooledShape& pooled, int64_t first,
                     int64_t count, SpreadScratch<T>& scratch, T* planes, Stored* out) {
  const int64_t plane = height * width;
  if constexpr (std::is_same_v<T, Stored>) planes = out;
  std::fill_n(planes, count * plane, T(0));
  const auto gradient_of = [&](const RoiTable<T>& table) {
    return grad + (table.roi * pooled.channels + first) * pooled.bins();
  };
  for (const RoiTable<T>* table = begin; table != end; ++table) {
    if (end - table > kRoisAhead) {
      prefetch_range<false>(gradient_of(table[kRoisAhead]), count * pooled.bins());
    }
    for (int64_t c = 0; c < count; ++c) {
      spread_plane(*table, gradient_of(*table) + c * pooled.bins(), pooled, scratch,
                   planes + c * plane, width);
    }
  }
  if constexpr (!std::is_same_v<T, Stored>) store_all(out, planes, count * plane);
}

// The gradient of rows [first, last) of an image, NHWC. grad: [K, PH, PW, C], out: [H, W, C]
// line: scratch [W, C] unless T is stored, sums: scratch [PW, C]
template <class T, class Stored>
void spread_lines(const RoiTable<T>* begin, const RoiTable<T>* end, const Stored* grad,
                  int64_t width, const PooledShape& pooled, int64_t first, int64_t last, T* sums,
                  T* line, Stored* out) {
  const int64_t size = width * pooled.channels;
  for (int64_t y = first; y < last; ++y) {
    Stored* const target = out + y * size;
    if constexpr (std::is_same_v<T, Stored>) line = target;
    std::fill_n(line, size, T(0));
    for (const RoiTable<T>* table = begin; table != end; ++table) {
      if (y < table->first_row || y >= table->first_row + table->rows) continue;
      spread_line(*table, grad + table->roi * pooled.bins() * pooled.channels, pooled, y, sums,
                  line);
    }
    if constexpr (!std::is_same_v<T, Stored>) store_all(target, line, size);
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_ROI_ALIGN_ROI_ALIGN_CPU_INL_H_
