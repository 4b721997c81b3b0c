// The data of match_boxes on the CPU: inputs and outputs, the images of the batch, and the best IoU
// of each ground truth.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../core/dispatch.h"
#include "match_boxes.h"
#include "match_boxes_ground_truth_cpu.h"

namespace rcnn_ext {

constexpr int kBoxesPerBlock = 256;
// From this many candidates for a block on, its coordinates are quantized to skip groups of boxes.
// That takes 200,000 random boxes from 0.83 to 0.6 ms with 20 ground truths, and from 3.6 to 2.4 ms
// with 100 (AMD EPYC with AVX-512, one thread, 2026-11).
constexpr int32_t kMinCandidatesToQuantize = 6;

template <class Iou>
inline constexpr Iou kInfinity = std::numeric_limits<Iou>::infinity();

// A block of an image that contains a low-quality match of a ground truth: a box whose IoU is the
// best of that ground truth.
struct LowQualityBlock {
  int64_t block;
  int32_t gt;
};

// The best IoU of each ground truth over some blocks of an image, and the blocks that contain it.
template <class Iou>
class BestPerGroundTruth {
 public:
  BestPerGroundTruth(int64_t gt_count, int64_t block_count)
      : best(gt_count, -kInfinity<Iou>),
        blocks_(gt_count),
        blocks_dropped_(gt_count),
        block_budget_(16 * (gt_count + block_count)) {}

  // Record the best IoU of gt in a block, which must be NaN or at least the best so far.
  void add(int32_t gt, int64_t block, Iou best_iou) {
    if (!update(gt, best_iou)) return;
    if (block_budget_ == 0) drop_blocks(gt);
    if (blocks_dropped_[gt]) return;
    blocks_[gt].push_back(block);
    --block_budget_;
  }

  // Merge what another thread recorded for other blocks.
  void merge(const BestPerGroundTruth& other) {
    any_well_conditioned = any_well_conditioned || other.any_well_conditioned;
    for (size_t g = 0; g < best.size(); ++g) {
      const auto gt = static_cast<int32_t>(g);
      if (other.best[g] < best[g] || !update(gt, other.best[g])) continue;
      if (other.blocks_dropped_[g]) drop_blocks(gt);
      for (const int64_t block : other.blocks_[g]) add(gt, block, best[g]);
    }
  }

  // Compute the results below, after the last merge().
  void finish() {
    for (size_t g = 0; g < best.size(); ++g) {
      const auto gt = static_cast<int32_t>(g);
      // Well-conditioned boxes that gt was not compared with do not overlap it.
      if (any_well_conditioned && best[g] < 0) update(gt, Iou(0));
      if (best[g] == 0) has_zero_best = true;
      if (blocks_dropped_[g]) gts_without_blocks.push_back(gt);
      for (const int64_t block : blocks_[g]) low_quality_blocks.push_back({block, gt});
    }
    std::sort(low_quality_blocks.begin(), low_quality_blocks.end(),
              [](const LowQualityBlock& a, const LowQualityBlock& b) { return a.block < b.block; });
  }

  std::vector<Iou> best;
  bool any_well_conditioned = false;

  // Blocks with low-quality matches, in order of the block; known after finish().
  std::vector<LowQualityBlock> low_quality_blocks;
  // Ground truths without recorded blocks, since those were too many: their low-quality matches may
  // be in any block. Known after finish().
  std::vector<int32_t> gts_without_blocks;
  // Whether the best IoU of some ground truth is 0: it overlaps nothing, so that all
  // well-conditioned boxes are its low-quality matches. Known after finish().
  bool has_zero_best = false;

 private:
  // Return whether best_iou now equals the best of gt. A NaN is never replaced and equals no IoU.
  bool update(int32_t gt, Iou best_iou) {
    if (best[gt] != best[gt]) return false;
    if (best_iou == best[gt]) return true;
    best[gt] = best_iou;
    block_budget_ += static_cast<int64_t>(blocks_[gt].size());
    blocks_[gt].clear();
    blocks_dropped_[gt] = 0;
    return best_iou == best_iou;
  }

  // Stop recording blocks for gt: its low-quality matches may be in any block.
  void drop_blocks(int32_t gt) {
    block_budget_ += static_cast<int64_t>(blocks_[gt].size());
    blocks_[gt].clear();
    blocks_dropped_[gt] = 1;
  }

  std::vector<std::vector<int64_t>> blocks_;
  std::vector<uint8_t> blocks_dropped_;
  // How many more blocks may be recorded. The budget is linear in boxes and ground truth, not in
  // their product: where all boxes are equal, every block has the best IoU of every ground truth.
  int64_t block_budget_;
};

// Inputs and outputs, contiguous: boxes [P, 4]; matches and best [R].
template <class Stored>
struct MatchTask {
  using Iou = iou_t<Stored>;
  const Stored* boxes;
  int64_t* matches;
  Iou* best;
  MatchThresholds<Iou> thresholds;
};

// One image of the batch that has ground truth.
template <class Stored>
struct ImageState {
  using Iou = iou_t<Stored>;
  MatchImage image;
  int64_t first_block;  // among the blocks of all images
  int64_t block_count;
  GroundTruth<accumulate_t<Stored>> gts;
  BestPerGroundTruth<Iou> gt_best;

  ImageState(const MatchImage& image, const Stored* gt_boxes, int64_t first_block)
      : image(image),
        first_block(first_block),
        block_count((image.box_count + kBoxesPerBlock - 1) / kBoxesPerBlock),
        gts(gt_boxes + 4 * image.first_gt, image.gt_count),
        gt_best(image.gt_count, block_count) {}
};

}  // namespace rcnn_ext
