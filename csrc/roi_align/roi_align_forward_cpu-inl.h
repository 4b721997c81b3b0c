// RoIAlign on one CPU core, forward. Compiled once per instruction set (foreach_target.h).
//
// Every path adds in one order, so that instruction sets, layouts of registers and numbers of
// threads do not show in the bits: over a bin's rows in ascending order first, then over its
// columns.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../cpu/intrinsics.h"
#include "../cpu/targets.h"
#include "roi_align_weights_cpu.h"

#if defined(RCNN_ROI_ALIGN_ROI_ALIGN_FORWARD_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_ROI_ALIGN_ROI_ALIGN_FORWARD_CPU_INL_H_
#undef RCNN_ROI_ALIGN_ROI_ALIGN_FORWARD_CPU_INL_H_
#else
#define RCNN_ROI_ALIGN_ROI_ALIGN_FORWARD_CPU_INL_H_
#endif

#include "../cpu/simd-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// The sum along y for one row of bins, of some channels.
template <class T, class Stored>
struct RowSums {
  const Tap<T>*begin, *end;
  const Stored* planes;  // at the first column
  int64_t plane, row;    // elements from channel to channel and from row to row
  T* sums;
  int64_t sums_plane;
};

// sums[c][x] = sum over taps of weight * plane c at (tap's row, x), for the columns of kVecs
// vectors from x on, and of a shorter one where kTail.
template <int kPlanes, int kVecs, bool kTail, class T, class Stored>
inline void combine_rows_vecs(const RowSums<T, Stored>& rows, int64_t x) {
  constexpr int kN = kLanes<T>;
  constexpr int kTailN = kN > kColumnBlock ? kColumnBlock : kN;
  Vec<T, kN> total[kPlanes][kVecs + 1];
  Vec<T, kTailN> tail[kPlanes];
  for (int c = 0; c < kPlanes; ++c) {
    for (int p = 0; p < kVecs; ++p) total[c][p] = Vec<T, kN>{};
    tail[c] = Vec<T, kTailN>{};
  }
  for (const Tap<T>* tap = rows.begin; tap != rows.end; ++tap) {
    const Stored* const source = rows.planes + tap->index * rows.row + x;
    const Vec<T, kN> weight = Set<kN>(tap->weight);
    for (int c = 0; c < kPlanes; ++c) {
      for (int p = 0; p < kVecs; ++p) {
        total[c][p] += weight * LoadU<T, kN>(source + c * rows.plane + p * kN);
      }
      if (kTail) {
        tail[c] +=
            Set<kTailN>(tap->weight) * LoadU<T, kTailN>(source + c * rows.plane + kVecs * kN);
      }
    }
  }
  for (int c = 0; c < kPlanes; ++c) {
    T* const target = rows.sums + c * rows.sums_plane + x;
    for (int p = 0; p < kVecs; ++p) StoreU<kN, T>(target + p * kN, total[c][p]);
    if (kTail) StoreU<kTailN, T>(target + kVecs * kN, tail[c]);
  }
}

template <int kPlanes, class T, class Stored>
RCNN_INLINE void combine_rows(const RowSums<T, Stored>& rows, int64_t columns) {
  constexpr int kN = kLanes<T>;
  constexpr bool kTail = kN > kColumnBlock;
  constexpr int kTailN = kTail ? kColumnBlock : kN;
  int64_t x = 0;
  for (; x + 4 * kN <= columns; x += 4 * kN) combine_rows_vecs<kPlanes, 4, false>(rows, x);
  const int64_t vecs = (columns - x) / kN;
  if (kTail && columns - x - vecs * kN >= kTailN) {
    switch (vecs) {
      case 0: combine_rows_vecs<kPlanes, 0, kTail>(rows, x); break;
      case 1: combine_rows_vecs<kPlanes, 1, kTail>(rows, x); break;
      case 2: combine_rows_vecs<kPlanes, 2, kTail>(rows, x); break;
      default: combine_rows_vecs<kPlanes, 3, kTail>(rows, x); break;
    }
    x += kTailN;
  } else {
    switch (vecs) {
      case 0: break;
      case 1: combine_rows_vecs<kPlanes, 1, false>(rows, x); break;
      case 2: combine_rows_vecs<kPlanes, 2, false>(rows, x); break;
      default: combine_rows_vecs<kPlanes, 3, false>(rows, x); break;
    }
  }
  // Left over only where the map is narrower than a vector.
  for (x += vecs * kN; x < columns; ++x) {
    for (int c = 0; c < kPlanes; ++c) {
      T total = T(0);
      for (const Tap<T>* tap = rows.begin; tap != rows.end; ++tap) {
        total +=
            tap->weight * static_cast<T>(rows.planes[c * rows.plane + tap->index * rows.row + x]);
      }
      rows.sums[c * rows.sums_plane + x] = total;
    }
  }
}

