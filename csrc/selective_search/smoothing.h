// Gaussian smoothing, row by row.
#pragma once

#include <vector>

#include "image.h"

namespace rcnn_ext::selective_search {

// A radius of 0 leaves the image as it is.
struct Smoothing {
  std::vector<double> weights;  // [radius + 1], from the middle outwards
  int radius() const { return static_cast<int>(weights.size()) - 1; }
};

// Position of an index that may lie outside [0, count): the sequence is reflected about its ends,
// which are repeated (scipy's "reflect").
inline int reflect(int index, int count) {
  const int period = 2 * count;
  index %= period;
  if (index < 0) index += period;
  return index < count ? index : period - 1 - index;
}

// Three rows of doubles with room on both sides.
class PlanarRow {
 public:
  PlanarRow(int width, int margin) : margin_(margin), stride_(width + 2 * margin) {
    values_.resize(3 * static_cast<size_t>(stride_));
  }
  double* channel(int c) { return values_.data() + static_cast<size_t>(c) * stride_ + margin_; }

 private:
  int margin_;
  int stride_;
  std::vector<double> values_;
};

// Gives the smoothed rows of an image from top to bottom.
template <class T>
class SmoothedRows {
 public:
  SmoothedRows(const Image<T>& image, const Smoothing& smoothing);

  // Row `y`, which follows that of the last call.
  void write(int y, PlanarRow& smoothed);

 private:
  void load(int y);

  const Image<T>& image_;
  const double* weights_;
  int radius_;
  PlanarRow column_sums_;
  std::vector<const double*> window_;
  std::vector<PlanarRow> rows_;  // the last rows loaded, row y at y modulo their number
  int loaded_ = 0;
};

// Smoothed rows from top to bottom, of which the last `kept` remain at hand.
template <class T>
class SmoothedBand {
 public:
  SmoothedBand(const Image<T>& image, const Smoothing& smoothing, int kept)
      : source_(image, smoothing) {
    rows_.reserve(kept);
    for (int i = 0; i < kept; ++i) rows_.emplace_back(image.width, 0);
  }

  // Row `y`, no more than `kept` above the lowest one asked for so far.
  PlanarRow& row(int y) {
    for (; next_ <= y; ++next_) source_.write(next_, rows_[next_ % rows_.size()]);
    return rows_[y % rows_.size()];
  }

 private:
  SmoothedRows<T> source_;
  std::vector<PlanarRow> rows_;
  int next_ = 0;
};

}  // namespace rcnn_ext::selective_search
