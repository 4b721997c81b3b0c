// Greedy non-maximum suppression on the CPU. Contract: rcnn_ext/ops/nms.py.
//
// Boxes are sorted by score, and by class before; each goes through the boxes kept before it of its
// class, which lie in a list or, where they are many, in a grid (nms_grid_cpu.h).
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "../core/box_math.h"
#include "../core/dispatch.h"
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

// Fewer boxes than these: entering cells costs more than scanning a list.
constexpr int64_t kGridFrom = 700;
// Fewer boxes than these: waking other threads costs more than they save.
constexpr int64_t kParallelFrom = 4000;
// Rounds of parallel work on one segment: each is as long as all before it, but no longer than
// this, or than an eighth of the segment. Shorter rounds leave less to resolve, but wait more
// often.
constexpr int64_t kFirstRound = 512;
constexpr int64_t kLongestRound = 8192;

// One thread's memory for kept boxes.
template <class T>
struct Workspace {
  BlockPool pool{sizeof(Block<T>)};
  Grid<T> grid;
};

// The numbers in the middle of a list and of its outer quarters.
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

// Sizes the cells by a sample of the boxes; a bad choice costs time only. About 1.5 * sqrt(count)
// cells cover what half of the boxes suggest as the whole, within bounds set by the boxes' reach.
template <class T, class Stored>
bool reset_grid(Grid<T>& grid, const Stored* boxes, const uint32_t* order, int64_t count,
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
  const double reach_x = static_cast<double>(Quartiles<T>(widths).middle) * rule.reach;
  const double reach_y = static_cast<double>(Quartiles<T>(heights).middle) * rule.reach;
  const Quartiles<T> x(xs), y(ys);
  const double region =
      (static_cast<double>(x.high) - x.low) * 4 * (static_cast<double>(y.high) - y.low);
  const double side = std::sqrt(region / (1.5 * std::sqrt(static_cast<double>(count))));
  const auto bounded = [&](double reach) { return minimum(maximum(side, reach * 0.4), reach * 2); };
  return grid.reset(count, bounded(reach_x), bounded(reach_y));
}

// Rounds: threads share the boxes that have to be compared with the grid, one resolves the rest.
template <class T, class Stored>
void suppress_in_rounds(const Stored* boxes, const uint32_t* order, int64_t count,
                        const SuppressionRule<T>& rule, Workspace<T>& work, char* keep) {
  const int64_t longest = std::max(kLongestRound, count / 8);
  int round = 0;
  for (int64_t begin = 0; begin < count; ++round) {
    const int64_t end = std::min(begin + std::clamp(begin, kFirstRound, longest), count);
    torch::stable::parallel_for(begin, end, kFirstRound / 2, [&](int64_t from, int64_t to) {
      RCNN_DYNAMIC_DISPATCH(
          survive_grid<T>(boxes, order, from, to, rule, work.grid, work.pool, keep));
    });
    RCNN_DYNAMIC_DISPATCH(
        resolve_survivors<T>(boxes, order, begin, end, rule, work.grid, work.pool, round, keep));
    begin = end;
  }
}

// keep[r] for the box order[r] of one segment, in order of score.
template <class T, class Stored>
void suppress_segment(const Stored* boxes, const uint32_t* order, int64_t count,
                      const SuppressionRule<T>& rule, Workspace<T>& work, bool with_threads,
                      char* keep) {
  work.pool.clear();
  if (rule.is_exact_only()) {
    RCNN_DYNAMIC_DISPATCH(suppress_exactly<T>(boxes, order, count, rule, work.pool, keep));
  } else if (count >= kGridFrom && rule.allows_grid() &&
             reset_grid(work.grid, boxes, order, count, rule)) {
    if (with_threads) {
      suppress_in_rounds(boxes, order, count, rule, work, keep);
    } else {
      RCNN_DYNAMIC_DISPATCH(
          suppress_with_grid<T>(boxes, order, count, rule, work.grid, work.pool, keep));
    }
  } else {
    RCNN_DYNAMIC_DISPATCH(suppress_with_list<T>(boxes, order, count, rule, work.pool, keep));
  }
}

// keep[r] for every box order[r]. `order` sorts by segment, then by score; `starts` are the first
// ranks of the segments, and the number of boxes at the end. By rank, as threads that write here
// and there among the same bytes would take them from each other every time.
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
  const int64_t threads = count < kParallelFrom ? 1 : torch::stable::get_num_threads();
  const auto run = [&](int64_t s, bool with_threads, Workspace<T>& work) {
    suppress_segment(boxes, order + starts[s], starts[s + 1] - starts[s], rule, work, with_threads,
                     keep + starts[s]);
  };
  // A segment that alone would keep one thread busy after all others have finished.
  const auto is_long = [&](int64_t s) {
    const int64_t size = starts[s + 1] - starts[s];
    return threads > 1 && size >= kParallelFrom && size * threads * 2 > count;
  };
  Workspace<T> work;
  for (int64_t s = 0; s < segments; ++s) {
    if (threads == 1 || is_long(s)) run(s, threads > 1, work);
  }
  if (threads == 1 || segments == 1) return;
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(threads, segments), 1, [&](int64_t begin, int64_t end) {
    Workspace<T> own;
    for (int64_t s = next++; s < segments; s = next++) {
      if (!is_long(s)) run(s, false, own);
    }
  });
}

