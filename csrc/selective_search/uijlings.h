// Regions and similarities of the paper: Uijlings et al., Selective Search for Object Recognition,
// IJCV 2013, section 3.2.
#pragma once

#include <cstdint>
#include <vector>

#include "color_spaces.h"
#include "image.h"
#include "smoothing.h"

namespace rcnn_ext::selective_search {

constexpr int kSumLanes = 16;
constexpr int kColorBins = 25;
constexpr int kTextureBins = 10;
// Slopes of opposite directions share a code, so that four directions stand for eight.
constexpr int kAxes = 4;
// Bins are equidistant in the root of a slope, since small slopes are by far the most frequent. The
// steepest slope, of a step of 255 smoothed with sigma 1, is 255 / sqrt(2 pi) = 101.7.
constexpr double kTextureScale = kTextureBins * kTextureBins / 101.8;

// The bins of each pixel, in planes of [height][width] codes.
struct PixelCodes {
  int channels;
  int height;
  int width;
  std::vector<uint8_t> colors;    // [channels] planes of bins
  std::vector<uint8_t> textures;  // [channels][kAxes] planes of slopes' codes
};

// `smoothing` comes before the derivatives; the paper's has sigma 1.
PixelCodes code_pixels(const ColorImage& image, int height, int width, const Smoothing& smoothing);

// A sum of similarities, by bits.
enum Measure : unsigned { kColor = 1, kTexture = 2, kSize = 4, kFill = 8, kAllMeasures = 15 };

class UijlingsRegions {
 public:
  UijlingsRegions(const PixelCodes& codes, const Segmentation& segmentation);

  // Which similarities are summed from now on.
  void use(unsigned measures) { measures_ = measures; }
  double similarity(int a, int b) const;
  int merge(int a, int b);

  const std::vector<PixelBox>& boxes() const { return boxes_; }
  const std::vector<int64_t>& sizes() const { return sizes_; }

 private:
  void count(const PixelCodes& codes, const Segmentation& segmentation,
             std::vector<uint32_t>& counts);
  const float* shares(int region) const {
    return &shares_[static_cast<size_t>(region) * (color_length_ + texture_length_)];
  }

  double area_;
  unsigned measures_ = kAllMeasures;
  int color_length_;  // bins of color, then of texture; both padded to whole lanes
  int texture_length_;
  std::vector<PixelBox> boxes_;
  std::vector<int64_t> sizes_;
  std::vector<float> shares_;  // [regions][color_length_ + texture_length_]
};

}  // namespace rcnn_ext::selective_search
