// The instruction sets as the compiler and the processor know them, and the macros that a file
// compiled once per instruction set (*-inl.h) is written with:
//
//   #include "../cpu/targets.h"  // and other headers
//
//   #if defined(RCNN_NMS_NMS_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)  // once per target
//   #ifdef RCNN_NMS_NMS_CPU_INL_H_
//   #undef RCNN_NMS_NMS_CPU_INL_H_
//   #else
//   #define RCNN_NMS_NMS_CPU_INL_H_
//   #endif
//
//   #include "../cpu/simd-inl.h"  // and other files that are compiled once per instruction set
//
//   RCNN_BEFORE_NAMESPACE();
//   namespace rcnn_ext {
//   namespace {
//   namespace RCNN_NAMESPACE {
//   ...
//   }  // namespace RCNN_NAMESPACE
//   }  // namespace
//   }  // namespace rcnn_ext
//   RCNN_AFTER_NAMESPACE();
//
//   #endif
//
// foreach_target.h includes such a file with RCNN_ISA = 0, 1, 2 and perhaps 3. Parsed alone, as
// editors do, it is one for the baseline, or for another with -DRCNN_ISA. Ordinary headers stand
// above RCNN_BEFORE_NAMESPACE(), so that none of their inline functions is compiled for a processor
// that may not be there. The unnamed namespace is on purpose, though these are headers: the
// compiler inlines a function that is called once only if no other file can call it, and two files
// that include the same kernels must not share one copy that was compiled for either.
#pragma once

#include "isa.h"

// 0: baseline (SSE2, NEON), 1: AVX2, 2: AVX-512, the values of enum Isa; 3: AVX-512 with dot
// products of bfloat16, for files that ask for it (foreach_target.h).
#ifndef RCNN_ISA
#define RCNN_ISA 0
#endif

// Bytes of the widest register.
#define RCNN_VECTOR_BYTES (RCNN_ISA >= 2 ? 64 : 16 << RCNN_ISA)

// X(name, cpuid leaf, register, bit) for every feature that the code of an instruction set is
// compiled for, beyond those of the set before: the compiler's options and isa_cpu.cpp's check at
// run time both come from here. FMA is in the list since compilers take it for granted with
// AVX-512, but -ffp-contract=off keeps them from contracting.
#define RCNN_AVX2_FEATURES(X)   \
  X(avx2, 7, ebx, 5)            \
  X(bmi, 7, ebx, 3)             \
  X(bmi2, 7, ebx, 8)            \
  X(fma, 1, ecx, 12)            \
  X(f16c, 1, ecx, 29)           \
  X(lzcnt, 0x80000001u, ecx, 5) \
  X(popcnt, 1, ecx, 23)
#define RCNN_AVX512_FEATURES(X) \
  X(avx512f, 7, ebx, 16)        \
  X(avx512bw, 7, ebx, 30)       \
  X(avx512dq, 7, ebx, 17)       \
  X(avx512vl, 7, ebx, 31)
// Read from subleaf 1. A processor without it still has enum Isa's kAvx512.
#define RCNN_AVX512_BF16_FEATURES(X) X(avx512bf16, 7, eax, 5)

#define RCNN_TARGET_CONCATENATE_(a, b) a##b
#define RCNN_TARGET_CONCATENATE(a, b) RCNN_TARGET_CONCATENATE_(a, b)

#define RCNN_NAMESPACE RCNN_TARGET_CONCATENATE(RCNN_NAMESPACE_, RCNN_ISA)
#define RCNN_NAMESPACE_0 baseline
#define RCNN_NAMESPACE_1 avx2
#define RCNN_NAMESPACE_2 avx512
#define RCNN_NAMESPACE_3 avx512_bf16

#define RCNN_TARGET_PRAGMA_(...) _Pragma(#__VA_ARGS__)
#define RCNN_TARGET_PRAGMA(...) RCNN_TARGET_PRAGMA_(__VA_ARGS__)

// Lists begin with SSE2, which every x86-64 has, so that each further name can bring its comma.
#if defined(__clang__)
#define RCNN_FEATURE_STRING(name, leaf, register, bit) "," #name
#define RCNN_PUSH_TARGET(names) \
  RCNN_TARGET_PRAGMA(           \
      clang attribute push(__attribute__((target("sse2" names))), apply_to = function))
#define RCNN_POP_TARGET RCNN_TARGET_PRAGMA(clang attribute pop)
#define RCNN_VECTOR_WIDTH_STRING
#else
#define RCNN_FEATURE_STRING(name, leaf, register, bit) , #name
#define RCNN_PUSH_TARGET(...)          \
  RCNN_TARGET_PRAGMA(GCC push_options) \
  RCNN_TARGET_PRAGMA(GCC target("sse2" __VA_ARGS__))
#define RCNN_POP_TARGET RCNN_TARGET_PRAGMA(GCC pop_options)
// GCC would fill half a register only.
#define RCNN_VECTOR_WIDTH_STRING , "prefer-vector-width=512"
#endif

// Functions from here to RCNN_AFTER_NAMESPACE() are compiled for the instruction set RCNN_ISA.
#define RCNN_BEFORE_NAMESPACE()                             \
  RCNN_TARGET_CONCATENATE(RCNN_BEFORE_NAMESPACE_, RCNN_ISA) \
  static_assert(true, "for the semicolon")
#define RCNN_BEFORE_NAMESPACE_0
#define RCNN_BEFORE_NAMESPACE_1 RCNN_PUSH_TARGET(RCNN_AVX2_FEATURES(RCNN_FEATURE_STRING))
#define RCNN_BEFORE_NAMESPACE_2                            \
  RCNN_PUSH_TARGET(RCNN_AVX2_FEATURES(RCNN_FEATURE_STRING) \
                       RCNN_AVX512_FEATURES(RCNN_FEATURE_STRING) RCNN_VECTOR_WIDTH_STRING)
#define RCNN_BEFORE_NAMESPACE_3                                                         \
  RCNN_PUSH_TARGET(                                                                     \
      RCNN_AVX2_FEATURES(RCNN_FEATURE_STRING) RCNN_AVX512_FEATURES(RCNN_FEATURE_STRING) \
          RCNN_AVX512_BF16_FEATURES(RCNN_FEATURE_STRING) RCNN_VECTOR_WIDTH_STRING)

#define RCNN_AFTER_NAMESPACE()                             \
  RCNN_TARGET_CONCATENATE(RCNN_AFTER_NAMESPACE_, RCNN_ISA) \
  static_assert(true, "for the semicolon")
#define RCNN_AFTER_NAMESPACE_0
#define RCNN_AFTER_NAMESPACE_1 RCNN_POP_TARGET
#define RCNN_AFTER_NAMESPACE_2 RCNN_POP_TARGET
#define RCNN_AFTER_NAMESPACE_3 RCNN_POP_TARGET
