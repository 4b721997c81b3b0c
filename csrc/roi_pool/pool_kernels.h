// RoIPool on one CPU core. A source of for_each_isa.h.
//
// The lanes of a register are channels, so that no bin needs its lanes merged: NCHW planes are
// transposed to that where RoIs cover them, each pixel once for all RoIs. Maxima are kept with the
// pixels that they come from, in numbers of the same width; among equals the first pixel stays. A
// NaN counts as the largest number: where there may be one, bins are taken channel by channel.
#include "../common/isa_packs.h"

template <class T>
using PixelOf = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// Of some bins, or channels of a bin, side by side.
template <class T, int N>
struct Maxima {
  Pack<T, N> value;
  Pack<PixelOf<T>, N> pixel;

  // Pixels base + offset come in ascending order.
  RCNN_HOST_DEVICE void add(const Pack<T, N>& other, const Pack<PixelOf<T>, N>& base,
                            PixelOf<T> offset) {
    const Pack<PixelOf<T>, N> at = base + splat<N>(offset);
#if defined(__GNUC__)
    pixel = other > value ? at : pixel;
#else
    for (int i = 0; i < N; ++i) pixel[i] = other[i] > value[i] ? at[i] : pixel[i];
#endif
    value = greater_of<N, T>(other, value);
  }
};

// Every bin pixel by pixel: for NaN. plane: `step` elements a pixel, out and argmax: `out_step`
// elements a bin
template <class T, class Stored>
inline void pool_exactly(const RoiBins& bins, const Stored* plane, int64_t width, int64_t step,
                         Stored* out, int32_t* argmax, int64_t out_step) {
  for (const PixelRange& ys : bins.y) {
    for (const PixelRange& xs : bins.x) {
      const BinMaximum<T> maximum = bin_maximum<T>(ys, xs, plane, width, step);
      *out = static_cast<Stored>(maximum.value);
      *argmax = maximum.pixel;
      out += out_step;
      argmax += out_step;
    }
  }
}

// Adds the pixels of a bin. kColumns: its width, or 0 for any
template <int kN, int kPacks, int kColumns, bool kWatch, class T, class Stored>
RCNN_HOST_DEVICE void add_pixels(const PixelRange& ys, const PixelRange& xs, const Stored* image,
                                 int64_t width, int64_t step, Maxima<T, kN> (&maxima)[kPacks],
                                 Pack<T, kN> (&sum)[kPacks]) {
  using Pixel = PixelOf<T>;
  const auto add = [&](const Stored* pixel, const Pack<Pixel, kN>& base, int column) {
    for (int p = 0; p < kPacks; ++p) {
      const auto value = load<T, kN>(pixel + p * kN);
      if (kWatch) sum[p] += value;
      maxima[p].add(value, base, column);
    }
  };
  for (int64_t y = ys.first; y < ys.last; ++y) {
    const int64_t first = y * width + xs.first;
    const Stored* pixel = image + first * step;
    Pack<Pixel, kN> base = splat<kN>(static_cast<Pixel>(first));
    if (kColumns > 0) {
#if defined(__GNUC__)
#pragma GCC unroll 8
#endif
      for (int column = 0; column < kColumns; ++column) add(pixel + column * step, base, column);
      continue;
    }
    for (int64_t x = xs.first; x < xs.last; ++x) {
      add(pixel, base, 0);
      pixel += step;
      base += splat<kN>(Pixel(1));
    }
  }
}

