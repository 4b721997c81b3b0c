// What the loops of match_boxes on the CPU read and write: the task, its images, and the best boxes
// of their ground truth.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../core/dispatch.h"
#include "match_boxes.h"
#include "match_boxes_ground_truth_cpu.h"

namespace rcnn_ext {

constexpr int kBlock = 256;  // boxes
// Ground truths near a block from which on boxes are put into cells, to leave more of them out.
constexpr int32_t kCellsFrom = 6;

template <class Iou>
inline constexpr Iou kInfinity = std::numeric_limits<Iou>::infinity();

// A block of an image, which holds a box that a ground truth overlaps best.
struct Claim {
  int64_t block;
  int32_t gt;
};

// The best IoUs of ground truths over some blocks of an image, and where they are.
template <class Iou>
class BestPerGroundTruth {
 public:
  BestPerGroundTruth(int64_t gt_count, int64_t block_count)
      : best(gt_count, -kInfinity<Iou>),
        blocks_(gt_count),
        anywhere_(gt_count),
        room_(16 * (gt_count + block_count)) {}

  // In a block, the IoU of gt gets as high as `peak`, which is at least its best so far or NaN.
  void add(int32_t gt, int64_t block, Iou peak) {
    if (!rise(gt, peak)) return;
    if (room_ == 0) forget(gt);
    if (anywhere_[gt]) return;
    blocks_[gt].push_back(block);
    --room_;
  }

  // Takes over what another thread found in other blocks.
  void merge(const BestPerGroundTruth& other) {
    any_regular = any_regular || other.any_regular;
    for (size_t g = 0; g < best.size(); ++g) {
      const auto gt = static_cast<int32_t>(g);
      if (other.best[g] < best[g] || !rise(gt, other.best[g])) continue;
      if (other.anywhere_[g]) forget(gt);
      for (const int64_t block : other.blocks_[g]) add(gt, block, best[g]);
    }
  }

  // After the last merge.
  void finish() {
    for (size_t g = 0; g < best.size(); ++g) {
      const auto gt = static_cast<int32_t>(g);
      // Regular boxes that it was not compared with have IoUs of 0.
      if (any_regular && best[g] < 0) rise(gt, Iou(0));
      if (best[g] == 0) zero = true;
      if (anywhere_[g]) anywhere.push_back(gt);
      for (const int64_t block : blocks_[g]) claims.push_back({block, gt});
    }
    std::sort(claims.begin(), claims.end(),
              [](const Claim& a, const Claim& b) { return a.block < b.block; });
  }

  std::vector<Iou> best;
  bool any_regular = false;

  // Known after finish(). Blocks with a best box of a ground truth, in order,
  std::vector<Claim> claims;
  // ground truths whose best boxes may be in any block,
  std::vector<int32_t> anywhere;
  // and whether one overlaps nothing, so that its best IoU is 0, as it has with all regular boxes.
  bool zero = false;

 private:
  // Whether `peak` is the best of gt now. A NaN stays, and no IoU equals it.
  bool rise(int32_t gt, Iou peak) {
    if (best[gt] != best[gt]) return false;
    if (peak == best[gt]) return true;
    best[gt] = peak;
    room_ += static_cast<int64_t>(blocks_[gt].size());
    blocks_[gt].clear();
    anywhere_[gt] = 0;
    return peak == peak;
  }

  void forget(int32_t gt) {
    room_ += static_cast<int64_t>(blocks_[gt].size());
    blocks_[gt].clear();
    anywhere_[gt] = 1;
  }

  std::vector<std::vector<int64_t>> blocks_;
  std::vector<uint8_t> anywhere_;
  // What is left of a number of blocks to remember that grows with boxes and ground truth, not with
  // their product: where all boxes are alike, every block may be the best of every ground truth.
  int64_t room_;
};

// Inputs and outputs, contiguous: boxes [P, 4]; matches and best [R].
template <class Stored>
struct MatchTask {
  using Iou = MatchIou_t<Stored>;
  const Stored* boxes;
  int64_t* matches;
  Iou* best;
  MatchThresholds<Iou> thresholds;
};

template <class Stored>
struct ImageWork {
  using Iou = MatchIou_t<Stored>;
  MatchImage image;
  int64_t first_block, block_count;  // among those of all images
  GroundTruth<accumulate_t<Stored>> gts;
  BestPerGroundTruth<Iou> peaks;

  ImageWork(const MatchImage& image, const Stored* gt_boxes, int64_t first_block)
      : image(image),
        first_block(first_block),
        block_count((image.box_count + kBlock - 1) / kBlock),
        gts(gt_boxes + 4 * image.first_gt, image.gt_count),
        peaks(image.gt_count, block_count) {}
};

}  // namespace rcnn_ext
