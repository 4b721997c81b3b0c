// Blocks of boxes as the loops of match_boxes_cpu-inl.h read them. Compiled once per instruction
// set (foreach_target.h).
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

// Boxes that are left out together where none of them may overlap a ground truth: more at once
// would seldom be without one that does, and fewer would not fill the vectors.
constexpr int kGroup = 8;
constexpr int kGroups = kBlock / kGroup;
static_assert(kGroups == 32, "a bit each in an uint32_t");

// The boxes of a block column by column, and the best IoU of each so far.
template <class T, class Iou>
struct alignas(64) Block {
  T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
  Iou best[kBlock];
  alignas(64) int8_t cells[4][kBlock];  // of x1, y1, x2, y2, after fill_cells()
  int count;        // of boxes; the rest repeats the last one, which adds nothing new to maxima
  bool overlapped;  // unless all IoUs are 0
  bool regular;
  Box<T> bounds;  // of regular boxes

  RCNN_INLINE Box<T> box(int k) const { return {x1[k], y1[k], x2[k], y2[k]}; }
};

// The greatest and the smallest of the lanes, which are numbers.
template <int N, class T>
RCNN_INLINE T greatest_of(const Vec<T, N>& pack) {
  if constexpr (N == 2) {
    return maximum(pack[0], pack[1]);
  } else {
    Vec<T, N / 2> halves[2];
    std::memcpy(halves, &pack, sizeof(halves));
    return greatest_of<N / 2, T>(Max<N / 2, T>(halves[0], halves[1]));
  }
}

template <int N, class T>
RCNN_INLINE T smallest_of(const Vec<T, N>& pack) {
  return -greatest_of<N, T>(-pack);
}

// The columns x1, y1, x2, y2 of as many boxes as a pack has lanes. boxes: [lanes, 4]
template <class T, class Stored, int... kLane>
inline void load_columns(const Stored* boxes, Vec<T, sizeof...(kLane)> (&columns)[4],
                         std::integer_sequence<int, kLane...>) {
  constexpr int kN = sizeof...(kLane);
#if defined(RCNN_HAS_SHUFFLEVECTOR)
  using P = Vec<T, kN>;
  P packs[4];
  for (int p = 0; p < 4; ++p) packs[p] = load<T, kN>(boxes + p * kN);
  // First corners and second ones, of half of the boxes each; then their coordinates.
  const auto first_of = [](const P& a, const P& b) {
    return __builtin_shufflevector(a, b, (kLane / 2 * 4 + kLane % 2)...);
  };
  const auto second_of = [](const P& a, const P& b) {
    return __builtin_shufflevector(a, b, (kLane / 2 * 4 + kLane % 2 + 2)...);
  };
  const auto x_of = [](const P& a, const P& b) {
    return __builtin_shufflevector(a, b, (2 * kLane)...);
  };
  const auto y_of = [](const P& a, const P& b) {
    return __builtin_shufflevector(a, b, (2 * kLane + 1)...);
  };
  const P first[] = {first_of(packs[0], packs[1]), first_of(packs[2], packs[3])};
  const P second[] = {second_of(packs[0], packs[1]), second_of(packs[2], packs[3])};
  columns[0] = x_of(first[0], first[1]);
  columns[1] = y_of(first[0], first[1]);
  columns[2] = x_of(second[0], second[1]);
  columns[3] = y_of(second[0], second[1]);
#else
  for (int c = 0; c < 4; ++c) {
    const T column[kN] = {static_cast<T>(boxes[4 * kLane + c])...};
    columns[c] = load<T, kN>(column);
  }
#endif
}

