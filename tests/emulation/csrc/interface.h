// The functions that tests/helpers/emulation/backend.py calls through ctypes.
#pragma once

#include <cstddef>
#include <cstdint>

#define RCNN_EXPORT extern "C" __attribute__((visibility("default")))

// The schedules from here on are those of `seed`.
RCNN_EXPORT void rcnn_emulation_set_seed(uint64_t seed);
// Launches since rcnn_emulation_set_seed().
RCNN_EXPORT uint64_t rcnn_emulation_launches();
// The byte that the seed fills unwritten memory with.
RCNN_EXPORT int rcnn_emulation_poison_byte();
// Memory between guard zones, filled with a byte; null where there is none.
RCNN_EXPORT void* rcnn_emulation_allocate(size_t bytes, int fill);
// Releases it. A message where its guard zones were written to, else an empty text; valid until the
// next call.
RCNN_EXPORT const char* rcnn_emulation_release(void* data);
// An error that was found outside of a launch since the last call, or an empty text.
RCNN_EXPORT const char* rcnn_emulation_take_error();
// Whether this build is one under AddressSanitizer.
RCNN_EXPORT int rcnn_emulation_has_address_sanitizer();