// Where the bins of a block are stored: rows of `step` numbers. Lanes beyond the last bin fall on
// the row below, which is stored later, if there is room for them before the end of the channel.
template <class Stored>
struct BlockTarget {
  Stored* out;
  int64_t step;
  int64_t room;  // numbers from `out` to the end of the channel
};

// Stores the vectors of all rows. Returns whether a NaN or an infinity is among them.
template <int kN, int kVecs, int kRows, class T, class Stored>
RCNN_INLINE bool store_block(const Vec<T, kN> (&total)[kRows][kVecs],
                             const BlockTarget<Stored>& target) {
  Vec<T, kN> zeros{};
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kVecs; ++p) {
      zeros += total[r][p] * Vec<T, kN>{};
      Stored* const to = target.out + r * target.step + p * kN;
      StoreN<kN, T>(to, total[r][p], target.room - r * target.step - p * kN);
    }
  }
  return !AllZero<kN, T>(zeros);
}

// Bin (r, lane) = sum over steps of weight * rows[r][column], all lanes reading the same columns:
// WeightLayout::kSharedColumns. Returns as store_block() does.
// rows: [kRows, stride]
template <int kRows, class T, class Stored>
RCNN_INLINE bool combine_columns(const BinWeights<T>& block, const T* rows, int64_t stride,
                                 const BlockTarget<Stored>& target) {
  constexpr int kN = kLanes<T> < kBinBlock ? kLanes<T> : kBinBlock;
  constexpr int kVecs = kBinBlock / kN;
  Vec<T, kN> total[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kVecs; ++p) total[r][p] = Vec<T, kN>{};
  }
  for (int32_t s = 0; s < block.steps; ++s) {
    const T* const source = rows + block.columns[s];
    Vec<T, kN> weight[kVecs];
    for (int p = 0; p < kVecs; ++p) {
      weight[p] = LoadU<T, kN>(block.weights + s * kBinBlock + p * kN);
    }
    for (int r = 0; r < kRows; ++r) {
      const Vec<T, kN> value = Set<kN>(source[r * stride]);
      for (int p = 0; p < kVecs; ++p) total[r][p] += weight[p] * value;
    }
  }
  return store_block<kN, kVecs, kRows, T>(total, target);
}

#if RCNN_ISA >= 2
// combine_columns() where each lane reads a column of its own, permuted out of the kRegisters
// registers that hold a row: WeightLayout::kPermutedColumns.
template <int kRows, int kRegisters, class Stored>
RCNN_INLINE bool combine_lanes(const BinWeights<float>& block, const float* rows, int64_t stride,
                               const BlockTarget<Stored>& target) {
  Vec<float, 8> total[kRows][1];
  for (int r = 0; r < kRows; ++r) total[r][0] = Vec<float, 8>{};
  for (int32_t s = 0; s < block.steps; ++s) {
    const __m256i column =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.columns + s * kBinBlock));
    const __m256 weight = _mm256_loadu_ps(block.weights + s * kBinBlock);
    const __m512i index = _mm512_castsi256_si512(column);
    const __mmask8 upper = _mm256_test_epi32_mask(column, _mm256_set1_epi32(32));
    for (int r = 0; r < kRows; ++r) {
      const float* const row = rows + r * stride;
      __m256 value = _mm512_castps512_ps256(
          kRegisters == 1
              ? _mm512_permutexvar_ps(index, _mm512_loadu_ps(row))
              : _mm512_permutex2var_ps(_mm512_loadu_ps(row), index, _mm512_loadu_ps(row + 16)));
      if (kRegisters > 2) {
        const __m512 right =
            _mm512_permutex2var_ps(_mm512_loadu_ps(row + 32), index, _mm512_loadu_ps(row + 48));
        value = _mm256_mask_blend_ps(upper, value, _mm512_castps512_ps256(right));
      }
      total[r][0] += (Vec<float, 8>)_mm256_mul_ps(weight, value);
    }
  }
  return store_block<8, 1, kRows, float>(total, target);
}
#endif

