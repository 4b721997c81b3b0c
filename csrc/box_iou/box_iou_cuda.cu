// Pairwise measures of boxes on CUDA. Contract: rcnn_ext/ops/box_iou.py.
#include "../common/cuda_utils.cuh"
#include "../common/dual.h"
#include "../common/stable_ops.h"
#include "measures.h"

namespace rcnn_ext {
namespace {

constexpr int kThreads = 256;
constexpr int kTileRows = 32;
constexpr int kTileColumns = 128;

template <class T>
struct PreparedBox {
  Box<T> box;
  Prepared<T> prepared;
};

// A block fills a tile of the result from boxes in shared memory.
// boxes1: [B, N, 4], boxes2: [B, M, 4], out: [B, N, M]
template <class Stored, class Measure>
__global__ void __launch_bounds__(kThreads)
    box_iou_kernel(const Stored* boxes1, const Stored* boxes2, int64_t batch_size, int64_t rows,
                   int64_t columns, Measure measure, typename BoxIouOutput<Stored>::type* out) {
  using T = accumulate_t<Stored>;
  using Output = typename BoxIouOutput<Stored>::type;
  __shared__ PreparedBox<T> row_boxes[kTileRows];
  __shared__ PreparedBox<T> column_boxes[kTileColumns];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kTileColumns;
  const int tile_rows = static_cast<int>(min(static_cast<int64_t>(kTileRows), rows - first_row));
  const int tile_columns =
      static_cast<int>(min(static_cast<int64_t>(kTileColumns), columns - first_column));

  for (int64_t b = blockIdx.z; b < batch_size; b += gridDim.z) {
    for (int i = threadIdx.x; i < tile_rows; i += kThreads) {
      const Box<T> box = load_box<T>(boxes1 + (b * rows + first_row + i) * 4);
      row_boxes[i] = {box, measure.prepare(box)};
    }
    for (int j = threadIdx.x; j < tile_columns; j += kThreads) {
      const Box<T> box = load_box<T>(boxes2 + (b * columns + first_column + j) * 4);
      column_boxes[j] = {box, measure.prepare(box)};
    }
    __syncthreads();
    const int j = threadIdx.x % kTileColumns;
    if (j < tile_columns) {
      const PreparedBox<T> column = column_boxes[j];
      for (int i = threadIdx.x / kTileColumns; i < tile_rows; i += kThreads / kTileColumns) {
        const PreparedBox<T>& row = row_boxes[i];
        const T value = measure(row.box, row.prepared, column.box, column.prepared);
        out[(b * rows + first_row + i) * columns + first_column + j] = static_cast<Output>(value);
      }
    }
    __syncthreads();  // the next batch overwrites the tiles
  }
}

// boxes1: [B, N, 4], boxes2: [B, M, 4] -> [B, N, M]
Tensor box_iou_cuda(const Tensor& boxes1, const Tensor& boxes2, int64_t measure_id, double eps) {
  const PairwiseShape shape = check_box_iou(boxes1, boxes2, measure_id);
  const CudaScope scope(boxes1);
  const ScalarType dtype = boxes1.scalar_type();
  Tensor result = empty_on_device_of(boxes1, {shape.batch_size, shape.rows, shape.columns},
                                     box_iou_dtype(dtype));
  if (result.numel() == 0) return result;
  const Tensor first = contiguous_as(boxes1, dtype);
  const Tensor second = contiguous_as(boxes2, dtype);
  const LaunchShape tiles{
      dim3(static_cast<unsigned>(ceil_div(shape.rows, kTileRows)),
           static_cast<unsigned>(ceil_div(shape.columns, kTileColumns)),
           static_cast<unsigned>(std::min(shape.batch_size, most_blocks(65535)))),
      dim3(kThreads)};

  dispatch_floating_and_int64(dtype, "box_iou", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using Output = typename BoxIouOutput<Stored>::type;
    dispatch_measure(measure_id, eps, [&](auto measure) {
      launch("box_iou", box_iou_kernel<Stored, decltype(measure)>, tiles, scope,
             static_cast<const Stored*>(first.const_data_ptr()),
             static_cast<const Stored*>(second.const_data_ptr()), shape.batch_size, shape.rows,
             shape.columns, measure, static_cast<Output*>(result.mutable_data_ptr()));
    });
  });
  return result;
}

constexpr int kSumThreads = 128;

// A block sums the gradient of one box over its pairs, in an order that only the sizes decide.
// grad: [B, N, M], out: [B, N, 4] (with kOfSecond [B, M, 4])
template <bool kOfSecond, class Stored, class Measure>
__global__ void __launch_bounds__(kSumThreads)
    box_iou_backward_kernel(const accumulate_t<Stored>* grad, const Stored* boxes1,
                            const Stored* boxes2, int64_t batch_size, int64_t rows, int64_t columns,
                            Measure measure, Stored* out) {
  using T = accumulate_t<Stored>;
  __shared__ T partial[kSumThreads][4];
  const int64_t outer = kOfSecond ? columns : rows;
  const int64_t inner = kOfSecond ? rows : columns;
  for (int64_t index = blockIdx.x; index < batch_size * outer; index += gridDim.x) {
    const int64_t b = index / outer;
    const int64_t o = index % outer;
    T sums[4] = {T(0), T(0), T(0), T(0)};
    for (int64_t n = threadIdx.x; n < inner; n += kSumThreads) {
      const int64_t i = kOfSecond ? n : o;
      const int64_t j = kOfSecond ? o : n;
      add_gradient<kOfSecond>(measure, load_box<T>(boxes1 + (b * rows + i) * 4),
                              load_box<T>(boxes2 + (b * columns + j) * 4),
                              grad[(b * rows + i) * columns + j], sums);
    }
    for (int c = 0; c < 4; ++c) partial[threadIdx.x][c] = sums[c];
    __syncthreads();
    for (int half = kSumThreads / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) {
        for (int c = 0; c < 4; ++c) partial[threadIdx.x][c] += partial[threadIdx.x + half][c];
      }
      __syncthreads();
    }
    if (threadIdx.x < 4)
      out[index * 4 + threadIdx.x] = static_cast<Stored>(partial[0][threadIdx.x]);
    __syncthreads();  // the next box overwrites the sums
  }
}

