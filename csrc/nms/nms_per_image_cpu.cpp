// NMS of the candidates of one image, on the CPU: sorted by score, and compared with a list of kept
// boxes per group.
#include "nms_per_image_cpu.h"

#include "../core/sort_key.h"

#define RCNN_TARGET_INCLUDE "../nms/nms_per_image_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {

template <class T>
int64_t PerImageNms<T>::find_kept(int64_t max_kept) {
  const auto count = static_cast<int64_t>(boxes_.size());
  keys_.resize(2 * boxes_.size());
  for (int64_t i = 0; i < count; ++i) {
    keys_[i] = ScoreKey<T>::make(descending_key(scores_[i]), static_cast<uint32_t>(i));
  }
  const ScoreKey<T>* sorted = radix_sort(keys_.data(), keys_.data() + count, count);
  order_.resize(boxes_.size());
  for (int64_t i = 0; i < count; ++i) order_[i] = sorted[i].index();
  kept_.resize(boxes_.size());
  arena_.clear();
  std::fill(lists_.begin(), lists_.end(), KeptList<T>{});
  return RCNN_DYNAMIC_DISPATCH(keep_best<T>(boxes_.data(), order_.data(), count, groups_.data(),
                                            rule_, arena_, lists_, max_kept, kept_.data()));
}

template class PerImageNms<float>;
template class PerImageNms<double>;

}  // namespace rcnn_ext
