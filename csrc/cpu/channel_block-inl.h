// A register's number of channels at once: planes turned pixel by pixel, so that the lanes of a
// register are channels and no kernel has to merge lanes, and results turned back. For sources of
// foreach_target.h.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "../core/host_device.h"
#include "intrinsics.h"
#include "prefetch.h"
#include "roi_order.h"
#include "targets.h"

#if defined(RCNN_CPU_CHANNEL_BLOCK_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_CPU_CHANNEL_BLOCK_INL_H_
#undef RCNN_CPU_CHANNEL_BLOCK_INL_H_
#else
#define RCNN_CPU_CHANNEL_BLOCK_INL_H_
#endif

#include "simd-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

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

// Channels of an image, pixel by pixel; transposed once for all RoIs. With kFindsNan it says where
// there are NaNs and infinities, and pixels may wait until they are first asked for; without, there
// is only fetch_all().
template <class T, class Stored, bool kFindsNan>
class ChannelBlock {
 public:
  static constexpr int kN = kLanes<T>;

  // For maps of at most so many pixels.
  explicit ChannelBlock(int64_t pixels)
      : tile_(pixels * kN), states_((pixels + kN - 1) / kN + sizeof(uint64_t)) {}

  // planes: [count, H, W], 1 <= count <= kN
  void begin(const Stored* planes, int64_t count, int64_t height, int64_t width) {
    pixels_ = height * width;
    ahead_ = 2 * width;
    for (int c = 0; c < kN; ++c) planes_[c] = planes + std::min<int64_t>(c, count - 1) * pixels_;
    std::fill_n(states_.begin(), (pixels_ + kN - 1) / kN, kAbsent);
    plain_ = false;
  }

  void fetch_all() {
    if constexpr (kFindsNan) {
      uint8_t all = 0;
      for (int64_t run = 0; run * kN < pixels_; ++run) all |= states_[run] = fetch(run);
      plain_ = all == kPresent;
    } else {
      for (int64_t run = 0; run * kN < pixels_; ++run) fetch(run);
    }
  }

  // Whether all pixels are ready, without a NaN or an infinity.
  bool plain() const {
    static_assert(kFindsNan);
    return plain_;
  }

  // Makes pixels [first, last) ready. Whether a NaN or an infinity is near them.
  RCNN_INLINE bool ready(int64_t first, int64_t last) {
    static_assert(kFindsNan);
    const int64_t begin = first / kN;
    const int64_t end = (last - 1) / kN + 1;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if (end - begin <= static_cast<int64_t>(sizeof(uint64_t))) {
      uint64_t states;
      std::memcpy(&states, states_.data() + begin, sizeof(states));
      constexpr uint64_t kAllPresent = ~uint64_t{0} / 0xff * kPresent;
      if ((states ^ kAllPresent) << (64 - 8 * (end - begin)) == 0) return false;
    }
#endif
    uint8_t all = 0;
    for (int64_t run = begin; run < end; ++run) {
      if (RCNN_UNLIKELY(states_[run] == kAbsent)) states_[run] = fetch(run);
      all |= states_[run];
    }
    return (all & kHasNan) != 0;
  }

  const T* data() const { return tile_.data(); }  // [H * W, kN]

 private:
  enum State : uint8_t { kAbsent = 0, kPresent = 1, kHasNan = 2 };

  uint8_t fetch(int64_t run) {
    bool nan = false;
    if (pixels_ < kN) {
      for (int64_t p = 0; p < pixels_; ++p) {
        for (int c = 0; c < kN; ++c) {
          const T value = static_cast<T>(planes_[c][p]);
          nan |= !(value * T(0) == T(0));
          tile_.data()[p * kN + c] = value;
        }
      }
      return nan ? kHasNan : kPresent;
    }
    const int64_t first = std::min(run * kN, pixels_ - kN);
    Vec<T, kN> packs[kN];
    for (int c = 0; c < kN; ++c) packs[c] = load<T, kN>(planes_[c] + first);
    // So many planes at once are beyond the processor's own guesses: most go on downwards.
    const int64_t soon = std::min(first + ahead_, pixels_ - 1);
    for (int c = 0; c < kN; ++c) prefetch(planes_[c] + soon);
    transpose(packs);
    for (int p = 0; p < kN; ++p) store<kN, T>(tile_.data() + (first + p) * kN, packs[p]);
    // A NaN or an infinity stays in the sum of all; one is there too if that overflows.
    Vec<T, kN> sum{};
    if constexpr (kFindsNan) {
      for (int p = 0; p < kN; ++p) sum += packs[p];
    }
    return all_zero<kN, T>(sum * Vec<T, kN>{}) ? kPresent : kHasNan;
  }

