// Vectors of numbers that fill a SIMD register, compiled once per instruction set
// (foreach_target.h). Arithmetic on vectors is that of their numbers. Functions are named as in
// Highway where it has them.
//
//   Vec<T, N>                   N numbers
//   kLanes<T>                   numbers of the widest register
//   LoadU<T, N>(from)           N stored numbers, converted to T exactly; any alignment
//   StoreU<N, T>(to, vec)       converted to what is stored, to nearest and ties to even
//   LoadN<T, N>(from, n)        the first n of them, and 0
//   StoreN<N, T>(to, vec, n)    the first n of them
//   Set<N>(value)               N copies
//   Max, Min, MaxBits, MinBits  lane by lane
//   Transpose(rows)             of N vectors of N numbers, in place
//   AllZero(vec)                whether all numbers are 0
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../core/dispatch.h"
#include "../core/host_device.h"
#include "intrinsics.h"
#include "targets.h"

#if defined(RCNN_CPU_SIMD_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_CPU_SIMD_INL_H_
#undef RCNN_CPU_SIMD_INL_H_
#else
#define RCNN_CPU_SIMD_INL_H_
#endif

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

#if defined(__GNUC__)
template <class T, int N>
struct VecOf {
  typedef T type __attribute__((vector_size(sizeof(T) * N)));
};
#else
template <class T, int N>
struct VecOf {
  struct type {
    T lane[N];
    T& operator[](int i) { return lane[i]; }
    const T& operator[](int i) const { return lane[i]; }
    friend type operator*(type a, const type& b) {
      for (int i = 0; i < N; ++i) a.lane[i] *= b.lane[i];
      return a;
    }
    friend type operator+(type a, const type& b) {
      for (int i = 0; i < N; ++i) a.lane[i] += b.lane[i];
      return a;
    }
    friend type operator-(type a, const type& b) {
      for (int i = 0; i < N; ++i) a.lane[i] -= b.lane[i];
      return a;
    }
    friend type operator/(type a, const type& b) {
      for (int i = 0; i < N; ++i) a.lane[i] /= b.lane[i];
      return a;
    }
    friend type operator-(type a) {
      for (int i = 0; i < N; ++i) a.lane[i] = -a.lane[i];
      return a;
    }
    type& operator+=(const type& b) { return *this = *this + b; }
  };
};
#endif
template <class T, int N>
using Vec = typename VecOf<T, N>::type;

template <class T>
constexpr int kLanes = RCNN_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <int N, class T>
RCNN_INLINE Vec<T, N> Set(T value) {
#if defined(__GNUC__)
  return value - Vec<T, N>{};  // not 0 + value, which would lose the sign of -0
#else
  Vec<T, N> vec;
  for (int i = 0; i < N; ++i) vec[i] = value;
  return vec;
#endif
}

template <class T, int N, class Stored>
struct Convert {
  static RCNN_INLINE Vec<T, N> load(const Stored* from) {
    Vec<T, N> vec;
    for (int i = 0; i < N; ++i) vec[i] = static_cast<T>(from[i]);
    return vec;
  }
  static RCNN_INLINE void store(Stored* to, const Vec<T, N>& vec) {
    for (int i = 0; i < N; ++i) to[i] = static_cast<Stored>(vec[i]);
  }
};

template <class T, int N>
struct Convert<T, N, T> {
  static RCNN_INLINE Vec<T, N> load(const T* from) {
    Vec<T, N> vec;
    std::memcpy(&vec, from, sizeof(vec));
    return vec;
  }
  static RCNN_INLINE void store(T* to, const Vec<T, N>& vec) { std::memcpy(to, &vec, sizeof(vec)); }
};

