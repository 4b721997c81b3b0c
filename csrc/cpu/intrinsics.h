// The processor's vector instructions by name, for the few kernels that the compiler does not
// vectorize well. Their use stands between `#if RCNN_ISA == 1` and the like (foreach_target.h).
#pragma once

#include "isa.h"

#if RCNN_HAS_X86_ISAS
// GCC 12 takes the undefined operands inside its own header for mistakes (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
