// Pairwise measures of boxes on CUDA. Contract: rcnn_ext/ops/box_iou.py.
#include "../core/dual.h"
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../cuda/launch.cuh"
#include "box_iou.h"

namespace rcnn_ext {
namespace {

// The tiles of box_iou_kernel; untuned.
constexpr int kIouThreads = 256;
constexpr int kRowsPerTile = 64;
constexpr int kColumnsPerThread = 4;
constexpr int kMaxThreadsPerRow = 64;

// The result in tiles. threads_per_row consecutive threads cover a row of a tile, the next ones the
// next row.
struct IouTiles {
  int64_t rows, columns;
  int64_t row_tiles, column_tiles, count;
  int threads_per_row;

  IouTiles(const PairwiseShape& shape)
      : rows(shape.rows),
        columns(shape.columns),
        row_tiles(ceil_div(rows, kRowsPerTile)),
        threads_per_row(static_cast<int>(
            std::min(ceil_div(columns, kColumnsPerThread), int64_t{kMaxThreadsPerRow}))) {
    column_tiles = ceil_div(columns, threads_per_row * kColumnsPerThread);
    count = shape.batch_size * row_tiles * column_tiles;
  }
};

// Store the measures of four consecutive columns by vectors of 16 bytes. Streaming stores, since
// the result is larger than the caches and read later.
__device__ __forceinline__ void store_columns(float* out, const float (&values)[4]) {
  __stcs(reinterpret_cast<float4*>(out), make_float4(values[0], values[1], values[2], values[3]));
}
__device__ __forceinline__ void store_columns(double* out, const double (&values)[4]) {
  __stcs(reinterpret_cast<double2*>(out), make_double2(values[0], values[1]));
  __stcs(reinterpret_cast<double2*>(out) + 1, make_double2(values[2], values[3]));
}

// A thread keeps the boxes of its columns in registers and iterates over the rows of a tile, so
// that writing the result takes most of the time. With kVectors the columns of a thread are
// consecutive and the column count is a multiple of kColumnsPerThread; otherwise the columns of a
// warp are consecutive. boxes1: [B, N, 4], boxes2: [B, M, 4], out: [B, N, M]
template <bool kVectors, class Stored, class Measure>
__global__ void __launch_bounds__(kIouThreads)
    box_iou_kernel(const Stored* boxes1, const Stored* boxes2, IouTiles tiles, Measure measure,
                   iou_t<Stored>* out) {
  using T = accumulate_t<Stored>;
  using Output = iou_t<Stored>;
  __shared__ __align__(16) Box<T> row_boxes[kRowsPerTile];
  __shared__ BoxTerms<T> row_terms[kRowsPerTile];
  const int column_thread = static_cast<int>(threadIdx.x) % tiles.threads_per_row;
  const int first_row = static_cast<int>(threadIdx.x) / tiles.threads_per_row;
  const int rows_at_once = kIouThreads / tiles.threads_per_row;

  for (int64_t tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    const int64_t column = tile % tiles.column_tiles * (tiles.threads_per_row * kColumnsPerThread);
    const int64_t row = tile / tiles.column_tiles % tiles.row_tiles * kRowsPerTile;
    const int64_t b = tile / tiles.column_tiles / tiles.row_tiles;
    const int tile_rows =
        static_cast<int>(min(static_cast<int64_t>(kRowsPerTile), tiles.rows - row));
    for (int i = threadIdx.x; i < tile_rows; i += kIouThreads) {
      const Box<T> box = load_box<T>(boxes1 + (b * tiles.rows + row + i) * 4);
      row_boxes[i] = box;
      row_terms[i] = measure.terms(box);
    }
    int64_t columns[kColumnsPerThread];
    Box<T> boxes[kColumnsPerThread];
    BoxTerms<T> terms[kColumnsPerThread];
#pragma unroll
    for (int n = 0; n < kColumnsPerThread; ++n) {
      columns[n] = column + (kVectors ? kColumnsPerThread * column_thread + n
                                      : column_thread + n * tiles.threads_per_row);
      const int64_t j = min(columns[n], tiles.columns - 1);
      boxes[n] = load_box<T>(boxes2 + (b * tiles.columns + j) * 4);
      terms[n] = measure.terms(boxes[n]);
    }
    __syncthreads();
    // Threads beyond rows_at_once whole rows are idle.
    for (int i = first_row < rows_at_once ? first_row : tile_rows; i < tile_rows;
         i += rows_at_once) {
      const Box<T> row_box = row_boxes[i];
      const BoxTerms<T> row_box_terms = row_terms[i];
      Output values[kColumnsPerThread];
#pragma unroll
      for (int n = 0; n < kColumnsPerThread; ++n) {
        values[n] = static_cast<Output>(measure(row_box, row_box_terms, boxes[n], terms[n]));
      }
      Output* const out_row = out + (b * tiles.rows + row + i) * tiles.columns;
      if (kVectors) {
        if (columns[0] < tiles.columns) store_columns(out_row + columns[0], values);
      } else {
#pragma unroll
        for (int n = 0; n < kColumnsPerThread; ++n) {
          if (columns[n] < tiles.columns) __stcs(out_row + columns[n], values[n]);
        }
      }
    }
    __syncthreads();  // the next tile overwrites the rows
  }
}

// boxes1: [B, N, 4], boxes2: [B, M, 4] -> [B, N, M]
Tensor box_iou_cuda(const Tensor& boxes1, const Tensor& boxes2, int64_t measure_id, double eps) {
  const PairwiseShape shape = check_box_iou(boxes1, boxes2, measure_id);
  const CudaScope scope(boxes1);
  const ScalarType dtype = boxes1.scalar_type();
  Tensor result =
      empty_on_device_of(boxes1, {shape.batch_size, shape.rows, shape.columns}, iou_dtype(dtype));
  if (result.numel() == 0) return result;
  const Tensor first = contiguous_as(boxes1, dtype);
  const Tensor second = contiguous_as(boxes2, dtype);
  const IouTiles tiles(shape);
  const LaunchShape launch_shape{dim3(stride_grid(tiles.count, 1)), dim3(kIouThreads)};

  dispatch_floating_and_int64(dtype, "box_iou", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using Output = iou_t<Stored>;
    dispatch_measure(measure_id, eps, [&](auto measure) {
      using Measure = decltype(measure);
      const auto kernel = shape.columns % kColumnsPerThread == 0
                              ? box_iou_kernel<true, Stored, Measure>
                              : box_iou_kernel<false, Stored, Measure>;
      launch("box_iou", kernel, launch_shape, scope, first.const_data_ptr<Stored>(),
             second.const_data_ptr<Stored>(), tiles, measure, result.mutable_data_ptr<Output>());
    });
  });
  return result;
}

constexpr int kGradientThreads = 128;  // per box; untuned

// The gradient of one box, summed over its pairs by one block in an order that depends on the sizes
// only.
// grad: [B, N, M], out: [B, N, 4] (with kOfSecond [B, M, 4])
template <bool kOfSecond, class Stored, class Measure>
__global__ void __launch_bounds__(kGradientThreads)
    box_iou_backward_kernel(const accumulate_t<Stored>* grad, const Stored* boxes1,
                            const Stored* boxes2, int64_t batch_size, int64_t rows, int64_t columns,
                            Measure measure, Stored* out) {
  using T = accumulate_t<Stored>;
  __shared__ T partial[kGradientThreads][4];
  const int64_t outer = kOfSecond ? columns : rows;
  const int64_t inner = kOfSecond ? rows : columns;
  for (int64_t index = blockIdx.x; index < batch_size * outer; index += gridDim.x) {
    const int64_t b = index / outer;
    const int64_t o = index % outer;
    T sums[4] = {T(0), T(0), T(0), T(0)};
    for (int64_t n = threadIdx.x; n < inner; n += kGradientThreads) {
      const int64_t i = kOfSecond ? n : o;
      const int64_t j = kOfSecond ? o : n;
      add_gradient<kOfSecond>(measure, load_box<T>(boxes1 + (b * rows + i) * 4),
                              load_box<T>(boxes2 + (b * columns + j) * 4),
                              grad[(b * rows + i) * columns + j], sums);
    }
    for (int c = 0; c < 4; ++c) partial[threadIdx.x][c] = sums[c];
    __syncthreads();
    for (int half = kGradientThreads / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) {
        for (int c = 0; c < 4; ++c) partial[threadIdx.x][c] += partial[threadIdx.x + half][c];
      }
      __syncthreads();
    }
    if (threadIdx.x < 4) {
      out[index * 4 + threadIdx.x] = static_cast<Stored>(partial[0][threadIdx.x]);
    }
    __syncthreads();  // the next box overwrites the sums
  }
}

template <bool kOfSecond, class Stored, class Measure>
void sum_gradients(const PairwiseShape& shape, const CudaScope& scope, const Measure& measure,
                   const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2, Tensor& out) {
  if (out.numel() == 0) return;
  using T = accumulate_t<Stored>;
  launch("box_iou_backward", box_iou_backward_kernel<kOfSecond, Stored, Measure>,
         {dim3(stride_grid(out.numel() / 4, 1)), dim3(kGradientThreads)}, scope,
         grad.const_data_ptr<T>(), boxes1.const_data_ptr<Stored>(), boxes2.const_data_ptr<Stored>(),
         shape.batch_size, shape.rows, shape.columns, measure, out.mutable_data_ptr<Stored>());
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
  RCNN_REGISTER(m, "box_iou", box_iou_cuda, boxes1, boxes2);
  RCNN_REGISTER(m, "box_iou_backward", box_iou_backward_cuda, grad, boxes1, boxes2);
}
