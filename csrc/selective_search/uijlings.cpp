// Contract: uijlings.h.
#include "uijlings.h"

#include <algorithm>
#include <cmath>
#include <limits>

#define RCNN_TARGET_INCLUDE "../selective_search/uijlings-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext::selective_search {
namespace {

constexpr int kCodes = 2 * kTextureBins;  // of a slope along an axis, either way

int padded(int length) { return (length + kSumLanes - 1) / kSumLanes * kSumLanes; }

void code_textures(const Image<double>& image, const Smoothing& smoothing, PixelCodes& codes) {
  const double diagonal = std::sqrt(0.5);
  const double cosines[kAxes] = {1, diagonal, 0, -diagonal};
  const double sines[kAxes] = {0, diagonal, 1, diagonal};
  const int height = image.height, width = image.width;
  const size_t plane = static_cast<size_t>(height) * width;
  SmoothedRows<double> source(image, smoothing);
  // Three rows, each with a repeated pixel on both sides.
  std::vector<PlanarRow> rows(3, PlanarRow(width, 1));
  const auto load = [&](int y) {
    PlanarRow& row = rows[y % 3];
    source.write(y, row);
    for (int c = 0; c < codes.channels; ++c) {
      row.channel(c)[-1] = row.channel(c)[0];
      row.channel(c)[width] = row.channel(c)[width - 1];
    }
  };
  load(0);
  for (int y = 0; y < height; ++y) {
    if (y + 1 < height) load(y + 1);
    for (int c = 0; c < codes.channels; ++c) {
      const double* above = rows[std::max(y - 1, 0) % 3].channel(c);
      const double* middle = rows[y % 3].channel(c);
      const double* below = rows[std::min(y + 1, height - 1) % 3].channel(c);
      for (int axis = 0; axis < kAxes; ++axis) {
        uint8_t* out = &codes.textures[(c * kAxes + axis) * plane + static_cast<size_t>(y) * width];
        RCNN_DYNAMIC_DISPATCH(code_derivatives(middle - 1, middle + 1, above, below, cosines[axis],
                                               sines[axis], width, out));
      }
    }
  }
}

}  // namespace

PixelCodes code_pixels(const ColorImage& image, int height, int width, const Smoothing& smoothing) {
  const size_t plane = static_cast<size_t>(height) * width;
  PixelCodes codes{image.channels, height, width, {}, {}};
  codes.colors.resize(image.channels * plane);
  codes.textures.resize(image.channels * kAxes * plane);
  for (int c = 0; c < image.channels; ++c) {
    for (size_t i = 0; i < plane; ++i) {
      const int bin = static_cast<int>(image.pixels[3 * i + c] * (kColorBins / 256.0));
      codes.colors[c * plane + i] = static_cast<uint8_t>(bin);
    }
  }
  code_textures({image.pixels.data(), height, width, 1.0}, smoothing, codes);
  return codes;
}

UijlingsRegions::UijlingsRegions(const PixelCodes& codes, const Segmentation& segmentation)
    : area_(static_cast<double>(codes.height) * codes.width),
      color_length_(padded(codes.channels * kColorBins)),
      texture_length_(padded(codes.channels * kAxes * kCodes)) {
  const size_t regions = segmentation.count;
  const size_t length = color_length_ + texture_length_;
  constexpr int kFar = std::numeric_limits<int>::max();
  boxes_.assign(regions, {kFar, kFar, 0, 0});
  sizes_.assign(regions, 0);
  shares_.reserve(2 * regions * length);
  shares_.resize(regions * length);
  std::vector<uint32_t> counts(regions * length, 0);
  count(codes, segmentation, counts);
  for (size_t r = 0; r < regions; ++r) {
    const auto size = static_cast<uint32_t>(sizes_[r]);
    uint32_t* textures = &counts[r * length + color_length_];
    // A pixel has no slope in the direction opposite to its own: it counts in the lowest bin there.
    for (int axis = 0; axis < codes.channels * kAxes; ++axis) {
      for (int way = 0; way < 2; ++way) {
        uint32_t* bins = textures + axis * kCodes + way * kTextureBins;
        uint32_t steep = 0;
        for (int bin = 1; bin < kTextureBins; ++bin) steep += bins[bin];
        bins[0] = size - steep;
      }
    }
    const float color_weight = 1.0f / (static_cast<float>(size) * codes.channels);
    const float texture_weight = color_weight / (2 * kAxes);
    for (size_t i = 0; i < length; ++i) {
      const bool is_color = i < static_cast<size_t>(color_length_);
      shares_[r * length + i] =
          static_cast<float>(counts[r * length + i]) * (is_color ? color_weight : texture_weight);
    }
  }
}

void UijlingsRegions::count(const PixelCodes& codes, const Segmentation& segmentation,
                            std::vector<uint32_t>& counts) {
  const int width = codes.width;
  const size_t plane = static_cast<size_t>(codes.height) * width;
  const size_t length = color_length_ + texture_length_;
  for (int y = 0; y < codes.height; ++y) {
    const size_t row = static_cast<size_t>(y) * width;
    const int32_t* labels = &segmentation.labels[row];
    for (int begin = 0, end; begin < width; begin = end) {
      const int32_t label = labels[begin];
      for (end = begin + 1; end < width && labels[end] == label;) ++end;
      boxes_[label] = enclose(boxes_[label], {begin, y, end - 1, y});
      sizes_[label] += end - begin;
      uint32_t* bins = &counts[label * length];
      for (int c = 0; c < codes.channels; ++c, bins += kColorBins) {
        const uint8_t* values = &codes.colors[c * plane + row];
        for (int x = begin; x < end; ++x) ++bins[values[x]];
      }
      bins = &counts[label * length + color_length_];
      for (int axis = 0; axis < codes.channels * kAxes; ++axis, bins += kCodes) {
        const uint8_t* values = &codes.textures[axis * plane + row];
        for (int x = begin; x < end; ++x) ++bins[values[x]];
      }
    }
  }
}

double UijlingsRegions::similarity(int a, int b) const {
  const float *x = shares(a), *y = shares(b);
  double sum = 0;
  if (measures_ & kColor) sum += RCNN_DYNAMIC_DISPATCH(intersection(x, y, color_length_));
  if (measures_ & kTexture) {
    const int skip = color_length_;
    sum += RCNN_DYNAMIC_DISPATCH(intersection(x + skip, y + skip, texture_length_));
  }
  const double sizes = static_cast<double>(sizes_[a] + sizes_[b]);
  if (measures_ & kSize) sum += 1.0 - sizes / area_;
  if (measures_ & kFill) {
    const PixelBox box = enclose(boxes_[a], boxes_[b]);
    const double enclosed = static_cast<double>(static_cast<int64_t>(box.max_x - box.min_x + 1) *
                                                (box.max_y - box.min_y + 1));
    sum += 1.0 - (enclosed - sizes) / area_;
  }
  return sum;
}

int UijlingsRegions::merge(int a, int b) {
  const int length = color_length_ + texture_length_;
  const int64_t size = sizes_[a] + sizes_[b];
  const float weight = static_cast<float>(static_cast<double>(sizes_[a]) / size);
  shares_.resize(shares_.size() + length);
  float* mean = shares_.data() + shares_.size() - length;
  RCNN_DYNAMIC_DISPATCH(weighted_mean(shares(a), shares(b), weight, 1 - weight, length, mean));
  boxes_.push_back(enclose(boxes_[a], boxes_[b]));
  sizes_.push_back(size);
  return static_cast<int>(sizes_.size()) - 1;
}

}  // namespace rcnn_ext::selective_search