#if defined(__GNUC__)
// bfloat16 is the upper half of a float32.
template <int N>
struct Convert<float, N, BFloat16> {
  static RCNN_INLINE Vec<float, N> load(const BFloat16* from) {
    Vec<uint16_t, N> halves;
    std::memcpy(&halves, from, sizeof(halves));
    const auto bits = __builtin_convertvector(halves, Vec<uint32_t, N>) << 16;
    return (Vec<float, N>)(bits);
  }
  // Where the processor has an instruction for it, that takes subnormal numbers for 0.
  static RCNN_INLINE void store(BFloat16* to, const Vec<float, N>& vec) {
#if RCNN_ISA >= 3
    if constexpr (N == 16) {
      const __m256bh halves = _mm512_cvtneps_pbh((__m512)vec);
      std::memcpy(to, &halves, sizeof(halves));
      return;
    }
#endif
    const auto bits = (Vec<uint32_t, N>)(vec);
    const auto rounded = (bits + ((bits >> 16) & 1u) + 0x7fffu) >> 16;
    const auto is_nan = (Vec<uint32_t, N>)(vec != vec);
    const auto halves =
        __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0u), Vec<uint16_t, N>);
    std::memcpy(to, &halves, sizeof(halves));
  }
};

template <int N>
struct Convert<float, N, Half> {
  static RCNN_INLINE Vec<float, N> load(const Half* from) {
#if RCNN_ISA >= 1
    if constexpr (N == 8) {
      __m128i halves;
      std::memcpy(&halves, from, sizeof(halves));
      return (Vec<float, N>)_mm256_cvtph_ps(halves);
    }
#endif
#if RCNN_ISA >= 2
    if constexpr (N == 16) {
      __m256i halves;
      std::memcpy(&halves, from, sizeof(halves));
      return (Vec<float, N>)_mm512_cvtph_ps(halves);
    }
#endif
    Vec<uint16_t, N> halves;
    std::memcpy(&halves, from, sizeof(halves));
    const auto bits = __builtin_convertvector(halves, Vec<uint32_t, N>);
    // Exponent and fraction in place, the exponent rebased; that of infinities and NaNs to the
    // last. Subnormal numbers as integers, since a thread may take those of float32 for 0.
    const auto magnitude = bits & 0x7fffu;
    const auto special = (Vec<uint32_t, N>)(magnitude >= 0x7c00u) & 0x7f800000u;
    const auto normal = ((magnitude << 13) + (112u << 23)) | special;
    const auto number = __builtin_convertvector((Vec<int32_t, N>)(magnitude), Vec<float, N>);
    const auto subnormal = (Vec<uint32_t, N>)(number * 0x1p-24f);
    const auto is_subnormal = (Vec<uint32_t, N>)(magnitude < 0x400u);
    const auto result =
        (subnormal & is_subnormal) | (normal & ~is_subnormal) | ((bits & 0x8000u) << 16);
    return (Vec<float, N>)(result);
  }
  static RCNN_INLINE void store(Half* to, const Vec<float, N>& vec) {
#if RCNN_ISA >= 1
    if constexpr (N == 8) {
      const __m128i halves = _mm256_cvtps_ph((__m256)vec, _MM_FROUND_TO_NEAREST_INT);
      std::memcpy(to, &halves, sizeof(halves));
      return;
    }
#endif
#if RCNN_ISA >= 2
    if constexpr (N == 16) {
      const __m256i halves = _mm512_cvtps_ph((__m512)vec, _MM_FROUND_TO_NEAREST_INT);
      std::memcpy(to, &halves, sizeof(halves));
      return;
    }
#endif
    for (int i = 0; i < N; ++i) to[i] = static_cast<Half>(static_cast<float>(vec[i]));
  }
};
#endif  // __GNUC__

template <class T, int N, class Stored>
RCNN_INLINE Vec<T, N> LoadU(const Stored* from) {
  return Convert<T, N, Stored>::load(from);
}

template <int N, class T, class Stored>
RCNN_INLINE void StoreU(Stored* to, const Vec<T, N>& vec) {
  Convert<T, N, Stored>::store(to, vec);
}

