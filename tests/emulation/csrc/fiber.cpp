#include "fiber.h"

#include <cstdint>
#include <cstring>

#include "sanitizer.h"

#if !defined(RCNN_EMULATION_UCONTEXT)
// Saves the callee-saved registers on the running stack, stores its stack pointer in *from,
// switches to the stack pointer `to` and restores the registers from there.
extern "C" __attribute__((visibility("hidden"))) void rcnn_emulation_switch_stack(void** from,
                                                                                  void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl rcnn_emulation_switch_stack
.hidden rcnn_emulation_switch_stack
.type rcnn_emulation_switch_stack, @function
rcnn_emulation_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size rcnn_emulation_switch_stack, .-rcnn_emulation_switch_stack
)");
#else
asm(R"(
.text
.globl rcnn_emulation_switch_stack
.hidden rcnn_emulation_switch_stack
.type rcnn_emulation_switch_stack, %function
rcnn_emulation_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size rcnn_emulation_switch_stack, .-rcnn_emulation_switch_stack
)");
#endif
#endif

namespace rcnn_emulation {
namespace {

// The fiber that switched to the running one: on arrival AddressSanitizer names the stack it came
// from, which is how the extent of the first, borrowed stack becomes known.
Fiber* previous = nullptr;

}  // namespace

void Fiber::prepare(unsigned char* bottom, size_t size, void (*entry)()) {
  bottom_ = bottom;
  size_ = size;
  sanitizer_frames_ = nullptr;
#if defined(RCNN_EMULATION_UCONTEXT)
  getcontext(&context_);
  context_.uc_stack.ss_sp = bottom;
  context_.uc_stack.ss_size = size;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#elif defined(__x86_64__)
  // Six registers, the address that `ret` takes, and a null return address. At entry the stack
  // pointer is 8 below a multiple of 16, as after a call.
  auto* top = reinterpret_cast<uintptr_t*>(bottom + size) - 2;
  top[0] = reinterpret_cast<uintptr_t>(entry);
  top[1] = 0;
  std::memset(top - 6, 0, 6 * sizeof(uintptr_t));
  stack_pointer_ = top - 6;
#else
  auto* frame = reinterpret_cast<uintptr_t*>(bottom + size) - 20;
  std::memset(frame, 0, 20 * sizeof(uintptr_t));
  frame[11] = reinterpret_cast<uintptr_t>(entry);  // x30, where `ret` goes
  stack_pointer_ = frame;
#endif
}

void Fiber::switch_between(Fiber& from, Fiber& to, bool abandoned) {
  previous = &from;
  RCNN_START_SWITCH(abandoned ? nullptr : &from.sanitizer_frames_, to.bottom_, to.size_);
#if defined(RCNN_EMULATION_UCONTEXT)
  swapcontext(&from.context_, &to.context_);
#else
  rcnn_emulation_switch_stack(&from.stack_pointer_, to.stack_pointer_);
#endif
  arrived(from);
}

void Fiber::arrived(Fiber& self) {
  const void* bottom = nullptr;
  size_t size = 0;
  RCNN_FINISH_SWITCH(self.sanitizer_frames_, &bottom, &size);
  if (previous->bottom_ == nullptr && bottom != nullptr) {
    previous->bottom_ = static_cast<unsigned char*>(const_cast<void*>(bottom));
    previous->size_ = size;
  }
}

}  // namespace rcnn_emulation
