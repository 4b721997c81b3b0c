// Efficient graph-based image segmentation (Felzenszwalb and Huttenlocher, IJCV 2004), with the
// results of scikit-image's felzenszwalb whose edges are sorted stably.
#pragma once

#include <vector>

#include "image.h"
#include "smoothing.h"

namespace rcnn_ext::selective_search {

struct SegmentScale {
  double scale;      // larger gives larger segments; refers to pixel values up to 255
  int64_t min_size;  // segments of fewer pixels join a neighbor
};

// In pixels. The result does not depend on them.
struct TileSizes {
  int64_t whole = 1'500'000;        // images up to this size are not cut
  int64_t tile = int64_t{1} << 18;  // about the size of the tiles of larger images
  int64_t band = int64_t{1} << 20;  // limit of a row of tiles of more than one row of pixels
};

// Segments an image at several scales.
template <class T>
std::vector<Segmentation> segment(const Image<T>& image, const Smoothing& smoothing,
                                  const std::vector<SegmentScale>& scales,
                                  const TileSizes& sizes = {});

}  // namespace rcnn_ext::selective_search