template <int kRows, class T, class Stored>
RCNN_INLINE bool combine_block(const RoiWeights<T>& roi, const BinWeights<T>& block, const T* rows,
                               int64_t stride, const BlockTarget<Stored>& target) {
#if RCNN_ISA >= 2
  if constexpr (sizeof(T) == 4) {
    if (roi.permuted) {
      if (roi.columns <= 16) return combine_lanes<kRows, 1>(block, rows, stride, target);
      if (roi.columns <= 32) return combine_lanes<kRows, 2>(block, rows, stride, target);
      return combine_lanes<kRows, 4>(block, rows, stride, target);
    }
  }
#endif
  return combine_columns<kRows>(block, rows, stride, target);
}

// All bins of one channel, tap by tap: a NaN or an infinite pixel counts only where its weight is
// not 0. The vectorized paths call it again for channels in which they find one.
// step, out_step: elements from pixel to pixel of the map and from bin to bin
template <class T, class Stored>
inline void roi_align_exact(const RoiWeights<T>& roi, const Stored* plane, int64_t row,
                            const PooledShape& pooled, Stored* out, int64_t step = 1,
                            int64_t out_step = 1) {
  for (int64_t ph = 0; ph < pooled.height; ++ph) {
    for (int64_t pw = 0; pw < pooled.width; ++pw) {
      T sum = T(0);
      for (int32_t tx = roi.x.starts[pw]; tx < roi.x.starts[pw + 1]; ++tx) {
        const Tap<T> x = roi.x.taps[tx];
        T column = T(0);
        for (int32_t ty = roi.y.starts[ph]; ty < roi.y.starts[ph + 1]; ++ty) {
          const Tap<T> y = roi.y.taps[ty];
          column += y.weight * static_cast<T>(plane[y.index * row + x.index * step]);
        }
        sum += x.weight * column;
      }
      *out = static_cast<Stored>(sum);
      out += out_step;
    }
  }
}

// The sums along x for some rows of bins of one channel. rows: [count, stride], summed along y;
// room: bins from `out` to the end of the channel. Returns whether a NaN or an infinity is among
// them.
template <class T, class Stored>
RCNN_INLINE bool combine_bins(const RoiWeights<T>& roi, const T* rows, int64_t stride,
                              int64_t count, int64_t pooled_width, Stored* out, int64_t room) {
  bool nonfinite = false;
  // The last block first: what it stores beyond the last bin lies in the first block of a row.
  const int64_t blocks = (pooled_width + kBinBlock - 1) / kBinBlock;
  for (int64_t b = blocks - 1; b >= 0; --b) {
    const int64_t bin = b * kBinBlock;
    const BinWeights<T>& block = roi.bin_weights[b];
    if (count == kRowBlock) {
      nonfinite |= combine_block<kRowBlock>(
          roi, block, rows, stride, BlockTarget<Stored>{out + bin, pooled_width, room - bin});
      continue;
    }
    for (int64_t r = 0; r < count; ++r) {
      const int64_t at = r * pooled_width + bin;
      nonfinite |= combine_block<1>(roi, block, rows + r * stride, stride,
                                    BlockTarget<Stored>{out + at, pooled_width, room - at});
    }
  }
  return nonfinite;
}

