// The loops of match_boxes_cpu.cpp, once for each instruction set (for_each_isa.h).

#include "../common/isa_packs.h"

// The boxes of a block column by column, with what is known of them so far.
template <class T, class Iou>
struct alignas(64) Block {
  T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
  Iou best[kBlock];
  int32_t index[kBlock];
  bool overlapped;  // unless all IoUs are 0
  bool regular;
  Box<T> bounds;  // of regular boxes
};

// choose() of all lanes, in no particular order, by halves.
template <int kCount, class T, class Choose>
inline T fold(T* lanes, const Choose& choose) {
  if constexpr (kCount > 1) {
    for (int k = 0; k < kCount / 2; ++k) lanes[k] = choose(lanes[k], lanes[k + kCount / 2]);
    return fold<kCount / 2>(lanes, choose);
  } else {
    return lanes[0];
  }
}

// The greatest of the lanes, which are numbers.
template <int N, class T>
RCNN_HOST_DEVICE T greatest_of(const Pack<T, N>& pack) {
  if constexpr (N == 2) {
    return larger(pack[0], pack[1]);
  } else {
    Pack<T, N / 2> halves[2];
    std::memcpy(halves, &pack, sizeof(halves));
    return greatest_of<N / 2, T>(greater_of<N / 2, T>(halves[0], halves[1]));
  }
}

// The bounds of the boxes of a block, all regular.
template <class T, class Iou>
inline Box<T> bounds_of(const Block<T, Iou>& block) {
  constexpr int kN = kLanes<T>;
  Pack<T, kN> ends[4];
  for (int first = 0; first < kBlock; first += kN) {
    const Pack<T, kN> sides[] = {-load<T, kN>(block.x1 + first), -load<T, kN>(block.y1 + first),
                                 load<T, kN>(block.x2 + first), load<T, kN>(block.y2 + first)};
    for (int c = 0; c < 4; ++c) {
      ends[c] = first == 0 ? sides[c] : greater_of<kN, T>(sides[c], ends[c]);
    }
  }
  return {-greatest_of<kN, T>(ends[0]), -greatest_of<kN, T>(ends[1]), greatest_of<kN, T>(ends[2]),
          greatest_of<kN, T>(ends[3])};
}

// The coordinates of kLanes boxes column by column: x1, y1, x2, y2 [kLanes] each.
// boxes: [kLanes, 4]
template <class T, class Stored, int... kLane>
inline void load_columns(const Stored* boxes, T* x1, T* y1, T* x2, T* y2,
                         std::integer_sequence<int, kLane...>) {
#if defined(RCNN_HAS_SHUFFLEVECTOR)
  if constexpr (!std::is_integral_v<Stored>) {
    constexpr int kN = sizeof...(kLane);
    Pack<T, kN> packs[4];
    for (int p = 0; p < 4; ++p) packs[p] = load<T, kN>(boxes + p * kN);
    // First corners and second ones, of half of the boxes each; then their coordinates.
    const auto first_of = [](const Pack<T, kN>& a, const Pack<T, kN>& b) {
      return __builtin_shufflevector(a, b, (kLane / 2 * 4 + kLane % 2)...);
    };
    const auto second_of = [](const Pack<T, kN>& a, const Pack<T, kN>& b) {
      return __builtin_shufflevector(a, b, (kLane / 2 * 4 + kLane % 2 + 2)...);
    };
    const auto x_of = [](const Pack<T, kN>& a, const Pack<T, kN>& b) {
      return __builtin_shufflevector(a, b, (2 * kLane)...);
    };
    const auto y_of = [](const Pack<T, kN>& a, const Pack<T, kN>& b) {
      return __builtin_shufflevector(a, b, (2 * kLane + 1)...);
    };
    const Pack<T, kN> first[] = {first_of(packs[0], packs[1]), first_of(packs[2], packs[3])};
    const Pack<T, kN> second[] = {second_of(packs[0], packs[1]), second_of(packs[2], packs[3])};
    store<kN, T>(x1, x_of(first[0], first[1]));
    store<kN, T>(y1, y_of(first[0], first[1]));
    store<kN, T>(x2, x_of(second[0], second[1]));
    store<kN, T>(y2, y_of(second[0], second[1]));
    return;
  }
#endif
  ((x1[kLane] = static_cast<T>(boxes[4 * kLane]), y1[kLane] = static_cast<T>(boxes[4 * kLane + 1]),
    x2[kLane] = static_cast<T>(boxes[4 * kLane + 2]),
    y2[kLane] = static_cast<T>(boxes[4 * kLane + 3])),
   ...);
}

