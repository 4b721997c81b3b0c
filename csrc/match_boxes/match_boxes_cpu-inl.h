// The loops of match_boxes_cpu.cpp, compiled once per instruction set (foreach_target.h).
#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "../core/box_math.h"
#include "../cpu/intrinsics.h"
#include "../cpu/targets.h"
#include "match_boxes_ground_truth_cpu.h"
#include "match_boxes_work_cpu.h"

#if defined(RCNN_MATCH_BOXES_MATCH_BOXES_CPU_INL_H_) == defined(RCNN_TARGET_TOGGLE)
#ifdef RCNN_MATCH_BOXES_MATCH_BOXES_CPU_INL_H_
#undef RCNN_MATCH_BOXES_MATCH_BOXES_CPU_INL_H_
#else
#define RCNN_MATCH_BOXES_MATCH_BOXES_CPU_INL_H_
#endif

#include "../cpu/simd-inl.h"
#include "match_boxes_blocks_cpu-inl.h"

RCNN_BEFORE_NAMESPACE();
namespace rcnn_ext {
namespace {
namespace RCNN_NAMESPACE {

// Whether one of kCount numbers is at least `bar`, or NaN, or `bar` is.
template <int kCount, class Iou>
inline bool reaches(const Iou* numbers, Iou bar) {
  // Written out since compilers go from a vector of comparisons to one bit in many steps.
#if RCNN_ISA >= 1
  if constexpr (std::is_same_v<Iou, float> && kCount == 8) {
    return _mm256_movemask_ps(
               _mm256_cmp_ps(_mm256_loadu_ps(numbers), _mm256_set1_ps(bar), _CMP_NLT_UQ)) != 0;
  }
#endif
#if RCNN_ISA >= 2
  if constexpr (std::is_same_v<Iou, float> && kCount == 16) {
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(numbers), _mm512_set1_ps(bar), _CMP_NLT_UQ) != 0;
  }
#endif
  bool reached = false;
  for (int k = 0; k < kCount; ++k) reached |= !(numbers[k] < bar);
  return reached;
}

inline int lowest_bit(uint32_t bits) {
#if defined(__GNUC__)
  return __builtin_ctz(bits);
#else
  int k = 0;
  while (!(bits >> k & 1)) ++k;
  return k;
#endif
}

// Raises the best IoUs of the boxes of a block to those with a ground truth; returns the best of
// these, or -infinity if that is below `bar`. Only of the groups of boxes that have a bit in
// `groups`: those without do not overlap it. Boxes and ground truth are regular, the latter's
// coordinates without a sign bit if kUnsigned. An IoU of no more than 0 counts as 0.
template <bool kUnsigned, class T, class Iou>
inline Iou compete_regular(const Box<T>& gt, T gt_area, uint32_t groups, Block<T, Iou>& block,
                           Iou bar) {
  constexpr int kN = kLanes<T> < kGroup ? kLanes<T> : kGroup;
  using P = Vec<T, kN>;
  const auto later = [](const P& a, const P& b) {
    return kUnsigned ? MaxBits<kN, T>(a, b) : Max<kN, T>(a, b);
  };
  const auto earlier = [](const P& a, const P& b) {
    return kUnsigned ? MinBits<kN, T>(a, b) : Min<kN, T>(a, b);
  };
  const P x1 = Set<kN>(gt.x1), y1 = Set<kN>(gt.y1);
  const P x2 = Set<kN>(gt.x2), y2 = Set<kN>(gt.y2), of_gt = Set<kN>(gt_area);
  P peak = {};
  for (; groups != 0; groups &= groups - 1) {
    const int first = kGroup * lowest_bit(groups);
    for (int k = first; k < first + kGroup; k += kN) {
      const P between =
          earlier(load<T, kN>(block.x2 + k), x2) - later(load<T, kN>(block.x1 + k), x1);
      const P width = MaxBits<kN, T>(between, P{});
      // Below 0 if they do not overlap, and so the IoU: one of the two at least 0 is enough.
      const P height =
          earlier(load<T, kN>(block.y2 + k), y2) - later(load<T, kN>(block.y1 + k), y1);
      const P intersection = width * height;
      const P iou = intersection / (of_gt + load<T, kN>(block.area + k) - intersection);
      store<kN, T>(block.best + k, MaxBits<kN, T>(iou, load<T, kN>(block.best + k)));
      peak = MaxBits<kN, T>(iou, peak);
    }
  }
  Iou peaks[kN];
  store<kN, T>(peaks, peak);
  if (!reaches<kN>(peaks, bar)) return -kInfinity<Iou>;
  return static_cast<Iou>(greatest_of<kN, T>(peak));
}

// The same for boxes and ground truth of any kind: the IoU is what torchvision makes of them.
template <class T, class Iou>
inline Iou compete_irregular(const Box<T>& gt, T gt_area, Block<T, Iou>& block, Iou bar) {
  const auto better = [](Iou a, Iou b) { return is_better(a, b) ? a : b; };
  Iou peaks[kLanes<Iou>];
  for (int k = 0; k < kLanes<Iou>; ++k) peaks[k] = -kInfinity<Iou>;
  for (int first = 0; first < kBlock; first += kLanes<Iou>) {
    for (int k = 0; k < kLanes<Iou>; ++k) {
      const int i = first + k;
      const Iou iou = static_cast<Iou>(iou_with_areas(gt, gt_area, block.box(i), block.area[i]));
      block.best[i] = better(iou, block.best[i]);
      peaks[k] = better(iou, peaks[k]);
    }
  }
  if (!reaches<kLanes<Iou>>(peaks, bar)) return -kInfinity<Iou>;
  return std::accumulate(peaks, peaks + kLanes<Iou>, -kInfinity<Iou>, better);
}

// Whether a regular ground truth may overlap boxes within bounds; if not, their IoUs are 0.
template <class T>
inline bool touches(const Box<T>& gt, const Box<T>& bounds) {
  return (gt.x2 > bounds.x1) & (gt.x1 < bounds.x2) & (gt.y2 > bounds.y1) & (gt.y1 < bounds.y2);
}

// Bit k: whether flags[k], all bits or none, is set.
inline uint32_t bits_of(const int32_t (&flags)[kGtBlock]) {
#if RCNN_ISA == 2
  const __m512i all = _mm512_loadu_si512(flags);
  return _mm512_test_epi32_mask(all, all);
#elif RCNN_ISA == 1
  const __m256 lower =
      _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(flags)));
  const __m256 upper =
      _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(flags + 8)));
  return _mm256_movemask_ps(lower) | _mm256_movemask_ps(upper) << 8;
