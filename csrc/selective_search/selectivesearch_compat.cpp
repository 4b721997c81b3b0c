// Contract: selectivesearch_compat.h.
#include "selectivesearch_compat.h"

#include <algorithm>
#include <limits>

#include "texture.h"

namespace rcnn_ext::selective_search {
namespace {

// numpy.histogram(values, 25, (0.0, 255.0)): bins are closed below and open above, the last is
// closed on both sides. -1 for what lies outside.
template <int bins>
int bin_of(double value) {
  constexpr double kHigh = 255.0;
  if (!(value >= 0 && value <= kHigh)) return -1;
  const double width = kHigh / bins;
  int bin = std::min(static_cast<int>(value / width), bins - 1);
  // The edges as NumPy rounds them decide.
  while (bin > 0 && value < bin * width) --bin;
  while (bin + 1 < bins && value >= (bin + 1) * width) ++bin;
  return bin;
}

template <class T>
class Bins;

template <>
class Bins<uint8_t> {
 public:
  template <int bins>
  void prepare() {
    for (int value = 0; value < 256; ++value)
      table_[value] = static_cast<int8_t>(bin_of<bins>(value));
  }
  int operator()(uint8_t value) const { return table_[value]; }

 private:
  std::array<int8_t, 256> table_;
};

template <>
class Bins<double> {
 public:
  template <int bins>
  void prepare() {
    bin_ = bin_of<bins>;
  }
  int operator()(double value) const { return bin_(value); }

 private:
  int (*bin_)(double);
};

}  // namespace

template <class T>
SelectivesearchRegions::SelectivesearchRegions(const Image<T>& image,
                                               const Segmentation& segmentation)
    : area_(static_cast<double>(image.area())) {
  const size_t regions = segmentation.count;
  constexpr int kFar = std::numeric_limits<int>::max();
  boxes_.reserve(2 * regions);
  sizes_.reserve(2 * regions);
  histograms_.reserve(2 * regions);
  boxes_.assign(regions, {kFar, kFar, 0, 0});
  sizes_.assign(regions, 0);
  histograms_.assign(regions, Histogram{});
  count(image, segmentation);
  for (size_t r = 0; r < regions; ++r) {
    Histogram& histogram = histograms_[r];
    const double size = static_cast<double>(sizes_[r]);
    histogram.first_bin = kBins;
    histogram.last_bin = -1;
    for (int bin = 0; bin < kBins; ++bin) {
      if (histogram.value[bin] == 0) continue;
      histogram.first_bin = std::min(histogram.first_bin, bin);
      histogram.last_bin = bin;
      histogram.value[bin] /= size;
    }
    for (double& share : histogram.patterns) share /= size;
  }
}

template <class T>
void SelectivesearchRegions::count(const Image<T>& image, const Segmentation& segmentation) {
  Bins<T> bins;
  bins.template prepare<kBins>();
  PatternFinder<T> patterns(image);
  const int width = image.width;
  for (int y = 0; y < image.height; ++y) {
    const int32_t* labels = &segmentation.labels[static_cast<size_t>(y) * width];
    const T* pixels = image.row(y);
    for (int begin = 0, end; begin < width; begin = end) {
      const int32_t label = labels[begin];
      Histogram& histogram = histograms_[label];
      for (end = begin; end < width && labels[end] == label; ++end) {
        const T* pixel = pixels + 3 * static_cast<size_t>(end);
        const int bin = bins(std::max({pixel[0], pixel[1], pixel[2]}));
        if (bin >= 0) histogram.value[bin] += 1;
      }
      boxes_[label] = enclose(boxes_[label], {begin, y, end - 1, y});
      sizes_[label] += end - begin;
    }
    for (const Pattern& pattern : patterns.row(y)) {
      histograms_[labels[pattern.x]].patterns[2 * pattern.channel + pattern.code] += 1;
    }
  }
}

double SelectivesearchRegions::similarity(int a, int b) const {
  const Histogram& x = histograms_[a];
  const Histogram& y = histograms_[b];
  double color = kHueAndSaturation;
  // Adding the zeros outside would not change the sum.
  const int last = std::min(x.last_bin, y.last_bin);
  for (int bin = std::max(x.first_bin, y.first_bin); bin <= last; ++bin) {
    color += std::min(x.value[bin], y.value[bin]);
  }
  double texture = 0;
  for (int i = 0; i < kPatterns; ++i) texture += std::min(x.patterns[i], y.patterns[i]);
  const double sizes = static_cast<double>(sizes_[a] + sizes_[b]);
  const PixelBox box = enclose(boxes_[a], boxes_[b]);
  const double enclosed =
      static_cast<double>(static_cast<int64_t>(box.max_x - box.min_x) * (box.max_y - box.min_y));
  const double size = 1.0 - sizes / area_;
  const double fill = 1.0 - (enclosed - sizes) / area_;
  return ((color + texture) + size) + fill;
}

int SelectivesearchRegions::merge(int a, int b) {
  const double size_a = static_cast<double>(sizes_[a]);
  const double size_b = static_cast<double>(sizes_[b]);
  const double size = size_a + size_b;
  Histogram united;
  const Histogram& x = histograms_[a];
  const Histogram& y = histograms_[b];
  const auto mean = [&](double share_a, double share_b) {
    return (share_a * size_a + share_b * size_b) / size;
  };
  for (int i = 0; i < kBins; ++i) united.value[i] = mean(x.value[i], y.value[i]);
  for (int i = 0; i < kPatterns; ++i) united.patterns[i] = mean(x.patterns[i], y.patterns[i]);
  united.first_bin = std::min(x.first_bin, y.first_bin);
  united.last_bin = std::max(x.last_bin, y.last_bin);
  histograms_.push_back(united);
  boxes_.push_back(enclose(boxes_[a], boxes_[b]));
  sizes_.push_back(sizes_[a] + sizes_[b]);
  return static_cast<int>(sizes_.size()) - 1;
}

template SelectivesearchRegions::SelectivesearchRegions(const Image<uint8_t>&, const Segmentation&);
template SelectivesearchRegions::SelectivesearchRegions(const Image<double>&, const Segmentation&);

}  // namespace rcnn_ext::selective_search
