// The instruction sets that CPU kernels are compiled for, and which of them runs.
#pragma once

namespace rcnn_ext {

// Ascending; a processor that has one has all before it.
enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// Whether kernels for more than the compiler's own target are built (foreach_target.h).
#if defined(__GNUC__) && defined(__x86_64__)
#define RCNN_HAS_X86_ISAS 1
#else
#define RCNN_HAS_X86_ISAS 0
#endif

// "baseline", "avx2" or "avx512".
const char* name_of(Isa isa);

// The highest instruction set that this build has and of which this processor has every feature
// that the kernels are compiled for (targets.h). The environment variable
// RCNN_EXT_DISABLE_CPU_FEATURES takes features away, as a virtual machine does that masks them:
// their names as compilers and /proc/cpuinfo's readers write them ("f16c,avx512vl"), separated by
// commas. It is read once, and ignored where the kernels have one instruction set only. Throws
// std::invalid_argument for a name that is not in the list.
Isa best_isa();

// The instruction set that kernels run with: best_isa() until use_isa() is told another.
Isa active_isa();

// Whether kernels run with AVX-512 and the processor has its dot products of bfloat16, which not
// every processor with AVX-512 has; "avx512bf16" in the environment variable takes them away.
bool has_bf16_products();

// Throws std::invalid_argument for a name that is unknown or that this processor lacks.
void use_isa(const char* name);

}  // namespace rcnn_ext
