// Selection of the values that reach a threshold, compiled once per instruction set
// (foreach_target.h).
#include <cstdint>

#include "targets.h"

#if defined(RCNN_CPU_FILTER_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_CPU_FILTER_INL_H_
#undef RCNN_CPU_FILTER_INL_H_
#else
#define RCNN_CPU_FILTER_INL_H_
#endif

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Call found(i) in order for every i of [0, count) where values[i] is NaN or not below the
// threshold. Written for few such values: a block of 64 without one is skipped.
template <class T, class Stored, class Found>
inline void for_each_not_below(const Stored* values, int64_t count, T threshold, Found&& found) {
  constexpr int64_t kValuesPerBlock = 64;
  for (int64_t begin = 0; begin < count; begin += kValuesPerBlock) {
    const int64_t end = begin + kValuesPerBlock < count ? begin + kValuesPerBlock : count;
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

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_CPU_FILTER_INL_H_
