// Scratch memory of a thread that runs roi_align_cpu-inl.h. It grows with a row of the map and of
// the pooled map, not with their areas.
#pragma once

#include <cstdint>
#include <vector>

#include "roi_align_weights_cpu.h"

namespace rcnn_ext {

constexpr int kRowBlock = 7;  // rows of bins whose columns are combined together

// Forward, NCHW.
template <class T>
struct AlignScratch {
  std::vector<T> rows;  // [kPlanesAtOnce, kRowBlock, row_stride]

  // Of a combined row, so that whole registers can be read of it.
  static int64_t row_stride(int64_t columns) { return (columns + 63) / 32 * 32; }

  explicit AlignScratch(int64_t widest) : rows(kPlanesAtOnce * kRowBlock * row_stride(widest)) {}
};

// A pixel of a bin, NHWC.
template <class T>
struct PixelTap {
  int64_t offset;  // elements from the first pixel of the map
  T weight;
};

// Backward, NCHW.
template <class T>
struct SpreadScratch {
  std::vector<T> grad;  // [PH * PW]
  std::vector<T> rows;  // [PH, columns of a RoI]

  SpreadScratch(int64_t widest, const PooledShape& pooled)
      : grad(pooled.bins()), rows(pooled.height * row_stride(widest)) {}
  static int64_t row_stride(int64_t columns) {
    return (columns + kColumnBlock - 1) / kColumnBlock * kColumnBlock;
  }
};

}  // namespace rcnn_ext
