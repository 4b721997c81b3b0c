// Blocks of 256 boxes, the unit of work of match_boxes_cpu-inl.h: loading, bounds and quantization.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "../core/box_math.h"
#include "../cpu/intrinsics.h"
#include "../cpu/targets.h"
#include "match_boxes_ground_truth_cpu.h"
#include "match_boxes_work_cpu.h"

#if defined(RCNN_MATCH_BOXES_MATCH_BOXES_BLOCKS_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_MATCH_BOXES_MATCH_BOXES_BLOCKS_CPU_INL_H_
#undef RCNN_MATCH_BOXES_MATCH_BOXES_BLOCKS_CPU_INL_H_
#else
#define RCNN_MATCH_BOXES_MATCH_BOXES_BLOCKS_CPU_INL_H_
#endif

#include "../cpu/simd-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Boxes that are skipped together where none of them can overlap a ground truth. Larger groups
// seldom qualify, and smaller ones do not fill a vector.
constexpr int kBoxesPerGroup = 8;
constexpr int kGroupsPerBlock = kBoxesPerBlock / kBoxesPerGroup;
static_assert(kGroupsPerBlock == 32, "a uint32_t has one bit per group");

// The boxes of a block by columns (structure of arrays), and the best IoU of each so far.
template <class T, class Iou>
struct alignas(64) BoxBlock {
  T x1[kBoxesPerBlock], y1[kBoxesPerBlock], x2[kBoxesPerBlock], y2[kBoxesPerBlock],
      area[kBoxesPerBlock];
  Iou best[kBoxesPerBlock];
  alignas(64) int8_t quantized[4][kBoxesPerBlock];  // x1, y1, x2, y2; set by quantize_block()
  // Boxes; the others repeat the last one, which changes no maximum.
  int count;
  bool overlapped;  // whether any IoU may be above 0
  bool well_conditioned;
  Box<T> bounds;  // the smallest box around all, if well_conditioned

  RCNN_INLINE Box<T> box(int k) const { return {x1[k], y1[k], x2[k], y2[k]}; }
};

// The maximum of all lanes, none of which is NaN.
template <int N, class T>
RCNN_INLINE T max_lane(const Vec<T, N>& vec) {
  if constexpr (N == 2) {
    return maximum(vec[0], vec[1]);
  } else {
    Vec<T, N / 2> halves[2];
    std::memcpy(halves, &vec, sizeof(halves));
    return max_lane<N / 2, T>(Max<N / 2, T>(halves[0], halves[1]));
  }
}

// The minimum of all lanes, none of which is NaN.
template <int N, class T>
RCNN_INLINE T min_lane(const Vec<T, N>& vec) {
  return -max_lane<N, T>(-vec);
}

// Load as many boxes as a vector has lanes, and transpose them to columns x1, y1, x2, y2.
// boxes: [lanes, 4]
template <class T, class Stored, int... kLane>
inline void load_columns(const Stored* boxes, Vec<T, sizeof...(kLane)> (&columns)[4],
                         std::integer_sequence<int, kLane...>) {
  constexpr int kN = sizeof...(kLane);
#if defined(RCNN_HAS_SHUFFLEVECTOR)
  using V = Vec<T, kN>;
  V vectors[4];
  for (int p = 0; p < 4; ++p) vectors[p] = LoadU<T, kN>(boxes + p * kN);
  // The corners (x1, y1) and (x2, y2) of half of the boxes each; then their coordinates.
  const auto first_of = [](const V& a, const V& b) {
    return __builtin_shufflevector(a, b, (kLane / 2 * 4 + kLane % 2)...);
  };
  const auto second_of = [](const V& a, const V& b) {
    return __builtin_shufflevector(a, b, (kLane / 2 * 4 + kLane % 2 + 2)...);
  };
  const auto x_of = [](const V& a, const V& b) {
    return __builtin_shufflevector(a, b, (2 * kLane)...);
  };
  const auto y_of = [](const V& a, const V& b) {
    return __builtin_shufflevector(a, b, (2 * kLane + 1)...);
  };
  const V first[] = {first_of(vectors[0], vectors[1]), first_of(vectors[2], vectors[3])};
  const V second[] = {second_of(vectors[0], vectors[1]), second_of(vectors[2], vectors[3])};
  columns[0] = x_of(first[0], first[1]);
  columns[1] = y_of(first[0], first[1]);
  columns[2] = x_of(second[0], second[1]);
  columns[3] = y_of(second[0], second[1]);
#else
  for (int c = 0; c < 4; ++c) {
    const T column[kN] = {static_cast<T>(boxes[4 * kLane + c])...};
    columns[c] = LoadU<T, kN>(column);
  }
#endif
}

