// The loop of nms_per_image_cpu.cpp, compiled once per instruction set (foreach_target.h).
#include <cstdint>
#include <vector>

#include "../core/box_math.h"
#include "../cpu/targets.h"
#include "nms_grid_cpu.h"
#include "nms_suppression.h"

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

// Visit boxes in `order` and keep those that no kept box of their group suppresses, until
// `max_kept` are kept. Return their count.
template <class T>
int64_t keep_best(const Box<T>* boxes, const uint32_t* order, int64_t count, const uint32_t* groups,
                  const SuppressionRule<T>& rule, KeptBlockArena& arena,
                  std::vector<KeptList<T>>& lists, int64_t max_kept, uint32_t* kept) {
  int64_t kept_count = 0;
  for (int64_t rank = 0; rank < count && kept_count < max_kept; ++rank) {
    const uint32_t b = order[rank];
    const NmsCandidate<T> c = load_candidate(&boxes[b].x1, rule);
    KeptList<T>& list = lists[groups[b]];
    bool suppressed = !is_finite(c.box);
    if (rule.needs_exact_tests()) {
      for (const KeptBlock<T>* block = list.newest; block != nullptr && !suppressed;
           block = block->next) {
        suppressed = any_suppresses(*block, c, rule.bound);
      }
      if (!suppressed) list.add(c.box, T(0), arena);
    } else if (c.has_area && !suppressed && !rule.keeps_all()) {
      suppressed = is_suppressed(list, c, rule.bound, 0);
      if (!suppressed) list.add(c.box, c.limit, arena);
    }
    if (!suppressed) kept[kept_count++] = b;
  }
  return kept_count;
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_NMS_NMS_PER_IMAGE_CPU_INL_H_