  int64_t pixels_ = 0;
  bool plain_ = false;
  int64_t ahead_ = 0;  // pixels that are prefetched before they are fetched
  Buffer<T> tile_;
  std::vector<uint8_t> states_;  // of runs of kN pixels
  const Stored* planes_[kN] = {};
};

// From [bins, kN] to `count` rows of bins.
template <int kN, class T, class Stored>
inline void store_by_channel(const T* from, int64_t bins, int64_t count, Stored* to) {
  for (int64_t bin = 0; bin < bins; bin += kN) {
    if (bins - bin <= kN / 8) {
      for (; bin < bins; ++bin) {
        for (int64_t c = 0; c < count; ++c) {
          to[c * bins + bin] = static_cast<Stored>(from[bin * kN + c]);
        }
      }
      return;
    }
    // The last block reaches back over bins that are stored already, where there are enough.
    const int64_t first = bins >= kN ? std::min(bin, bins - kN) : 0;
    Vec<T, kN> packs[kN];
    for (int b = 0; b < kN; ++b) packs[b] = load<T, kN>(from + (first + b) * kN);
    transpose(packs);
    for (int c = 0; c < kN; ++c) {
      if (c < count) StoreN<kN, T>(to + c * bins + first, packs[c], bins - first);
    }
  }
}

// Pooled maps of some channels of a RoI, bin by bin in the lanes of registers, and their way to
// memory. Where it is late, results go past the caches, which so many of them would only sweep out,
// and some at a time, so that they leave while the processor computes those of the next RoI.
template <class T, class Stored>
class StreamingWriter {
 public:
  static constexpr int kN = kLanes<T>;

  StreamingWriter(int64_t bins, bool late)
      : bins_(bins), late_(kCanBeLate && late), results_(size()), rows_(late_ ? size() : 0) {
    // The last block of bins may be short.
    std::fill_n(results_.data(), size(), T(0));
  }
  ~StreamingWriter() { finish(); }
  StreamingWriter(const StreamingWriter&) = delete;
  StreamingWriter& operator=(const StreamingWriter&) = delete;

  T* data() const { return results_.data(); }  // [bins, kN]

  // Sends a part of what is under way; `parts` calls send it all.
  RCNN_INLINE void send(int64_t parts) { send_units((units_ + parts - 1) / parts); }

  // What data() holds, of the first `count` channels, to `to`, [count, bins].
  void put(int64_t count, Stored* to) {
    const int64_t bytes = kN * bins_ * static_cast<int64_t>(sizeof(Stored));
    if (!late_ || count < kN || bytes % kUnit != 0 || reinterpret_cast<uintptr_t>(to) % kUnit) {
      return store_by_channel<kN>(data(), bins_, count, to);
    }
    send_units(left_);
    store_by_channel<kN>(data(), bins_, count, rows_.data());
    from_ = reinterpret_cast<const char*>(rows_.data());
    to_ = reinterpret_cast<char*>(to);
    left_ = units_ = bytes / kUnit;
  }

 private:
  static constexpr bool kCanBeLate = RCNN_ISA >= 1;
  static constexpr int64_t kUnit = 32;

  int64_t size() const { return (bins_ + kN) * kN; }

  RCNN_INLINE void send_units(int64_t count) {
#if RCNN_ISA >= 1
    count = std::min(count, left_);
    left_ -= count;
#if RCNN_ISA >= 2
    for (; count > 1 && reinterpret_cast<uintptr_t>(to_) % 64 == 0; count -= 2) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to_),
                          _mm512_loadu_si512(reinterpret_cast<const __m512i*>(from_)));
      from_ += 2 * kUnit;
      to_ += 2 * kUnit;
    }