// kPacks packs of channels of one bin. image: at the first of them, [H, W, `step` elements]
// Whether there may be a NaN, if kWatch.
template <int kN, int kPacks, bool kWatch, class T, class Stored, class Out, class OutPixel>
RCNN_HOST_DEVICE bool pool_bin_packs(const PixelRange& ys, const PixelRange& xs,
                                     const Stored* image, int64_t width, int64_t step, Out* out,
                                     OutPixel* argmax) {
  using Pixel = PixelOf<T>;
  if (RCNN_UNLIKELY(ys.first >= ys.last || xs.first >= xs.last)) {
    for (int p = 0; p < kPacks; ++p) {
      store<kN, T>(out + p * kN, Pack<T, kN>{});
      store<kN, Pixel>(argmax + p * kN, splat<kN>(Pixel(-1)));
    }
    return false;
  }
  Maxima<T, kN> maxima[kPacks];
  Pack<T, kN> sum[kPacks];
  const int64_t begin = ys.first * width + xs.first;
  for (int p = 0; p < kPacks; ++p) {
    sum[p] = Pack<T, kN>{};
    maxima[p] = {load<T, kN>(image + begin * step + p * kN), splat<kN>(static_cast<Pixel>(begin))};
  }
  const auto add = [&](auto columns) {
    add_pixels<kN, kPacks, decltype(columns)::value, kWatch, T>(ys, xs, image, width, step, maxima,
                                                                sum);
  };
  // A short loop of unknown length costs more than what it does; several packs make up for it.
  switch (kPacks > 1 ? 0 : xs.last - xs.first) {
    case 1: add(std::integral_constant<int, 1>()); break;
    case 2: add(std::integral_constant<int, 2>()); break;
    case 3: add(std::integral_constant<int, 3>()); break;
    case 4: add(std::integral_constant<int, 4>()); break;
    case 5: add(std::integral_constant<int, 5>()); break;
    case 6: add(std::integral_constant<int, 6>()); break;
    case 7: add(std::integral_constant<int, 7>()); break;
    case 8: add(std::integral_constant<int, 8>()); break;
    default: add(std::integral_constant<int, 0>());
  }
  bool special = false;
  for (int p = 0; p < kPacks; ++p) {
    store<kN, T>(out + p * kN, maxima[p].value);
    store<kN, Pixel>(argmax + p * kN, maxima[p].pixel);
    if (kWatch) special |= !all_zero<kN, T>(sum[p] * Pack<T, kN>{});
  }
  return special;
}

// Memory on a cache line, with no value yet.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : memory_(new char[count * sizeof(T) + kLine]),
        data_(reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_.get()) + kLine - 1) /
                                   kLine * kLine)) {}
  T* data() const { return data_; }

 private:
  static constexpr size_t kLine = 64;
  std::unique_ptr<char[]> memory_;
  T* data_;
};

// A register's number of channels of an image, pixel by pixel; transposed when first asked for.
template <class T, class Stored>
class ChannelTile {
 public:
  static constexpr int kN = kLanes<T>;

  ChannelTile(int64_t pixels, int64_t width)
      : pixels_(pixels), ahead_(2 * width), tile_(pixels * kN), states_((pixels + kN - 1) / kN) {}

  // planes: [count, H, W], 1 <= count <= kN
  void begin(const Stored* planes, int64_t count) {
    for (int c = 0; c < kN; ++c) planes_[c] = planes + std::min<int64_t>(c, count - 1) * pixels_;
    std::fill(states_.begin(), states_.end(), kAbsent);
  }

  // Makes pixels [first, last) ready. Whether a NaN is near them.
  RCNN_HOST_DEVICE bool ready(int64_t first, int64_t last) {
    uint8_t all = 0;
    for (int64_t run = first / kN; run * kN < last; ++run) {
      if (RCNN_UNLIKELY(states_[run] == kAbsent)) states_[run] = fetch(run);
      all |= states_[run];
    }
    return (all & kHasNan) != 0;
  }

  const T* data() const { return tile_.data(); }

 private:
  enum State : uint8_t { kAbsent = 0, kPresent = 1, kHasNan = 2 };

