// Matching of boxes to ground truth on the CPU. Contract: rcnn_ext/ops/match_boxes.py.
//
// A box matches the ground truth with which it has the best IoU, if that reaches the thresholds.
// With low-quality matches, so does every box whose IoU is the best of some ground truth.
//
// match_blocks() is the first pass. It takes boxes in blocks of 256, by columns, and computes the
// best IoU per box and, for low-quality matches, per ground truth. Most pairs do not overlap, so a
// block is compared only with ground truth that overlaps the bounds of the block; where that is
// still many, coordinates quantized to int8 tell which groups of 8 boxes can overlap it. Blocks
// with empty, huge or non-finite boxes are compared with everything, since an IoU may then be NaN
// or infinite. Only the value of the best IoU is kept; the index of the ground truth is searched
// for afterwards, for the few boxes that match.
//
// match_low_quality_blocks() is the second pass. It revisits the blocks that are recorded to
// contain the best IoU of a ground truth and matches those boxes whatever their IoU.
//
// No G x P matrix: memory is O(G + P). The kernels are in match_boxes_cpu-inl.h.
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
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../cpu/intrinsics.h"
#include "../cpu/isa.h"
#include "match_boxes.h"
#include "match_boxes_ground_truth_cpu.h"
#include "match_boxes_work_cpu.h"

namespace rcnn_ext {
namespace {

// Minimum number of pairs of a block and a ground truth per task: fewer do not justify waking a
// thread. An estimate.
constexpr int64_t kMinBlockPairsPerTask = 256;

}  // namespace
}  // namespace rcnn_ext

#define RCNN_TARGET_INCLUDE "../match_boxes/match_boxes_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {
namespace {

// Call function(state, begin, end) for the blocks of all images, split between threads.
template <class Stored, class Function>
void parallel_for_blocks(std::vector<ImageState<Stored>>& states, const Function& function) {
  int64_t blocks = 0, block_pairs = 0;
  for (const auto& state : states) {
    blocks += state.block_count;
    block_pairs += state.block_count * (1 + state.image.gt_count);
  }
  const int64_t grain =
      std::max<int64_t>(1, kMinBlockPairsPerTask * blocks / std::max<int64_t>(1, block_pairs));
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    auto state = std::upper_bound(states.begin(), states.end(), begin,
                                  [](int64_t block, const ImageState<Stored>& next) {
                                    return block < next.first_block;
                                  }) -
                 1;
    for (; state != states.end() && state->first_block < end; ++state) {
      const int64_t first = std::max<int64_t>(begin - state->first_block, 0);
      const int64_t last = std::min(end - state->first_block, state->block_count);
      if (first < last) function(*state, first, last);
    }
  });
}

template <class Stored>
void match_images(const MatchTask<Stored>& task, std::vector<ImageState<Stored>>& states) {
  parallel_for_blocks(states, [&](ImageState<Stored>& state, int64_t begin, int64_t end) {
    RCNN_DYNAMIC_DISPATCH(match_blocks<false>(task, state, begin, end, state.gt_best));
  });
}

template <class Stored>
void match_images_with_low_quality(const MatchTask<Stored>& task,
                                   std::vector<ImageState<Stored>>& states) {
  std::mutex merging;
  parallel_for_blocks(states, [&](ImageState<Stored>& state, int64_t begin, int64_t end) {
    BestPerGroundTruth<iou_t<Stored>> gt_best(state.image.gt_count, end - begin);
    RCNN_DYNAMIC_DISPATCH(match_blocks<true>(task, state, begin, end, gt_best));
    const std::lock_guard<std::mutex> lock(merging);
    state.gt_best.merge(gt_best);
  });
  for (ImageState<Stored>& state : states) state.gt_best.finish();
  parallel_for_blocks(states, [&](const ImageState<Stored>& state, int64_t begin, int64_t end) {
    RCNN_DYNAMIC_DISPATCH(match_low_quality_blocks(task, state, begin, end));
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
  Tensor best = empty_on_device_of(boxes, {count}, iou_dtype(dtype));
  if (count == 0) return {matches, best};
  const Tensor dense_gts = contiguous_as(gt_boxes, dtype);
  const Tensor dense_boxes = contiguous_as(boxes, dtype);

  dispatch_floating_and_int64(dtype, "match_boxes", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using Iou = iou_t<Stored>;
    auto* match_data = matches.mutable_data_ptr<int64_t>();
    auto* best_data = best.mutable_data_ptr<Iou>();
    std::vector<ImageState<Stored>> states;
    int64_t blocks = 0;
    for (const MatchImage& image : images) {
      if (image.gt_count == 0) {
        std::fill_n(match_data + image.first_result, image.box_count, kBelowLowThreshold);
        std::fill_n(best_data + image.first_result, image.box_count, Iou(0));
        continue;
      }
      states.emplace_back(image, dense_gts.const_data_ptr<Stored>(), blocks);
      blocks += states.back().block_count;
    }
    const MatchTask<Stored> task{
        dense_boxes.const_data_ptr<Stored>(),
        match_data,
        best_data,
        {static_cast<Iou>(high_threshold), static_cast<Iou>(low_threshold)}};
    if (allow_low_quality_matches) {
      match_images_with_low_quality(task, states);
    } else {
      match_images(task, states);
    }
  });
  return {matches, best};
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  RCNN_REGISTER(m, "match_boxes", match_boxes_cpu, gt_boxes, gt_counts, boxes);
}
