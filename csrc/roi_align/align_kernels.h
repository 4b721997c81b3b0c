// RoIAlign on one CPU core: what a thread does. A source of for_each_isa.h.
// clang-format off: the others need the first.
#include "align_forward_kernels.h"
#include "align_backward_kernels.h"
#include "align_tile_kernels.h"
// clang-format on

constexpr int64_t kRoisAhead = 2;  // that fetch_lines() runs before the work

// Brings the lines of `count` elements that a RoI to come reads or writes. RoIs are in
// order of place, so that their pooled maps lie anywhere, and the processor guesses none of them.
template <bool kWrite, class Stored>
RCNN_HOST_DEVICE void fetch_lines(const Stored* from, int64_t count) {
#if defined(__GNUC__)
  constexpr int64_t kLine = 64 / sizeof(Stored);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(from + i, kWrite, 3);
  __builtin_prefetch(from + count - 1, kWrite, 3);
#endif
}

// All RoIs of an image for channels [first, last), NCHW. image: [C, H, W], out: [K, C, PH, PW]
template <class T, class Stored>
void align_channels(const RoiTable<T>* begin, const RoiTable<T>* end, const Stored* image,
                    int64_t height, int64_t width, const PooledShape& pooled, int64_t first,
                    int64_t last, AlignScratch<T>& scratch, Stored* out) {
  const int64_t plane = height * width;
  const int64_t bins = pooled.bins();
  // RoIs that together cover the planes will want the next ones entirely: a share of them for each.
  int64_t covered = 0;
  for (const RoiTable<T>* table = begin; table != end; ++table) {
    covered += (table->y.starts[pooled.height]) * table->columns;
  }
  constexpr int64_t kLine = 64 / sizeof(Stored);
  const int64_t share =
      covered < plane ? 0 : (kPlanesAtOnce * plane + kLine * (end - begin) - 1) / (end - begin);
  for (int64_t c = first; c < last; c += kPlanesAtOnce) {
    const Stored* const planes = image + c * plane;
    const Stored* next = planes + kPlanesAtOnce * plane;
    const Stored* const next_end = image + std::min(last, c + 2 * kPlanesAtOnce) * plane;
    for (const RoiTable<T>* table = begin; table != end; ++table) {
#if defined(__GNUC__)
      const Stored* const until = std::min(next + share, next_end);
      for (; next < until; next += kLine) __builtin_prefetch(next, 0, 2);
#endif
      Stored* const target = out + (table->roi * pooled.channels + c) * bins;
      if (end - table > kRoisAhead) {
        fetch_lines<true>(out + (table[kRoisAhead].roi * pooled.channels + c) * bins,
                          std::min<int64_t>(kPlanesAtOnce, last - c) * bins);
      }
      if (c + kPlanesAtOnce <= last) {
        align_planes<kPlanesAtOnce>(*table, planes, plane, width, pooled, scratch, target);
      } else {
        for (int64_t i = c; i < last; ++i) {
          align_planes<1>(*table, image + i * plane, plane, width, pooled, scratch,
                          target + (i - c) * bins);
        }
      }
    }
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
      fetch_lines<false>(gradient_of(table[kRoisAhead]), count * pooled.bins());
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
