// The color spaces of the diversified searches.
#pragma once

#include <string>
#include <vector>

#include "image.h"

namespace rcnn_ext::selective_search {

// An image in a color space, every channel scaled to 0 .. 255. Spaces of one channel leave the
// other two at 0.
struct ColorImage {
  std::vector<double> pixels;  // [height][width][3]
  int channels;
};

// "hsv", "lab" (CIE L*a*b* of sRGB, white D65), "rgi" (red and green shares, and their mean), "h"
// (hue) or "i" (luma). Throws std::invalid_argument for another name.
template <class T>
ColorImage convert(const Image<T>& rgb, const std::string& space);

}  // namespace rcnn_ext::selective_search
