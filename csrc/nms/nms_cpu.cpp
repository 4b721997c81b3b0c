// Greedy non-maximum suppression on the CPU. Contract: rcnn_ext/ops/nms.py.
//
// Boxes are sorted by score, within each segment (class) for batched NMS. In that order, a
// candidate is kept unless a kept box suppresses it. Few kept boxes are in a list that every
// candidate scans, in SIMD registers: a filter without a division first, and the exact IoU test
// where it passes. Many kept boxes are in a grid of cells, where a candidate scans one cell per
// level (nms_grid_cpu.h).
//
// A long segment is split into rounds. In each, all threads compare the round's boxes with the
// grid; then one thread runs NMS among the boxes that are left and inserts those kept into the
// grid. Short segments are distributed among threads instead.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "../core/box_math.h"
#include "../core/dispatch.h"
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../cpu/intrinsics.h"
#include "../cpu/prefetch.h"
#include "nms.h"
#include "nms_grid_cpu.h"
#include "nms_score_order_cpu.h"

#define RCNN_TARGET_INCLUDE "../nms/nms_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {
namespace {

// From this many boxes on, inserting into cells should cost less than scanning a list: an estimate.
constexpr int64_t kMinGridBoxes = 700;
// From this many boxes on, other threads should save more than waking them costs: an estimate.
constexpr int64_t kMinParallelBoxes = 4000;
// Sizes of the rounds of one segment. A round takes as many boxes as all rounds before it, up to a
// limit of max(kMinRoundSizeLimit, count / 8). Smaller rounds leave less to the one thread, but
// synchronize more often. Both are estimates.
constexpr int64_t kFirstRoundSize = 512;
constexpr int64_t kMinRoundSizeLimit = 8192;

// The kept boxes of the segment that a thread works on.
template <class T>
struct NmsWorkspace {
  KeptBlockArena arena{sizeof(KeptBlock<T>)};
  KeptGrid<T> grid;
};

// The quartiles of a list, which is sorted in place.
template <class T>
struct Quartiles {
  T low, middle, high;

