// Contract: color_spaces.h.
#include "color_spaces.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>

namespace rcnn_ext::selective_search {
namespace {

using Color = std::array<double, 3>;  // 0 .. 255, as are the results

Color to_hsv(const Color& rgb) {
  const auto [red, green, blue] = rgb;
  const double value = std::max({red, green, blue});
  const double chroma = value - std::min({red, green, blue});
  if (chroma <= 0) return {0, 0, value};
  double sixth;
  if (value == red) {
    sixth = (green - blue) / chroma + (green < blue ? 6 : 0);
  } else if (value == green) {
    sixth = (blue - red) / chroma + 2;
  } else {
    sixth = (red - green) / chroma + 4;
  }
  return {sixth * (255.0 / 6), chroma / value * 255.0, value};
}

double luma(const Color& rgb) { return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]; }

Color to_hue(const Color& rgb) { return {to_hsv(rgb)[0], 0, 0}; }

Color to_luma(const Color& rgb) { return {luma(rgb), 0, 0}; }

Color to_rgi(const Color& rgb) {
  const double sum = rgb[0] + rgb[1] + rgb[2];
  if (sum <= 0) return {255.0 / 3, 255.0 / 3, 0};
  return {rgb[0] / sum * 255.0, rgb[1] / sum * 255.0, sum / 3};
}

// A function on [0, 1] by interpolation between equidistant points: powers and roots of every pixel
// would take longer than all the rest.
class Table {
 public:
  template <class Function>
  explicit Table(Function function) : values_(kSteps + 2) {
    for (int i = 0; i < kSteps + 2; ++i) values_[i] = function(static_cast<double>(i) / kSteps);
  }
  double operator()(double x) const {
    const double position = std::min(std::max(x, 0.0), 1.0) * kSteps;
    const int step = static_cast<int>(position);
    const double part = position - step;
    return values_[step] + part * (values_[step + 1] - values_[step]);
  }

 private:
  static constexpr int kSteps = 4096;
  std::vector<double> values_;
};

Color to_lab(const Color& rgb) {
  static const Table linear([](double value) {
    return value <= 0.04045 ? value / 12.92 : std::pow((value + 0.055) / 1.055, 2.4);
  });
  static const Table root([](double value) {
    constexpr double kDelta = 6.0 / 29;
    return value > kDelta * kDelta * kDelta ? std::cbrt(value)
                                            : value / (3 * kDelta * kDelta) + 4.0 / 29;
  });
  const double red = linear(rgb[0] / 255), green = linear(rgb[1] / 255);
  const double blue = linear(rgb[2] / 255);
  const double x = root((0.412453 * red + 0.357580 * green + 0.180423 * blue) / 0.950456);
  const double y = root(0.212671 * red + 0.715160 * green + 0.072169 * blue);
  const double z = root((0.019334 * red + 0.119193 * green + 0.950227 * blue) / 1.088754);
  const auto clamp = [](double value) { return std::min(std::max(value, 0.0), 255.0); };
  return {clamp((116 * y - 16) * 2.55), clamp(500 * (x - y) + 128), clamp(200 * (y - z) + 128)};
}

struct Space {
  const char* name;
  Color (*convert)(const Color&);
  int channels;
};
constexpr Space kSpaces[] = {
    {"hsv", to_hsv, 3}, {"lab", to_lab, 3}, {"rgi", to_rgi, 3}, {"h", to_hue, 1}, {"i", to_luma, 1},
};

const Space& find(const std::string& name) {
  for (const Space& space : kSpaces) {
    if (name == space.name) return space;
  }
  throw std::invalid_argument("color space: expected hsv, lab, rgi, h or i, got '" + name + "'");
}

}  // namespace

template <class T>
ColorImage convert(const Image<T>& rgb, const std::string& name) {
  const Space& space = find(name);
  const size_t count = 3 * static_cast<size_t>(rgb.area());
  ColorImage image{std::vector<double>(count), space.channels};
  const double to_255 = rgb.factor * 255.0;
  for (size_t i = 0; i < count; i += 3) {
    const Color color = space.convert({static_cast<double>(rgb.pixels[i]) * to_255,
                                       static_cast<double>(rgb.pixels[i + 1]) * to_255,
                                       static_cast<double>(rgb.pixels[i + 2]) * to_255});
    std::copy(color.begin(), color.end(), &image.pixels[i]);
  }
  return image;
}

template ColorImage convert(const Image<uint8_t>&, const std::string&);
template ColorImage convert(const Image<double>&, const std::string&);

}  // namespace rcnn_ext::selective_search
