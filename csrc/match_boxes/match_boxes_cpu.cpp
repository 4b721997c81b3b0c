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
#include "match_boxes_work_cpu.h"

namespace rcnn_ext {
namespace {

// Blocks times ground truth that one thread takes at least.
constexpr int64_t kBlockPairsPerTask = 256;

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
