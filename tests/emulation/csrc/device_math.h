// CUDA's arithmetic built-ins. Those that round (__fadd_rn and the like) are the plain operations:
// neither compiler contracts them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "scheduler.h"

namespace rcnn_emulation {

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast between types of one size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace rcnn_emulation

#define RCNN_MINIMUM_AND_MAXIMUM(T)                   \
  constexpr T min(T a, T b) { return a < b ? a : b; } \
  constexpr T max(T a, T b) { return a > b ? a : b; }
RCNN_MINIMUM_AND_MAXIMUM(int)
RCNN_MINIMUM_AND_MAXIMUM(unsigned)
RCNN_MINIMUM_AND_MAXIMUM(long)
RCNN_MINIMUM_AND_MAXIMUM(unsigned long)
RCNN_MINIMUM_AND_MAXIMUM(long long)
RCNN_MINIMUM_AND_MAXIMUM(unsigned long long)
#undef RCNN_MINIMUM_AND_MAXIMUM
// A NaN loses against a number.
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= ((x >> bit) & 1u) << (31 - bit);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }

inline int __float_as_int(float x) { return rcnn_emulation::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return rcnn_emulation::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return rcnn_emulation::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return rcnn_emulation::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return rcnn_emulation::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return rcnn_emulation::same_bits<double>(x); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
inline double rsqrt(double a) { return 1.0 / std::sqrt(a); }

// Loads and stores with a cache hint.
template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}
template <class T>
void __stcg(T* address, T value) {
  *address = value;
}

[[noreturn]] inline void __trap() { rcnn_emulation::fail("__trap()"); }