// Reads a block of an image. boxes: [P, 4], of all images
template <class T, class Iou, class Stored>
inline void load_block(const Stored* boxes, const MatchImage& image, int64_t number,
                       Block<T, Iou>& block) {
  const int64_t first = number * kBlock;
  const int64_t count = std::min<int64_t>(kBlock, image.box_count - first);
  boxes += 4 * (image.first_box + first);
  Stored repeated[4 * kBlock];
  if (count < kBlock) {
    std::copy_n(boxes, 4 * count, repeated);
    for (int64_t k = count; k < kBlock; ++k) {
      std::copy_n(boxes + 4 * (count - 1), 4, repeated + 4 * k);
    }
    boxes = repeated;
  }
  constexpr int kN = kLanes<T>;
  using P = Vec<T, kN>;
  constexpr T kMost = std::numeric_limits<T>::max();
  const P most = Set<kN>(kMost), least = Set<kN>(-kMost);
  P x1 = most, y1 = most, x2 = least, y2 = least;  // bounds
  P width = most, height = most, low_area = most, high_area = least;
  P zeros = {};  // or NaN
  for (int k = 0; k < kBlock; k += kN) {
    P columns[4];
    load_columns<T>(boxes + 4 * k, columns, std::make_integer_sequence<int, kN>());
    store<kN, T>(block.x1 + k, columns[0]);
    store<kN, T>(block.y1 + k, columns[1]);
    store<kN, T>(block.x2 + k, columns[2]);
    store<kN, T>(block.y2 + k, columns[3]);
    const P widths = columns[2] - columns[0];
    const P heights = columns[3] - columns[1];
    const P areas = widths * heights;
    store<kN, T>(block.area + k, areas);
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
  block.regular = all_zero<kN, T>(zeros);
  const T least_width = smallest_of<kN, T>(width), least_height = smallest_of<kN, T>(height);
  block.regular = block.regular &&
                  is_regular(least_width, least_height, smallest_of<kN, T>(low_area)) &&
                  is_regular(least_width, least_height, greatest_of<kN, T>(high_area));
  block.bounds = {smallest_of<kN, T>(x1), smallest_of<kN, T>(y1), greatest_of<kN, T>(x2),
                  greatest_of<kN, T>(y2)};
}

// The cells of coordinates. from, to: [kBlock]
template <class T>
inline void fill_column(const T* __restrict from, const Cells<T>& cells, int8_t* __restrict to) {
#if RCNN_ISA >= 1
  if constexpr (std::is_same_v<T, float>) {
    const auto scaled = [&](int k) {
      const Vec<float, 8> at = load<float, 8>(from + k) * cells.scale + cells.offset;
      // As Cells::of(): NaN becomes the second of the two, and what is below all cells the least
      // integer, which is packed as the lowest cell.
      return _mm256_cvttps_epi32((__m256)Min<8, float>(at, Set<8>(127.0f)));
    };
    // Packing goes by halves of the registers.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int k = 0; k < kBlock; k += 32) {
      const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(scaled(k), scaled(k + 8)),
                                               _mm256_packs_epi32(scaled(k + 16), scaled(k + 24)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k),
                          _mm256_permutevar8x32_epi32(bytes, order));
    }
    return;
  }
#endif
  for (int k = 0; k < kBlock; ++k) to[k] = cells.of(from[k]);
}

template <class T, class Iou>
inline void fill_cells(const GroundTruth<T>& gts, Block<T, Iou>& block) {
  fill_column(block.x1, gts.x_cells, block.cells[0]);
  fill_column(block.y1, gts.y_cells, block.cells[1]);
  fill_column(block.x2, gts.x_cells, block.cells[2]);
  fill_column(block.y2, gts.y_cells, block.cells[3]);
}

// Which groups of a block, a bit each, have boxes that may overlap a ground truth, by their cells.
template <class T, class Iou>
inline uint32_t groups_near(const GroundTruth<T>& gts, int32_t g, const Block<T, Iou>& block) {
  const int8_t x1 = gts.cells[0][g], y1 = gts.cells[1][g];
  const int8_t x2 = gts.cells[2][g], y2 = gts.cells[3][g];
  uint32_t groups = 0;
#if RCNN_ISA >= 1
  const auto column = [&](int c, int k) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(block.cells[c] + k));
  };
  for (int k = 0; k < kBlock; k += 32) {
    const __m256i apart_x = _mm256_or_si256(_mm256_cmpgt_epi8(column(0, k), _mm256_set1_epi8(x2)),
                                            _mm256_cmpgt_epi8(_mm256_set1_epi8(x1), column(2, k)));
    const __m256i apart_y = _mm256_or_si256(_mm256_cmpgt_epi8(column(1, k), _mm256_set1_epi8(y2)),
                                            _mm256_cmpgt_epi8(_mm256_set1_epi8(y1), column(3, k)));
    const __m256i all_apart =
        _mm256_cmpeq_epi64(_mm256_or_si256(apart_x, apart_y), _mm256_set1_epi8(-1));
    const int bits = _mm256_movemask_pd(_mm256_castsi256_pd(all_apart)) ^ 15;
    groups |= static_cast<uint32_t>(bits) << (k / kGroup);
  }
#else
  uint8_t near[kBlock];
  for (int k = 0; k < kBlock; ++k) {
    near[k] = (block.cells[0][k] <= x2) & (block.cells[2][k] >= x1) & (block.cells[1][k] <= y2) &
              (block.cells[3][k] >= y1);
  }
  for (int group = 0; group < kGroups; ++group) {
    uint64_t any;
    std::memcpy(&any, near + kGroup * group, sizeof(any));
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