// a > b ? a : b by lane, as the processor's maximum has it also for NaN. Compilers make a
// comparison and a blend of the expression, and the blend waits for the comparison.
template <int N, class T>
RCNN_INLINE Vec<T, N> Max(const Vec<T, N>& a, const Vec<T, N>& b) {
#if RCNN_HAS_X86_ISAS
  if constexpr (sizeof(a) == 16 && sizeof(T) == 4) return (Vec<T, N>)_mm_max_ps(a, b);
  if constexpr (sizeof(a) == 16 && sizeof(T) == 8) return (Vec<T, N>)_mm_max_pd(a, b);
#endif
#if RCNN_ISA >= 1
  if constexpr (sizeof(a) == 32 && sizeof(T) == 4) return (Vec<T, N>)_mm256_max_ps(a, b);
  if constexpr (sizeof(a) == 32 && sizeof(T) == 8) return (Vec<T, N>)_mm256_max_pd(a, b);
#endif
#if RCNN_ISA >= 2
  if constexpr (sizeof(a) == 64 && sizeof(T) == 4) return (Vec<T, N>)_mm512_max_ps(a, b);
  if constexpr (sizeof(a) == 64 && sizeof(T) == 8) return (Vec<T, N>)_mm512_max_pd(a, b);
#endif
#if defined(__GNUC__)
  return a > b ? a : b;
#else
  Vec<T, N> greater = b;
  for (int i = 0; i < N; ++i) greater[i] = a[i] > b[i] ? a[i] : b[i];
  return greater;
#endif
}

// a < b ? a : b by lane, as the processor's minimum has it also for NaN.
template <int N, class T>
RCNN_INLINE Vec<T, N> Min(const Vec<T, N>& a, const Vec<T, N>& b) {
#if RCNN_HAS_X86_ISAS
  if constexpr (sizeof(a) == 16 && sizeof(T) == 4) return (Vec<T, N>)_mm_min_ps(a, b);
  if constexpr (sizeof(a) == 16 && sizeof(T) == 8) return (Vec<T, N>)_mm_min_pd(a, b);
#endif
#if RCNN_ISA >= 1
  if constexpr (sizeof(a) == 32 && sizeof(T) == 4) return (Vec<T, N>)_mm256_min_ps(a, b);
  if constexpr (sizeof(a) == 32 && sizeof(T) == 8) return (Vec<T, N>)_mm256_min_pd(a, b);
#endif
#if RCNN_ISA >= 2
  if constexpr (sizeof(a) == 64 && sizeof(T) == 4) return (Vec<T, N>)_mm512_min_ps(a, b);
  if constexpr (sizeof(a) == 64 && sizeof(T) == 8) return (Vec<T, N>)_mm512_min_pd(a, b);
#endif
#if defined(__GNUC__)
  return a < b ? a : b;
#else
  Vec<T, N> smaller = b;
  for (int i = 0; i < N; ++i) smaller[i] = a[i] < b[i] ? a[i] : b[i];
  return smaller;
#endif
}

// Max() and Min() where `b` has no sign bit. The bits of nonnegative numbers order as integers do,
// and everything with a sign bit, including NaN, is below: processors have more units for integer
// comparison.
template <int N, class T>
RCNN_INLINE Vec<T, N> MaxBits(const Vec<T, N>& a, const Vec<T, N>& b) {
#if RCNN_ISA >= 1
  if constexpr (sizeof(a) == 32 && sizeof(T) == 4) {
    return (Vec<T, N>)_mm256_max_epi32((__m256i)a, (__m256i)b);
  }
#endif
#if RCNN_ISA >= 2
  if constexpr (sizeof(a) == 64 && sizeof(T) == 4) {
    return (Vec<T, N>)_mm512_max_epi32((__m512i)a, (__m512i)b);
  }
#endif
  return Max<N, T>(a, b);
}
template <int N, class T>
RCNN_INLINE Vec<T, N> MinBits(const Vec<T, N>& a, const Vec<T, N>& b) {
#if RCNN_ISA >= 1
  if constexpr (sizeof(a) == 32 && sizeof(T) == 4) {
    return (Vec<T, N>)_mm256_min_epi32((__m256i)a, (__m256i)b);
  }
#endif
#if RCNN_ISA >= 2
  if constexpr (sizeof(a) == 64 && sizeof(T) == 4) {
    return (Vec<T, N>)_mm512_min_epi32((__m512i)a, (__m512i)b);
  }
#endif
  return Min<N, T>(a, b);
}

