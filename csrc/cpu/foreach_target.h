// Compiles one file of CPU kernels for several instruction sets:
//
//   #define RCNN_TARGET_INCLUDE "../nms/nms_cpu-inl.h"   // a path as seen from this folder
//   #include "../cpu/foreach_target.h"
//
// defines what nms_cpu-inl.h defines in the namespaces rcnn_ext::{baseline, avx2, avx512} of the
// present file, and
//
//   RCNN_DYNAMIC_DISPATCH(suppress<float>(boxes, count));
//
// calls the one for the active instruction set and gives its result. All give the same bits:
// nothing is contracted into fused multiply-adds, and vector code keeps the order of a sum whatever
// the width of its registers. How such a file is written: targets.h.
//
// With RCNN_TARGET_BF16 defined, the file is compiled a fourth time, in the namespace avx512_bf16
// and with that instruction set's dot products of bfloat16; RCNN_DYNAMIC_DISPATCH_BF16 takes it
// where the processor has them.
//
// Once per source file: one that needs several such files includes a *-inl.h that includes them.
#ifdef RCNN_CPU_FOREACH_TARGET_H_
#error "include foreach_target.h once per source file"
#endif
#define RCNN_CPU_FOREACH_TARGET_H_

#include "targets.h"

#ifndef RCNN_TARGET_INCLUDE
#error "define RCNN_TARGET_INCLUDE before including foreach_target.h"
#endif

#undef RCNN_ISA
#define RCNN_ISA 0
#include RCNN_TARGET_INCLUDE

#if RCNN_HAS_X86_ISAS
// Flipped for each instruction set, which opens the guards of the files again.
#define RCNN_TARGET_TOGGLE
#undef RCNN_ISA
#define RCNN_ISA 1
#include RCNN_TARGET_INCLUDE

#undef RCNN_TARGET_TOGGLE
#undef RCNN_ISA
#define RCNN_ISA 2
#include RCNN_TARGET_INCLUDE

#ifdef RCNN_TARGET_BF16
#define RCNN_TARGET_TOGGLE
#undef RCNN_ISA
#define RCNN_ISA 3
#include RCNN_TARGET_INCLUDE

#define RCNN_DYNAMIC_DISPATCH_BF16(...)                                   \
  [&]() -> decltype(auto) {                                               \
    if (::rcnn_ext::has_bf16_products()) return avx512_bf16::__VA_ARGS__; \
    return RCNN_DYNAMIC_DISPATCH(__VA_ARGS__);                            \
  }()
#endif

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
#define RCNN_DYNAMIC_DISPATCH_BF16(...) baseline::__VA_ARGS__
#endif

#undef RCNN_ISA
#define RCNN_ISA 0
