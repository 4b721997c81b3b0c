// NMS over sorted boxes, compiled once per instruction set (foreach_target.h). nms_grid_cpu.h
// proves the shortcuts.
#include <cstdint>
#include <limits>

#include "../core/box_math.h"
#include "../cpu/intrinsics.h"
#include "../cpu/prefetch.h"
#include "../cpu/targets.h"
#include "nms_grid_cpu.h"
#include "nms_suppression.h"

#if defined(RCNN_NMS_NMS_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_NMS_NMS_CPU_INL_H_
#undef RCNN_NMS_NMS_CPU_INL_H_
#else
#define RCNN_NMS_NMS_CPU_INL_H_
#endif

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// A box that is compared with the kept boxes, and what the comparisons need of it.
template <class T>
struct NmsCandidate {
  Box<T> box;
  T area;
  T limit;             // of the filter
  bool has_area;       // point 2 of nms_grid_cpu.h
  bool in_grid_range;  // point 4 of nms_grid_cpu.h
};

template <class T, class Stored>
inline NmsCandidate<T> load_candidate(const Stored* coordinates, const SuppressionRule<T>& rule) {
  using Rule = SuppressionRule<T>;
  NmsCandidate<T> c;
  c.box = load_box<T>(coordinates);
  c.area = area(c.box);
  c.limit = rule.limit_of(c.area);
  c.has_area = c.box.x1 < c.box.x2 && c.box.y1 < c.box.y2 && c.area > T(0) &&
               c.area <= std::numeric_limits<T>::max();
  c.in_grid_range = c.area >= Rule::kMinGridArea && c.box.x1 >= -Rule::kMaxGridCoordinate &&
                    c.box.y1 >= -Rule::kMaxGridCoordinate && c.box.x2 <= Rule::kMaxGridCoordinate &&
                    c.box.y2 <= Rule::kMaxGridCoordinate;
  return c;
}

// Load the candidate order[rank] and prefetch a later one: in order of score, boxes are read at
// random, and mispredicted branches keep the processor from loading them ahead by itself.
template <class T, class Stored>
inline NmsCandidate<T> load_and_prefetch(const Stored* boxes, const uint32_t* order, int64_t rank,
                                         int64_t end, const SuppressionRule<T>& rule) {
  constexpr int64_t kPrefetchBoxes = 16;
  if (rank + kPrefetchBoxes < end) prefetch(boxes + 4 * int64_t{order[rank + kPrefetchBoxes]});
  return load_candidate(boxes + 4 * int64_t{order[rank]}, rule);
}

// Whether any box of the block passes the filter. The product of a negative width and a negative
// height would be positive, so one of the two is clamped.
template <class T>
inline bool may_suppress(const KeptBlock<T>& kept, const NmsCandidate<T>& c) {
  int any = 0;
  for (int k = 0; k < kBoxesPerKeptBlock; ++k) {
    const T width = minimum(kept.x2[k], c.box.x2) - maximum(kept.x1[k], c.box.x1);
    const T height = minimum(kept.y2[k], c.box.y2) - maximum(kept.y1[k], c.box.y1);
    any |= clamp_min_zero(width) * height >= kept.limit[k] + c.limit ? 1 : 0;
  }
  return any != 0;
}

// Overloads in intrinsics, since GCC's reduction of the comparison costs as much as the arithmetic.
#if RCNN_ISA == 2
inline bool may_suppress(const KeptBlock<float>& kept, const NmsCandidate<float>& c) {
  const __m512 width =
      _mm512_sub_ps(_mm512_min_ps(_mm512_load_ps(kept.x2), _mm512_set1_ps(c.box.x2)),
                    _mm512_max_ps(_mm512_load_ps(kept.x1), _mm512_set1_ps(c.box.x1)));
  const __m512 height =
      _mm512_sub_ps(_mm512_min_ps(_mm512_load_ps(kept.y2), _mm512_set1_ps(c.box.y2)),
                    _mm512_max_ps(_mm512_load_ps(kept.y1), _mm512_set1_ps(c.box.y1)));
  const __m512 overlap = _mm512_mul_ps(_mm512_max_ps(width, _mm512_setzero_ps()), height);
  const __m512 limit = _mm512_add_ps(_mm512_load_ps(kept.limit), _mm512_set1_ps(c.limit));
  return _mm512_cmp_ps_mask(overlap, limit, _CMP_GE_OQ) != 0;
}
#elif RCNN_ISA == 1
inline bool may_suppress(const KeptBlock<float>& kept, const NmsCandidate<float>& c) {
  __m256 hits = _mm256_setzero_ps();
  for (int k = 0; k < kBoxesPerKeptBlock; k += 8) {
    const __m256 width =
        _mm256_sub_ps(_mm256_min_ps(_mm256_load_ps(kept.x2 + k), _mm256_set1_ps(c.box.x2)),
                      _mm256_max_ps(_mm256_load_ps(kept.x1 + k), _mm256_set1_ps(c.box.x1)));
    const __m256 height =
        _mm256_sub_ps(_mm256_min_ps(_mm256_load_ps(kept.y2 + k), _mm256_set1_ps(c.box.y2)),
                      _mm256_max_ps(_mm256_load_ps(kept.y1 + k), _mm256_set1_ps(c.box.y1)));
    const __m256 overlap = _mm256_mul_ps(_mm256_max_ps(width, _mm256_setzero_ps()), height);
    const __m256 limit = _mm256_add_ps(_mm256_load_ps(kept.limit + k), _mm256_set1_ps(c.limit));
    hits = _mm256_or_ps(hits, _mm256_cmp_ps(overlap, limit, _CMP_GE_OQ));
  }
  return _mm256_movemask_ps(hits) != 0;
}
#endif

