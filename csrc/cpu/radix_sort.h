// A stable sort of indices by integer keys, several times as fast as sorting a tensor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "../core/host_device.h"

namespace rcnn_ext {

// Memory that is not filled before its first use.
template <class T>
std::unique_ptr<T[]> uninitialized(int64_t count) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(count)]);
}

// A key of up to 32 bits and the index of its owner, in one number: equal keys sort by index.
struct NarrowKey {
  uint64_t packed;

  static NarrowKey make(uint32_t key, uint32_t index) {
    return {static_cast<uint64_t>(key) << 32 | index};
  }
  uint32_t key() const { return static_cast<uint32_t>(packed >> 32); }
  uint32_t index() const { return static_cast<uint32_t>(packed); }
  bool operator<(const NarrowKey& other) const { return packed < other.packed; }
};

struct WideKey {
  uint64_t number;
  uint32_t owner;

  static WideKey make(uint64_t key, uint32_t index) { return {key, index}; }
  uint64_t key() const { return number; }
  uint32_t index() const { return owner; }
  bool operator<(const WideKey& other) const {
    return number != other.number ? number < other.number : owner < other.owner;
  }
};

// Sorts by key, ascending; equal keys keep their order, which has to be that of the indices.
// `scratch` is as long as `elements`. Returns which of the two holds the result.
template <class Element>
Element* radix_sort(Element* elements, Element* scratch, int64_t count) {
  // Below this the counters cost more than comparisons.
  if (count < 200) {
    std::sort(elements, elements + count);
    return elements;
  }
  constexpr int kBits = 8;
  constexpr int kBuckets = 1 << kBits;
  constexpr int kDigits = sizeof(elements->key()) * 8 / kBits;
  uint32_t counts[kDigits][kBuckets] = {};
  for (int64_t i = 0; i < count; ++i) {
    const auto key = elements[i].key();
    for (int digit = 0; digit < kDigits; ++digit) {
      ++counts[digit][key >> (digit * kBits) & (kBuckets - 1)];
    }
  }
  for (int digit = 0; digit < kDigits; ++digit) {
    uint32_t* starts = counts[digit];
    const int shift = digit * kBits;
    // All the same in this digit: as with small numbers, and with scores of few values.
    if (starts[elements[0].key() >> shift & (kBuckets - 1)] == static_cast<uint64_t>(count))
      continue;
    uint32_t sum = 0;
    for (int b = 0; b < kBuckets; ++b) sum += std::exchange(starts[b], sum);
    for (int64_t i = 0; i < count; ++i) {
      scratch[starts[elements[i].key() >> shift & (kBuckets - 1)]++] = elements[i];
    }
    std::swap(elements, scratch);
  }
  return elements;
}

// Unsigned keys that ascend as the numbers descend: -0 and 0 are one, all NaNs are one and come
// first, as in torch.sort.
RCNN_HOST_DEVICE uint32_t descending_key(float number) {
  if (number != number) return 0;
  uint32_t bits;
  const float positive_zero = number + 0.0f;
  memcpy(&bits, &positive_zero, sizeof(bits));
  return bits >> 31 ? bits : ~(bits | 0x80000000u);
}
RCNN_HOST_DEVICE uint64_t descending_key(double number) {
  if (number != number) return 0;
  uint64_t bits;
  const double positive_zero = number + 0.0;
  memcpy(&bits, &positive_zero, sizeof(bits));
  return bits >> 63 ? bits : ~(bits | uint64_t{1} << 63);
}
RCNN_HOST_DEVICE uint64_t descending_key(int64_t number) {
  return ~(static_cast<uint64_t>(number) ^ uint64_t{1} << 63);
}

}  // namespace rcnn_ext
