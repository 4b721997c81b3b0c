// A thread of execution with a stack of its own that runs until it hands over: one for each thread
// of a block. Hand-written switches for x86-64 and AArch64; ucontext (which makes a system call
// every time) elsewhere or with RCNN_EMULATION_UCONTEXT.
#pragma once

#include <cstddef>

#if !defined(RCNN_EMULATION_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define RCNN_EMULATION_UCONTEXT
#endif
#if defined(RCNN_EMULATION_UCONTEXT)
#include <ucontext.h>
#endif

namespace rcnn_emulation {

class Fiber {
 public:
  // The flow of control that enters the first fiber; it needs no stack.
  Fiber() = default;

  // Makes it begin at entry(), which must not return, on the stack [bottom, bottom + size).
  void prepare(unsigned char* bottom, size_t size, void (*entry)());

  // Leaves `from`, the running fiber, for `to`; returns when something switches back to `from`.
  // `abandoned`: nothing will. AddressSanitizer is told in both cases.
  static void switch_between(Fiber& from, Fiber& to, bool abandoned = false);

  // The first statement of entry(): completes the switch that entered it.
  static void arrived(Fiber& self);

 private:
  unsigned char* bottom_ = nullptr;  // lowest address of the stack, as far as it is known
  size_t size_ = 0;
  void* sanitizer_frames_ = nullptr;
#if defined(RCNN_EMULATION_UCONTEXT)
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace rcnn_emulation
