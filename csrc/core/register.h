// Registration of kernels with the dispatcher. Each is wrapped: what all kernels rely on is checked
// for every tensor, and an error of memory, or out of PyTorch's C interface, gets the operator's
// name.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "checks.h"
#include "memory_limit.h"

namespace rcnn_ext {

// The index-th of names that are separated by commas and spaces, as a macro's arguments in a
// string.
inline std::string name_at(const char* names, int64_t index) {
  const std::string text(names);
  size_t begin = 0;
  for (; index > 0 && begin != std::string::npos; --index) begin = text.find(", ", begin + 1);
  if (begin == std::string::npos) return "an argument";
  if (begin > 0) begin += 2;
  return text.substr(begin, text.find(", ", begin) - begin);
}

// Bytes that the elements of a tensor reach to in its storage.
inline int64_t bytes_reached(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  int64_t last = 0;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return 0;
    last += (sizes[d] - 1) * strides[d];
  }
  int64_t offset = 0;
  RCNN_CHECK_CALL(aoti_torch_get_storage_offset(tensor.get(), &offset));
  return (offset + last + 1) * static_cast<int64_t>(tensor.element_size());
}

// A tensor that is there, with all its elements in its storage: resize_() of a storage can take
// them away, and would leave kernels to read whatever lies there then.
inline void check_readable(const Tensor& tensor, const char* op, const char* names, int64_t index) {
  RCNN_CHECK(tensor.defined(), op, ": expected ", name_at(names, index),
             " to be a tensor, got None");
  int64_t size = 0;
  RCNN_CHECK_CALL(aoti_torch_get_storage_size(tensor.get(), &size));
  const int64_t reached = bytes_reached(tensor);
  RCNN_CHECK(reached <= size, op, ": expected ", name_at(names, index),
             " with all its elements in its storage, got a storage of ", size, " bytes where ",
             reached, " are needed: was it freed, or resized?");
}

inline void check_argument(const Tensor& tensor, const char* op, const char* names, int64_t index) {
  check_readable(tensor, op, names, index);
}

inline void check_argument(const std::vector<Tensor>& tensors, const char* op, const char* names,
                           int64_t index) {
  for (const Tensor& tensor : tensors) check_readable(tensor, op, names, index);
}

template <class Other>
void check_argument(const Other&, const char*, const char*, int64_t) {}

// The message of an error out of PyTorch's C interface, without where that was called.
inline std::string own_part(const char* message) {
  std::string text(message);
  for (const char* end : {" (originally from ", "\nException raised from "}) {
    const size_t found = text.find(end);
    if (found != std::string::npos) text.resize(found);
  }
  return text;
}

template <class Function, Function* kFunction, class Names>
struct Registered;

template <class Result, class... Arguments, Result (*kFunction)(Arguments...), class Names>
struct Registered<Result(Arguments...), kFunction, Names> {
  static Result call(Arguments... arguments) {
    int64_t index = 0;
    (check_argument(arguments, Names::op(), Names::arguments(), index++), ...);
    try {
      return kFunction(std::forward<Arguments>(arguments)...);
    } catch (const OutOfMemory& error) {
      throw OutOfMemory(concatenate(Names::op(), ": ", error.what()));
    } catch (const std::bad_alloc&) {
      throw OutOfMemory(concatenate(Names::op(), ": not enough memory"));
    } catch (const std::length_error&) {
      throw OutOfMemory(concatenate(Names::op(), ": not enough memory"));
    } catch (const std::runtime_error& error) {
      if (std::strstr(error.what(), "DefaultCPUAllocator")) {
        throw OutOfMemory(concatenate(Names::op(), ": not enough memory: ",
                                      after(own_part(error.what()), "DefaultCPUAllocator: ")));
      }
      if (!std::strstr(error.what(), " (originally from ")) throw;
      throw std::runtime_error(concatenate(Names::op(), ": ", own_part(error.what())));
    }
  }

 private:
  static std::string after(const std::string& text, const char* beginning) {
    const size_t found = text.find(beginning);
    return found == std::string::npos ? text : text.substr(found + std::strlen(beginning));
  }
};

// RCNN_REGISTER(m, "nms", nms_cpu, boxes, scores): the kernel of an operator, and the names of its
// arguments in order, up to the last tensor.
#define RCNN_REGISTER(m, name, function, ...)                                                     \
  do {                                                                                            \
    struct Names {                                                                                \
      static const char* op() { return name; }                                                    \
      static const char* arguments() { return #__VA_ARGS__; }                                     \
    };                                                                                            \
    using Kernel = ::rcnn_ext::Registered<std::remove_pointer_t<decltype(&::rcnn_ext::function)>, \
                                          &::rcnn_ext::function, Names>;                          \
    m.impl(name, TORCH_BOX(&Kernel::call));                                                       \
  } while (false)

}  // namespace rcnn_ext
