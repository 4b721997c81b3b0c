// Planes transposed to channels-last blocks of as many channels as a register has lanes, so that no
// kernel has to reduce over lanes, and results transposed back. Compiled once per instruction set
// (foreach_target.h).
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

// Uninitialized memory that begins on a cache line.
template <class T>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t count)
      : memory_(new char[count * sizeof(T) + kLineBytes]),
        data_(reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_.get()) + kLineBytes - 1) /
                                   kLineBytes * kLineBytes)) {}
  T* data() const { return data_; }

 private:
  static constexpr size_t kLineBytes = 64;
  std::unique_ptr<char[]> memory_;
  T* data_;
};

// A block of channels of an image in channels-last order, transposed once for all RoIs. With
// kTracksFinite it knows where there are NaNs and infinities, and pixels may be transposed when
// they are first asked for; without, only transpose_all() may be called.
template <class T, class Stored, bool kTracksFinite>
class ChannelBlock {
 public:
  static constexpr int kN = kLanes<T>;

  // max_pixels: of any map passed to reset()
  explicit ChannelBlock(int64_t max_pixels)
      : block_(max_pixels * kN), states_((max_pixels + kN - 1) / kN + sizeof(uint64_t)) {}

  // planes: [count, H, W], 1 <= count <= kN
  void reset(const Stored* planes, int64_t count, int64_t height, int64_t width) {
    pixels_ = height * width;
    prefetch_distance_ = 2 * width;
    for (int c = 0; c < kN; ++c) planes_[c] = planes + std::min<int64_t>(c, count - 1) * pixels_;
    std::fill_n(states_.begin(), (pixels_ + kN - 1) / kN, kMissing);
    all_finite_ = false;
  }

  void transpose_all() {
    if constexpr (kTracksFinite) {
      uint8_t all = 0;
      for (int64_t chunk = 0; chunk * kN < pixels_; ++chunk) {
        all |= states_[chunk] = transpose_chunk(chunk);
      }
      all_finite_ = all == kFinite;
    } else {
      for (int64_t chunk = 0; chunk * kN < pixels_; ++chunk) transpose_chunk(chunk);
    }
  }

  // Whether transpose_all() found neither NaN nor infinity.
  bool all_finite() const {
    static_assert(kTracksFinite);
    return all_finite_;
  }

  // Transposes the pixels [first, last) unless that is done. Returns whether a NaN or an infinity
  // is in one of their chunks.
  RCNN_INLINE bool ensure_transposed(int64_t first, int64_t last) {
    static_assert(kTracksFinite);
    const int64_t begin = first / kN;
    const int64_t end = (last - 1) / kN + 1;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if (end - begin <= static_cast<int64_t>(sizeof(uint64_t))) {
      uint64_t states;
      std::memcpy(&states, states_.data() + begin, sizeof(states));
      constexpr uint64_t kAllFinite = ~uint64_t{0} / 0xff * kFinite;
      if ((states ^ kAllFinite) << (64 - 8 * (end - begin)) == 0) return false;
    }
#endif
    uint8_t all = 0;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      if (RCNN_UNLIKELY(states_[chunk] == kMissing)) states_[chunk] = transpose_chunk(chunk);
      all |= states_[chunk];
    }
    return (all & kNonfinite) != 0;
  }

  const T* data() const { return block_.data(); }  // [H * W, kN]

 private:
  // The state of a chunk of kN pixels.
  enum State : uint8_t { kMissing = 0, kFinite = 1, kNonfinite = 2 };

  uint8_t transpose_chunk(int64_t chunk) {
    bool nonfinite = false;
    if (pixels_ < kN) {
      for (int64_t p = 0; p < pixels_; ++p) {
        for (int c = 0; c < kN; ++c) {
          const T value = static_cast<T>(planes_[c][p]);
          nonfinite |= !(value * T(0) == T(0));
          block_.data()[p * kN + c] = value;
        }
      }
      return nonfinite ? kNonfinite : kFinite;
    }
    // The last chunk reaches back over pixels that the one before has.
    const int64_t first = std::min(chunk * kN, pixels_ - kN);
    Vec<T, kN> rows[kN];
    for (int c = 0; c < kN; ++c) rows[c] = LoadU<T, kN>(planes_[c] + first);
    // More planes than a hardware prefetcher can follow as streams. RoIs mostly request pixels in
    // downward order.
    const int64_t next = std::min(first + prefetch_distance_, pixels_ - 1);
    for (int c = 0; c < kN; ++c) prefetch(planes_[c] + next);
    Transpose(rows);
    for (int p = 0; p < kN; ++p) StoreU<kN, T>(block_.data() + (first + p) * kN, rows[p]);
    // A NaN or an infinity makes the sum nonfinite. So may overflow, a false positive that costs
    // time only.
    Vec<T, kN> sum{};
    if constexpr (kTracksFinite) {
      for (int p = 0; p < kN; ++p) sum += rows[p];
    }
    return AllZero<kN, T>(sum * Vec<T, kN>{}) ? kFinite : kNonfinite;
  }

  int64_t pixels_ = 0;
  bool all_finite_ = false;
  int64_t prefetch_distance_ = 0;  // pixels
  AlignedBuffer<T> block_;
  std::vector<uint8_t> states_;  // by chunk; a whole word may be read of the last ones
  const Stored* planes_[kN] = {};
};

