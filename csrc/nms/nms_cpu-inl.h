// Suppression among sorted boxes, compiled once per instruction set (foreach_target.h). Why the
// shortcuts are right: nms_grid_cpu.h.
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

template <class T>
struct Candidate {
  Box<T> box;
  T area;
  T limit;
  bool takes_part;
  bool safe;
};

template <class T, class Stored>
inline Candidate<T> load_candidate(const Stored* coordinates, const SuppressionRule<T>& rule) {
  using Rule = SuppressionRule<T>;
  Candidate<T> c;
  c.box = load_box<T>(coordinates);
  c.area = area(c.box);
  c.limit = rule.limit_of(c.area);
  c.takes_part = c.box.x1 < c.box.x2 && c.box.y1 < c.box.y2 && c.area > T(0) &&
                 c.area <= std::numeric_limits<T>::max();
  c.safe = c.area >= Rule::kSmallest && c.box.x1 >= -Rule::kFarthest &&
           c.box.y1 >= -Rule::kFarthest && c.box.x2 <= Rule::kFarthest &&
           c.box.y2 <= Rule::kFarthest;
  return c;
}

// The candidate order[rank]. One that comes later is fetched meanwhile: indices by score lead all
// over the boxes, and the branches between, which nobody foresees, keep the processor from running
// ahead to them by itself.
template <class T, class Stored>
inline Candidate<T> take_candidate(const Stored* boxes, const uint32_t* order, int64_t rank,
                                   int64_t end, const SuppressionRule<T>& rule) {
  constexpr int64_t kAhead = 16;
  if (rank + kAhead < end) prefetch(boxes + 4 * int64_t{order[rank + kAhead]});
  return load_candidate(boxes + 4 * int64_t{order[rank]}, rule);
}

// Whether the filter passes for a box of the block. Where a width is negative the product is at
// most 0 or, with a negative height, positive: one of the two has to be clamped.
template <class T>
inline bool may_suppress(const Block<T>& kept, const Candidate<T>& c) {
  int hits = 0;
  for (int k = 0; k < kLanes; ++k) {
    const T width = minimum(kept.x2[k], c.box.x2) - maximum(kept.x1[k], c.box.x1);
    const T height = minimum(kept.y2[k], c.box.y2) - maximum(kept.y1[k], c.box.y1);
    hits |= clamp_min_zero(width) * height >= kept.limit[k] + c.limit ? 1 : 0;
  }
  return hits != 0;
}