// Which boxes stay, and in what order they are to be given.
struct Survivors {
  Order by_score;
  std::unique_ptr<char[]> keep;  // in the same order
  int64_t kept = 0;

  // The first `most` indices, by score.
  void write(int64_t* out, int64_t most) const {
    // No branch on what can't be foreseen. The loop ends with the last one written, so nothing is
    // written behind the result.
    for (int64_t rank = 0, at = 0; at < most; ++rank) {
      out[at] = by_score[rank];
      at += keep[rank];
    }
  }
};

// idxs: [N] int64 or null
Survivors suppress(const Tensor& boxes, const Tensor& scores, const Tensor* idxs,
                   double iou_threshold, const char* op) {
  const int64_t count = boxes.size(0);
  RCNN_CHECK(count <= std::numeric_limits<uint32_t>::max(), op,
             ": expected fewer than 2^32 boxes, got ", count);
  Survivors survivors{order_by_score(scores), uninitialized<char>(count)};
  Segments segments;
  if (idxs != nullptr) segments = order_by_segment(*idxs, survivors.by_score.get());
  const uint32_t* order = idxs == nullptr ? survivors.by_score.get() : segments.order.get();
  const std::vector<int64_t> starts =
      idxs == nullptr ? std::vector<int64_t>{0, count} : std::move(segments.starts);
  const Tensor dense = contiguous_as(boxes, boxes.scalar_type());
  dispatch_floating(boxes.scalar_type(), op, [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    suppress_segments(dense.const_data_ptr<Stored>(), order, starts, iou_threshold,
                      survivors.keep.get());
  });
  if (idxs != nullptr) {
    const auto by_index = uninitialized<char>(count);
    for (int64_t rank = 0; rank < count; ++rank) by_index[order[rank]] = survivors.keep[rank];
    for (int64_t rank = 0; rank < count; ++rank) {
      survivors.keep[rank] = by_index[survivors.by_score[rank]];
    }
  }
  for (int64_t rank = 0; rank < count; ++rank) survivors.kept += survivors.keep[rank];
  return survivors;
}

Tensor suppress_all(const Tensor& boxes, const Tensor& scores, const Tensor* idxs,
                    double iou_threshold, const char* op) {
  if (boxes.size(0) == 0) return empty_on_device_of(boxes, {0}, ScalarType::Long);
  const Survivors survivors = suppress(boxes, scores, idxs, iou_threshold, op);
  Tensor result = empty_on_device_of(boxes, {survivors.kept}, ScalarType::Long);
  survivors.write(result.mutable_data_ptr<int64_t>(), survivors.kept);
  return result;
}

std::tuple<Tensor, Tensor> suppress_padded(const Tensor& boxes, const Tensor& scores,
                                           const Tensor* idxs, double iou_threshold, int64_t most,
                                           const char* op) {
  check_max_output(most, op);
  auto result = no_boxes(boxes, most);
  if (boxes.size(0) == 0 || most == 0) return result;
  const Survivors survivors = suppress(boxes, scores, idxs, iou_threshold, op);
  const int64_t number = std::min(survivors.kept, most);
  survivors.write(std::get<0>(result).mutable_data_ptr<int64_t>(), number);
  *std::get<1>(result).mutable_data_ptr<int64_t>() = number;
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

// The same -> kept indices, int64 [max_output], padded with -1, and their number, int64 []
std::tuple<Tensor, Tensor> nms_padded_cpu(const Tensor& boxes, const Tensor& scores,
                                          double iou_threshold, int64_t max_output) {
  check_nms(boxes, scores, "nms_padded");
  return suppress_padded(boxes, scores, nullptr, iou_threshold, max_output, "nms_padded");
}

std::tuple<Tensor, Tensor> batched_nms_padded_cpu(const Tensor& boxes, const Tensor& scores,
                                                  const Tensor& idxs, double iou_threshold,
                                                  int64_t max_output) {
  check_batched_nms(boxes, scores, idxs, "batched_nms_padded");
  return suppress_padded(boxes, scores, &idxs, iou_threshold, max_output, "batched_nms_padded");
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  m.impl("nms", TORCH_BOX(&rcnn_ext::nms_cpu));
  m.impl("batched_nms", TORCH_BOX(&rcnn_ext::batched_nms_cpu));
  m.impl("nms_padded", TORCH_BOX(&rcnn_ext::nms_padded_cpu));
  m.impl("batched_nms_padded", TORCH_BOX(&rcnn_ext::batched_nms_padded_cpu));
}