// boxes: [count, 4]. The rest of the block repeats the last box, which adds nothing new to maxima.
template <class T, class Iou, class Stored>
inline void load_block(const Stored* boxes, int64_t count, Block<T, Iou>& block) {
  Stored repeated[4 * kBlock];
  if (count < kBlock) {
    std::copy_n(boxes, 4 * count, repeated);
    for (int64_t k = count; k < kBlock; ++k) {
      std::copy_n(boxes + 4 * (count - 1), 4, repeated + 4 * k);
    }
    boxes = repeated;
  }
  constexpr int kN = kLanes<T>;
  for (int k = 0; k < kBlock; k += kN) {
    load_columns<T>(boxes + 4 * k, block.x1 + k, block.y1 + k, block.x2 + k, block.y2 + k,
                    std::make_integer_sequence<int, kN>());
  }
  int irregular = 0;
  for (int k = 0; k < kBlock; ++k) {
    const Box<T> box{block.x1[k], block.y1[k], block.x2[k], block.y2[k]};
    block.area[k] = area(box);
    irregular += is_regular(box, block.area[k]) ? 0 : 1;
  }
  block.regular = irregular == 0;
  if (block.regular) block.bounds = bounds_of(block);
}

// Whether a lane is at least `bar`, or either is NaN.
template <class Iou>
inline bool reaches(const Iou* peaks, Iou bar) {
#if RCNN_ISA > 0
  // Written out since compilers go from a vector of comparisons to one bit in many steps.
  if constexpr (std::is_same_v<Iou, float>) {
#if RCNN_ISA == 2
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(peaks), _mm512_set1_ps(bar), _CMP_NLT_UQ) != 0;
#else
    return _mm256_movemask_ps(
               _mm256_cmp_ps(_mm256_loadu_ps(peaks), _mm256_set1_ps(bar), _CMP_NLT_UQ)) != 0;
#endif
  }
#endif
  bool reached = false;
  for (int k = 0; k < kLanes<Iou>; ++k) reached |= !(peaks[k] < bar);
  return reached;
}

