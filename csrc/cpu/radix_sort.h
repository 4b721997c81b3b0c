// A stable least-significant-digit radix sort of indices by integer keys: several times as fast as
// sorting a tensor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

namespace rcnn_ext {

// Allocate an array whose elements are not initialized.
template <class T>
std::unique_ptr<T[]> uninitialized(int64_t count) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(count)]);
}

// A key of up to 32 bits and the index of the element that it belongs to, in one number, so that
// equal keys sort by index.
struct IndexedKey32 {
  uint64_t packed;

  static IndexedKey32 make(uint32_t key, uint32_t index) {
    return {static_cast<uint64_t>(key) << 32 | index};
  }
  uint32_t key() const { return static_cast<uint32_t>(packed >> 32); }
  uint32_t index() const { return static_cast<uint32_t>(packed); }
  bool operator<(const IndexedKey32& other) const { return packed < other.packed; }
};

// A key of up to 64 bits and the index of the element that it belongs to.
struct IndexedKey64 {
  uint64_t key_bits;
  uint32_t element;

  static IndexedKey64 make(uint64_t key, uint32_t index) { return {key, index}; }
  uint64_t key() const { return key_bits; }
  uint32_t index() const { return element; }
  bool operator<(const IndexedKey64& other) const {
    return key_bits != other.key_bits ? key_bits < other.key_bits : element < other.element;
  }
};

// Sort by key, ascending; equal keys keep their order, which has to be that of the indices.
// `scratch` is as long as `elements`. Return which of the two holds the result.
template <class Element>
Element* radix_sort(Element* elements, Element* scratch, int64_t count) {
  // Below this count a comparison sort takes less time than clearing and summing the counters.
  constexpr int64_t kMinRadixSortCount = 200;
  if (count < kMinRadixSortCount) {
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
    // All keys agree in this digit, as the high digits of small numbers do.
    if (starts[elements[0].key() >> shift & (kBuckets - 1)] == static_cast<uint64_t>(count)) {
      continue;
    }
    uint32_t sum = 0;
    for (int b = 0; b < kBuckets; ++b) sum += std::exchange(starts[b], sum);
    for (int64_t i = 0; i < count; ++i) {
      scratch[starts[elements[i].key() >> shift & (kBuckets - 1)]++] = elements[i];
    }
    std::swap(elements, scratch);
  }
  return elements;
}

}  // namespace rcnn_ext