template <bool kOfSecond, class Stored, class Measure>
void sum_gradients(const PairwiseShape& shape, const CudaScope& scope, const Measure& measure,
                   const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2, Tensor& out) {
  if (out.numel() == 0) return;
  using T = accumulate_t<Stored>;
  launch("box_iou_backward", box_iou_backward_kernel<kOfSecond, Stored, Measure>,
         {dim3(stride_grid(out.numel() / 4, 1)), dim3(kSumThreads)}, scope,
         static_cast<const T*>(grad.const_data_ptr()),
         static_cast<const Stored*>(boxes1.const_data_ptr()),
         static_cast<const Stored*>(boxes2.const_data_ptr()), shape.batch_size, shape.rows,
         shape.columns, measure, static_cast<Stored*>(out.mutable_data_ptr()));
}

// grad: [B, N, M], boxes1: [B, N, 4], boxes2: [B, M, 4] -> gradients [B, N, 4] and [B, M, 4]
std::tuple<Tensor, Tensor> box_iou_backward_cuda(const Tensor& grad, const Tensor& boxes1,
                                                 const Tensor& boxes2, int64_t measure_id,
                                                 double eps) {
  const PairwiseShape shape = check_box_iou(boxes1, boxes2, measure_id);
  check_box_iou_gradient(grad, boxes1, shape);
  const CudaScope scope(boxes1);
  const ScalarType dtype = boxes1.scalar_type();
  Tensor grad1 = empty_on_device_of(boxes1, {shape.batch_size, shape.rows, 4}, dtype);
  Tensor grad2 = empty_on_device_of(boxes2, {shape.batch_size, shape.columns, 4}, dtype);
  const Tensor upstream = contiguous_as(grad, accumulate_dtype(dtype));
  const Tensor first = contiguous_as(boxes1, dtype);
  const Tensor second = contiguous_as(boxes2, dtype);

  dispatch_floating(dtype, "box_iou_backward", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    dispatch_measure(measure_id, eps, [&](auto measure) {
      sum_gradients<false, Stored>(shape, scope, measure, upstream, first, second, grad1);
      sum_gradients<true, Stored>(shape, scope, measure, upstream, first, second, grad2);
    });
  });
  return {grad1, grad2};
}

}  // namespace
}  // namespace rcnn_ext

RCNN_CUDA_LIBRARY(m) {
  m.impl("box_iou", TORCH_BOX(&rcnn_ext::box_iou_cuda));
  m.impl("box_iou_backward", TORCH_BOX(&rcnn_ext::box_iou_backward_cuda));
}
