// Which regions are compared with each other.
#pragma once

#include <utility>
#include <vector>

#include "image.h"

namespace rcnn_ext::selective_search {

using Pair = std::pair<int, int>;

// The package's neighbors: pairs a < b where a corner of b's box lies strictly inside a's box, in
// ascending order. That is neither adjacency nor symmetric. Boxes come in the order of their upper
// ends, as those of segments do.
std::vector<Pair> nested_corners(const std::vector<PixelBox>& boxes);

// Pairs a < b of segments with pixels side by side or above each other, in ascending order.
std::vector<Pair> adjacent_segments(const Segmentation& segmentation, int height, int width);

}  // namespace rcnn_ext::selective_search
