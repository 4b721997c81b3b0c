// Dispatch of the measure, and the checks of the arguments of box_iou.
#pragma once

#include "../core/box_math.h"
#include "../core/dispatch.h"

namespace rcnn_ext {

inline void check_measure(int64_t measure) {
  RCNN_CHECK(measure >= static_cast<int64_t>(MeasureId::kIou) &&
                 measure <= static_cast<int64_t>(MeasureId::kSmaller),
             "box_iou: expected measure 0, 1, 2, 3 or 4, got ", measure);
}

// The measure must have been checked.
template <class Function>
void dispatch_measure(int64_t measure, double eps, Function&& function) {
  switch (static_cast<MeasureId>(measure)) {
    case MeasureId::kIou: return function(IntersectionOverUnion{});
    case MeasureId::kGeneralized: return function(GeneralizedIou{});
    case MeasureId::kDistance: return function(DistanceIou(eps));
    case MeasureId::kComplete: return function(CompleteIou{eps});
    case MeasureId::kSmaller: return function(IntersectionOverSmaller{});
  }
}

// Sizes of box_iou: boxes1 [B, N, 4] and boxes2 [B, M, 4] give [B, N, M].
struct PairwiseShape {
  int64_t batch_size, rows, columns;
};

inline PairwiseShape check_box_iou(const Tensor& boxes1, const Tensor& boxes2, int64_t measure) {
  RCNN_CHECK(boxes1.dim() == 3 && boxes1.size(2) == 4,
             "box_iou: expected boxes1 of shape [B, N, 4], got ", shape_of(boxes1));
  RCNN_CHECK(boxes2.dim() == 3 && boxes2.size(2) == 4,
             "box_iou: expected boxes2 of shape [B, M, 4], got ", shape_of(boxes2));
  RCNN_CHECK(boxes1.size(0) == boxes2.size(0),
             "box_iou: expected boxes1 and boxes2 of one batch size, got ", boxes1.size(0), " and ",
             boxes2.size(0));
  RCNN_CHECK(boxes1.scalar_type() == boxes2.scalar_type(),
             "box_iou: expected boxes1 and boxes2 of one dtype, got ",
             name_of(boxes1.scalar_type()), " and ", name_of(boxes2.scalar_type()));
  if (boxes1.scalar_type() != ScalarType::Long) check_floating(boxes1, "box_iou", "boxes1");
  check_same_device(boxes1, boxes2, "box_iou", "boxes1", "boxes2");
  check_measure(measure);
  return {boxes1.size(0), boxes1.size(1), boxes2.size(1)};
}

inline void check_box_iou_gradient(const Tensor& grad, const Tensor& boxes1,
                                   const PairwiseShape& shape) {
  RCNN_CHECK(grad.dim() == 3 && grad.size(0) == shape.batch_size && grad.size(1) == shape.rows &&
                 grad.size(2) == shape.columns,
             "box_iou_backward: expected grad of shape [", shape.batch_size, ", ", shape.rows, ", ",
             shape.columns, "], got ", shape_of(grad));
  check_floating(boxes1, "box_iou_backward", "boxes1");
  check_same_device(grad, boxes1, "box_iou_backward", "grad", "boxes1");
}

}  // namespace rcnn_ext
