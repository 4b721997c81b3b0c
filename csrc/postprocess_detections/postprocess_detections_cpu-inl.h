// The loop of postprocess_detections_cpu.cpp, compiled once per instruction set (foreach_target.h).
#include <cstdint>
#include <vector>

#include "../cpu/targets.h"

#if defined(RCNN_POSTPROCESS_DETECTIONS_POSTPROCESS_DETECTIONS_CPU_INL_H_) == \
    defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_POSTPROCESS_DETECTIONS_POSTPROCESS_DETECTIONS_CPU_INL_H_
#undef RCNN_POSTPROCESS_DETECTIONS_POSTPROCESS_DETECTIONS_CPU_INL_H_
#else
#define RCNN_POSTPROCESS_DETECTIONS_POSTPROCESS_DETECTIONS_CPU_INL_H_
#endif

#include "../cpu/filter-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Append the positions r * classes + c, c > 0, of the probabilities above the threshold, for RoIs
// with a valid image index. probabilities: [R, classes], image_ids: [R]
template <class T>
void collect_candidates(const T* probabilities, int64_t rois, int64_t classes, T threshold,
                        const int64_t* image_ids, int64_t images, std::vector<uint32_t>& out) {
  for (int64_t r = 0; r < rois; ++r) {
    if (image_ids[r] < 0 || image_ids[r] >= images) continue;
    const T* row = probabilities + r * classes;
    for_each_not_below(row + 1, classes - 1, threshold, [&](int64_t i) {
      if (row[i + 1] > threshold) out.push_back(static_cast<uint32_t>(r * classes + i + 1));
    });
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_POSTPROCESS_DETECTIONS_POSTPROCESS_DETECTIONS_CPU_INL_H_