#else
  uint32_t bits = 0;
  for (int k = 0; k < kGtBlock; ++k) bits |= static_cast<uint32_t>(flags[k] & 1) << k;
  return bits;
#endif
}

// The first ground truth with which a box has its best IoU. There is one, unless that is a
// subnormal number which this thread, unlike the one that found it, flushes to 0.
template <class T, class Iou>
inline int32_t index_of(Iou best, const Box<T>& box, T box_area, const GroundTruth<T>& gts) {
  for (int64_t first = 0; first < gts.count; first += kGtBlock) {
    int32_t found[kGtBlock];
    for (int k = 0; k < kGtBlock; ++k) {
      const int64_t g = first + k;
      const Iou iou = static_cast<Iou>(iou_with_areas(gts.box(g), gts.area[g], box, box_area));
      found[k] = -static_cast<int32_t>((iou == best) | ((iou != iou) & (best != best)));
    }
    const uint32_t bits = bits_of(found);
    if (bits != 0) return static_cast<int32_t>(first) + lowest_bit(bits);
  }
  return 0;
}

// A ground truth that may overlap boxes of a block, and the groups that these are in.
struct Near {
  int32_t gt;
  uint32_t groups;
};

// Finds the regular ground truths that may overlap boxes within bounds, in any group. Returns their
// number.
template <class T>
inline int32_t find_near(const GroundTruth<T>& gts, const Box<T>& bounds, std::vector<Near>& near) {
  int32_t count = 0;
  for (int64_t first = 0; first < gts.count; first += kGtBlock) {
    int32_t found[kGtBlock];
    for (int k = 0; k < kGtBlock; ++k) {
      found[k] = -static_cast<int32_t>(touches(gts.box(first + k), bounds));
    }
    uint32_t bits = bits_of(found);
    if (gts.count - first < kGtBlock) bits &= (1u << (gts.count - first)) - 1;
    // Mostly few.
    for (; bits != 0; bits &= bits - 1) {
      near[count++] = {static_cast<int32_t>(first) + lowest_bit(bits), ~uint32_t{0}};
    }
  }
  return count;
}

