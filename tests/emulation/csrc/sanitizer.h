// The emulator's calls of AddressSanitizer; without effect in a build without it.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define RCNN_START_SWITCH(frames, bottom, size) __sanitizer_start_switch_fiber(frames, bottom, size)
#define RCNN_FINISH_SWITCH(frames, bottom, size) \
  __sanitizer_finish_switch_fiber(frames, bottom, size)
#define RCNN_FORBID(address, size) __asan_poison_memory_region(address, size)
#define RCNN_ALLOW(address, size) __asan_unpoison_memory_region(address, size)
namespace rcnn_emulation {
constexpr bool kAddressSanitizer = true;
}
#else
#define RCNN_START_SWITCH(frames, bottom, size) static_cast<void>(frames)
#define RCNN_FINISH_SWITCH(frames, bottom, size) static_cast<void>(frames)
#define RCNN_FORBID(address, size) static_cast<void>(address)
#define RCNN_ALLOW(address, size) static_cast<void>(address)
namespace rcnn_emulation {
constexpr bool kAddressSanitizer = false;
}
#endif
