// NMS of the candidates of one image, for operators that decode few boxes per image
// (generate_proposals, postprocess_detections).
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../core/box_math.h"
#include "../cpu/radix_sort.h"
#include "nms_grid_cpu.h"
#include "nms_suppression.h"

namespace rcnn_ext {

// The key of a score of type T, with the index of its box.
template <class T>
using ScoreKey = std::conditional_t<sizeof(T) == 4, IndexedKey32, IndexedKey64>;

// Defined for float and double. One object serves image after image, to reuse its memory.
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
  // Add a candidate. Among equal scores the earlier candidate comes first. `owner` is for the
  // caller.
  void add(const Box<T>& box, T score, uint32_t group, uint32_t owner) {
    boxes_.push_back(box);
    scores_.push_back(score);
    groups_.push_back(group);
    owners_.push_back(owner);
  }
  // Run NMS within each group and keep the `max_kept` boxes with the highest scores. Call
  // write(place, box, score, group, owner) for each, and return their count.
  template <class Write>
  int64_t run(int64_t max_kept, Write&& write) {
    const int64_t count = find_kept(max_kept);
    for (int64_t place = 0; place < count; ++place) {
      const uint32_t i = kept_[place];
      write(place, boxes_[i], scores_[i], groups_[i], owners_[i]);
    }
    return count;
  }

 private:
  // Fill kept_ with the indices of the kept boxes, by score, and return their count.
  int64_t find_kept(int64_t max_kept);

  SuppressionRule<T> rule_;
  KeptBlockArena arena_{sizeof(KeptBlock<T>)};
  std::vector<KeptList<T>> lists_;  // kept boxes, by group
  std::vector<Box<T>> boxes_;
  std::vector<T> scores_;
  std::vector<uint32_t> groups_, owners_, order_, kept_;
  std::vector<ScoreKey<T>> keys_;
};

}  // namespace rcnn_ext
