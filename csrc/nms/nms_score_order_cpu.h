// The orders in which NMS visits boxes, on the CPU: by score, and by segment (class) and score.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "../core/dispatch.h"
#include "../core/sort_key.h"
#include "../core/stable_ops.h"
#include "../cpu/radix_sort.h"

namespace rcnn_ext {

using Order = std::unique_ptr<uint32_t[]>;  // from rank to index

template <class Element, class KeyOf>
Order order_by_key(int64_t count, KeyOf&& key_of) {
  const auto memory = uninitialized<Element>(2 * count);
  for (int64_t i = 0; i < count; ++i) {
    memory[i] = Element::make(key_of(i), static_cast<uint32_t>(i));
  }
  const Element* sorted = radix_sort(memory.get(), memory.get() + count, count);
  Order order = uninitialized<uint32_t>(count);
  for (int64_t i = 0; i < count; ++i) order[i] = sorted[i].index();
  return order;
}

// numbers: of a type that descending_key() takes.
template <class Number>
Order order_by_descending(const Number* numbers, int64_t count) {
  using Key = decltype(descending_key(numbers[0]));
  using Element = std::conditional_t<sizeof(Key) == 4, IndexedKey32, IndexedKey64>;
  return order_by_key<Element>(count, [&](int64_t i) { return descending_key(numbers[i]); });
}

// By descending score, equal scores by index; NaN counts as the largest number.
inline Order order_by_score(const Tensor& scores) {
  const int64_t count = scores.size(0);
  const Tensor dense = contiguous_as(scores, scores.scalar_type());
  const void* data = dense.const_data_ptr();
  // Types whose values float32 represents exactly have 32-bit keys.
  const auto narrow = [&](auto tag) {
    const auto* numbers = static_cast<const type_of<decltype(tag)>*>(data);
    return order_by_key<IndexedKey32>(
        count, [&](int64_t i) { return descending_key(static_cast<float>(numbers[i])); });
  };
  const auto wide = [&](auto tag) {
    return order_by_descending(static_cast<const type_of<decltype(tag)>*>(data), count);
  };
  switch (scores.scalar_type()) {
    case ScalarType::Float: return narrow(TypeTag<float>{});
    case ScalarType::Half: return narrow(TypeTag<Half>{});
    case ScalarType::BFloat16: return narrow(TypeTag<BFloat16>{});
    case ScalarType::Bool:
    case ScalarType::Byte: return narrow(TypeTag<uint8_t>{});
    case ScalarType::Char: return narrow(TypeTag<int8_t>{});
    case ScalarType::Short: return narrow(TypeTag<int16_t>{});
    case ScalarType::Double: return wide(TypeTag<double>{});
    case ScalarType::Long: return wide(TypeTag<int64_t>{});
    default: break;
  }
  const Tensor sorted = stable_argsort(scores, /*descending=*/true);
  const auto* indices = sorted.const_data_ptr<int64_t>();
  Order order = uninitialized<uint32_t>(count);
  std::copy(indices, indices + count, order.get());
  return order;
}

struct Segments {
  Order order;                  // by segment, then by score
  std::vector<int64_t> starts;  // the first ranks of the segments, then the box count
};

// idxs: [N] int64; by_score: [N], the order by score
inline Segments order_by_segment(const Tensor& idxs, const uint32_t* by_score) {
  const int64_t count = idxs.size(0);
  const Tensor dense = contiguous_as(idxs, ScalarType::Long);
  const auto* numbers = dense.const_data_ptr<int64_t>();
  int64_t lowest = numbers[0];
  int64_t highest = numbers[0];
  for (int64_t i = 1; i < count; ++i) {
    lowest = std::min(lowest, numbers[i]);
    highest = std::max(highest, numbers[i]);
  }
  // Unsigned, since the difference may overflow an int64.
  const auto key_of = [&](int64_t i) {
    return static_cast<uint64_t>(numbers[i]) - static_cast<uint64_t>(lowest);
  };
  const uint64_t range = static_cast<uint64_t>(highest) - static_cast<uint64_t>(lowest);
  Segments segments;
  segments.order = uninitialized<uint32_t>(count);
  if (range < static_cast<uint64_t>(count) + 1024) {
    // A counting sort, with a counter per segment.
    std::vector<uint32_t> next(range + 1);
    for (int64_t i = 0; i < count; ++i) ++next[key_of(i)];
    uint32_t sum = 0;
    for (uint32_t& start : next) {
      if (start > 0) segments.starts.push_back(sum);
      sum += std::exchange(start, sum);
    }
    for (int64_t rank = 0; rank < count; ++rank) {
      segments.order[next[key_of(by_score[rank])]++] = by_score[rank];
    }
  } else {
    const Order ranks =
        order_by_key<IndexedKey64>(count, [&](int64_t rank) { return key_of(by_score[rank]); });
    for (int64_t i = 0; i < count; ++i) {
      segments.order[i] = by_score[ranks[i]];
      if (i == 0 || numbers[segments.order[i]] != numbers[segments.order[i - 1]]) {
        segments.starts.push_back(i);
      }
    }
  }
  segments.starts.push_back(count);
  return segments;
}

}  // namespace rcnn_ext
