// The choice of the instruction set as functions of C, for rcnn_ext/_extension.py to call by ctypes
// and for programs without Python. A function that fails returns a null pointer or false, and
// rcnn_ext_last_error() says why.
#include <torch/headeronly/macros/Export.h>

#include <stdexcept>
#include <string>

#include "../cpu/isa.h"

namespace {

thread_local std::string last_error;

// Returns function(), or a value that stands for the error where it throws.
template <class Result, class Function>
Result with_errors(Result failure, Function&& function) {
  try {
    return function();
  } catch (const std::exception& error) {
    last_error = error.what();
    return failure;
  }
}

}  // namespace

extern "C" {

// The error of the last function here that failed in this thread.
C10_EXPORT const char* rcnn_ext_last_error() { return last_error.c_str(); }

// The name of the instruction set that kernels use.
C10_EXPORT const char* rcnn_ext_instruction_set() {
  return with_errors<const char*>(nullptr,
                                  [] { return rcnn_ext::name_of(rcnn_ext::active_isa()); });
}

// The name of the instruction set at a place among those of this processor, which ascend; null past
// the last, without an error.
C10_EXPORT const char* rcnn_ext_instruction_set_at(int index) {
  return with_errors<const char*>(nullptr, [index]() -> const char* {
    const bool known = index >= 0 && index <= static_cast<int>(rcnn_ext::best_isa());
    return known ? rcnn_ext::name_of(static_cast<rcnn_ext::Isa>(index)) : nullptr;
  });
}

// Whether kernels use the processor's dot products of bfloat16.
C10_EXPORT bool rcnn_ext_has_bf16_products() {
  return with_errors(false, [] { return rcnn_ext::has_bf16_products(); });
}

// Lets all threads use an instruction set.
C10_EXPORT bool rcnn_ext_use_instruction_set(const char* name) {
  return with_errors(false, [name] {
    rcnn_ext::use_isa(name);
    return true;
  });
}
}
