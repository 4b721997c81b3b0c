// The loop of generate_proposals_cpu.cpp, compiled once per instruction set (foreach_target.h).
#include <cstdint>
#include <vector>

#include "../core/sort_key.h"
#include "../cpu/targets.h"

#if defined(RCNN_GENERATE_PROPOSALS_GENERATE_PROPOSALS_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_GENERATE_PROPOSALS_GENERATE_PROPOSALS_CPU_INL_H_
#undef RCNN_GENERATE_PROPOSALS_GENERATE_PROPOSALS_CPU_INL_H_
#else
#define RCNN_GENERATE_PROPOSALS_GENERATE_PROPOSALS_CPU_INL_H_
#endif

#include "../cpu/filter-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Append (key of the logit, index of the anchor) for every logit that is not below the threshold.
// The logits are in `planes` planes; the anchor at (plane, i) has the index i * planes + plane.
template <class T, class Element, class Stored>
void collect_anchors(const Stored* logits, int64_t planes, int64_t plane_size, T threshold,
                     std::vector<Element>& out) {
  for (int64_t plane = 0; plane < planes; ++plane) {
    const Stored* values = logits + plane * plane_size;
    for_each_not_below(values, plane_size, threshold, [&](int64_t i) {
      out.push_back(Element::make(descending_key(static_cast<T>(values[i])),
                                  static_cast<uint32_t>(i * planes + plane)));
    });
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_GENERATE_PROPOSALS_GENERATE_PROPOSALS_CPU_INL_H_
