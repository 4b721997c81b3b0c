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
inline score_bits_t<T> bits_of(T score) {
  score_bits_t<T> bits;
  memcpy(&bits, &score, sizeof(bits));
  return bits;
}

// condition ? min(a, b) : b. By masks, since GCC compiles two conditionals to branches.
template <class Integer>
inline Integer min_if(bool condition, Integer a, Integer b) {
  const Integer mask = -static_cast<Integer>(condition);
  const Integer candidate = (a & mask) | (std::numeric_limits<Integer>::max() & ~mask);
  return candidate < b ? candidate : b;
}

// Find the best score of a group, and the lowest index that has it.
template <class T>
inline void update_group_best(const SoftNmsBoxes<T>& s, int64_t group) {
  using Bits = score_bits_t<T>;
  const T* scores = s.scores + group * kBoxesPerSoftNmsGroup;
  const Bits* indices = s.indices + group * kBoxesPerSoftNmsGroup;
  Bits best = bits_of(kRemovedScore<T>);
  for (int k = 0; k < kBoxesPerSoftNmsGroup; ++k) {
    const Bits bits = bits_of(scores[k]);
    best = bits > best ? bits : best;
  }
  Bits index = std::numeric_limits<Bits>::max();
  for (int k = 0; k < kBoxesPerSoftNmsGroup; ++k) {
    index = min_if(bits_of(scores[k]) == best, indices[k], index);
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
    scores[k] = decay_score<method>(scores[k], taken, taken_area, box, area(box), rule);
  }
}

// Soft-NMS of one segment: take the box with the highest score until none is left, and set
// rescored[b] for every box b taken.
template <DecayMethod method, class T>
void run_soft_nms(const SoftNmsBoxes<T>& s, const SoftNmsRule<T>& rule, T* rescored) {
  using Bits = score_bits_t<T>;
  for (int64_t group = 0; group < s.groups; ++group) update_group_best(s, group);
  while (true) {
    Bits best = bits_of(kRemovedScore<T>);
    for (int64_t group = 0; group < s.groups; ++group) {
      best = s.best[group] > best ? s.best[group] : best;
    }
    if (best < 0) return;
    Bits index = std::numeric_limits<Bits>::max();
    for (int64_t group = 0; group < s.groups; ++group) {
      index = min_if(s.best[group] == best, s.best_indices[group], index);
    }
    const int64_t position = s.positions[index];
    rescored[s.box_indices[index]] = s.scores[position];
    s.scores[position] = kRemovedScore<T>;
    const Box<T> taken{s.x1[position], s.y1[position], s.x2[position], s.y2[position]};
    const T taken_area = area(taken);
    const int64_t own = position / kBoxesPerSoftNmsGroup;
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
