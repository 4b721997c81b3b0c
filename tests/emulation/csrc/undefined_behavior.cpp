// The handlers that a build with -fsanitize=alignment,bounds,bool,... calls on undefined behavior
// (names and records of the compiler's UndefinedBehaviorSanitizer). The library of
// that sanitizer is not linked: these give errors that name the kernel, the block and the thread.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "scheduler.h"

namespace {

struct Source {
  const char* file;
  uint32_t line, column;
};
struct TypeName {
  uint16_t kind, info;
  char name[1];
};
struct Record {  // the beginning of every record
  Source source;
};
struct TypeMismatch {
  Source source;
  const TypeName* type;
  unsigned char log_alignment;
  unsigned char access;
};
struct OfType {
  Source source;
  const TypeName* type;
};

[[noreturn]] void report(const Source& source, const std::string& what) {
  const char* slash = std::strrchr(source.file, '/');
  const std::string message = what + " in " + (slash == nullptr ? source.file : slash + 1) + ":" +
                              std::to_string(source.line);
  if (rcnn_emulation::on_fiber()) rcnn_emulation::fail(message);
  // In host code: the compiler takes these functions for ones that don't throw.
  std::fprintf(stderr, "emulation: %s\n", message.c_str());
  std::abort();
}

}  // namespace

#define RCNN_HANDLER(name, ...) \
  extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_##name(__VA_ARGS__)

RCNN_HANDLER(type_mismatch_v1, TypeMismatch* data, uintptr_t address) {
  const uintptr_t alignment = uintptr_t{1} << data->log_alignment;
  const std::string type = data->type->name;
  if (address == 0) report(data->source, "a null pointer to " + type + " is used");
  report(data->source, "an access to " + type + " at an address that is " +
                           std::to_string(address % alignment) + " bytes off a multiple of " +
                           std::to_string(alignment));
}
RCNN_HANDLER(out_of_bounds, OfType* data, uintptr_t index) {
  report(data->source, "index " + std::to_string(static_cast<intptr_t>(index)) +
                           " is out of bounds of " + data->type->name);
}
RCNN_HANDLER(load_invalid_value, OfType* data, uintptr_t value) {
  report(data->source, "reads " + std::to_string(value) + " as " + data->type->name +
                           ": memory that nobody has written");
}
RCNN_HANDLER(shift_out_of_bounds, Record* data, uintptr_t, uintptr_t) {
  report(data->source, "a shift by a negative number or by all bits of the type");
}
RCNN_HANDLER(divrem_overflow, Record* data, uintptr_t, uintptr_t) {
  report(data->source, "an integer division by zero, or one that overflows");
}
RCNN_HANDLER(add_overflow, Record* data, uintptr_t, uintptr_t) {
  report(data->source, "a signed addition overflows");
}
RCNN_HANDLER(sub_overflow, Record* data, uintptr_t, uintptr_t) {
  report(data->source, "a signed subtraction overflows");
}
RCNN_HANDLER(mul_overflow, Record* data, uintptr_t, uintptr_t) {
  report(data->source, "a signed multiplication overflows");
}
RCNN_HANDLER(negate_overflow, Record* data, uintptr_t) {
  report(data->source, "a signed negation overflows");
}
RCNN_HANDLER(float_cast_overflow, Record* data, uintptr_t) {
  report(data->source, "a floating-point number does not fit the integer it is cast to");
}