// All boxes with IoU `best`.
template <class T, class Iou>
inline void start(Block<T, Iou>& block, Iou best) {
  constexpr int kN = kLanes<Iou>;
  for (int k = 0; k < kBlock; k += kN) store<kN, Iou>(block.best + k, Set<kN>(best));
}

// Regular boxes and ground truth.
template <bool kLowQuality, class T, class Iou>
inline void match_regular(const GroundTruth<T>& gts, int64_t number, Block<T, Iou>& block,
                          BestPerGroundTruth<Iou>& of_gts, std::vector<Near>& near) {
  start(block, Iou(0));
  const int32_t count = find_near(gts, block.bounds, near);
  block.overlapped = count > 0;
  if (count >= kCellsFrom) {
    fill_cells(gts, block);
    // All before the first is made use of: the end of the loop over groups is seldom foreseen, and
    // to wait for them each time would take as long as they save.
    for (int32_t n = 0; n < count; ++n) near[n].groups = groups_near(gts, near[n].gt, block);
  }
  for (int32_t n = 0; n < count; ++n) {
    const int32_t g = near[n].gt;
    // An IoU of 0 claims no box here: BestPerGroundTruth::zero does.
    const Iou bar = kLowQuality ? maximum(of_gts.best[g], std::numeric_limits<Iou>::denorm_min())
                                : kInfinity<Iou>;
    const Box<T> gt = gts.box(g);
    const Iou peak = gts.has_sign[g]
                         ? compete_regular<false>(gt, gts.area[g], near[n].groups, block, bar)
                         : compete_regular<true>(gt, gts.area[g], near[n].groups, block, bar);
    if (kLowQuality && RCNN_UNLIKELY(peak >= bar)) of_gts.add(g, number, peak);
  }
}

template <bool kLowQuality, class T, class Iou>
inline void match_irregular(const GroundTruth<T>& gts, int64_t number, Block<T, Iou>& block,
                            BestPerGroundTruth<Iou>& of_gts) {
  start(block, -kInfinity<Iou>);
  block.overlapped = true;
  for (int32_t g = 0; g < gts.count; ++g) {
    const Iou bar = kLowQuality ? of_gts.best[g] : kInfinity<Iou>;
    const Iou peak = compete_irregular(gts.box(g), gts.area[g], block, bar);
    if (kLowQuality && !(peak < bar)) of_gts.add(g, number, peak);
  }
}

// The results of the first `count` boxes of a block, but 0 for the index of a ground truth.
template <class T, class Iou>
inline void judge(const Block<T, Iou>& block, const MatchThresholds<Iou>& thresholds, int count,
                  int64_t* __restrict matches, Iou* __restrict best) {
  for (int k = 0; k < count; ++k) {
    best[k] = block.best[k];
    matches[k] = thresholds.label(block.best[k]);
  }
}

// The results of a block whose best IoUs are known. matches, best: [count]
template <class T, class Iou>
inline void match(const Block<T, Iou>& block, const GroundTruth<T>& gts,
                  const MatchThresholds<Iou>& thresholds, int64_t* __restrict matches,
                  Iou* __restrict best) {
  if (!block.overlapped) {
    std::fill_n(matches, block.count, thresholds.label(Iou(0)));
    std::fill_n(best, block.count, Iou(0));
    return;
  }
  if (block.count == kBlock) {
    judge(block, thresholds, kBlock, matches, best);
  } else {
    judge(block, thresholds, block.count, matches, best);
  }
  // Looking for a ground truth once more where it counts costs less than to keep track of them all.
  constexpr int kN = kLanes<Iou>;
  for (int first = 0; first < block.count; first += kN) {
    if (!reaches<kN>(block.best + first, thresholds.high)) continue;
    for (int k = first; k < std::min(first + kN, block.count); ++k) {
      if (block.best[k] < thresholds.high) continue;
      matches[k] = index_of(block.best[k], block.box(k), block.area[k], gts);
    }
  }
}