// Lets a ground truth compete for the boxes of a block; returns its best IoU there, or -infinity if
// that is below `bar`. With kRegular every IoU is a number of at least 0.
template <bool kRegular, class T, class Iou>
inline Iou compete(const Box<T>& gt, T gt_area, int32_t index, Block<T, Iou>& block, Iou bar) {
  const auto better = [](Iou a, Iou b) { return kRegular ? larger(a, b) : beats(a, b) ? a : b; };
  Iou peaks[kLanes<Iou>];
  for (int k = 0; k < kLanes<Iou>; ++k) peaks[k] = kRegular ? Iou(0) : -kInfinity<Iou>;
  for (int first = 0; first < kBlock; first += kLanes<Iou>) {
    for (int k = 0; k < kLanes<Iou>; ++k) {
      const int i = first + k;
      const Box<T> box{block.x1[i], block.y1[i], block.x2[i], block.y2[i]};
      const Iou iou = static_cast<Iou>(iou_with_areas(gt, gt_area, box, block.area[i]));
      const Iou best = block.best[i];
      // All bits of `index` or none: what a compiler takes for a choice may become a branch.
      const int32_t wins = -static_cast<int32_t>(kRegular ? iou > best : beats(iou, best));
      block.best[i] = better(iou, best);
      block.index[i] ^= (block.index[i] ^ index) & wins;
      peaks[k] = better(iou, peaks[k]);
    }
  }
  return reaches(peaks, bar) ? fold<kLanes<Iou>>(peaks, better) : -kInfinity<Iou>;
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

inline int lowest_bit(uint32_t bits) {
#if defined(__GNUC__)
  return __builtin_ctz(bits);
#else
  int k = 0;
  while (!(bits >> k & 1)) ++k;
  return k;
#endif
}

// Finds the regular ground truths that may overlap boxes within bounds. Returns their number.
template <class T>
inline int32_t find_near(const GroundTruth<T>& gts, const Box<T>& bounds,
                         std::vector<int32_t>& near) {
  int32_t count = 0;
  for (int32_t first = 0; first < gts.count; first += kGtBlock) {
    int32_t found[kGtBlock];
    for (int k = 0; k < kGtBlock; ++k) {
      const int g = first + k;
      found[k] =
          -static_cast<int32_t>(touches({gts.x1[g], gts.y1[g], gts.x2[g], gts.y2[g]}, bounds));
    }
    // Mostly few.
    for (uint32_t bits = bits_of(found); bits != 0; bits &= bits - 1) {
      near[count++] = first + lowest_bit(bits);
    }
  }
  return count;
}

// All boxes with ground truth 0 and IoU `best`.
template <class T, class Iou>
inline void start(Block<T, Iou>& block, Iou best) {
  constexpr int kN = kLanes<Iou>;
  for (int k = 0; k < kBlock; k += kN) {
    store<kN, Iou>(block.best + k, splat<kN>(best));
    std::fill_n(block.index + k, kN, 0);
  }
}

// Regular boxes and ground truth.
template <bool kLowQuality, class T, class Iou>
inline void match_regular(const GroundTruth<T>& gts, int64_t number, Block<T, Iou>& block,
                          Peaks<Iou>& of_gts, std::vector<int32_t>& near) {
  start(block, Iou(0));
  const int32_t count = find_near(gts, block.bounds, near);
  block.overlapped = count > 0;
  for (int32_t n = 0; n < count; ++n) {
    const int32_t g = near[n];
    // An IoU of 0 claims no box here: Peaks::zero does.
    const Iou bar = kLowQuality ? larger(of_gts.best[g], std::numeric_limits<Iou>::denorm_min())
                                : kInfinity<Iou>;
    const Iou peak = compete<true>(gts.boxes[g], gts.areas[g], g, block, bar);
    if (kLowQuality && RCNN_UNLIKELY(peak >= bar)) of_gts.add(g, number, peak);
  }
}

template <bool kLowQuality, class T, class Iou>
inline void match_irregular(const GroundTruth<T>& gts, int64_t number, Block<T, Iou>& block,
                            Peaks<Iou>& of_gts) {
  start(block, -kInfinity<Iou>);
  block.overlapped = true;
  for (int32_t g = 0; g < gts.count; ++g) {
    const Iou bar = kLowQuality ? of_gts.best[g] : kInfinity<Iou>;
    const Iou peak = compete<false>(gts.boxes[g], gts.areas[g], g, block, bar);
    if (kLowQuality && !(peak < bar)) of_gts.add(g, number, peak);
  }
}

// Finds the best ground truth of the boxes of a loaded block. Whether it and its ground truth are
// regular.
template <bool kLowQuality, class T, class Iou>
inline bool match_block(const GroundTruth<T>& gts, int64_t number, Block<T, Iou>& block,
                        Peaks<Iou>& of_gts, std::vector<int32_t>& near) {
  const bool regular = block.regular && gts.regular;
  if (regular) {
    match_regular<kLowQuality>(gts, number, block, of_gts, near);
  } else {
    match_irregular<kLowQuality>(gts, number, block, of_gts);
  }
  return regular;
}

// Matches the boxes in the blocks [begin, end) of an image. With kLowQuality, of_gts learns of the
// best boxes of each ground truth, which are left to claim_blocks().
template <bool kLowQuality, class Stored>
void match_blocks(const MatchTask<Stored>& task, const ImageWork<Stored>& work, int64_t begin,
                  int64_t end, Peaks<MatchIou_t<Stored>>& of_gts) {
  using T = accumulate_t<Stored>;
  using Iou = MatchIou_t<Stored>;
  const MatchImage& image = work.image;
  std::vector<int32_t> near(work.gts.count + kGtBlock);
  Block<T, Iou> block;
  for (int64_t number = begin; number < end; ++number) {
    const int64_t first = number * kBlock;
    const int count = static_cast<int>(std::min<int64_t>(kBlock, image.box_count - first));
    load_block(task.boxes + 4 * (image.first_box + first), count, block);
    const bool regular = match_block<kLowQuality>(work.gts, number, block, of_gts, near);
    if (kLowQuality && regular) of_gts.any_regular = true;
    int64_t* __restrict matches = task.matches + image.first_result + first;
    Iou* __restrict best = task.best + image.first_result + first;
    if (!block.overlapped) {
      std::fill_n(matches, count, task.thresholds(Iou(0), 0));
      std::fill_n(best, count, Iou(0));
      continue;
    }
    for (int k = 0; k < count; ++k) {
      best[k] = block.best[k];
      matches[k] = task.thresholds(block.best[k], block.index[k]);
    }
  }
}

// Which boxes of a block a ground truth overlaps best: all bits of hits [kBlock].
template <class T, class Iou>
inline void claim(const Box<T>& gt, T gt_area, Iou best, const Block<T, Iou>& block,
                  int32_t* __restrict hits) {
  for (int k = 0; k < kBlock; ++k) {
    const Box<T> box{block.x1[k], block.y1[k], block.x2[k], block.y2[k]};
    const Iou iou = static_cast<Iou>(iou_with_areas(gt, gt_area, box, block.area[k]));
    hits[k] |= -static_cast<int32_t>(iou == best);
  }
}

// Matches the boxes that a ground truth overlaps best, in the blocks [begin, end) of an image,
// whatever their IoU.
template <class Stored>
void claim_blocks(const MatchTask<Stored>& task, ImageWork<Stored>& work, int64_t begin,
                  int64_t end) {
  using T = accumulate_t<Stored>;
  using Iou = MatchIou_t<Stored>;
  const MatchImage& image = work.image;
  const GroundTruth<T>& gts = work.gts;
  const Peaks<Iou>& peaks = work.peaks;
  const bool all = peaks.zero || !peaks.anywhere.empty();
  std::vector<int32_t> near(gts.count + kGtBlock);
  Peaks<Iou> none(0, 0);
  Block<T, Iou> block;
  alignas(64) int32_t hits[kBlock];
  auto next =
      std::lower_bound(peaks.claims.begin(), peaks.claims.end(), begin,
                       [](const Claim& claim, int64_t block) { return claim.block < block; });
  for (int64_t number = begin;; ++number) {
    if (!all) number = next != peaks.claims.end() ? next->block : end;
    if (number >= end) return;
    const int64_t first = number * kBlock;
    const int count = static_cast<int>(std::min<int64_t>(kBlock, image.box_count - first));
    load_block(task.boxes + 4 * (image.first_box + first), count, block);
    const bool regular = match_block<false>(gts, number, block, none, near);
    for (int k = 0; k < kBlock; ++k) hits[k] = regular && peaks.zero ? -1 : 0;
    for (const int32_t g : peaks.anywhere) {
      if (regular && peaks.best[g] > 0 && !touches(gts.boxes[g], block.bounds)) continue;
      claim(gts.boxes[g], gts.areas[g], peaks.best[g], block, hits);
    }
    for (; next != peaks.claims.end() && next->block == number; ++next) {
      claim(gts.boxes[next->gt], gts.areas[next->gt], peaks.best[next->gt], block, hits);
    }
    int64_t* __restrict matches = task.matches + image.first_result + first;
    for (int k = 0; k < count; ++k) matches[k] = hits[k] ? block.index[k] : matches[k];
  }
}
