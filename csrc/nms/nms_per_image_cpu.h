// One image's boxes, from scored candidates to the padded result, on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../core/box_coding.h"
#include "../core/sort_key.h"
#include "../cpu/intrinsics.h"
#include "../cpu/prefetch.h"
#include "../cpu/radix_sort.h"
#include "nms_grid_cpu.h"

#define RCNN_TARGET_INCLUDE "../nms/nms_per_image_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {
namespace {

template <class T>
using ScoreKey = std::conditional_t<sizeof(T) == 4, IndexedKey32, IndexedKey64>;

// Stays as it is from image to image, for its memory.
template <class T>
class PerImageNms {
 public:
  PerImageNms(double iou_threshold, int64_t groups) : rule_(iou_threshold), lists_(groups) {}

  void clear() {
    boxes_.clear();
    scores_.clear();
    groups_.clear();
    owners_.clear();
  }
  // Of candidates with equal scores, the earlier one comes first. `owner` is for the caller.
  void add(const Box<T>& box, T score, uint32_t group, uint32_t owner) {
    boxes_.push_back(box);
    scores_.push_back(score);
    groups_.push_back(group);
    owners_.push_back(owner);
  }
  // Suppresses within the groups; calls write(place, box, score, group, owner) for the best `most`,
  // and returns their number.
  template <class Write>
  int64_t run(int64_t most, Write&& write) {
    const auto count = static_cast<int64_t>(boxes_.size());
    keys_.resize(2 * boxes_.size());
    for (int64_t i = 0; i < count; ++i) {
      keys_[i] = ScoreKey<T>::make(descending_key(scores_[i]), static_cast<uint32_t>(i));
    }
    const ScoreKey<T>* sorted = radix_sort(keys_.data(), keys_.data() + count, count);
    order_.resize(boxes_.size());
    for (int64_t i = 0; i < count; ++i) order_[i] = sorted[i].index();
    kept_.resize(boxes_.size());
    pool_.clear();
    std::fill(lists_.begin(), lists_.end(), BlockList<T>{});
    const int64_t number =
        RCNN_DYNAMIC_DISPATCH(keep_best<T>(boxes_.data(), order_.data(), count, groups_.data(),
                                           rule_, pool_, lists_, most, kept_.data()));
    for (int64_t place = 0; place < number; ++place) {
      const uint32_t i = kept_[place];
      write(place, boxes_[i], scores_[i], groups_[i], owners_[i]);
    }
    return number;
  }

 private:
  SuppressionRule<T> rule_;
  BlockPool pool_{sizeof(Block<T>)};
  std::vector<BlockList<T>> lists_;
  std::vector<Box<T>> boxes_;
  std::vector<T> scores_;
  std::vector<uint32_t> groups_, owners_, order_, kept_;
  std::vector<ScoreKey<T>> keys_;
};

}  // namespace
}  // namespace rcnn_ext
