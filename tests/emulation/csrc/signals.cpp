#include "signals.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

#include "memory.h"
#include "sanitizer.h"
#include "scheduler.h"

namespace rcnn_emulation {
namespace {

constexpr size_t kStack = 64 * 1024;
unsigned char signal_stack[kStack];  // launches run one at a time

// Whether an address is where the stack of the interrupted code would grow to.
bool near_stack_pointer(const void* address, const void* context) {
  const auto* machine = &static_cast<const ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  const auto pointer = static_cast<uintptr_t>(machine->gregs[REG_RSP]);
#elif defined(__aarch64__)
  const auto pointer = static_cast<uintptr_t>(machine->sp);
#else
  const uintptr_t pointer = 0;
  (void)machine;
#endif
  constexpr uintptr_t kLargestFrame = 64 * 1024;
  const auto at = reinterpret_cast<uintptr_t>(address);
  return at < pointer + kLargestFrame && pointer < at + kLargestFrame;
}

void handle(int signal, siginfo_t* info, void* context) {
  if (!on_fiber()) {  // not ours: happens again, for whoever handled it before
    std::signal(signal, SIG_DFL);
    return;
  }
  // The end of a stack may lie in the forbidden memory behind a buffer, so it is asked for first.
  if (near_stack_pointer(info->si_addr, context)) fail("its stack is exhausted");
  std::string where = describe_address(info->si_addr);
  if (where.empty()) {
    char text[64];
    std::snprintf(text, sizeof(text), "address %p", info->si_addr);
    where = text;
  }
  // Leaves the handler for good. That is safe: the fault came from the kernel's own code, and the
  // signal was not blocked.
  fail("touches memory out of bounds: " + where);
}

#if defined(__SANITIZE_ADDRESS__)
// The text of a report begins with "...ERROR: AddressSanitizer: <kind> on address ..."; the access
// follows, as "READ of size 4" or "WRITE of size 4".
void keep_report(const char* report) {
  const auto part = [report](const char* begin, const char* stop) {
    const char* const found = std::strstr(report, begin);
    return found == nullptr ? std::string() : std::string(found, std::strcspn(found, stop));
  };
  std::string what = part("AddressSanitizer: ", "\n(");
  const std::string access = part("READ of size", "\n") + part("WRITE of size", "\n");
  if (!access.empty()) what += "; " + access.substr(0, access.find(" at "));
  if (on_fiber()) what = location() + ": " + what;
  record_error(what);
}

__attribute__((constructor)) void ask_for_reports() {
  __asan_set_error_report_callback(keep_report);
}
#endif

}  // namespace

FaultHandler::FaultHandler() {
  if (kAddressSanitizer) return;
  stack_t stack{};
  stack.ss_sp = signal_stack;
  stack.ss_size = kStack;
  sigaltstack(&stack, &stack_before_);
  struct sigaction action{};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  sigaction(SIGSEGV, &action, &segmentation_before_);
  sigaction(SIGBUS, &action, &bus_before_);
}

FaultHandler::~FaultHandler() {
  if (kAddressSanitizer) return;
  sigaction(SIGSEGV, &segmentation_before_, nullptr);
  sigaction(SIGBUS, &bus_before_, nullptr);
  sigaltstack(&stack_before_, nullptr);
}

}  // namespace rcnn_emulation
