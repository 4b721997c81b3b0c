// Compiles one source of CPU kernels for several instruction sets:
//
//   #define RCNN_TARGET_INCLUDE "../nms/nms_kernels.h"   // a path as seen from this folder
//   #include "foreach_target.h"
//
// defines what nms_kernels.h defines in the namespaces rcnn_ext::{baseline, avx2, avx512} of the
// present file, and
//
//   RCNN_DYNAMIC_DISPATCH(suppress<float>(boxes, count));
//
// calls the one for the instruction set that is active, and gives its result. All give the same
// bits: nothing is contracted into fused multiply-adds, and vector code keeps the order of a sum
// whatever the width of its registers.
//
// The source holds definitions only; the headers that it needs are included before, outside, so
// that no inline function of theirs is compiled for a processor that may not be there. In it,
// RCNN_ISA is 0 (what the compiler targets: SSE2, NEON), 1 (AVX2) or 2 (AVX-512), and
// RCNN_VECTOR_BYTES is the width of the widest registers.
//
// Not guarded against repetition: a file may include it for several sources.
#include "isa.h"

#ifndef RCNN_TARGET_INCLUDE
#error "define RCNN_TARGET_INCLUDE before including for_each_isa.h"
#endif

// FMA is in the list since every processor with AVX2 has it, but -ffp-contract=off keeps the
// compiler from using it.
#define RCNN_ISA 0
#define RCNN_VECTOR_BYTES 16
namespace rcnn_ext {
namespace {
namespace baseline {
#include RCNN_TARGET_INCLUDE
}  // namespace baseline
}  // namespace
}  // namespace rcnn_ext
#undef RCNN_ISA
#undef RCNN_VECTOR_BYTES

#if RCNN_HAS_X86_ISAS

#define RCNN_ISA 1
#define RCNN_VECTOR_BYTES 32
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,fma,f16c,lzcnt,popcnt"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,fma,f16c,lzcnt,popcnt")
#endif
namespace rcnn_ext {
namespace {
namespace avx2 {
#include RCNN_TARGET_INCLUDE
}  // namespace avx2
}  // namespace
}  // namespace rcnn_ext
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef RCNN_ISA
#undef RCNN_VECTOR_BYTES

#define RCNN_ISA 2
#define RCNN_VECTOR_BYTES 64
#if defined(__clang__)
#pragma clang attribute push(                                                              \
    __attribute__((target("avx2,bmi,bmi2,fma,f16c,lzcnt,popcnt,avx512f,avx512bw,avx512dq," \
                          "avx512vl"))),                                                   \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target( \
    "avx2,bmi,bmi2,fma,f16c,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
namespace rcnn_ext {
namespace {
namespace avx512 {
#include RCNN_TARGET_INCLUDE
}  // namespace avx512
}  // namespace
}  // namespace rcnn_ext
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef RCNN_ISA
#undef RCNN_VECTOR_BYTES

#endif  // RCNN_HAS_X86_ISAS
#undef RCNN_TARGET_INCLUDE

#ifndef RCNN_DYNAMIC_DISPATCH
#if RCNN_HAS_X86_ISAS
#define RCNN_DYNAMIC_DISPATCH(...)                               \
  [&]() -> decltype(auto) {                                      \
    switch (::rcnn_ext::active_isa()) {                          \
      case ::rcnn_ext::Isa::kAvx512: return avx512::__VA_ARGS__; \
      case ::rcnn_ext::Isa::kAvx2: return avx2::__VA_ARGS__;     \
      default: return baseline::__VA_ARGS__;                     \
    }                                                            \
  }()
#else
#define RCNN_DYNAMIC_DISPATCH(...) baseline::__VA_ARGS__
#endif
#endif
