// Finds out what the processor has. Contract: isa.h.
#include <atomic>
#include <stdexcept>
#include <string>

#include "isa.h"

namespace rcnn_ext {
namespace {

Isa detect() {
#if RCNN_HAS_X86_ISAS
  // The names of the target attributes in for_each_isa.h. The compiler's run time also asks
  // whether the operating system saves the wide registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx2: return "avx2";
    default: return "baseline";
  }
}

Isa best_isa() {
  static const Isa best = detect();
  return best;
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

void use_isa(const char* name) {
  const std::string wanted = name;
  std::string available;
  for (int level = 0; level <= static_cast<int>(best_isa()); ++level) {
    const Isa isa = static_cast<Isa>(level);
    if (wanted == name_of(isa)) {
      active().store(isa, std::memory_order_relaxed);
      return;
    }
    available += std::string(level ? ", " : "") + name_of(isa);
  }
  throw std::invalid_argument("expected an instruction set that this processor has (" + available +
                              "), got '" + wanted + "'");
}

}  // namespace rcnn_ext
