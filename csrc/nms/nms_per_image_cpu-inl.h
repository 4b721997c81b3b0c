// The loops of generate_proposals and postprocess_detections, compiled once per instruction set
// (foreach_target.h).
#include <cstdint>
#include <vector>

#include "../core/sort_key.h"
#include "../cpu/targets.h"
#include "nms_grid_cpu.h"

#if defined(RCNN_NMS_NMS_PER_IMAGE_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_NMS_NMS_PER_IMAGE_CPU_INL_H_
#undef RCNN_NMS_NMS_PER_IMAGE_CPU_INL_H_
#else
#define RCNN_NMS_NMS_PER_IMAGE_CPU_INL_H_
#endif

#include "nms_cpu-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Calls found(i) for every i of [0, count) at which values[i] isn't below the threshold,
// NaN included, in order. Most blocks have none.
template <class T, class Stored, class Found>
inline void for_each_not_below(const Stored* values, int64_t count, T threshold, Found&& found) {
  constexpr int64_t kBlock = 64;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = begin + kBlock < count ? begin + kBlock : count;
    int any = 0;
    for (int64_t i = begin; i < end; ++i) {
      any |= !(static_cast<T>(values[i]) < threshold) ? 1 : 0;
    }
    if (!any) continue;
    for (int64_t i = begin; i < end; ++i) {
      if (!(static_cast<T>(values[i]) < threshold)) found(i);
    }
  }
}

// Elements (key of a logit, number of its anchor) of the logits that aren't below the threshold.
// The logits lie in `planes` planes; the anchor at (plane, i) has the number i * planes + plane.
template <class T, class Element, class Stored>
void collect(const Stored* logits, int64_t planes, int64_t plane_size, T threshold,
             std::vector<Element>& out) {
  for (int64_t plane = 0; plane < planes; ++plane) {
    const Stored* values = logits + plane * plane_size;
    for_each_not_below(values, plane_size, threshold, [&](int64_t i) {
      out.push_back(Element::make(descending_key(static_cast<T>(values[i])),
                                  static_cast<uint32_t>(i * planes + plane)));
    });
  }
}

// Positions r * classes + c, c > 0, of the probabilities above the threshold.
template <class T>
void collect_above(const T* probabilities, int64_t rois, int64_t classes, T threshold,
                   const int64_t* image_ids, int64_t images, std::vector<uint32_t>& out) {
  for (int64_t r = 0; r < rois; ++r) {
    if (image_ids[r] < 0 || image_ids[r] >= images) continue;
    const T* row = probabilities + r * classes;
    for_each_not_below(row + 1, classes - 1, threshold, [&](int64_t i) {
      if (row[i + 1] > threshold) out.push_back(static_cast<uint32_t>(r * classes + i + 1));
    });
  }
}

// Goes through `order` and keeps boxes until there are `most`: those that no kept box of their
// group suppresses. Returns their number.
template <class T>
int64_t keep_best(const Box<T>* boxes, const uint32_t* order, int64_t count, const uint32_t* groups,
                  const SuppressionRule<T>& rule, BlockPool& pool, std::vector<BlockList<T>>& lists,
                  int64_t most, uint32_t* kept) {
  int64_t number = 0;
  for (int64_t rank = 0; rank < count && number < most; ++rank) {
    const uint32_t b = order[rank];
    const Candidate<T> c = load_candidate(&boxes[b].x1, rule);
    BlockList<T>& list = lists[groups[b]];
    bool suppressed = !is_finite(c.box);
    if (rule.is_exact_only()) {
      for (const Block<T>* block = list.newest; block != nullptr && !suppressed;
           block = block->next) {
        suppressed = does_suppress(*block, c, rule.bound);
      }
      if (!suppressed) list.add(c.box, T(0), pool);
    } else if (c.takes_part && !suppressed && !rule.keeps_all()) {
      suppressed = is_suppressed(list, c, rule.bound, 0);
      if (!suppressed) list.add(c.box, c.limit, pool);
    }
    if (!suppressed) kept[number++] = b;
  }
  return number;
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_NMS_NMS_PER_IMAGE_CPU_INL_H_