  uint8_t fetch(int64_t run) {
    bool nan = false;
    if (pixels_ < kN) {
      for (int64_t p = 0; p < pixels_; ++p) {
        for (int c = 0; c < kN; ++c) {
          const T value = static_cast<T>(planes_[c][p]);
          nan |= value != value;
          tile_.data()[p * kN + c] = value;
        }
      }
      return nan ? kHasNan : kPresent;
    }
    const int64_t first = std::min(run * kN, pixels_ - kN);
    Pack<T, kN> packs[kN];
    for (int c = 0; c < kN; ++c) packs[c] = load<T, kN>(planes_[c] + first);
#if defined(__GNUC__)
    // So many planes at once are beyond the processor's own guesses: most RoIs go on downwards.
    const int64_t soon = std::min(first + ahead_, pixels_ - 1);
    for (int c = 0; c < kN; ++c) __builtin_prefetch(planes_[c] + soon);
#endif
    transpose(packs);
    // An infinity passes for a NaN too.
    Pack<T, kN> sum{};
    for (int p = 0; p < kN; ++p) {
      sum += packs[p];
      store<kN, T>(tile_.data() + (first + p) * kN, packs[p]);
    }
    return all_zero<kN, T>(sum * Pack<T, kN>{}) ? kPresent : kHasNan;
  }

  int64_t pixels_;
  int64_t ahead_;                // pixels that are prefetched before they are fetched
  Buffer<T> tile_;               // [H * W, kN]
  std::vector<uint8_t> states_;  // of runs of kN pixels
  const Stored* planes_[kN] = {};
};

// From [bins, kN] to `count` rows that are `row` elements apart.
template <int kN, class T, class Stored>
inline void store_by_channel(const T* from, int64_t bins, int64_t count, Stored* to, int64_t row) {
  for (int64_t bin = 0; bin < bins; bin += kN) {
    // The last block reaches back over bins that are stored already, where there are enough.
    const int64_t first = bins >= kN ? std::min(bin, bins - kN) : 0;
    Pack<T, kN> packs[kN];
    for (int b = 0; b < kN; ++b) packs[b] = load<T, kN>(from + (first + b) * kN);
    transpose(packs);
    for (int c = 0; c < kN; ++c) {
      if (c < count) store_first<kN, T>(to + c * row + first, packs[c], bins - first);
    }
  }
}

// The channels of a task, NCHW: RoIs [begin, end), at most kPoolChannels channels from `first` on.
// input: [N, C, H, W], out and argmax: [K, C, PH, PW]
template <class T, class Stored>
void pool_channels(const RoiBins* begin, const RoiBins* end, const Stored* input,
                   const FeatureShape& shape, int64_t bins, int64_t first, int64_t last,
                   Stored* out, int32_t* argmax) {
  using Pixel = PixelOf<T>;
  constexpr int kN = kLanes<T>;
  const int64_t pixels = shape.height * shape.width;
  ChannelTile<T, Stored> tile(pixels, shape.width);
  Buffer<T> values((bins + kN) * kN);
  Buffer<Pixel> places((bins + kN) * kN);
  std::memset(values.data(), 0, (bins + kN) * kN * sizeof(T));
  std::memset(places.data(), 0, (bins + kN) * kN * sizeof(Pixel));
  for (int64_t c = first; c < last; c += kN) {
    const int64_t count = std::min<int64_t>(kN, last - c);
    int64_t image = -1;
    for (const RoiBins* roi = begin; roi != end; ++roi) {
      const Stored* const planes = input + (roi->batch * shape.channels + c) * pixels;
      if (roi->batch != image) tile.begin(planes, count);
      image = roi->batch;
      bool special = false;
      const int64_t left = roi->x.front().first;
      const int64_t right = roi->x.back().last;
      for (int64_t y = roi->y.front().first; left < right && y < roi->y.back().last; ++y) {
        special |= tile.ready(y * shape.width + left, y * shape.width + right);
      }
      const int64_t target = (roi->roi * shape.channels + c) * bins;
      if (RCNN_UNLIKELY(special)) {
        for (int64_t i = 0; i < count; ++i) {
          pool_exactly<T>(*roi, planes + i * pixels, shape.width, 1, out + target + i * bins,
                          argmax + target + i * bins, 1);
        }
        continue;
      }
      T* value = values.data();
      Pixel* place = places.data();
      for (const PixelRange& ys : roi->y) {
        for (const PixelRange& xs : roi->x) {
          pool_bin_packs<kN, 1, false, T>(ys, xs, tile.data(), shape.width, kN, value, place);
          value += kN;
          place += kN;
        }
      }
      store_by_channel<kN>(values.data(), bins, count, out + target, bins);
      store_by_channel<kN>(places.data(), bins, count, argmax + target, bins);
    }
  }
}

