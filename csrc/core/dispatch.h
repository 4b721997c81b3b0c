// From a tensor's dtype to a C++ type.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "checks.h"

namespace rcnn_ext {

using c10::BFloat16;
using c10::Half;

template <class T>
struct TypeTag {
  using type = T;
};
template <class Tag>
using type_of = typename Tag::type;

// The type a kernel computes in: half types accumulate in float32, integers in float64.
template <class Stored>
struct AccumulateType {
  using type = Stored;
};
template <>
struct AccumulateType<Half> {
  using type = float;
};
template <>
struct AccumulateType<BFloat16> {
  using type = float;
};
template <>
struct AccumulateType<int64_t> {
  using type = double;
};
template <class Stored>
using accumulate_t = typename AccumulateType<Stored>::type;

// The dtype of accumulate_t, for a floating type.
inline ScalarType accumulate_dtype(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The type of the IoUs of boxes: float64 for float64 boxes, float32 for all others, as in
// torchvision. Those of int64 boxes are computed in float64 and rounded.
template <class Stored>
struct IouType {
  using type = float;
};
template <>
struct IouType<double> {
  using type = double;
};
template <class Stored>
using iou_t = typename IouType<Stored>::type;

inline ScalarType iou_dtype(ScalarType boxes) {
  return boxes == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls function(TypeTag<T>) with T the floating type of `type`.
template <class Function>
void dispatch_floating(ScalarType type, const char* op, Function&& function) {
  switch (type) {
    case ScalarType::Half: return function(TypeTag<Half>{});
    case ScalarType::BFloat16: return function(TypeTag<BFloat16>{});
    case ScalarType::Float: return function(TypeTag<float>{});
    case ScalarType::Double: return function(TypeTag<double>{});
    default:
      RCNN_CHECK(false, op, ": expected float16, bfloat16, float32 or float64, got ",
                 name_of(type));
  }
}

// Calls function(TypeTag<T>) with T the floating type of `type`, or int64_t.
template <class Function>
void dispatch_floating_and_int64(ScalarType type, const char* op, Function&& function) {
  if (type == ScalarType::Long) return function(TypeTag<int64_t>{});
  dispatch_floating(type, op, static_cast<Function&&>(function));
}

}  // namespace rcnn_ext