  explicit Quartiles(std::vector<T>& numbers) {
    std::sort(numbers.begin(), numbers.end());
    low = numbers[numbers.size() / 4];
    middle = numbers[numbers.size() / 2];
    high = numbers[numbers.size() * 3 / 4];
  }
};

// Choose the size of the cells by a sample of the boxes; a bad choice costs time only. About
// 1.5 * sqrt(count) cells cover twice the interquartile ranges of the centers, but a cell is 0.4 to
// 2 times as large as the median distance at which a box suppresses others.
template <class T, class Stored>
bool reset_grid(KeptGrid<T>& grid, const Stored* boxes, const uint32_t* order, int64_t count,
                const SuppressionRule<T>& rule) {
  constexpr int64_t kSample = 96;
  std::vector<T> widths, heights, xs, ys;
  for (auto* column : {&widths, &heights, &xs, &ys}) column->reserve(kSample);
  for (int64_t i = 0; i < kSample; ++i) {
    const Box<T> box = load_box<T>(boxes + 4 * static_cast<int64_t>(order[i * count / kSample]));
    if (!(box.x1 < box.x2 && box.y1 < box.y2 && is_finite(box))) continue;
    widths.push_back(box.x2 - box.x1);
    heights.push_back(box.y2 - box.y1);
    xs.push_back(box.x1 / 2 + box.x2 / 2);
    ys.push_back(box.y1 / 2 + box.y2 / 2);
  }
  if (widths.empty()) return false;
  const double radius_x =
      static_cast<double>(Quartiles<T>(widths).middle) * rule.suppression_radius;
  const double radius_y =
      static_cast<double>(Quartiles<T>(heights).middle) * rule.suppression_radius;
  const Quartiles<T> x(xs), y(ys);
  const double region =
      (static_cast<double>(x.high) - x.low) * 4 * (static_cast<double>(y.high) - y.low);
  const double side = std::sqrt(region / (1.5 * std::sqrt(static_cast<double>(count))));
  const auto bounded = [&](double suppression_radius) {
    return minimum(maximum(side, suppression_radius * 0.4), suppression_radius * 2);
  };
  return grid.reset(count, bounded(radius_x), bounded(radius_y));
}

// NMS of one segment in rounds, with all threads.
template <class T, class Stored>
void suppress_in_rounds(const Stored* boxes, const uint32_t* order, int64_t count,
                        const SuppressionRule<T>& rule, NmsWorkspace<T>& work, char* keep) {
  const int64_t max_round_size = std::max(kMinRoundSizeLimit, count / 8);
  int round = 0;
  for (int64_t begin = 0; begin < count; ++round) {
    const int64_t end = std::min(begin + std::clamp(begin, kFirstRoundSize, max_round_size), count);
    torch::stable::parallel_for(begin, end, kFirstRoundSize / 2, [&](int64_t from, int64_t to) {
      RCNN_DYNAMIC_DISPATCH(
          filter_against_grid<T>(boxes, order, from, to, rule, work.grid, work.arena, keep));
    });
    RCNN_DYNAMIC_DISPATCH(resolve_within_round<T>(boxes, order, begin, end, rule, work.grid,
                                                  work.arena, round, keep));
    begin = end;
  }
}

// NMS of one segment. order: from rank by score to index; sets keep[r] for the box order[r].
template <class T, class Stored>
void suppress_segment(const Stored* boxes, const uint32_t* order, int64_t count,
                      const SuppressionRule<T>& rule, NmsWorkspace<T>& work, bool use_threads,
                      char* keep) {
  work.arena.clear();
  if (rule.needs_exact_tests()) {
    RCNN_DYNAMIC_DISPATCH(
        suppress_with_exact_tests<T>(boxes, order, count, rule, work.arena, keep));
  } else if (count >= kMinGridBoxes && rule.allows_grid() &&
             reset_grid(work.grid, boxes, order, count, rule)) {
    if (use_threads) {
      suppress_in_rounds(boxes, order, count, rule, work, keep);
    } else {
      RCNN_DYNAMIC_DISPATCH(
          suppress_with_grid<T>(boxes, order, count, rule, work.grid, work.arena, keep));
    }
  } else {
    RCNN_DYNAMIC_DISPATCH(suppress_with_list<T>(boxes, order, count, rule, work.arena, keep));
  }
}

// NMS of all segments: sets keep[r] for the box order[r]. order: from rank by segment, then score,
// to index; starts: the first ranks of the segments, then the box count. By rank, since threads
// that write scattered bytes would contend for cache lines.
template <class Stored>
void suppress_segments(const Stored* boxes, const uint32_t* order,
                       const std::vector<int64_t>& starts, double iou_threshold, char* keep) {
  using T = accumulate_t<Stored>;
  const SuppressionRule<T> rule(iou_threshold);
  const int64_t count = starts.back();
  const auto segments = static_cast<int64_t>(starts.size()) - 1;
  if (rule.keeps_all()) {
    for (int64_t rank = 0; rank < count; ++rank) {
      keep[rank] = is_finite(load_box<T>(boxes + 4 * int64_t{order[rank]}));
    }
    return;
  }
  const int64_t threads = count < kMinParallelBoxes ? 1 : torch::stable::get_num_threads();
  const auto run = [&](int64_t s, bool use_threads, NmsWorkspace<T>& work) {
    suppress_segment(boxes, order + starts[s], starts[s + 1] - starts[s], rule, work, use_threads,
                     keep + starts[s]);
  };
  // A segment on which one thread would still work when all others are done.
  const auto is_long = [&](int64_t s) {
    const int64_t size = starts[s + 1] - starts[s];
    return threads > 1 && size >= kMinParallelBoxes && size * threads * 2 > count;
  };
  NmsWorkspace<T> work;
  for (int64_t s = 0; s < segments; ++s) {
    if (threads == 1 || is_long(s)) run(s, threads > 1, work);
  }
  if (threads == 1 || segments == 1) return;
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(threads, segments), 1, [&](int64_t begin, int64_t end) {
    NmsWorkspace<T> own;
    for (int64_t s = next++; s < segments; s = next++) {
      if (!is_long(s)) run(s, false, own);
    }
  });
}

// Which boxes are kept, by score.
struct NmsResult {
  Order by_score;
  std::unique_ptr<char[]> keep;  // by score rank
  int64_t count = 0;             // of kept boxes

  // Write the indices of the first `max_kept` kept boxes.
  void write(int64_t* out, int64_t max_kept) const {
    // Without a branch that would be mispredicted. The loop ends with the last kept box, so nothing
    // is written after the result.
    for (int64_t rank = 0, at = 0; at < max_kept; ++rank) {
      out[at] = by_score[rank];
      at += keep[rank];
    }
  }
};