// Load block `block_index` of an image. boxes: [P, 4], of all images
template <class T, class Iou, class Stored>
inline void load_block(const Stored* boxes, const MatchImage& image, int64_t block_index,
                       BoxBlock<T, Iou>& block) {
  const int64_t first = block_index * kBoxesPerBlock;
  const int64_t count = std::min<int64_t>(kBoxesPerBlock, image.box_count - first);
  boxes += 4 * (image.first_box + first);
  Stored repeated[4 * kBoxesPerBlock];
  if (count < kBoxesPerBlock) {
    std::copy_n(boxes, 4 * count, repeated);
    for (int64_t k = count; k < kBoxesPerBlock; ++k) {
      std::copy_n(boxes + 4 * (count - 1), 4, repeated + 4 * k);
    }
    boxes = repeated;
  }
  constexpr int kN = kLanes<T>;
  using V = Vec<T, kN>;
  constexpr T kMax = std::numeric_limits<T>::max();
  const V highest = Set<kN>(kMax), lowest = Set<kN>(-kMax);
  V x1 = highest, y1 = highest, x2 = lowest, y2 = lowest;  // bounds
  V width = highest, height = highest, low_area = highest, high_area = lowest;
  V zeros = {};  // NaN if an area is infinite or NaN
  for (int k = 0; k < kBoxesPerBlock; k += kN) {
    V columns[4];
    load_columns<T>(boxes + 4 * k, columns, std::make_integer_sequence<int, kN>());
    StoreU<kN, T>(block.x1 + k, columns[0]);
    StoreU<kN, T>(block.y1 + k, columns[1]);
    StoreU<kN, T>(block.x2 + k, columns[2]);
    StoreU<kN, T>(block.y2 + k, columns[3]);
    const V widths = columns[2] - columns[0];
    const V heights = columns[3] - columns[1];
    const V areas = widths * heights;
    StoreU<kN, T>(block.area + k, areas);
    x1 = Min<kN, T>(columns[0], x1);
    y1 = Min<kN, T>(columns[1], y1);
    x2 = Max<kN, T>(columns[2], x2);
    y2 = Max<kN, T>(columns[3], y2);
    width = Min<kN, T>(widths, width);
    height = Min<kN, T>(heights, height);
    low_area = Min<kN, T>(areas, low_area);
    high_area = Max<kN, T>(areas, high_area);
    zeros += areas - areas;
  }
  block.count = static_cast<int>(count);
  block.well_conditioned = AllZero<kN, T>(zeros);
  const T min_width = min_lane<kN, T>(width), min_height = min_lane<kN, T>(height);
  block.well_conditioned = block.well_conditioned &&
                           is_well_conditioned(min_width, min_height, min_lane<kN, T>(low_area)) &&
                           is_well_conditioned(min_width, min_height, max_lane<kN, T>(high_area));
  block.bounds = {min_lane<kN, T>(x1), min_lane<kN, T>(y1), max_lane<kN, T>(x2),
                  max_lane<kN, T>(y2)};
}

