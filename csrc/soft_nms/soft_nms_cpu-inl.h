// Soft suppression within one segment, compiled once per instruction set (foreach_target.h).
#include <cstdint>
#include <cstring>
#include <limits>

#include "../core/box_math.h"
#include "../cpu/targets.h"
#include "soft_nms.h"
#include "soft_nms_boxes_cpu.h"

#if defined(RCNN_SOFT_NMS_SOFT_NMS_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_SOFT_NMS_SOFT_NMS_CPU_INL_H_
#undef RCNN_SOFT_NMS_SOFT_NMS_CPU_INL_H_
#else
#define RCNN_SOFT_NMS_SOFT_NMS_CPU_INL_H_
#endif

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

template <class T>
inline key_t<T> key_of(T score) {
  key_t<T> key;
  memcpy(&key, &score, sizeof(key));
  return key;
}

// condition ? min(a, b) : b. By masks, since GCC compiles two conditionals to branches.
template <class Key>
inline Key min_if(bool condition, Key a, Key b) {
  const Key mask = -static_cast<Key>(condition);
  const Key candidate = (a & mask) | (std::numeric_limits<Key>::max() & ~mask);
  return candidate < b ? candidate : b;
}

// Find the best score of a group, and the lowest index that has it.
template <class T>
inline void update_group_best(const SoftNmsBoxes<T>& s, int64_t group) {
  using Key = key_t<T>;
  const T* scores = s.scores + group * kBoxesPerSoftNmsGroup;
  const Key* indices = s.indices + group * kBoxesPerSoftNmsGroup;
  Key best = key_of(kRemovedScore<T>);
  for (int k = 0; k < kBoxesPerSoftNmsGroup; ++k) {
    const Key key = key_of(scores[k]);
    best = key > best ? key : best;
  }
  Key index = std::numeric_limits<Key>::max();
  for (int k = 0; k < kBoxesPerSoftNmsGroup; ++k) {
    index = min_if(key_of(scores[k]) == best, indices[k], index);
  }
  s.best[group] = best;
  s.best_indices[group] = index;
}

template <DecayMethod method, class T>
inline void decay_scores(const SoftNmsBoxes<T>& s, int64_t group, const Box<T>& taken, T taken_area,
                         const SoftNmsRule<T>& rule) {
  const int64_t first = group * kBoxesPerSoftNmsGroup;
  const T *x1 = s.x1 + first, *y1 = s.y1 + first, *x2 = s.x2 + first, *y2 = s.y2 + first;
  T* __restrict scores = s.scores + first;
  for (int k = 0; k < kBoxesPerSoftNmsGroup; ++k) {
    const Box<T> box{x1[k], y1[k], x2[k], y2[k]};
    scores[k] = decayed<method>(scores[k], taken, taken_area, box, area(box), rule);
  }
}

// Soft-NMS of one segment: take the box with the highest score until none is left, and set
// rescored[b] for every box b taken.
template <DecayMethod method, class T>
void run_soft_nms(const SoftNmsBoxes<T>& s, const SoftNmsRule<T>& rule, T* rescored) {
  using Key = key_t<T>;
  for (int64_t group = 0; group < s.groups; ++group) update_group_best(s, group);
  while (true) {
    Key best = key_of(kRemovedScore<T>);
    for (int64_t group = 0; group < s.groups; ++group) {
      best = s.best[group] > best ? s.best[group] : best;
    }
    if (best < 0) return;
    Key index = std::numeric_limits<Key>::max();
    for (int64_t group = 0; group < s.groups; ++group) {
      index = min_if(s.best[group] == best, s.best_indices[group], index);
    }
    const int64_t place = s.places[index];
    rescored[s.owners[index]] = s.scores[place];
    s.scores[place] = kRemovedScore<T>;
    const Box<T> taken{s.x1[place], s.y1[place], s.x2[place], s.y2[place]};
    const T taken_area = area(taken);
    const int64_t own = place / kBoxesPerSoftNmsGroup;
    for (int64_t group = 0; group < s.groups; ++group) {
      // Boxes that do not overlap keep their scores, bit for bit: their weight is 1.
      const Box<T>& bounds = s.bounds[group];
      const bool overlaps = (bounds.x1 < taken.x2) & (bounds.x2 > taken.x1) &
                            (bounds.y1 < taken.y2) & (bounds.y2 > taken.y1) & (s.best[group] >= 0);
      if (overlaps) decay_scores<method>(s, group, taken, taken_area, rule);
      if (overlaps || group == own) update_group_best(s, group);
    }
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_SOFT_NMS_SOFT_NMS_CPU_INL_H_