#endif
    for (; count > 0; --count) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to_),
                          _mm256_load_si256(reinterpret_cast<const __m256i*>(from_)));
      from_ += kUnit;
      to_ += kUnit;
    }
#endif
  }

  // Other threads see ordinary stores in order, but not these.
  void finish() {
#if RCNN_ISA >= 1
    send_units(left_);
    if (late_) _mm_sfence();
#endif
  }

  int64_t bins_;
  bool late_;
  Buffer<T> results_;
  Buffer<Stored> rows_;  // [kN, bins]
  const char* from_ = nullptr;
  char* to_ = nullptr;
  int64_t left_ = 0, units_ = 0;
};

// Calls function(number) with a number up to kMost, which the compiler then knows.
template <int kMost, class Function>
RCNN_INLINE void dispatch_static(int64_t number, Function&& function) {
  if constexpr (kMost > 0) {
    if (number != kMost) return dispatch_static<kMost - 1>(number, function);
  }
  function(std::integral_constant<int, kMost>());
}

// Calls function(number, first) for groups of neighbouring bins that advance side by side: as many
// as registers hold, and their number is known to the compiler.
template <class Function>
RCNN_INLINE void unrolled(int64_t bins, Function&& function) {
  constexpr int kMost = RCNN_ISA >= 2 ? 8 : 4;
  int64_t first = 0;
  for (; first + kMost <= bins; first += kMost) {
    function(std::integral_constant<int, kMost>(), first);
  }
  if (first == bins) return;
  dispatch_static<kMost - 1>(bins - first, [&](auto number) { function(number, first); });
}

// Brings memory into the cache a part at a time.
template <class Stored>
class Prefetcher {
 public:
  // `parts` calls of fetch() bring `count` elements.
  Prefetcher(const Stored* from, int64_t count, int64_t parts)
      : next_(from), end_(from + count), share_(count / parts + kLine) {}

  RCNN_INLINE void fetch() {
    const Stored* const until = std::min(next_ + share_, end_);
    for (; next_ < until; next_ += kLine) prefetch</*kWrite=*/false, 2>(next_);
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(Stored);
  const Stored *next_, *end_;
  int64_t share_;
};

// Calls each(roi, run, tile, c, count, ahead) for every RoI of all runs and each block of channels
// [c, c + count) out of [first, last). `ahead` brings what comes next, in `parts` parts a RoI.
template <class T, bool kFindsNan, class Roi, class Stored, class Function>
void for_each_tile(const std::vector<RoiSpan<Roi, Stored>>& runs, int64_t first, int64_t last,
                   int64_t parts, Function&& each) {
  constexpr int kN = kLanes<T>;
  int64_t largest = 0;
  for (const auto& run : runs) largest = std::max(largest, run.height * run.width);
  ChannelBlock<T, Stored, kFindsNan> tile(largest);
  for (int64_t c = first; c < last; c += kN) {
    const int64_t count = std::min<int64_t>(kN, last - c);
    for (size_t r = 0; r < runs.size(); ++r) {
      const auto& run = runs[r];
      tile.begin(run.image + c * run.height * run.width, count, run.height, run.width);
      if (run.whole || !kFindsNan) tile.fetch_all();
      const bool stays = r + 1 < runs.size();
      const auto& next = runs[stays ? r + 1 : 0];
      const int64_t next_first = stays ? c : c + kN;
      const int64_t next_count =
          next.whole ? std::max<int64_t>(0, std::min<int64_t>(kN, last - next_first)) : 0;
      const int64_t next_plane = next.height * next.width;
      Prefetcher<Stored> ahead(next.image + (next_count > 0 ? next_first * next_plane : 0),
                               next_count * next_plane, (run.end - run.begin) * parts);
      for (const Roi* roi = run.begin; roi != run.end; ++roi) {
        each(*roi, run, tile, c, count, ahead);
      }
    }
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_CPU_CHANNEL_BLOCK_INL_H_
