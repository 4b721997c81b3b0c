// Contract: smoothing.h.
#include "smoothing.h"

#include <algorithm>

#define RCNN_TARGET_INCLUDE "../selective_search/smoothing-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext::selective_search {

template <class T>
SmoothedRows<T>::SmoothedRows(const Image<T>& image, const Smoothing& smoothing)
    : image_(image),
      weights_(smoothing.weights.data()),
      radius_(smoothing.radius()),
      column_sums_(image.width, radius_),
      window_(2 * radius_ + 1) {
  const int kept = std::min(2 * radius_ + 1, image.height);
  rows_.reserve(kept);
  for (int i = 0; i < kept; ++i) rows_.emplace_back(image.width, 0);
}

template <class T>
void SmoothedRows<T>::write(int y, PlanarRow& smoothed) {
  const int last = std::min(y + radius_, image_.height - 1);
  for (; loaded_ <= last; ++loaded_) load(loaded_);
  for (int c = 0; c < 3; ++c) {
    double* sums = column_sums_.channel(c);
    for (int k = -radius_; k <= radius_; ++k) {
      const int source = reflect(y + k, image_.height);
      window_[k + radius_] = rows_[source % rows_.size()].channel(c);
    }
    const int width = image_.width;
    RCNN_DYNAMIC_DISPATCH(smooth_columns(window_.data(), weights_, radius_, width, sums));
    for (int k = 1; k <= radius_; ++k) {
      sums[-k] = sums[reflect(-k, width)];
      sums[width - 1 + k] = sums[reflect(width - 1 + k, width)];
    }
    RCNN_DYNAMIC_DISPATCH(smooth_row(sums, weights_, radius_, width, smoothed.channel(c)));
  }
}

template <class T>
void SmoothedRows<T>::load(int y) {
  PlanarRow& row = rows_[y % rows_.size()];
  RCNN_DYNAMIC_DISPATCH(split_row(image_.row(y), image_.width, image_.factor, row.channel(0),
                                  row.channel(1), row.channel(2)));
}

template class SmoothedRows<uint8_t>;
template class SmoothedRows<double>;

}  // namespace rcnn_ext::selective_search
