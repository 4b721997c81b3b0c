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

// Whether any of kCount values is not below the threshold: at least as high, or either is NaN.
template <int kCount, class Iou>
inline bool any_at_least(const Iou* values, Iou threshold) {
  // Intrinsics, since compilers reduce a vector of comparisons to one bit in many steps.
#if RCNN_ISA >= 1
  if constexpr (std::is_same_v<Iou, float> && kCount == 8) {
    return _mm256_movemask_ps(
               _mm256_cmp_ps(_mm256_loadu_ps(values), _mm256_set1_ps(threshold), _CMP_NLT_UQ)) != 0;
  }
#endif
#if RCNN_ISA >= 2
  if constexpr (std::is_same_v<Iou, float> && kCount == 16) {
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(values), _mm512_set1_ps(threshold), _CMP_NLT_UQ) != 0;
  }
#endif
  bool any = false;
  for (int k = 0; k < kCount; ++k) any |= !(values[k] < threshold);
  return any;
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

// Compare the boxes of a block with a ground truth and update their best IoUs. Return the best IoU
// of the ground truth in this block, or -infinity if it is below `threshold`. Groups of boxes
// without a bit in `groups` do not overlap it and are skipped. Boxes and ground truth must be
// well-conditioned, and with kUnsigned no coordinate of the ground truth may have its sign bit set.
// A negative IoU counts as 0.
template <bool kUnsigned, class T, class Iou>
inline Iou update_best_well_conditioned(const Box<T>& gt, T gt_area, uint32_t groups,
                                        BoxBlock<T, Iou>& block, Iou threshold) {
  constexpr int kN = kLanes<T> < kBoxesPerGroup ? kLanes<T> : kBoxesPerGroup;
  using V = Vec<T, kN>;
  const auto max_of = [](const V& a, const V& b) {
    return kUnsigned ? MaxBits<kN, T>(a, b) : Max<kN, T>(a, b);
  };
  const auto min_of = [](const V& a, const V& b) {
    return kUnsigned ? MinBits<kN, T>(a, b) : Min<kN, T>(a, b);
  };
  const V x1 = Set<kN>(gt.x1), y1 = Set<kN>(gt.y1);
  const V x2 = Set<kN>(gt.x2), y2 = Set<kN>(gt.y2), of_gt = Set<kN>(gt_area);
  V gt_best = {};
  for (; groups != 0; groups &= groups - 1) {
    const int first = kBoxesPerGroup * lowest_bit(groups);
    for (int k = first; k < first + kBoxesPerGroup; k += kN) {
      const V between =
          min_of(LoadU<T, kN>(block.x2 + k), x2) - max_of(LoadU<T, kN>(block.x1 + k), x1);
      const V width = MaxBits<kN, T>(between, V{});
      // The height, and with it the IoU, is negative where they do not overlap: clamping the width
      // alone is enough.
      const V height =
          min_of(LoadU<T, kN>(block.y2 + k), y2) - max_of(LoadU<T, kN>(block.y1 + k), y1);
      const V intersection = width * height;
      const V iou = intersection / (of_gt + LoadU<T, kN>(block.area + k) - intersection);
      StoreU<kN, T>(block.best + k, MaxBits<kN, T>(iou, LoadU<T, kN>(block.best + k)));
      gt_best = MaxBits<kN, T>(iou, gt_best);
    }
  }
  Iou lanes[kN];
  StoreU<kN, T>(lanes, gt_best);
  if (!any_at_least<kN>(lanes, threshold)) return -kInfinity<Iou>;
  return static_cast<Iou>(max_lane<kN, T>(gt_best));
}

