// Pairwise measures of boxes on the CPU. Contract: rcnn_ext/ops/box_iou.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/dual.h"
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../cpu/huge_pages.h"
#include "../cpu/intrinsics.h"
#include "box_iou.h"
#include "box_iou_columns_cpu.h"

namespace rcnn_ext {
namespace {

// Pairs that one thread takes at least: fewer are not worth waking it.
constexpr int64_t kMinPairsPerTask = 32768;

}  // namespace
}  // namespace rcnn_ext

#define RCNN_TARGET_INCLUDE "../box_iou/box_iou_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {
namespace {

// Call function(b) for each matrix of a batch, of `pairs` pairs each: in parallel if they are
// small; in sequence if they are large, as each is then parallel itself.
template <class Function>
void parallel_for_batch(int64_t batch_size, int64_t pairs, const Function& function) {
  const int64_t grain =
      pairs < kMinPairsPerTask ? kMinPairsPerTask / std::max<int64_t>(1, pairs) : batch_size;
  torch::stable::parallel_for(0, batch_size, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) function(b);
  });
}

// boxes1: [B, N, 4], boxes2: [B, M, 4] -> [B, N, M]
Tensor box_iou_cpu(const Tensor& boxes1, const Tensor& boxes2, int64_t measure_id, double eps) {
  const PairwiseShape shape = check_box_iou(boxes1, boxes2, measure_id);
  const auto [batch_size, rows, columns] = shape;
  const ScalarType dtype = boxes1.scalar_type();
  Tensor result = empty_on_device_of(boxes1, {batch_size, rows, columns}, iou_dtype(dtype));
  if (result.numel() == 0) return result;
  const Tensor first = contiguous_as(boxes1, dtype);
  const Tensor second = contiguous_as(boxes2, dtype);
  advise_huge_pages(result.mutable_data_ptr(), result.numel() * result.element_size());

  dispatch_floating_and_int64(dtype, "box_iou", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    using Output = iou_t<Stored>;
    const auto* data1 = first.const_data_ptr<Stored>();
    const auto* data2 = second.const_data_ptr<Stored>();
    auto* out = result.mutable_data_ptr<Output>();
    dispatch_measure(measure_id, eps, [&, rows = rows, columns = columns](auto measure) {
      parallel_for_batch(batch_size, rows * columns, [&](int64_t b) {
        const BoxColumns<T> boxes(measure, data2 + b * columns * 4, columns);
        const int64_t grain = std::max<int64_t>(1, kMinPairsPerTask / columns);
        torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
          RCNN_DYNAMIC_DISPATCH(compute_rows(measure, data1 + b * rows * 4, begin, end, boxes,
                                             out + b * rows * columns));
        });
      });
    });
  });
  return result;
}

// The parts of the rows of a result for which the column gradients are summed separately. Their
// count depends on the sizes only, so that the result does not depend on the number of threads.
struct RowParts {
  int64_t count, rows_per_part;

  explicit RowParts(const PairwiseShape& shape) {
    constexpr int64_t kMaxParts = 32;
    const int64_t tasks = shape.rows * shape.columns * 8 / kMinPairsPerTask;
    count = std::max<int64_t>(1, std::min({kMaxParts, shape.rows, tasks}));
    rows_per_part = (shape.rows + count - 1) / count;
  }
};

// Gradients [N, 4] and [M, 4] of one result [N, M].
template <class Stored, class Measure>
void compute_gradients(const Measure& measure, const PairwiseShape& shape,
                       const accumulate_t<Stored>* grad, const Stored* boxes1, const Stored* boxes2,
                       Stored* out1, Stored* out2) {
  using T = accumulate_t<Stored>;
  const int64_t columns = shape.columns;
  const RowParts parts(shape);
  const DualColumns<T> dual_columns(measure, boxes2, columns);
  std::vector<double> column_sums(parts.count * 4 * columns);
  torch::stable::parallel_for(0, parts.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = std::min(shape.rows, part * parts.rows_per_part);
      const int64_t last = std::min(shape.rows, first + parts.rows_per_part);
      RCNN_DYNAMIC_DISPATCH(sum_gradients(measure, boxes1, first, last, dual_columns, grad, out1,
                                          column_sums.data() + part * 4 * columns));
    }
  });
  for (int64_t part = 1; part < parts.count; ++part) {
    for (int64_t n = 0; n < 4 * columns; ++n) column_sums[n] += column_sums[part * 4 * columns + n];
  }
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t c = 0; c < 4; ++c) {
      out2[4 * j + c] = static_cast<Stored>(static_cast<T>(column_sums[c * columns + j]));
    }
  }
}

// grad: [B, N, M], boxes1: [B, N, 4], boxes2: [B, M, 4] -> gradients [B, N, 4] and [B, M, 4]
std::tuple<Tensor, Tensor> box_iou_backward_cpu(const Tensor& grad, const Tensor& boxes1,
                                                const Tensor& boxes2, int64_t measure_id,
                                                double eps) {
  const PairwiseShape shape = check_box_iou(boxes1, boxes2, measure_id);
  check_box_iou_gradient(grad, boxes1, shape);
  const ScalarType dtype = boxes1.scalar_type();
  Tensor grad1 = empty_on_device_of(boxes1, {shape.batch_size, shape.rows, 4}, dtype);
  Tensor grad2 = empty_on_device_of(boxes2, {shape.batch_size, shape.columns, 4}, dtype);
  const Tensor upstream = contiguous_as(grad, accumulate_dtype(dtype));
  const Tensor first = contiguous_as(boxes1, dtype);
  const Tensor second = contiguous_as(boxes2, dtype);

  dispatch_floating(dtype, "box_iou_backward", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    const auto* weights = upstream.const_data_ptr<T>();
    const auto* data1 = first.const_data_ptr<Stored>();
    const auto* data2 = second.const_data_ptr<Stored>();
    auto* out1 = grad1.mutable_data_ptr<Stored>();
    auto* out2 = grad2.mutable_data_ptr<Stored>();
    dispatch_measure(measure_id, eps, [&](auto measure) {
      const auto [batch_size, rows, columns] = shape;
      parallel_for_batch(
          batch_size, 8 * rows * columns, [&, rows = rows, columns = columns](int64_t b) {
            compute_gradients(measure, shape, weights + b * rows * columns, data1 + b * rows * 4,
                              data2 + b * columns * 4, out1 + b * rows * 4, out2 + b * columns * 4);
          });
    });
  });
  return {grad1, grad2};
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  RCNN_REGISTER(m, "box_iou", box_iou_cpu, boxes1, boxes2);
  RCNN_REGISTER(m, "box_iou_backward", box_iou_backward_cpu, grad, boxes1, boxes2);
}
