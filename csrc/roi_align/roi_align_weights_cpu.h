// The weights of RoIAlign as CPU kernels read them: computed once per RoI, shared by its channels.
//
// Within a bin, taps ascend, and pixels of weight 0 are left out. That is the order in which every
// kernel adds, so that all give the same bits, and it keeps a NaN from bins that do not sample it.
#pragma once

#include <cstdint>
#include <vector>

namespace rcnn_ext {

// One term of a sum: a pixel of a bin, or in the gradient a bin of a pixel, along one axis.
template <class T>
struct Tap {
  int32_t index;
  T weight;
};

// Sparse weights along one axis in compressed sparse rows: sum i has taps [starts[i], starts[i +
// 1]).
template <class T>
struct CsrWeights {
  const int32_t* starts;
  const Tap<T>* taps;
};

// Channels that share the loads of a RoI's weights, forward, NCHW.
constexpr int kPlanesPerPass = 2;
// Bins along x, and columns of pixels, whose sums fill a register of 8 float32 or two of 4.
constexpr int kBinBlock = 8;
constexpr int kColumnBlock = 8;
// Columns that a kernel can permute in registers: four of 16 float32.
constexpr int64_t kMaxPermutedColumns = 64;
// Rows of bins that are reduced along x together: all of a pooled map of 7 x 7.
constexpr int kRowBlock = 7;

// Weights along x of a block of bins that lie in the lanes of a register.
template <class T>
struct BinWeights {
  int32_t steps;
  // By step: the column that all lanes read, or one per lane; counted from the RoI's first column.
  const int32_t* columns;
  const T* weights;  // [steps, kBinBlock], or [steps, PW] where all bins are one block
};

// Weights along x of a block of columns in the bins [first_bin, last_bin) that they are in.
template <class T>
struct ColumnWeights {
  int32_t first_bin, last_bin;
  const T* weights;  // [last_bin - first_bin, kColumnBlock]
};

// Rows of pixels sorted by how many bins they are in: one, two, or more. A kernel has code for
// each, and in the order of the map the branch between them would often be mispredicted; sorted,
// the gradient took about 3% less time (AMD EPYC with AVX-512, one core, 2026-11).
struct RowsByTapCount {
  const int32_t* rows;  // counted from first_row
  int32_t one_tap_end, two_taps_end, end;
};

// Which weights a kernel reads; only those members of RoiWeights are set. A RoI of more than
// kMaxPermutedColumns columns has shared columns in place of permuted ones.
enum class WeightLayout {
  kChannelsLast,      // y, x
  kSharedColumns,     // y, x, and bin weights whose lanes share columns
  kPermutedColumns,   // y, x, and bin weights with a column per lane
  kTransposedBlocks,  // y, x, and one block of all bins with a column per bin
  kBackwardRows,      // by_row, by_column
  kBackwardPlanes     // by_row, rows_by_tap_count, column weights
};

template <class T>
struct RoiWeights {
  int64_t index;                    // among the RoIs
  int64_t first_column, columns;    // read by vector code: a multiple of kColumnBlock, or the map
  CsrWeights<T> y, x;               // by bin: pixels. y includes 1 / the number of samples of a bin
  int64_t first_row, rows;          // rows of pixels that any bin reads
  int64_t first_x, x_count;         // columns of pixels that any bin reads
  CsrWeights<T> by_row, by_column;  // by pixel from first_row and first_x: bins
  RowsByTapCount rows_by_tap_count;
  bool permuted;                           // whether bin_weights have a column per lane
  const BinWeights<T>* bin_weights;        // [ceil(PW / kBinBlock)], or 1
  const ColumnWeights<T>* column_weights;  // [ceil(columns / kColumnBlock)]
};

// The bins of a pooled map and its depth.
struct PooledShape {
  int64_t channels, height, width;
  int64_t bins() const { return height * width; }
};

// The map that a RoI is pooled from where its weights are not stored.
template <class Stored>
struct FewMap {
  const Stored* image;  // [C, H, W] or [H, W, C]
  int64_t height, width;
  double spatial_scale;
};

// A pixel of a bin in a channels-last map.
template <class T>
struct WeightedPixel {
  int64_t offset;  // elements from the first pixel of the map
  T weight;
};

// Scratch memory of a thread, forward, NCHW. It grows with a row of the map, not with its area.
template <class T>
struct ForwardScratch {
  std::vector<T> rows;  // [kPlanesPerPass, kRowBlock, row_stride]

  explicit ForwardScratch(int64_t max_width)
      : rows(kPlanesPerPass * kRowBlock * row_stride(max_width)) {}
  // The stride of a row of sums, padded so that whole registers can be read.
  static int64_t row_stride(int64_t columns) { return (columns + 63) / 32 * 32; }
};

// Scratch memory of a thread, backward, NCHW. It grows with a row of the map and with the pooled
// map.
template <class T>
struct BackwardScratch {
  std::vector<T> grad;  // [PH * PW]
  std::vector<T> rows;  // [PH, row_stride]

  BackwardScratch(int64_t max_width, const PooledShape& pooled)
      : grad(pooled.bins()), rows(pooled.height * row_stride(max_width)) {}
  static int64_t row_stride(int64_t columns) {
    return (columns + kColumnBlock - 1) / kColumnBlock * kColumnBlock;
  }
};

}  // namespace rcnn_ext