template <class T>
inline bool any_suppresses(const KeptBlock<T>& block, const NmsCandidate<T>& c, T bound) {
  int any = 0;
  for (int k = 0; k < kBoxesPerKeptBlock; ++k) {
    const Box<T> kept{block.x1[k], block.y1[k], block.x2[k], block.y2[k]};
    any |= suppresses(kept, area(kept), c.box, c.area, bound) ? 1 : 0;
  }
  return any != 0;
}

// Whether a box of the list, added in round `round` or later, suppresses the candidate.
template <class T>
inline bool is_suppressed(const KeptList<T>& list, const NmsCandidate<T>& c, T bound, int round) {
  for (const KeptBlock<T>* block = list.newest; block != nullptr && block->round >= round;
       block = block->next) {
    if (RCNN_UNLIKELY(may_suppress(*block, c)) && any_suppresses(*block, c, bound)) return true;
  }
  return false;
}

// NMS of one segment, with all kept boxes in one list. order: from rank by score to index; sets
// keep[r] for the box order[r].
template <class T, class Stored>
void suppress_with_list(const Stored* boxes, const uint32_t* order, int64_t count,
                        const SuppressionRule<T>& rule, KeptBlockArena& arena, char* keep) {
  KeptList<T> kept;
  for (int64_t rank = 0; rank < count; ++rank) {
    const NmsCandidate<T> c = load_and_prefetch(boxes, order, rank, count, rule);
    if (!c.has_area) {
      keep[rank] = is_finite(c.box);
      continue;
    }
    keep[rank] = !is_suppressed(kept, c, rule.bound, 0);
    if (keep[rank]) kept.add(c.box, c.limit, arena);
  }
}

// NMS of one segment with a negative threshold, where boxes suppress each other without overlap.
template <class T, class Stored>
void suppress_with_exact_tests(const Stored* boxes, const uint32_t* order, int64_t count,
                               const SuppressionRule<T>& rule, KeptBlockArena& arena, char* keep) {
  KeptList<T> kept;
  for (int64_t rank = 0; rank < count; ++rank) {
    NmsCandidate<T> c;
    c.box = load_box<T>(boxes + 4 * int64_t{order[rank]});
    c.area = area(c.box);
    bool suppressed = !is_finite(c.box);
    for (const KeptBlock<T>* block = kept.newest; block != nullptr && !suppressed;
         block = block->next) {
      suppressed = any_suppresses(*block, c, rule.bound);
    }
    keep[rank] = !suppressed;
    if (keep[rank]) kept.add(c.box, T(0), arena);
  }
}

template <class T>
inline bool is_suppressed(KeptGrid<T>& grid, const KeptBlockArena& arena, const NmsCandidate<T>& c,
                          T bound, int round) {
  if (RCNN_UNLIKELY(!c.in_grid_range)) {
    return arena.any<KeptBlock<T>>([&](const KeptBlock<T>& block) {
      return may_suppress(block, c) && any_suppresses(block, c, bound);
    });
  }
  if (is_suppressed(grid.overflow, c, bound, round)) return true;
  const T sum_x = c.box.x1 + c.box.x2;
  const T sum_y = c.box.y1 + c.box.y2;
  for (int level = 0; grid.levels_in_use >> level; ++level) {
    if (!(grid.levels_in_use >> level & 1)) continue;
    const int x = grid.cell(sum_x, grid.cells_per_unit_x[level]);
    const int y = grid.cell(sum_y, grid.cells_per_unit_y[level]);
    if (is_suppressed(grid.bucket(level, x, y), c, bound, round)) return true;
  }
  return false;
}

