// Numbers from a seed: SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators",
// OOPSLA 2014).
#pragma once

#include <cstdint>

namespace rcnn_emulation {

inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  // A number in [0, bound). The bias of the product is too small to matter for schedules.
  uint64_t below(uint64_t bound) {
    state_ += 0x9e3779b97f4a7c15u;
    return static_cast<uint64_t>((static_cast<unsigned __int128>(mix(state_)) * bound) >> 64);
  }

 private:
  uint64_t state_;
};

}  // namespace rcnn_emulation
