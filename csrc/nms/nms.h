// The arguments of nms and batched_nms, checked for CPU and CUDA.
#pragma once

#include <tuple>

#include "../core/checks.h"
#include "../core/stable_ops.h"

namespace rcnn_ext {

inline bool is_float8(ScalarType type) {
  return type == ScalarType::Float8_e5m2 || type == ScalarType::Float8_e4m3fn ||
         type == ScalarType::Float8_e5m2fnuz || type == ScalarType::Float8_e4m3fnuz;
}

// boxes: [N, 4], scores: [N]
inline void check_nms(const Tensor& boxes, const Tensor& scores, const char* op) {
  check_boxes(boxes, op, "boxes");
  check_floating(boxes, op, "boxes");
  check_per_box(scores, boxes, op, "scores");
  RCNN_CHECK(!is_complex(scores.scalar_type()), op, ": expected scores to be real numbers, got ",
             name_of(scores.scalar_type()));
  RCNN_CHECK(!is_float8(scores.scalar_type()), op, ": expected scores of a dtype that sorts, got ",
             name_of(scores.scalar_type()));
}

// idxs: [N] int64
inline void check_segments(const Tensor& idxs, const Tensor& boxes, const char* op) {
  check_per_box(idxs, boxes, op, "idxs");
  RCNN_CHECK(idxs.scalar_type() == ScalarType::Long, op, ": expected idxs to be int64, got ",
             name_of(idxs.scalar_type()));
}

// boxes: [N, 4], scores: [N], idxs: [N] int64
inline void check_batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                              const char* op) {
  check_nms(boxes, scores, op);
  check_segments(idxs, boxes, op);
}

inline void check_max_output(int64_t max_output, const char* op) {
  RCNN_CHECK(max_output >= 0, op, ": expected max_output of at least 0, got ", max_output);
}

// Pads the indices of a fixed-size result.
constexpr int64_t kNoIndex = -1;

// The fixed-size result without kept boxes.
inline std::tuple<Tensor, Tensor> empty_padded_result(const Tensor& like, int64_t max_output) {
  Tensor indices = empty_on_device_of(like, {max_output}, ScalarType::Long);
  Tensor count = empty_on_device_of(like, {}, ScalarType::Long);
  torch::stable::fill_(indices, kNoIndex);
  torch::stable::zero_(count);
  return {indices, count};
}

}  // namespace rcnn_ext