// kPlanes channels of one RoI, NCHW. planes: [kPlanes, H, W], out: [kPlanes, PH, PW]
template <int kPlanes, class T, class Stored>
inline void roi_align_planes(const RoiWeights<T>& roi, const Stored* planes, int64_t plane,
                             int64_t row, const PooledShape& pooled, ForwardScratch<T>& scratch,
                             Stored* out) {
  const int64_t stride = ForwardScratch<T>::row_stride(roi.columns);
  bool nonfinite[kPlanes] = {};
  for (int64_t ph = 0; ph < pooled.height; ph += kRowBlock) {
    const int64_t rows = std::min<int64_t>(kRowBlock, pooled.height - ph);
    for (int64_t r = 0; r < rows; ++r) {
      const int32_t* const start = roi.y.starts + ph + r;
      combine_rows<kPlanes>(
          RowSums<T, Stored>{roi.y.taps + start[0], roi.y.taps + start[1],
                             planes + roi.first_column, plane, row,
                             scratch.rows.data() + r * stride, kRowBlock * stride},
          roi.columns);
    }
    for (int c = 0; c < kPlanes; ++c) {
      nonfinite[c] |= combine_bins(roi, scratch.rows.data() + c * kRowBlock * stride, stride, rows,
                                   pooled.width, out + c * pooled.bins() + ph * pooled.width,
                                   pooled.bins() - ph * pooled.width);
    }
  }
  for (int c = 0; c < kPlanes; ++c) {
    if (RCNN_UNLIKELY(nonfinite[c])) {
      roi_align_exact(roi, planes + c * plane, row, pooled, out + c * pooled.bins());
    }
  }
}

template <int kN, int kVecs, class T, class Stored>
RCNN_INLINE void combine_pixels_vecs(const std::vector<WeightedPixel<T>>& taps, const Stored* image,
                                     Stored* out) {
  Vec<T, kN> total[kVecs];
  for (int p = 0; p < kVecs; ++p) total[p] = Vec<T, kN>{};
  for (const WeightedPixel<T>& tap : taps) {
    const Vec<T, kN> weight = Set<kN>(tap.weight);
    for (int p = 0; p < kVecs; ++p) {
      total[p] += weight * LoadU<T, kN>(image + tap.offset + p * kN);
    }
  }
  for (int p = 0; p < kVecs; ++p) StoreU<kN, T>(out + p * kN, total[p]);
}

// All channels of one RoI, NHWC. image: [H, W, C], out: [PH, PW, C], taps: scratch
template <class T, class Stored>
inline void roi_align_pixels(const RoiWeights<T>& roi, const Stored* image, int64_t width,
                             const PooledShape& pooled, std::vector<WeightedPixel<T>>& taps,
                             Stored* out) {
  constexpr int kN = kLanes<T>;
  constexpr int kVecs = 8;
  const int64_t channels = pooled.channels;
  for (int64_t ph = 0; ph < pooled.height; ++ph) {
    for (int64_t pw = 0; pw < pooled.width; ++pw) {
      taps.clear();
      for (int32_t ty = roi.y.starts[ph]; ty < roi.y.starts[ph + 1]; ++ty) {
        const Tap<T> y = roi.y.taps[ty];
        for (int32_t tx = roi.x.starts[pw]; tx < roi.x.starts[pw + 1]; ++tx) {
          const Tap<T> x = roi.x.taps[tx];
          taps.push_back({(y.index * width + x.index) * channels, y.weight * x.weight});
        }
      }
      Stored* const target = out + (ph * pooled.width + pw) * channels;
      int64_t c = 0;
      for (; c + kVecs * kN <= channels; c += kVecs * kN) {
        combine_pixels_vecs<kN, kVecs>(taps, image + c, target + c);
      }
      for (; c + kN <= channels; c += kN) {
        combine_pixels_vecs<kN, 1>(taps, image + c, target + c);
      }
      // The last vector reaches back over channels that are summed already, where there are enough.
      if (c < channels && channels >= kN) {
        combine_pixels_vecs<kN, 1>(taps, image + channels - kN, target + channels - kN);
        continue;
      }
      for (; c < channels; ++c) combine_pixels_vecs<1, 1>(taps, image + c, target + c);
    }
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_ROI_ALIGN_ROI_ALIGN_FORWARD_CPU_INL_H_
