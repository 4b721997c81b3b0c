// Barriers and warp collectives. Default arguments take the place of the call, for messages.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "scheduler.h"

#define RCNN_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(RCNN_PLACE) {
  rcnn_emulation::wait_at_barrier(rcnn_emulation::Barrier::kPlain, 0, file, line);
}
inline int __syncthreads_count(int predicate, RCNN_PLACE) {
  return rcnn_emulation::wait_at_barrier(rcnn_emulation::Barrier::kCount, predicate, file, line);
}
inline int __syncthreads_and(int predicate, RCNN_PLACE) {
  return rcnn_emulation::wait_at_barrier(rcnn_emulation::Barrier::kAnd, predicate, file, line);
}
inline int __syncthreads_or(int predicate, RCNN_PLACE) {
  return rcnn_emulation::wait_at_barrier(rcnn_emulation::Barrier::kOr, predicate, file, line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, RCNN_PLACE) {
  rcnn_emulation::wait_for_lanes(rcnn_emulation::Collective::kSync, mask, 0, 0, file, line);
}

// Only the caller is certain to be active: lanes may diverge anywhere.
inline unsigned __activemask() { return 1u << rcnn_emulation::lane(); }

inline unsigned __ballot_sync(unsigned mask, int predicate, RCNN_PLACE) {
  return static_cast<unsigned>(rcnn_emulation::wait_for_lanes(rcnn_emulation::Collective::kBallot,
                                                              mask, predicate != 0, 0, file, line));
}
inline int __any_sync(unsigned mask, int predicate, RCNN_PLACE) {
  return static_cast<int>(rcnn_emulation::wait_for_lanes(rcnn_emulation::Collective::kAny, mask,
                                                         predicate != 0, 0, file, line));
}
inline int __all_sync(unsigned mask, int predicate, RCNN_PLACE) {
  return static_cast<int>(rcnn_emulation::wait_for_lanes(rcnn_emulation::Collective::kAll, mask,
                                                         predicate != 0, 0, file, line));
}

namespace rcnn_emulation {

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable<T>::value,
                "warp collectives take up to 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// `source` counts within segments of `width` lanes; outside of its segment a lane gets its own.
template <class T>
T shuffle(unsigned mask, T value, int source, int width, const char* file, int line) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    fail("a shuffle of width " + std::to_string(width) + ", not a power of 2 up to 32");
  }
  return from_bits<T>(wait_for_lanes(Collective::kShuffle, mask, to_bits(value),
                                     static_cast<unsigned>(source), file, line));
}

}  // namespace rcnn_emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, RCNN_PLACE) {
  const int lane = static_cast<int>(rcnn_emulation::lane());
  const int first = lane & ~(width - 1);
  return rcnn_emulation::shuffle(mask, value, first + (source & (width - 1)), width, file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, RCNN_PLACE) {
  const int lane = static_cast<int>(rcnn_emulation::lane());
  const int first = lane & ~(width - 1);
  const int64_t source = int64_t{lane} - delta;
  return rcnn_emulation::shuffle(mask, value, source < first ? lane : static_cast<int>(source),
                                 width, file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, RCNN_PLACE) {
  const int lane = static_cast<int>(rcnn_emulation::lane());
  const int last = lane | (width - 1);
  const int64_t source = int64_t{lane} + delta;
  return rcnn_emulation::shuffle(mask, value, source > last ? lane : static_cast<int>(source),
                                 width, file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, RCNN_PLACE) {
  const int lane = static_cast<int>(rcnn_emulation::lane());
  const int last = lane | (width - 1);
  const int source = lane ^ lane_mask;
  return rcnn_emulation::shuffle(mask, value, source > last ? lane : source, width, file, line);
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, RCNN_PLACE) {
  return static_cast<unsigned>(rcnn_emulation::wait_for_lanes(
      rcnn_emulation::Collective::kMatchAny, mask, rcnn_emulation::to_bits(value), 0, file, line));
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all, RCNN_PLACE) {
  const auto match = static_cast<unsigned>(rcnn_emulation::wait_for_lanes(
      rcnn_emulation::Collective::kMatchAll, mask, rcnn_emulation::to_bits(value), 0, file, line));
  *all = match != 0;
  return match;
}

#define RCNN_REDUCTION(name, Type, kind)                                                         \
  inline Type name(unsigned mask, Type value, RCNN_PLACE) {                                      \
    return rcnn_emulation::from_bits<Type>(rcnn_emulation::wait_for_lanes(                       \
        rcnn_emulation::Collective::kind, mask, rcnn_emulation::to_bits(value), 0, file, line)); \
  }
RCNN_REDUCTION(__reduce_add_sync, unsigned, kAdd)
RCNN_REDUCTION(__reduce_add_sync, int, kAdd)
RCNN_REDUCTION(__reduce_min_sync, unsigned, kMinimumUnsigned)
RCNN_REDUCTION(__reduce_min_sync, int, kMinimumSigned)
RCNN_REDUCTION(__reduce_max_sync, unsigned, kMaximumUnsigned)
RCNN_REDUCTION(__reduce_max_sync, int, kMaximumSigned)
RCNN_REDUCTION(__reduce_and_sync, unsigned, kBitAnd)
RCNN_REDUCTION(__reduce_or_sync, unsigned, kBitOr)
RCNN_REDUCTION(__reduce_xor_sync, unsigned, kBitXor)
#undef RCNN_REDUCTION
#undef RCNN_PLACE
