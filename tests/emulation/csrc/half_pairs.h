// A half type, its pairs and their atomics.
#pragma once

#include "atomics.h"
#include "vectors.h"

// The two halves of a pair are added one by one, as on the device: only each is atomic.
#define RCNN_HALF_PAIR(Half, Pair)                                             \
  struct alignas(4) Pair {                                                     \
    Half x, y;                                                                 \
  };                                                                           \
  inline float __low2float(Pair pair) { return pair.x; }                       \
  inline float __high2float(Pair pair) { return pair.y; }                      \
  inline Half atomicAdd(Half* address, Half value) {                           \
    return rcnn_emulation::exchange_atomically(                                \
        address, [=](Half old) { return Half(float(old) + float(value)); });   \
  }                                                                            \
  inline Pair atomicAdd(Pair* address, Pair value) {                           \
    rcnn_emulation::check_aligned(address);                                    \
    return {atomicAdd(&address->x, value.x), atomicAdd(&address->y, value.y)}; \
  }
