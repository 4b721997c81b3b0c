// Finds out what the processor has. Contract: isa.h.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "targets.h"
#if RCNN_HAS_X86_ISAS
#include <cpuid.h>
#endif

namespace rcnn_ext {
namespace {

// A feature of the processor that kernels may be compiled for.
struct Feature {
  const char* name;
  Isa isa;  // the first instruction set that needs it, or that some kernels use it with
  bool present;
  bool optional = false;
};

constexpr const char* kBf16Products = "avx512bf16";

#if RCNN_HAS_X86_ISAS
struct CpuidRegisters {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All bits 0 where the processor has no such leaf.
CpuidRegisters cpuid(unsigned leaf, unsigned subleaf = 0) {
  CpuidRegisters r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

// By cpuid, since not every compiler's __builtin_cpu_supports() knows "f16c" and "lzcnt". What the
// builtin adds is whether the operating system saves the wide registers.
std::vector<Feature> find_features() {
  __builtin_cpu_init();
  const bool saves_256_bits = __builtin_cpu_supports("avx2");
  const bool saves_512_bits = __builtin_cpu_supports("avx512f");
#define RCNN_AVX2_FEATURE(name, leaf, register, bit) \
  {#name, Isa::kAvx2, saves_256_bits && (cpuid(leaf).register >> bit & 1)},
#define RCNN_AVX512_FEATURE(name, leaf, register, bit) \
  {#name, Isa::kAvx512, saves_512_bits && (cpuid(leaf).register >> bit & 1)},
#define RCNN_AVX512_BF16_FEATURE(name, leaf, register, bit) \
  {#name, Isa::kAvx512, saves_512_bits && (cpuid(leaf, 1).register >> bit & 1), true},
  return {RCNN_AVX2_FEATURES(RCNN_AVX2_FEATURE) RCNN_AVX512_FEATURES(RCNN_AVX512_FEATURE)
              RCNN_AVX512_BF16_FEATURES(RCNN_AVX512_BF16_FEATURE)};
}
#else
std::vector<Feature> find_features() { return {}; }
#endif

// names: separated by commas; empty ones are skipped
void disable(const std::string& names, std::vector<Feature>& features) {
  for (size_t begin = 0; begin < names.size();) {
    const size_t end = std::min(names.find(',', begin), names.size());
    const std::string name = names.substr(begin, end - begin);
    begin = end + 1;
    bool known = name.empty();
    std::string expected;
    for (Feature& feature : features) {
      expected += (expected.empty() ? "" : ", ") + std::string(feature.name);
      if (name != feature.name) continue;
      feature.present = false;
      known = true;
    }
    if (!known) {
      throw std::invalid_argument("RCNN_EXT_DISABLE_CPU_FEATURES: expected names among (" +
                                  expected + "), got '" + name + "'");
    }
  }
}

// What kernels may use of this processor.
struct Usable {
  Isa best;
  bool bf16_products = false;
};

Usable detect() {
  std::vector<Feature> features = find_features();
  const char* const disabled = std::getenv("RCNN_EXT_DISABLE_CPU_FEATURES");
  if (disabled != nullptr && !features.empty()) disable(disabled, features);
  int best = static_cast<int>(features.empty() ? Isa::kBaseline : Isa::kAvx512);
  Usable usable;
  for (const Feature& feature : features) {
    if (feature.name == std::string(kBf16Products)) usable.bf16_products = feature.present;
    if (feature.present || feature.optional) continue;
    best = std::min(best, static_cast<int>(feature.isa) - 1);
  }
  usable.best = static_cast<Isa>(best);
  return usable;
}

const Usable& usable() {
  static const Usable found = detect();
  return found;
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

Isa best_isa() { return usable().best; }

Isa active_isa() { return active().load(std::memory_order_relaxed); }

bool has_bf16_products() { return active_isa() == Isa::kAvx512 && usable().bf16_products; }

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