// Loads `count` numbers into the first lanes; the others are 0.
template <class T, int N, class Stored>
RCNN_INLINE Vec<T, N> LoadN(const Stored* from, int64_t count) {
  if (count >= N) return LoadU<T, N>(from);
  T numbers[N] = {};
  for (int64_t i = 0; i < count; ++i) numbers[i] = static_cast<T>(from[i]);
  return LoadU<T, N>(numbers);
}

// Stores the first `count` lanes of a vector.
template <int N, class T, class Stored>
RCNN_INLINE void StoreN(Stored* to, const Vec<T, N>& vec, int64_t count) {
  if (count >= N) return StoreU<N, T>(to, vec);
  Stored numbers[N];
  StoreU<N, T>(numbers, vec);
  for (int64_t i = 0; i < count; ++i) to[i] = numbers[i];
}

// Whether all numbers are 0, which NaN is not.
template <int N, class T>
RCNN_INLINE bool AllZero(const Vec<T, N>& vec) {
#if defined(__GNUC__)
  const auto differs = vec != Vec<T, N>{};
  uint64_t words[sizeof(vec) / sizeof(uint64_t)];
  static_assert(sizeof(words) == sizeof(differs), "vectors are whole words");
  std::memcpy(words, &differs, sizeof(words));
  uint64_t any = 0;
  for (const uint64_t word : words) any |= word;
  return any == 0;
#else
  bool zero = true;
  for (int i = 0; i < N; ++i) zero &= vec[i] == T(0);
  return zero;
#endif
}

// Converts `count` numbers to what is stored.
template <class Stored, class T>
inline void store_all(Stored* to, const T* from, int64_t count) {
  constexpr int kN = kLanes<T>;
  int64_t i = 0;
  for (; i + kN <= count; i += kN) StoreU<kN, T>(to + i, LoadU<T, kN>(from + i));
  for (; i < count; ++i) to[i] = static_cast<Stored>(from[i]);
}

// Converts `count` stored numbers.
template <class T, class Stored>
inline void load_all(T* to, const Stored* from, int64_t count) {
  constexpr int kN = kLanes<T>;
  int64_t i = 0;
  for (; i + kN <= count; i += kN) StoreU<kN, T>(to + i, LoadU<T, kN>(from + i));
  for (; i < count; ++i) to[i] = static_cast<T>(from[i]);
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define RCNN_HAS_SHUFFLEVECTOR 1
#endif
#endif
// Swaps the lanes of `upper` whose index has the bit kStep with the lanes of `lower` whose index
// does not.
template <int kStep, class V, int... kLane>
RCNN_INLINE void swap_lanes(V& upper, V& lower, std::integer_sequence<int, kLane...>) {
#if defined(RCNN_HAS_SHUFFLEVECTOR)
  constexpr int kN = sizeof...(kLane);
  const V swapped =
      __builtin_shufflevector(upper, lower, (kLane & kStep ? kLane - kStep + kN : kLane)...);
  lower = __builtin_shufflevector(upper, lower, (kLane & kStep ? kLane + kN : kLane + kStep)...);
  upper = swapped;
#else
  for (const int lane : {kLane...}) {
    if (!(lane & kStep)) continue;
    const auto kept = upper[lane];
    upper[lane] = lower[lane - kStep];
    lower[lane - kStep] = kept;
  }
#endif
}

// Transposes the 2 x 2 arrangement of blocks of kStep rows and lanes, then each block recursively.
template <int kStep, class V, int N>
RCNN_INLINE void transpose_blocks(V (&rows)[N]) {
  if constexpr (kStep > 0) {
#if defined(__GNUC__)
#pragma GCC unroll 16
#endif
    for (int i = 0; i < N; ++i) {
      if (!(i & kStep)) {
        swap_lanes<kStep>(rows[i], rows[i | kStep], std::make_integer_sequence<int, N>());
      }
    }
    transpose_blocks<kStep / 2>(rows);
  }
}

template <class V, int N>
RCNN_INLINE void Transpose(V (&rows)[N]) {
  transpose_blocks<N / 2>(rows);
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_CPU_SIMD_INL_H_
