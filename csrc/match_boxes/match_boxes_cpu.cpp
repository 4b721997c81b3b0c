// Matching of boxes to ground truth on the CPU. Contract: rcnn_ext/ops/match_boxes.py.
//
// One pass over blocks of boxes keeps the best IoU of each box and of each ground truth, and notes
// the blocks that may hold the latter: those are gone through again for low-quality matches. Which
// ground truth a box has its best IoU with is looked for afterwards, where a match needs to know.
// No N x M matrix: memory is O(N + M).
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <mutex>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/dispatch.h"
#include "../core/stable_ops.h"
#include "../cpu/intrinsics.h"
#include "../cpu/isa.h"
#include "match_boxes.h"
#include "match_boxes_ground_truth_cpu.h"

namespace rcnn_ext {
namespace {

constexpr int kBlock = 256;  // boxes
// Ground truths near a block from which on boxes are put into cells, to leave more of them out.
constexpr int32_t kCellsFrom = 6;
// Blocks times ground truth that one thread takes at least.
constexpr int64_t kBlockPairsPerTask = 256;

template <class Iou>
constexpr Iou kInfinity = std::numeric_limits<Iou>::infinity();

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

}  // namespace
}  // namespace rcnn_ext

#define RCNN_TARGET_INCLUDE "../match_boxes/match_boxes_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {
namespace {

// Calls function(work, begin, end) for the blocks of all images, split between threads.
template <class Stored, class Function>
void for_blocks(std::vector<ImageWork<Stored>>& works, const Function& function) {
  int64_t blocks = 0, block_pairs = 0;
  for (const auto& work : works) {
    blocks += work.block_count;
    block_pairs += work.block_count * (1 + work.image.gt_count);
  }
  const int64_t grain =
      std::max<int64_t>(1, kBlockPairsPerTask * blocks / std::max<int64_t>(1, block_pairs));
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    auto work = std::upper_bound(works.begin(), works.end(), begin,
                                 [](int64_t block, const ImageWork<Stored>& next) {
                                   return block < next.first_block;
                                 }) -
                1;
    for (; work != works.end() && work->first_block < end; ++work) {
      const int64_t first = std::max<int64_t>(begin - work->first_block, 0);
      const int64_t last = std::min(end - work->first_block, work->block_count);
      if (first < last) function(*work, first, last);
    }
  });
}

template <class Stored>
void match_images(const MatchTask<Stored>& task, std::vector<ImageWork<Stored>>& works) {
  for_blocks(works, [&](ImageWork<Stored>& work, int64_t begin, int64_t end) {
    RCNN_DYNAMIC_DISPATCH(match_blocks<false>(task, work, begin, end, work.peaks));
  });
}

template <class Stored>
void match_images_with_low_quality(const MatchTask<Stored>& task,
                                   std::vector<ImageWork<Stored>>& works) {
  std::mutex merging;
  for_blocks(works, [&](ImageWork<Stored>& work, int64_t begin, int64_t end) {
    BestPerGroundTruth<MatchIou_t<Stored>> peaks(work.image.gt_count, end - begin);
    RCNN_DYNAMIC_DISPATCH(match_blocks<true>(task, work, begin, end, peaks));
    const std::lock_guard<std::mutex> lock(merging);
    work.peaks.merge(peaks);
  });
  for (ImageWork<Stored>& work : works) work.peaks.finish();
  for_blocks(works, [&](const ImageWork<Stored>& work, int64_t begin, int64_t end) {
    RCNN_DYNAMIC_DISPATCH(claim_blocks(task, work, begin, end));
  });
}

// gt_boxes: [G, 4], boxes: [P, 4] -> matches and best IoUs, [R] both
std::tuple<Tensor, Tensor> match_boxes_cpu(const Tensor& gt_boxes, std::vector<int64_t> gt_counts,
                                           const Tensor& boxes, std::vector<int64_t> box_counts,
                                           double high_threshold, double low_threshold,
                                           bool allow_low_quality_matches) {
  const std::vector<MatchImage> images =
      check_match_boxes(gt_boxes, gt_counts, boxes, box_counts, high_threshold, low_threshold);
  const ScalarType dtype = boxes.scalar_type();
  const int64_t count = result_count(images);
  Tensor matches = empty_on_device_of(boxes, {count}, ScalarType::Long);
  Tensor best = empty_on_device_of(boxes, {count}, accumulate_dtype(dtype));
  if (count == 0) return {matches, best};
  const Tensor dense_gts = contiguous_as(gt_boxes, dtype);
  const Tensor dense_boxes = contiguous_as(boxes, dtype);

  dispatch_floating_and_int64(dtype, "match_boxes", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using Iou = MatchIou_t<Stored>;
    auto* match_data = matches.mutable_data_ptr<int64_t>();
    auto* best_data = best.mutable_data_ptr<Iou>();
    std::vector<ImageWork<Stored>> works;
    int64_t blocks = 0;
    for (const MatchImage& image : images) {
      if (image.gt_count == 0) {
        std::fill_n(match_data + image.first_result, image.box_count, kBelowLowThreshold);
        std::fill_n(best_data + image.first_result, image.box_count, Iou(0));
        continue;
      }
      works.emplace_back(image, dense_gts.const_data_ptr<Stored>(), blocks);
      blocks += works.back().block_count;
    }
    const MatchTask<Stored> task{
        dense_boxes.const_data_ptr<Stored>(),
        match_data,
        best_data,
        {static_cast<Iou>(high_threshold), static_cast<Iou>(low_threshold)}};
    if (allow_low_quality_matches) {
      match_images_with_low_quality(task, works);
    } else {
      match_images(task, works);
    }
  });
  return {matches, best};
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  m.impl("match_boxes", TORCH_BOX(&rcnn_ext::match_boxes_cpu));
}