// An upper bound of how far from low + high the sum of the coordinates of a box can be that the
// kept box suppresses. The last term covers the rounding of low + high, which is at most u of it,
// and of the differences and sums with the result.
template <class T>
inline T suppression_radius_of(T low, T high, const SuppressionRule<T>& rule) {
  const T sum = low + high;
  return (high - low) * rule.suppression_radius +
         maximum(sum, -sum) * (8 * SuppressionRule<T>::kUnitRoundoff);
}

template <class T>
inline void insert(KeptGrid<T>& grid, KeptBlockArena& arena, const NmsCandidate<T>& c,
                   const SuppressionRule<T>& rule, int round) {
  if (c.in_grid_range) {
    const T sum_x = c.box.x1 + c.box.x2;
    const T sum_y = c.box.y1 + c.box.y2;
    const T radius_x = suppression_radius_of(c.box.x1, c.box.x2, rule);
    const T radius_y = suppression_radius_of(c.box.y1, c.box.y2, rule);
    for (int level = 0; level < KeptGrid<T>::kLevels; ++level) {
      const int first_x = grid.cell(sum_x - radius_x, grid.cells_per_unit_x[level]);
      const int last_x = grid.cell(sum_x + radius_x, grid.cells_per_unit_x[level]);
      const int first_y = grid.cell(sum_y - radius_y, grid.cells_per_unit_y[level]);
      const int last_y = grid.cell(sum_y + radius_y, grid.cells_per_unit_y[level]);
      const int64_t cell_count =
          static_cast<int64_t>(last_x - first_x + 1) * static_cast<int64_t>(last_y - first_y + 1);
      if (cell_count > KeptGrid<T>::kMaxCellsPerBox) continue;
      grid.levels_in_use |= 1u << level;
      for (int y = first_y; y <= last_y; ++y) {
        for (int x = first_x; x <= last_x; ++x) {
          grid.bucket(level, x, y).add(c.box, c.limit, arena, round);
        }
      }
      return;
    }
  }
  grid.overflow.add(c.box, c.limit, arena, round);
}

// NMS of one segment, with the kept boxes in a grid.
template <class T, class Stored>
void suppress_with_grid(const Stored* boxes, const uint32_t* order, int64_t count,
                        const SuppressionRule<T>& rule, KeptGrid<T>& grid, KeptBlockArena& arena,
                        char* keep) {
  for (int64_t rank = 0; rank < count; ++rank) {
    const NmsCandidate<T> c = load_and_prefetch(boxes, order, rank, count, rule);
    if (!c.has_area) {
      keep[rank] = is_finite(c.box);
      continue;
    }
    keep[rank] = !is_suppressed(grid, arena, c, rule.bound, 0);
    if (keep[rank]) insert(grid, arena, c, rule, 0);
  }
}

// First step of a round of parallel NMS, which threads share: keep the boxes of ranks [begin, end)
// that no box of the grid suppresses.
template <class T, class Stored>
void filter_against_grid(const Stored* boxes, const uint32_t* order, int64_t begin, int64_t end,
                         const SuppressionRule<T>& rule, KeptGrid<T>& grid,
                         const KeptBlockArena& arena, char* keep) {
  for (int64_t rank = begin; rank < end; ++rank) {
    const NmsCandidate<T> c = load_and_prefetch(boxes, order, rank, end, rule);
    keep[rank] = c.has_area ? !is_suppressed(grid, arena, c, rule.bound, 0) : is_finite(c.box);
  }
}

// Second step of a round, on one thread: NMS among the boxes that the first step kept. They are
// compared only with boxes that this round has inserted into the grid.
template <class T, class Stored>
void resolve_within_round(const Stored* boxes, const uint32_t* order, int64_t begin, int64_t end,
                          const SuppressionRule<T>& rule, KeptGrid<T>& grid, KeptBlockArena& arena,
                          int round, char* keep) {
  for (int64_t rank = begin; rank < end; ++rank) {
    if (!keep[rank]) continue;
    const NmsCandidate<T> c = load_candidate(boxes + 4 * int64_t{order[rank]}, rule);
    if (!c.has_area) continue;
    keep[rank] = !is_suppressed(grid, arena, c, rule.bound, round);
    if (keep[rank]) insert(grid, arena, c, rule, round);
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_NMS_NMS_CPU_INL_H_