// update_best_well_conditioned() for any boxes and ground truth, with the IoUs that torchvision
// gives for empty, inverted, infinite and NaN ones.
template <class T, class Iou>
inline Iou update_best(const Box<T>& gt, T gt_area, BoxBlock<T, Iou>& block, Iou threshold) {
  const auto better = [](Iou a, Iou b) { return is_better(a, b) ? a : b; };
  Iou lane_best[kLanes<Iou>];
  for (int k = 0; k < kLanes<Iou>; ++k) lane_best[k] = -kInfinity<Iou>;
  for (int first = 0; first < kBoxesPerBlock; first += kLanes<Iou>) {
    for (int k = 0; k < kLanes<Iou>; ++k) {
      const int i = first + k;
      const Iou iou = static_cast<Iou>(iou_with_areas(gt, gt_area, block.box(i), block.area[i]));
      block.best[i] = better(iou, block.best[i]);
      lane_best[k] = better(iou, lane_best[k]);
    }
  }
  if (!any_at_least<kLanes<Iou>>(lane_best, threshold)) return -kInfinity<Iou>;
  return std::accumulate(lane_best, lane_best + kLanes<Iou>, -kInfinity<Iou>, better);
}

// Whether a well-conditioned ground truth may overlap boxes within bounds; if not, their IoUs are
// 0.
template <class T>
inline bool may_overlap(const Box<T>& gt, const Box<T>& bounds) {
  return (gt.x2 > bounds.x1) & (gt.x1 < bounds.x2) & (gt.y2 > bounds.y1) & (gt.y1 < bounds.y2);
}

// Bit k of the result: flags[k], which must have all bits set or none.
inline uint32_t bits_of(const int32_t (&flags)[kGtsPerBlock]) {
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
  for (int k = 0; k < kGtsPerBlock; ++k) bits |= static_cast<uint32_t>(flags[k] & 1) << k;
  return bits;
#endif
}

// The first ground truth with which a box has its best IoU. There is one, unless the IoU is
// subnormal and this thread, unlike the one that computed it, flushes subnormal numbers to 0.
template <class T, class Iou>
inline int32_t find_best_gt(Iou best, const Box<T>& box, T box_area, const GroundTruth<T>& gts) {
  for (int64_t first = 0; first < gts.count; first += kGtsPerBlock) {
    int32_t found[kGtsPerBlock];
    for (int k = 0; k < kGtsPerBlock; ++k) {
      const int64_t g = first + k;
      const Iou iou = static_cast<Iou>(iou_with_areas(gts.box(g), gts.area[g], box, box_area));
      found[k] = -static_cast<int32_t>((iou == best) | ((iou != iou) & (best != best)));
    }
    const uint32_t bits = bits_of(found);
    if (bits != 0) return static_cast<int32_t>(first) + lowest_bit(bits);
  }
  return 0;
}

// A ground truth that may overlap boxes of a block, and the groups of those boxes, one bit each.
struct CandidateGt {
  int32_t gt;
  uint32_t groups;
};

// Collect the well-conditioned ground truths that may overlap boxes within bounds, with all groups.
// Return their count.
template <class T>
inline int32_t find_candidates(const GroundTruth<T>& gts, const Box<T>& bounds,
                               std::vector<CandidateGt>& candidates) {
  int32_t count = 0;
  for (int64_t first = 0; first < gts.count; first += kGtsPerBlock) {
    int32_t found[kGtsPerBlock];
    for (int k = 0; k < kGtsPerBlock; ++k) {
      found[k] = -static_cast<int32_t>(may_overlap(gts.box(first + k), bounds));
    }
    uint32_t bits = bits_of(found);
    if (gts.count - first < kGtsPerBlock) bits &= (1u << (gts.count - first)) - 1;
    for (; bits != 0; bits &= bits - 1) {
      candidates[count++] = {static_cast<int32_t>(first) + lowest_bit(bits), ~uint32_t{0}};
    }
  }
  return count;
}

// Set the best IoU of all boxes of a block.
template <class T, class Iou>
inline void fill_best(BoxBlock<T, Iou>& block, Iou best) {
  constexpr int kN = kLanes<Iou>;
  for (int k = 0; k < kBoxesPerBlock; k += kN) StoreU<kN, Iou>(block.best + k, Set<kN>(best));
}