// RoIs, NHWC. input: [N, H, W, C], out and argmax: [K, PH, PW, C]
template <class T, class Stored>
void pool_pixels(const RoiBins* begin, const RoiBins* end, const Stored* input,
                 const FeatureShape& shape, int64_t bins, Stored* out, int32_t* argmax) {
  constexpr int kN = kLanes<T>;
  constexpr int kPacks = 4;
  const int64_t channels = shape.channels;
  // Some channels of all RoIs before the next ones, so that RoIs share what is in the cache.
  for (int64_t c = 0; c < channels;) {
    const int64_t packs = std::min<int64_t>(kPacks, (channels - c) / kN);
    const int64_t count = packs == kPacks ? kPacks * kN : packs > 0 ? kN : channels - c;
    for (const RoiBins* roi = begin; roi != end; ++roi) {
      const Stored* const image = input + roi->batch * shape.height * shape.width * channels + c;
      const int64_t target = roi->roi * bins * channels + c;
      bool special = count < kN;
      int64_t at = target;
      for (size_t bin = 0; bin < roi->y.size() * roi->x.size() && count >= kN; ++bin) {
        const PixelRange& ys = roi->y[bin / roi->x.size()];
        const PixelRange& xs = roi->x[bin % roi->x.size()];
        if (count > kN) {
          special |= pool_bin_packs<kN, kPacks, true, T>(ys, xs, image, shape.width, channels,
                                                         out + at, argmax + at);
        } else {
          special |= pool_bin_packs<kN, 1, true, T>(ys, xs, image, shape.width, channels, out + at,
                                                    argmax + at);
        }
        at += channels;
      }
      for (int64_t i = 0; i < count && RCNN_UNLIKELY(special); ++i) {
        pool_exactly<T>(*roi, image + i, shape.width, channels, out + target + i,
                        argmax + target + i, channels);
      }
    }
    c += count;
  }
}

// What RoIs give channels [first, last) of an image, NHWC: bin by bin, in order. grad, argmax:
// [K, PH, PW, C], target: [H * W] pixels that are `step` elements apart
template <class T, class Stored>
void scatter_pixels(const T* rois, int64_t roi_count, int64_t image, const Stored* grad,
                    const int32_t* argmax, const FeatureShape& shape, int64_t bins, int64_t first,
                    int64_t last, T* target, int64_t step) {
  const int64_t pixels = shape.height * shape.width;
  for (int64_t p = 0; p < pixels; ++p) std::fill_n(target + p * step, last - first, T(0));
  for (int64_t k = 0; k < roi_count; ++k) {
    if (roi_batch_index(rois[5 * k], shape.batch_size) != image) continue;
    for (int64_t bin = k * bins; bin < (k + 1) * bins; ++bin) {
      const Stored* const from = grad + bin * shape.channels + first;
      const int32_t* const places = argmax + bin * shape.channels + first;
      for (int64_t c = 0; c < last - first; ++c) {
        const int64_t pixel = places[c];
        // The upper bound keeps an argmax from elsewhere from writing out of bounds.
        if (pixel < 0 || pixel >= pixels) continue;
        target[pixel * step + c] += static_cast<T>(from[c]);
      }
    }
  }
}
