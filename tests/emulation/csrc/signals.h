// Memory faults of kernels become errors that name the kernel, the block and the thread.
#pragma once

#include <csignal>

namespace rcnn_emulation {

// Catches SIGSEGV and SIGBUS while it lives, on this thread; AddressSanitizer has its own handlers.
class FaultHandler {
 public:
  FaultHandler();
  ~FaultHandler();
  FaultHandler(const FaultHandler&) = delete;
  FaultHandler& operator=(const FaultHandler&) = delete;

 private:
  struct sigaction segmentation_before_, bus_before_;
  stack_t stack_before_;
};

}  // namespace rcnn_emulation