// idxs: [N] int64 or null
NmsResult suppress(const Tensor& boxes, const Tensor& scores, const Tensor* idxs,
                   double iou_threshold, const char* op) {
  const int64_t count = boxes.size(0);
  RCNN_CHECK(count <= std::numeric_limits<uint32_t>::max(), op,
             ": expected fewer than 2^32 boxes, got ", count);
  NmsResult result{order_by_score(scores), uninitialized<char>(count)};
  Segments segments;
  if (idxs != nullptr) segments = order_by_segment(*idxs, result.by_score.get());
  const uint32_t* order = idxs == nullptr ? result.by_score.get() : segments.order.get();
  const std::vector<int64_t> starts =
      idxs == nullptr ? std::vector<int64_t>{0, count} : std::move(segments.starts);
  const Tensor dense = contiguous_as(boxes, boxes.scalar_type());
  dispatch_floating(boxes.scalar_type(), op, [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    suppress_segments(dense.const_data_ptr<Stored>(), order, starts, iou_threshold,
                      result.keep.get());
  });
  if (idxs != nullptr) {
    const auto by_index = uninitialized<char>(count);
    for (int64_t rank = 0; rank < count; ++rank) by_index[order[rank]] = result.keep[rank];
    for (int64_t rank = 0; rank < count; ++rank) {
      result.keep[rank] = by_index[result.by_score[rank]];
    }
  }
  for (int64_t rank = 0; rank < count; ++rank) result.count += result.keep[rank];
  return result;
}

Tensor suppress_all(const Tensor& boxes, const Tensor& scores, const Tensor* idxs,
                    double iou_threshold, const char* op) {
  if (boxes.size(0) == 0) return empty_on_device_of(boxes, {0}, ScalarType::Long);
  const NmsResult kept = suppress(boxes, scores, idxs, iou_threshold, op);
  Tensor result = empty_on_device_of(boxes, {kept.count}, ScalarType::Long);
  kept.write(result.mutable_data_ptr<int64_t>(), kept.count);
  return result;
}

std::tuple<Tensor, Tensor> suppress_padded(const Tensor& boxes, const Tensor& scores,
                                           const Tensor* idxs, double iou_threshold,
                                           int64_t max_kept, const char* op) {
  check_max_output(max_kept, op);
  auto result = empty_padded_result(boxes, max_kept);
  if (boxes.size(0) == 0 || max_kept == 0) return result;
  const NmsResult kept = suppress(boxes, scores, idxs, iou_threshold, op);
  const int64_t count = std::min(kept.count, max_kept);
  kept.write(std::get<0>(result).mutable_data_ptr<int64_t>(), count);
  *std::get<1>(result).mutable_data_ptr<int64_t>() = count;
  return result;
}

// boxes: [N, 4], scores: [N] -> kept indices, int64, by score
Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_nms(boxes, scores, "nms");
  return suppress_all(boxes, scores, nullptr, iou_threshold, "nms");
}

// boxes: [N, 4], scores: [N], idxs: [N] int64 -> kept indices, int64, by score
Tensor batched_nms_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                       double iou_threshold) {
  check_batched_nms(boxes, scores, idxs, "batched_nms");
  return suppress_all(boxes, scores, &idxs, iou_threshold, "batched_nms");
}

// boxes: [N, 4], scores: [N] -> kept indices, int64 [max_output], padded with -1, and their count,
// int64 []
std::tuple<Tensor, Tensor> nms_padded_cpu(const Tensor& boxes, const Tensor& scores,
                                          double iou_threshold, int64_t max_output) {
  check_nms(boxes, scores, "nms_padded");
  return suppress_padded(boxes, scores, nullptr, iou_threshold, max_output, "nms_padded");
}

// boxes: [N, 4], scores: [N], idxs: [N] int64 -> as nms_padded_cpu
std::tuple<Tensor, Tensor> batched_nms_padded_cpu(const Tensor& boxes, const Tensor& scores,
                                                  const Tensor& idxs, double iou_threshold,
                                                  int64_t max_output) {
  check_batched_nms(boxes, scores, idxs, "batched_nms_padded");
  return suppress_padded(boxes, scores, &idxs, iou_threshold, max_output, "batched_nms_padded");
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  RCNN_REGISTER(m, "nms", nms_cpu, boxes, scores);
  RCNN_REGISTER(m, "batched_nms", batched_nms_cpu, boxes, scores, idxs);
  RCNN_REGISTER(m, "nms_padded", nms_padded_cpu, boxes, scores);
  RCNN_REGISTER(m, "batched_nms_padded", batched_nms_padded_cpu, boxes, scores, idxs);
}