// Matches the boxes in the blocks [begin, end) of an image. With kLowQuality, of_gts learns of the
// best boxes of each ground truth, which are left to claim_blocks().
template <bool kLowQuality, class Stored>
void match_blocks(const MatchTask<Stored>& task, const ImageWork<Stored>& work, int64_t begin,
                  int64_t end, BestPerGroundTruth<MatchIou_t<Stored>>& of_gts) {
  using T = accumulate_t<Stored>;
  using Iou = MatchIou_t<Stored>;
  std::vector<Near> near(work.gts.count + kGtBlock);
  Block<T, Iou> block;
  for (int64_t number = begin; number < end; ++number) {
    load_block(task.boxes, work.image, number, block);
    if (block.regular && work.gts.regular) {
      match_regular<kLowQuality>(work.gts, number, block, of_gts, near);
      of_gts.any_regular = true;
    } else {
      match_irregular<kLowQuality>(work.gts, number, block, of_gts);
    }
    const int64_t result = work.image.first_result + number * kBlock;
    match(block, work.gts, task.thresholds, task.matches + result, task.best + result);
  }
}

// Which boxes of a block a ground truth overlaps best: all bits of hits [kBlock].
template <class T, class Iou>
inline void claim(const Box<T>& gt, T gt_area, Iou best, const Block<T, Iou>& block,
                  int32_t* __restrict hits) {
  for (int k = 0; k < kBlock; ++k) {
    const Iou iou = static_cast<Iou>(iou_with_areas(gt, gt_area, block.box(k), block.area[k]));
    hits[k] |= -static_cast<int32_t>(iou == best);
  }
}

// Matches the boxes that a ground truth overlaps best, in the blocks [begin, end) of an image,
// whatever their IoU, which is known.
template <class Stored>
void claim_blocks(const MatchTask<Stored>& task, const ImageWork<Stored>& work, int64_t begin,
                  int64_t end) {
  using T = accumulate_t<Stored>;
  using Iou = MatchIou_t<Stored>;
  const GroundTruth<T>& gts = work.gts;
  const BestPerGroundTruth<Iou>& peaks = work.peaks;
  const bool all = peaks.zero || !peaks.anywhere.empty();
  Block<T, Iou> block;
  alignas(64) int32_t hits[kBlock];
  auto next =
      std::lower_bound(peaks.claims.begin(), peaks.claims.end(), begin,
                       [](const Claim& claim, int64_t block) { return claim.block < block; });
  for (int64_t number = begin;; ++number) {
    if (!all) number = next != peaks.claims.end() ? next->block : end;
    if (number >= end) return;
    load_block(task.boxes, work.image, number, block);
    const bool regular = block.regular && gts.regular;
    std::fill_n(hits, kBlock, regular && peaks.zero ? -1 : 0);
    for (const int32_t g : peaks.anywhere) {
      if (regular && peaks.best[g] > 0 && !touches(gts.box(g), block.bounds)) continue;
      claim(gts.box(g), gts.area[g], peaks.best[g], block, hits);
    }
    for (; next != peaks.claims.end() && next->block == number; ++next) {
      claim(gts.box(next->gt), gts.area[next->gt], peaks.best[next->gt], block, hits);
    }
    const int64_t result = work.image.first_result + number * kBlock;
    for (int k = 0; k < block.count; ++k) {
      if (!hits[k]) continue;
      const Iou best = task.best[result + k];
      // No IoU is below 0: where the best is 0 they all are, as with many boxes that overlap
      // nothing.
      const int32_t found = best == 0 ? 0 : index_of(best, block.box(k), block.area[k], gts);
      task.matches[result + k] = found;
    }
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_MATCH_BOXES_MATCH_BOXES_CPU_INL_H_