// The same in registers: GCC's reduction of the comparison costs as much as the arithmetic.
#if RCNN_ISA == 2
inline bool may_suppress(const Block<float>& kept, const Candidate<float>& c) {
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
inline bool may_suppress(const Block<float>& kept, const Candidate<float>& c) {
  __m256 hits = _mm256_setzero_ps();
  for (int k = 0; k < kLanes; k += 8) {
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
inline bool does_suppress(const Block<T>& block, const Candidate<T>& c, T bound) {
  int hits = 0;
  for (int k = 0; k < kLanes; ++k) {
    const Box<T> kept{block.x1[k], block.y1[k], block.x2[k], block.y2[k]};
    hits |= suppresses(kept, area(kept), c.box, c.area, bound) ? 1 : 0;
  }
  return hits != 0;
}

// Whether a box of the list, added in this round or later, suppresses the candidate.
template <class T>
inline bool is_suppressed(const BlockList<T>& list, const Candidate<T>& c, T bound, int round) {
  for (const Block<T>* block = list.newest; block != nullptr && block->round >= round;
       block = block->next) {
    if (RCNN_UNLIKELY(may_suppress(*block, c)) && does_suppress(*block, c, bound)) return true;
  }
  return false;
}

// keep[r] for the box order[r] of one segment; `order` is that of score. All kept boxes are in one
// list.
template <class T, class Stored>
void suppress_with_list(const Stored* boxes, const uint32_t* order, int64_t count,
                        const SuppressionRule<T>& rule, BlockPool& pool, char* keep) {
  BlockList<T> kept;
  for (int64_t rank = 0; rank < count; ++rank) {
    const Candidate<T> c = take_candidate(boxes, order, rank, count, rule);
    if (!c.takes_part) {
      keep[rank] = is_finite(c.box);
      continue;
    }
    keep[rank] = !is_suppressed(kept, c, rule.bound, 0);
    if (keep[rank]) kept.add(c.box, c.limit, pool);
  }
}

// The same where the threshold is negative: boxes apart suppress each other.
template <class T, class Stored>
void suppress_exactly(const Stored* boxes, const uint32_t* order, int64_t count,
                      const SuppressionRule<T>& rule, BlockPool& pool, char* keep) {
  BlockList<T> kept;
  for (int64_t rank = 0; rank < count; ++rank) {
    Candidate<T> c;
    c.box = load_box<T>(boxes + 4 * int64_t{order[rank]});
    c.area = area(c.box);
    bool suppressed = !is_finite(c.box);
    for (const Block<T>* block = kept.newest; block != nullptr && !suppressed;
         block = block->next) {
      suppressed = does_suppress(*block, c, rule.bound);
    }
    keep[rank] = !suppressed;
    if (keep[rank]) kept.add(c.box, T(0), pool);
  }
}

template <class T>
inline bool is_suppressed(Grid<T>& grid, const BlockPool& pool, const Candidate<T>& c, T bound,
                          int round) {
  if (RCNN_UNLIKELY(!c.safe)) {
    return pool.any<Block<T>>([&](const Block<T>& block) {
      return may_suppress(block, c) && does_suppress(block, c, bound);
    });
  }
  if (is_suppressed(grid.everywhere, c, bound, round)) return true;
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

// What the reach of a kept box along an axis is at least, in sums of two coordinates: it covers the
// rounding of low + high, which is at most u of it, and of what is subtracted from and added to it.
template <class T>
inline T reach_of(T low, T high, const SuppressionRule<T>& rule) {
  const T sum = low + high;
  return (high - low) * rule.reach + maximum(sum, -sum) * (8 * SuppressionRule<T>::kUlp);
}

template <class T>
inline void enter(Grid<T>& grid, BlockPool& pool, const Candidate<T>& c,
                  const SuppressionRule<T>& rule, int round) {
  if (c.safe) {
    const T sum_x = c.box.x1 + c.box.x2;
    const T sum_y = c.box.y1 + c.box.y2;
    const T reach_x = reach_of(c.box.x1, c.box.x2, rule);
    const T reach_y = reach_of(c.box.y1, c.box.y2, rule);
    for (int level = 0; level < Grid<T>::kLevels; ++level) {
      const int first_x = grid.cell(sum_x - reach_x, grid.cells_per_unit_x[level]);
      const int last_x = grid.cell(sum_x + reach_x, grid.cells_per_unit_x[level]);
      const int first_y = grid.cell(sum_y - reach_y, grid.cells_per_unit_y[level]);
      const int last_y = grid.cell(sum_y + reach_y, grid.cells_per_unit_y[level]);
      const int64_t cells =
          static_cast<int64_t>(last_x - first_x + 1) * static_cast<int64_t>(last_y - first_y + 1);
      if (cells > Grid<T>::kMostCells) continue;
      grid.levels_in_use |= 1u << level;
      for (int y = first_y; y <= last_y; ++y) {
        for (int x = first_x; x <= last_x; ++x) {
          grid.bucket(level, x, y).add(c.box, c.limit, pool, round);
        }
      }
      return;
    }
  }
  grid.everywhere.add(c.box, c.limit, pool, round);
}

// suppress_with_list, with the kept boxes in a grid.
template <class T, class Stored>
void suppress_with_grid(const Stored* boxes, const uint32_t* order, int64_t count,
                        const SuppressionRule<T>& rule, Grid<T>& grid, BlockPool& pool,
                        char* keep) {
  for (int64_t rank = 0; rank < count; ++rank) {
    const Candidate<T> c = take_candidate(boxes, order, rank, count, rule);
    if (!c.takes_part) {
      keep[rank] = is_finite(c.box);
      continue;
    }
    keep[rank] = !is_suppressed(grid, pool, c, rule.bound, 0);
    if (keep[rank]) enter(grid, pool, c, rule, 0);
  }
}

// The same in two steps, of which the first can be shared by threads. First: which of the boxes of
// ranks [begin, end) no box of the grid suppresses.
template <class T, class Stored>
void survive_grid(const Stored* boxes, const uint32_t* order, int64_t begin, int64_t end,
                  const SuppressionRule<T>& rule, Grid<T>& grid, const BlockPool& pool,
                  char* keep) {
  for (int64_t rank = begin; rank < end; ++rank) {
    const Candidate<T> c = take_candidate(boxes, order, rank, end, rule);
    keep[rank] = c.takes_part ? !is_suppressed(grid, pool, c, rule.bound, 0) : is_finite(c.box);
  }
}

// Second: those that survived, among each other. The boxes kept enter the grid in this round, and
// the blocks of the round are all that is looked into.
template <class T, class Stored>
void resolve_survivors(const Stored* boxes, const uint32_t* order, int64_t begin, int64_t end,
                       const SuppressionRule<T>& rule, Grid<T>& grid, BlockPool& pool, int round,
                       char* keep) {
  for (int64_t rank = begin; rank < end; ++rank) {
    if (!keep[rank]) continue;
    const Candidate<T> c = load_candidate(boxes + 4 * int64_t{order[rank]}, rule);
    if (!c.takes_part) continue;
    keep[rank] = !is_suppressed(grid, pool, c, rule.bound, round);
    if (keep[rank]) enter(grid, pool, c, rule, round);
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_NMS_NMS_CPU_INL_H_
