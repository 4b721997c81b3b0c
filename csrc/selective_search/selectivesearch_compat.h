// Regions and similarities as the `selectivesearch` package 0.4 defines them.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "image.h"

namespace rcnn_ext::selective_search {

class SelectivesearchRegions {
 public:
  template <class T>
  SelectivesearchRegions(const Image<T>& image, const Segmentation& segmentation);

  // Color, texture, size and fill, summed in this order. The similarity of neither depends on the
  // order of a and b.
  double similarity(int a, int b) const;
  int merge(int a, int b);

  const std::vector<PixelBox>& boxes() const { return boxes_; }
  const std::vector<int64_t>& sizes() const { return sizes_; }

 private:
  // The package bins hue, saturation and value over (0, 255), each into 25 bins. Hue and saturation
  // lie in [0, 1], so that all of both falls into their first bins; these hold 1 in every region,
  // and need not be stored.
  static constexpr int kBins = 25;
  static constexpr double kHueAndSaturation = 2.0;
  // Codes 0 and 1 of the local binary patterns of three channels.
  static constexpr int kPatterns = 6;
  struct Histogram {
    std::array<double, kBins> value;
    std::array<double, kPatterns> patterns;
    int first_bin;  // those outside first_bin .. last_bin are empty
    int last_bin;
  };

  template <class T>
  void count(const Image<T>& image, const Segmentation& segmentation);

  double area_;
  std::vector<PixelBox> boxes_;
  std::vector<int64_t> sizes_;
  std::vector<Histogram> histograms_;
};

}  // namespace rcnn_ext::selective_search