// The best IoUs of a block where boxes and ground truth are well-conditioned: only ground truth
// that may overlap the bounds of the block is compared.
template <bool kLowQuality, class T, class Iou>
inline void match_well_conditioned(const GroundTruth<T>& gts, int64_t block_index,
                                   BoxBlock<T, Iou>& block, BestPerGroundTruth<Iou>& gt_best,
                                   std::vector<CandidateGt>& candidates) {
  fill_best(block, Iou(0));
  const int32_t count = find_candidates(gts, block.bounds, candidates);
  block.overlapped = count > 0;
  if (count >= kMinCandidatesToQuantize) {
    quantize_block(gts, block);
    // In a loop of its own, before any comparison: the exit of the loop over groups is mostly
    // mispredicted, and if the groups were computed just before it, the delay would cost what
    // skipping saves.
    for (int32_t n = 0; n < count; ++n) {
      candidates[n].groups = find_overlapping_groups(gts, candidates[n].gt, block);
    }
  }
  for (int32_t n = 0; n < count; ++n) {
    const int32_t g = candidates[n].gt;
    // A best IoU of 0 is not recorded here: BestPerGroundTruth::has_zero_best covers it.
    const Iou threshold = kLowQuality
                              ? maximum(gt_best.best[g], std::numeric_limits<Iou>::denorm_min())
                              : kInfinity<Iou>;
    const Box<T> gt = gts.box(g);
    const Iou best_iou = gts.has_sign[g]
                             ? update_best_well_conditioned<false>(
                                   gt, gts.area[g], candidates[n].groups, block, threshold)
                             : update_best_well_conditioned<true>(
                                   gt, gts.area[g], candidates[n].groups, block, threshold);
    if (kLowQuality && RCNN_UNLIKELY(best_iou >= threshold)) gt_best.add(g, block_index, best_iou);
  }
}

// The best IoUs of a block of boxes that need not be well-conditioned: all pairs are compared.
template <bool kLowQuality, class T, class Iou>
inline void match_all_pairs(const GroundTruth<T>& gts, int64_t block_index, BoxBlock<T, Iou>& block,
                            BestPerGroundTruth<Iou>& gt_best) {
  fill_best(block, -kInfinity<Iou>);
  block.overlapped = true;
  for (int32_t g = 0; g < gts.count; ++g) {
    const Iou threshold = kLowQuality ? gt_best.best[g] : kInfinity<Iou>;
    const Iou best_iou = update_best(gts.box(g), gts.area[g], block, threshold);
    if (kLowQuality && !(best_iou < threshold)) gt_best.add(g, block_index, best_iou);
  }
}

// Write the results of the first `count` boxes of a block, with 0 instead of ground truth indices.
template <class T, class Iou>
inline void apply_thresholds(const BoxBlock<T, Iou>& block, const MatchThresholds<Iou>& thresholds,
                             int count, int64_t* __restrict matches, Iou* __restrict best) {
  for (int k = 0; k < count; ++k) {
    best[k] = block.best[k];
    matches[k] = thresholds.label(block.best[k]);
  }
}

// Write the results of a block whose best IoUs are known. matches, best: [block.count]
template <class T, class Iou>
inline void write_matches(const BoxBlock<T, Iou>& block, const GroundTruth<T>& gts,
                          const MatchThresholds<Iou>& thresholds, int64_t* __restrict matches,
                          Iou* __restrict best) {
  if (!block.overlapped) {
    std::fill_n(matches, block.count, thresholds.label(Iou(0)));
    std::fill_n(best, block.count, Iou(0));
    return;
  }
  if (block.count == kBoxesPerBlock) {
    apply_thresholds(block, thresholds, kBoxesPerBlock, matches, best);
  } else {
    apply_thresholds(block, thresholds, block.count, matches, best);
  }
  // Searching for the ground truth of matched boxes costs less than keeping an index for every box.
  constexpr int kN = kLanes<Iou>;
  for (int first = 0; first < block.count; first += kN) {
    if (!any_at_least<kN>(block.best + first, thresholds.high)) continue;
    for (int k = first; k < std::min(first + kN, block.count); ++k) {
      if (block.best[k] < thresholds.high) continue;
      matches[k] = find_best_gt(block.best[k], block.box(k), block.area[k], gts);
    }
  }
}

