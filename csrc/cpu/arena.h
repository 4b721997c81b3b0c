// Memory for many small arrays that live equally long.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace rcnn_ext {

// Grows without moving what it holds: pointers into it stay valid as long as it lives.
template <class Item>
class Arena {
 public:
  Item* allocate(size_t count) {
    if (chunks_.empty() || used_ + count > chunks_.back().size()) {
      chunks_.emplace_back(std::max(count, kChunk));
      used_ = 0;
    }
    Item* const items = chunks_.back().data() + used_;
    used_ += count;
    return items;
  }
  Item* copy(const std::vector<Item>& items) {
    return std::copy(items.begin(), items.end(), allocate(items.size())) - items.size();
  }

 private:
  static constexpr size_t kChunk = 16384 / sizeof(Item);
  std::vector<std::vector<Item>> chunks_;
  size_t used_ = 0;
};

}  // namespace rcnn_ext
