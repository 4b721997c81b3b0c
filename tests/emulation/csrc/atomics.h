// Atomics: one OS thread runs all fibers, so a plain read and write is atomic; but another fiber
// may go first. Global, shared and system scope are one.
#pragma once

#include <cstdint>

#include "scheduler.h"
#include "vectors.h"

namespace rcnn_emulation {

template <class T>
void check_aligned(T* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0) {
    fail("an atomic at an address that is not a multiple of " + std::to_string(sizeof(T)));
  }
}

// *address = change(*address); returns what was there.
template <class T, class Change>
T exchange_atomically(T* address, Change change) {
  check_aligned(address);
  yield_point();
  const T old = *address;
  *address = change(old);
  return old;
}

}  // namespace rcnn_emulation

#define RCNN_ATOMIC(name, T, ...)                                                                 \
  inline T name(T* address, T value) {                                                            \
    return rcnn_emulation::exchange_atomically(address, [=](T old) -> T { return __VA_ARGS__; }); \
  }
#define RCNN_ATOMIC_INTEGERS(name, ...)    \
  RCNN_ATOMIC(name, int, __VA_ARGS__)      \
  RCNN_ATOMIC(name, unsigned, __VA_ARGS__) \
  RCNN_ATOMIC(name, unsigned long long, __VA_ARGS__)
#define RCNN_ATOMIC_ALL_INTEGERS(name, ...) \
  RCNN_ATOMIC_INTEGERS(name, __VA_ARGS__)   \
  RCNN_ATOMIC(name, long long, __VA_ARGS__)

// Overflow wraps on the device.
RCNN_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + value))
RCNN_ATOMIC(atomicAdd, unsigned, old + value)
RCNN_ATOMIC(atomicAdd, unsigned long long, old + value)
RCNN_ATOMIC(atomicAdd, float, old + value)
RCNN_ATOMIC(atomicAdd, double, old + value)
RCNN_ATOMIC(atomicSub, int, static_cast<int>(static_cast<unsigned>(old) - value))
RCNN_ATOMIC(atomicSub, unsigned, old - value)
RCNN_ATOMIC_ALL_INTEGERS(atomicMin, old < value ? old : value)
RCNN_ATOMIC_ALL_INTEGERS(atomicMax, old > value ? old : value)
RCNN_ATOMIC_INTEGERS(atomicAnd, old& value)
RCNN_ATOMIC_INTEGERS(atomicOr, old | value)
RCNN_ATOMIC_INTEGERS(atomicXor, old ^ value)
RCNN_ATOMIC_INTEGERS(atomicExch, (static_cast<void>(old), value))
RCNN_ATOMIC(atomicExch, float, (static_cast<void>(old), value))
RCNN_ATOMIC(atomicInc, unsigned, old >= value ? 0u : old + 1u)
RCNN_ATOMIC(atomicDec, unsigned, old == 0u || old > value ? value : old - 1u)
#undef RCNN_ATOMIC_ALL_INTEGERS
#undef RCNN_ATOMIC_INTEGERS
#undef RCNN_ATOMIC

template <class T>
T atomicCAS(T* address, T expected, T value) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "16, 32 or 64 bit");
  return rcnn_emulation::exchange_atomically(address,
                                             [=](T old) { return old == expected ? value : old; });
}

// From compute capability 9.0 on. Each component is atomic, not all of them together.
inline float4 atomicAdd(float4* address, float4 value) {
  rcnn_emulation::check_aligned(address);
  return {atomicAdd(&address->x, value.x), atomicAdd(&address->y, value.y),
          atomicAdd(&address->z, value.z), atomicAdd(&address->w, value.w)};
}

inline void __threadfence() { rcnn_emulation::yield_point(); }
inline void __threadfence_block() { rcnn_emulation::yield_point(); }
inline void __threadfence_system() { rcnn_emulation::yield_point(); }
