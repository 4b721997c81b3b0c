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

#undef RCNN_ISA
#define RCNN_ISA 0