// Transposes [bins, kN] to `count` rows of bins. A function of its own, since inlined at both
// places of StreamingWriter::store() it takes registers from the loops over bins: RoIPool of 512
// RoIs took 6% longer (AMD EPYC with AVX-512, one core, 2026-11).
template <int kN, class T, class Stored>
RCNN_NO_INLINE void store_transposed(const T* from, int64_t bins, int64_t count, Stored* to) {
  for (int64_t bin = 0; bin < bins; bin += kN) {
    if (bins - bin <= kN / 8) {
      for (; bin < bins; ++bin) {
        for (int64_t c = 0; c < count; ++c) {
          to[c * bins + bin] = static_cast<Stored>(from[bin * kN + c]);
        }
      }
      return;
    }
    // The last group reaches back over bins that are stored already, where there are enough.
    const int64_t first = bins >= kN ? std::min(bin, bins - kN) : 0;
    Vec<T, kN> rows[kN];
    for (int b = 0; b < kN; ++b) rows[b] = LoadU<T, kN>(from + (first + b) * kN);
    Transpose(rows);
    for (int c = 0; c < kN; ++c) {
      if (c < count) StoreN<kN, T>(to + c * bins + first, rows[c], bins - first);
    }
  }
}

// Writes the pooled maps of a block of channels, RoI by RoI. A streaming writer uses non-temporal
// stores, to avoid evicting the cache, and issues them a part at a time, so that they drain while
// the next RoI is computed: with it, RoIPool of 512 RoIs took 22.9 -> 16.2 ms and RoIAlign of 4
// levels 28.4 -> 24.3 ms (AMD EPYC with AVX-512, one core, 2026-11; each figure includes a second
// change made in the same step: unrolled bins for RoIPool, channels in lanes for RoIAlign).
template <class T, class Stored>
class StreamingWriter {
 public:
  static constexpr int kN = kLanes<T>;

  StreamingWriter(int64_t bins, bool streaming)
      : bins_(bins),
        streaming_(kCanStream && streaming),
        results_(size()),
        staged_(streaming_ ? size() : 0) {
    // store_transposed() reads whole registers beyond the last bin.
    std::fill_n(results_.data(), size(), T(0));
  }
  ~StreamingWriter() { finish(); }
  StreamingWriter(const StreamingWriter&) = delete;
  StreamingWriter& operator=(const StreamingWriter&) = delete;

  T* data() const { return results_.data(); }  // [bins, kN], to be filled before store()

  // Writes a part of what the last store() left pending; `parts` calls write it all.
  RCNN_INLINE void flush(int64_t parts) { flush_units((units_ + parts - 1) / parts); }

  // Writes the first `count` channels of data() to `to`, [count, bins], immediately, or gradually
  // by later calls of flush().
  void store(int64_t count, Stored* to) {
    const int64_t bytes = kN * bins_ * static_cast<int64_t>(sizeof(Stored));
    if (!streaming_ || count < kN || bytes % kUnit != 0 ||
        reinterpret_cast<uintptr_t>(to) % kUnit) {
      return store_transposed<kN>(data(), bins_, count, to);
    }
    flush_units(pending_);
    store_transposed<kN>(data(), bins_, count, staged_.data());
    from_ = reinterpret_cast<const char*>(staged_.data());
    to_ = reinterpret_cast<char*>(to);
    pending_ = units_ = bytes / kUnit;
  }

 private:
  static constexpr bool kCanStream = RCNN_ISA >= 1;
  static constexpr int64_t kUnit = 32;  // bytes