// First pass: match the boxes in the blocks [begin, end) of an image by the thresholds. With
// kLowQuality, also record the best IoU of each ground truth, for match_low_quality_blocks().
template <bool kLowQuality, class Stored>
void match_blocks(const MatchTask<Stored>& task, const ImageState<Stored>& state, int64_t begin,
                  int64_t end, BestPerGroundTruth<iou_t<Stored>>& gt_best) {
  using T = accumulate_t<Stored>;
  using Iou = iou_t<Stored>;
  std::vector<CandidateGt> candidates(state.gts.count + kGtsPerBlock);
  BoxBlock<T, Iou> block;
  for (int64_t block_index = begin; block_index < end; ++block_index) {
    load_block(task.boxes, state.image, block_index, block);
    if (block.well_conditioned && state.gts.well_conditioned) {
      match_well_conditioned<kLowQuality>(state.gts, block_index, block, gt_best, candidates);
      gt_best.any_well_conditioned = true;
    } else {
      match_all_pairs<kLowQuality>(state.gts, block_index, block, gt_best);
    }
    const int64_t result = state.image.first_result + block_index * kBoxesPerBlock;
    write_matches(block, state.gts, task.thresholds, task.matches + result, task.best + result);
  }
}

// Set all bits of is_low_quality[k] [kBoxesPerBlock] where the IoU of box k is the best of the
// ground truth.
template <class T, class Iou>
inline void mark_low_quality(const Box<T>& gt, T gt_area, Iou best, const BoxBlock<T, Iou>& block,
                             int32_t* __restrict is_low_quality) {
  for (int k = 0; k < kBoxesPerBlock; ++k) {
    const Iou iou = static_cast<Iou>(iou_with_areas(gt, gt_area, block.box(k), block.area[k]));
    is_low_quality[k] |= -static_cast<int32_t>(iou == best);
  }
}

// Second pass: give the low-quality matches in the blocks [begin, end) of an image their ground
// truth, whatever their IoU.
template <class Stored>
void match_low_quality_blocks(const MatchTask<Stored>& task, const ImageState<Stored>& state,
                              int64_t begin, int64_t end) {
  using T = accumulate_t<Stored>;
  using Iou = iou_t<Stored>;
  const GroundTruth<T>& gts = state.gts;
  const BestPerGroundTruth<Iou>& gt_best = state.gt_best;
  const bool visit_all = gt_best.has_zero_best || !gt_best.gts_without_blocks.empty();
  BoxBlock<T, Iou> block;
  alignas(64) int32_t is_low_quality[kBoxesPerBlock];
  auto next = std::lower_bound(
      gt_best.low_quality_blocks.begin(), gt_best.low_quality_blocks.end(), begin,
      [](const LowQualityBlock& entry, int64_t block) { return entry.block < block; });
  for (int64_t block_index = begin;; ++block_index) {
    if (!visit_all) block_index = next != gt_best.low_quality_blocks.end() ? next->block : end;
    if (block_index >= end) return;
    load_block(task.boxes, state.image, block_index, block);
    const bool well_conditioned = block.well_conditioned && gts.well_conditioned;
    std::fill_n(is_low_quality, kBoxesPerBlock, well_conditioned && gt_best.has_zero_best ? -1 : 0);
    for (const int32_t g : gt_best.gts_without_blocks) {
      const bool is_apart =
          well_conditioned && gt_best.best[g] > 0 && !may_overlap(gts.box(g), block.bounds);
      if (is_apart) continue;
      mark_low_quality(gts.box(g), gts.area[g], gt_best.best[g], block, is_low_quality);
    }
    for (; next != gt_best.low_quality_blocks.end() && next->block == block_index; ++next) {
      mark_low_quality(gts.box(next->gt), gts.area[next->gt], gt_best.best[next->gt], block,
                       is_low_quality);
    }
    const int64_t result = state.image.first_result + block_index * kBoxesPerBlock;
    for (int k = 0; k < block.count; ++k) {
      if (!is_low_quality[k]) continue;
      const Iou best = task.best[result + k];
      // Where the best IoU is 0 they all are, so the first ground truth has it.
      const int32_t found = best == 0 ? 0 : find_best_gt(best, block.box(k), block.area[k], gts);
      task.matches[result + k] = found;
    }
  }
}

}  // namespace RCNN_NAMESPACE
}  // namespace
}  // namespace rcnn_ext
RCNN_AFTER_NAMESPACE();

#endif  // RCNN_MATCH_BOXES_MATCH_BOXES_CPU_INL_H_
