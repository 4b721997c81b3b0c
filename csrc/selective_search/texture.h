// Local binary patterns as scikit-image computes them with 8 points and radius 1.
#pragma once

#include <cstdint>
#include <vector>

#include "image.h"

namespace rcnn_ext::selective_search {

// The package bins pattern codes, 0 to 255, over the range (0, 1): only codes 0 (all neighbors are
// darker) and 1 (all but the right one are) count. This tells where they are.
struct Pattern {
  int x;
  int channel;
  int code;
};

template <class T>
class PatternFinder {
 public:
  explicit PatternFinder(const Image<T>& image)
      : image_(image), marks_(image.width), black_(3 * static_cast<size_t>(image.width), T{0}) {}

  // The patterns of row `y`, valid until the next call.
  const std::vector<Pattern>& row(int y);

 private:
  const Image<T>& image_;
  std::vector<uint8_t> marks_;
  std::vector<T> black_;  // stands for rows outside the image
  std::vector<Pattern> found_;
};

}  // namespace rcnn_ext::selective_search