// Quantize a column. from, to: [kBoxesPerBlock]
template <class T>
inline void quantize_column(const T* __restrict from, const AxisQuantizer<T>& axis,
                            int8_t* __restrict to) {
#if RCNN_ISA >= 1
  if constexpr (std::is_same_v<T, float>) {
    const auto scaled = [&](int k) {
      const Vec<float, 8> at = LoadU<float, 8>(from + k) * axis.scale + axis.offset;
      // As AxisQuantizer::quantize(): Min() turns NaN into 127, and what is below the range
      // converts to the lowest integer, which packing saturates to -128.
      return _mm256_cvttps_epi32((__m256)Min<8, float>(at, Set<8>(127.0f)));
    };
    // The pack instructions work within 128-bit halves: this restores the order.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int k = 0; k < kBoxesPerBlock; k += 32) {
      const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(scaled(k), scaled(k + 8)),
                                               _mm256_packs_epi32(scaled(k + 16), scaled(k + 24)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k),
                          _mm256_permutevar8x32_epi32(bytes, order));
    }
    return;
  }
#endif
  for (int k = 0; k < kBoxesPerBlock; ++k) to[k] = axis.quantize(from[k]);
}

template <class T, class Iou>
inline void quantize_block(const GroundTruth<T>& gts, BoxBlock<T, Iou>& block) {
  quantize_column(block.x1, gts.x_axis, block.quantized[0]);
  quantize_column(block.y1, gts.y_axis, block.quantized[1]);
  quantize_column(block.x2, gts.x_axis, block.quantized[2]);
  quantize_column(block.y2, gts.y_axis, block.quantized[3]);
}

// Which groups of a block have boxes that may overlap ground truth g, one bit each, by their
// quantized coordinates.
template <class T, class Iou>
inline uint32_t find_overlapping_groups(const GroundTruth<T>& gts, int32_t g,
                                        const BoxBlock<T, Iou>& block) {
  const int8_t x1 = gts.quantized[0][g], y1 = gts.quantized[1][g];
  const int8_t x2 = gts.quantized[2][g], y2 = gts.quantized[3][g];
  uint32_t groups = 0;
#if RCNN_ISA >= 1
  const auto column = [&](int c, int k) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(block.quantized[c] + k));
  };
  for (int k = 0; k < kBoxesPerBlock; k += 32) {
    const __m256i apart_x = _mm256_or_si256(_mm256_cmpgt_epi8(column(0, k), _mm256_set1_epi8(x2)),
                                            _mm256_cmpgt_epi8(_mm256_set1_epi8(x1), column(2, k)));
    const __m256i apart_y = _mm256_or_si256(_mm256_cmpgt_epi8(column(1, k), _mm256_set1_epi8(y2)),
                                            _mm256_cmpgt_epi8(_mm256_set1_epi8(y1), column(3, k)));
    const __m256i all_apart =
        _mm256_cmpeq_epi64(_mm256_or_si256(apart_x, apart_y), _mm256_set1_epi8(-1));
    const int bits = _mm256_movemask_pd(_mm256_castsi256_pd(all_apart)) ^ 15;
    groups |= static_cast<uint32_t>(bits) << (k / kBoxesPerGroup);
  }
#else
  uint8_t may_overlap[kBoxesPerBlock];
  for (int k = 0; k < kBoxesPerBlock; ++k) {
    may_overlap[k] = (block.quantized[0][k] <= x2) & (block.quantized[2][k] >= x1) &
                     (block.quantized[1][k] <= y2) & (block.quantized[3][k] >= y1);
  }
  for (int group = 0; group < kGroupsPerBlock; ++group) {
    uint64_t any;
    std::memcpy(&any, may_overlap + kBoxesPerGroup * group, sizeof(any));
    groups |= static_cast<uint32_t>(any != 0) << group;
  }
#endif
  return groups;
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_MATCH_BOXES_MATCH_BOXES_BLOCKS_CPU_INL_H_