  int64_t size() const { return (bins_ + kN) * kN; }

  RCNN_INLINE void flush_units(int64_t count) {
#if RCNN_ISA >= 1
    count = std::min(count, pending_);
    pending_ -= count;
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

  // Non-temporal stores are not ordered before later ones of this thread unless a fence stands
  // between, and other threads are told of the result by such a later store.
  void finish() {
#if RCNN_ISA >= 1
    flush_units(pending_);
    if (streaming_) _mm_sfence();
#endif
  }

  int64_t bins_;
  bool streaming_;
  AlignedBuffer<T> results_;
  AlignedBuffer<Stored> staged_;  // [kN, bins], on its way to to_
  const char* from_ = nullptr;
  char* to_ = nullptr;
  int64_t pending_ = 0, units_ = 0;
};

// Calls function(std::integral_constant<int, count>()) for a count of at most kMax.
template <int kMax, class Function>
RCNN_INLINE void dispatch_static(int64_t count, Function&& function) {
  if constexpr (kMax > 0) {
    if (count != kMax) return dispatch_static<kMax - 1>(count, function);
  }
  function(std::integral_constant<int, kMax>());
}

// Calls function(count, first) for groups of neighboring bins whose sums advance together, as many
// as the registers hold: 8 of the 32 with AVX-512, 4 of the 16 otherwise. The count is an
// std::integral_constant.
template <class Function>
RCNN_INLINE void unrolled(int64_t bins, Function&& function) {
  constexpr int kMaxCount = RCNN_ISA >= 2 ? 8 : 4;
  int64_t first = 0;
  for (; first + kMaxCount <= bins; first += kMaxCount) {
    function(std::integral_constant<int, kMaxCount>(), first);
  }
  if (first == bins) return;
  dispatch_static<kMaxCount - 1>(bins - first, [&](auto count) { function(count, first); });
}

// Prefetches memory to L2, a part per call.
template <class Stored>
class Prefetcher {
 public:
  // `parts` calls of advance() prefetch `count` elements.
  Prefetcher(const Stored* from, int64_t count, int64_t parts)
      : next_(from), end_(from + count), step_(count / parts + kElementsPerLine) {}

  RCNN_INLINE void advance() {
    const Stored* const until = std::min(next_ + step_, end_);
    for (; next_ < until; next_ += kElementsPerLine) prefetch</*kWrite=*/false, 2>(next_);
  }

 private:
  static constexpr int64_t kElementsPerLine = 64 / sizeof(Stored);
  const Stored *next_, *end_;
  int64_t step_;
};

// Calls function(roi, span, block, c, count, prefetcher) for each block of channels [c, c + count)
// of [first, last) and every RoI of all spans. The prefetcher is to be advanced `parts` times per
// RoI: it has the planes that are transposed next.
template <class T, bool kTracksFinite, class Roi, class Stored, class Function>
void for_each_channel_block(const std::vector<RoiSpan<Roi, Stored>>& spans, int64_t first,
                            int64_t last, int64_t parts, Function&& function) {
  constexpr int kN = kLanes<T>;
  int64_t max_pixels = 0;
  for (const auto& span : spans) max_pixels = std::max(max_pixels, span.height * span.width);
  ChannelBlock<T, Stored, kTracksFinite> block(max_pixels);
  for (int64_t c = first; c < last; c += kN) {
    const int64_t count = std::min<int64_t>(kN, last - c);
    for (size_t s = 0; s < spans.size(); ++s) {
      const auto& span = spans[s];
      block.reset(span.image + c * span.height * span.width, count, span.height, span.width);
      if (span.whole || !kTracksFinite) block.transpose_all();
      const bool has_next = s + 1 < spans.size();
      const auto& next = spans[has_next ? s + 1 : 0];
      const int64_t next_first = has_next ? c : c + kN;
      const int64_t next_count =
          next.whole ? std::max<int64_t>(0, std::min<int64_t>(kN, last - next_first)) : 0;
      const int64_t next_plane = next.height * next.width;
      Prefetcher<Stored> prefetcher(next.image + (next_count > 0 ? next_first * next_plane : 0),
                                    next_count * next_plane, (span.end - span.begin) * parts);
      for (const Roi* roi = span.begin; roi != span.end; ++roi) {
        function(*roi, span, block, c, count, prefetcher);
      }
    }
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_CPU_CHANNEL_BLOCK_INL_H_
