// Argument checks of the native operators. std::runtime_error reaches Python as
// RuntimeError, as from PyTorch's own operators, and std::out_of_range as IndexError.
#pragma once

#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

namespace rcnn_ext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
std::string concatenate(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

#define RCNN_CHECK(condition, ...)                                    \
  do {                                                                \
    if (!(condition)) {                                               \
      throw std::runtime_error(::rcnn_ext::concatenate(__VA_ARGS__)); \
    }                                                                 \
  } while (false)

// For calls into torch's stable C interface. torch 2.11 has only TORCH_ERROR_CODE_CHECK, whose
// message lacks the cause.
#ifdef STABLE_TORCH_ERROR_CODE_CHECK
#define RCNN_CHECK_CALL STABLE_TORCH_ERROR_CODE_CHECK
#else
#define RCNN_CHECK_CALL TORCH_ERROR_CODE_CHECK
#endif

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t d = 0; d < tensor.dim(); ++d) text << (d ? ", " : "") << tensor.size(d);
  text << ']';
  return text.str();
}

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::ComplexHalf: return "complex32";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    case ScalarType::UInt16: return "uint16";
    case ScalarType::UInt32: return "uint32";
    case ScalarType::UInt64: return "uint64";
    case ScalarType::Float8_e5m2: return "float8_e5m2";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case ScalarType::Float8_e5m2fnuz: return "float8_e5m2fnuz";
    case ScalarType::Float8_e4m3fnuz: return "float8_e4m3fnuz";
    default: return "another dtype";
  }
}

// Bytes per element of a dtype that results have.
inline int64_t element_size_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
    case ScalarType::Long: return 8;
    case ScalarType::Float:
    case ScalarType::Int: return 4;
    case ScalarType::Half:
    case ScalarType::BFloat16: return 2;
    default: return 1;
  }
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Half || type == ScalarType::BFloat16 || type == ScalarType::Float ||
         type == ScalarType::Double;
}

inline bool is_complex(ScalarType type) {
  return type == ScalarType::ComplexFloat || type == ScalarType::ComplexDouble ||
         type == ScalarType::ComplexHalf;
}

inline void check_floating(const Tensor& tensor, const char* op, const char* argument) {
  RCNN_CHECK(is_floating(tensor.scalar_type()), op, ": expected ", argument,
             " to be float16, bfloat16, float32 or float64, got ", name_of(tensor.scalar_type()));
}

inline void check_same_device(const Tensor& a, const Tensor& b, const char* op, const char* name_a,
                              const char* name_b) {
  RCNN_CHECK(a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(), op,
             ": expected ", name_a, " and ", name_b, " on one device, got ",
             a.is_cuda() ? "cuda:" : "cpu:", a.get_device_index(), " and ",
             b.is_cuda() ? "cuda:" : "cpu:", b.get_device_index());
}

// boxes: [N, 4] (x1, y1, x2, y2)
inline void check_boxes(const Tensor& boxes, const char* op, const char* argument) {
  RCNN_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, op, ": expected ", argument,
             " of shape [N, 4], got ", shape_of(boxes));
}

// One value per box, such as scores: [N]
inline void check_per_box(const Tensor& values, const Tensor& boxes, const char* op,
                          const char* argument) {
  RCNN_CHECK(values.dim() == 1 && values.size(0) == boxes.size(0), op, ": expected ", argument,
             " of shape [", boxes.size(0), "], one for each box, got ", shape_of(values));
  check_same_device(values, boxes, op, argument, "boxes");
}

// Sampling weights index rows and columns with 32 bits.
inline void check_side_lengths(int64_t height, int64_t width, const char* op) {
  constexpr int64_t kMaxSide = std::numeric_limits<int32_t>::max();
  RCNN_CHECK(height <= kMaxSide && width <= kMaxSide, op,
             ": expected an input of at most 2^31 - 1 rows and columns, got ", height, " x ",
             width);
}

// rois: [K, 5] (batch index, x1, y1, x2, y2)
inline void check_rois(const Tensor& rois, const char* op) {
  check_floating(rois, op, "rois");
  RCNN_CHECK(rois.dim() == 2 && rois.size(1) == 5, op,
             ": expected rois of shape [K, 5] (batch index, x1, y1, x2, y2), got ", shape_of(rois));
}

// input: [N, C, H, W], rois: [K, 5] (batch index, x1, y1, x2, y2)
inline void check_roi_arguments(const Tensor& input, const Tensor& rois, const char* op) {
  check_floating(input, op, "input");
  RCNN_CHECK(input.dim() == 4, op, ": expected input of shape [N, C, H, W], got ", shape_of(input));
  check_rois(rois, op);
  check_same_device(input, rois, op, "input", "rois");
  check_side_lengths(input.size(2), input.size(3), op);
}

inline void check_pooled_size(int64_t pooled_height, int64_t pooled_width, const char* op) {
  RCNN_CHECK(pooled_height > 0 && pooled_width > 0, op, ": expected a positive output size, got ",
             pooled_height, " x ", pooled_width);
  constexpr int64_t kMaxBins = std::numeric_limits<int32_t>::max();
  RCNN_CHECK(pooled_height <= kMaxBins / pooled_width, op,
             ": expected an output size of at most 2^31 - 1 bins, got ", pooled_height, " x ",
             pooled_width);
}

inline void check_spatial_scale(double spatial_scale, const char* op) {
  RCNN_CHECK(spatial_scale > 0 && spatial_scale <= std::numeric_limits<float>::max(), op,
             ": expected a positive, finite spatial_scale, got ", spatial_scale);
}

// The shape of the forward input, which a backward operator takes as arguments.
struct FeatureShape {
  int64_t batch_size, channels, height, width;
};

inline void check_feature_shape(const FeatureShape& shape, const char* op) {
  RCNN_CHECK(shape.batch_size >= 0 && shape.channels >= 0 && shape.height >= 0 && shape.width >= 0,
             op, ": expected an input size without negative numbers, got [", shape.batch_size, ", ",
             shape.channels, ", ", shape.height, ", ", shape.width, "]");
  check_side_lengths(shape.height, shape.width, op);
}

// grad: [K, C, PH, PW]
inline void check_pooled_gradient(const Tensor& grad, const Tensor& rois, int64_t channels,
                                  int64_t pooled_height, int64_t pooled_width, const char* op) {
  check_floating(grad, op, "grad");
  check_rois(rois, op);
  RCNN_CHECK(grad.dim() == 4 && grad.size(0) == rois.size(0) && grad.size(1) == channels &&
                 grad.size(2) == pooled_height && grad.size(3) == pooled_width,
             op, ": expected grad of shape [", rois.size(0), ", ", channels, ", ", pooled_height,
             ", ", pooled_width, "], got ", shape_of(grad));
  check_same_device(grad, rois, op, "grad", "rois");
}

// RoIs, [K, 5] contiguous, on the CPU: an index outside the batch is an error there. (A CUDA kernel
// cannot tell without a synchronization; it gives zeros for such a RoI.)
template <class T>
void check_batch_indices(const T* rois, int64_t count, int64_t batch_size, const char* op) {
  for (int64_t k = 0; k < count; ++k) {
    const double index = static_cast<double>(rois[k * 5]);
    if (!(index >= 0 && index < static_cast<double>(batch_size))) {
      throw std::out_of_range(concatenate(op, ": rois[", k, ", 0] is ", index,
                                          ", not a batch index of an input with ", batch_size,
                                          batch_size == 1 ? " image" : " images"));
    }
  }
}

}  // namespace rcnn_ext
