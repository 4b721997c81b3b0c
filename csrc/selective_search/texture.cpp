// Contract: texture.h.
#include "texture.h"

#include <cmath>

#define RCNN_TARGET_INCLUDE "../selective_search/texture-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext::selective_search {
namespace {

// sin(45 degrees) rounded to five decimals, as scikit-image rounds its sampling points.
constexpr double kDiagonal = 0.70711;

// Where between two pixels a sampling point lies. It depends on the last bits of the coordinate,
// which decide whether the samples of a plain area count as darker.
struct Position {
  explicit Position(double coordinate) : part(coordinate - std::floor(coordinate)) {}
  double part;
};

}  // namespace

// Samples a diagonal point of (x, y) between four pixels, those outside being 0: `upper` and
// `lower` are the rows above and below the point, `side` is -1 or 1.
template <class T>
static double sample(const T* upper, const T* lower, int x, int side, int channel, int width,
                     double row_part, double column_part) {
  const int left = side < 0 ? x - 1 : x;
  const auto value = [&](const T* row, int column) {
    return column < 0 || column >= width ? 0.0 : static_cast<double>(row[3 * column + channel]);
  };
  const double top = (1 - column_part) * value(upper, left) + column_part * value(upper, left + 1);
  const double bottom =
      (1 - column_part) * value(lower, left) + column_part * value(lower, left + 1);
  return (1 - row_part) * top + row_part * bottom;
}

template <class T>
const std::vector<Pattern>& PatternFinder<T>::row(int y) {
  const int width = image_.width;
  const T* middle = image_.row(y);
  const T* up = y > 0 ? image_.row(y - 1) : black_.data();
  const T* down = y + 1 < image_.height ? image_.row(y + 1) : black_.data();
  const double up_part = Position(y - kDiagonal).part;
  const double down_part = Position(y + kDiagonal).part;
  found_.clear();
  for (int channel = 0; channel < 3; ++channel) {
    uint8_t* marks = marks_.data();
    RCNN_DYNAMIC_DISPATCH(mark_peaks(up, middle, down, width, channel, marks));
    for (int x = 0; x < width; ++x) {
      if (!marks[x]) continue;
      const double value = static_cast<double>(middle[3 * x + channel]);
      const double left_part = Position(x - kDiagonal).part;
      const double right_part = Position(x + kDiagonal).part;
      if (sample(up, middle, x, -1, channel, width, up_part, left_part) - value >= 0 ||
          sample(middle, down, x, -1, channel, width, down_part, left_part) - value >= 0 ||
          sample(up, middle, x, 1, channel, width, up_part, right_part) - value >= 0 ||
          sample(middle, down, x, 1, channel, width, down_part, right_part) - value >= 0) {
        continue;
      }
      const double right = x + 1 < width ? static_cast<double>(middle[3 * (x + 1) + channel]) : 0.0;
      found_.push_back({x, channel, right - value >= 0 ? 1 : 0});
    }
  }
  return found_;
}

template class PatternFinder<uint8_t>;
template class PatternFinder<double>;

}  // namespace rcnn_ext::selective_search
