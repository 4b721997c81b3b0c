// The threads of the running block, and the scheduler that picks the next to run.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "fiber.h"
#include "memory.h"
#include "random.h"
#include "scheduler.h"

namespace rcnn_emulation {

enum class State { kReady, kAtBarrier, kInCollective, kExited };

struct Thread {
  Fiber fiber;
  State state;
  uint3 index;
  // The barrier or collective that it waits for, called at file:line.
  Barrier barrier;
  Collective collective;
  unsigned mask, source;
  int predicate, line;
  const char* file;
  uint64_t value;
  uint64_t result;
};

// The running launch.
class Machine {
 public:
  void run(const LaunchRequest& request);
  int wait_at_barrier(Barrier kind, int predicate, const char* file, int line);
  uint64_t wait_for_lanes(Collective kind, unsigned mask, uint64_t value, unsigned source,
                          const char* file, int line);
  void yield_point();
  [[noreturn]] void fail(const std::string& what);
  void record_error(const std::string& message);
  [[noreturn]] void thread_main();
  std::string location() const;
  unsigned lane() const { return static_cast<unsigned>(current_ - threads_.data()) % kWarp; }
  void* dynamic_shared() const { return dynamic_shared_; }
  bool on_fiber() const { return current_ != nullptr; }

  uint64_t seed = 0;
  uint64_t launches = 0;
  std::string pending_error;  // found outside of a launch

 private:
  void check_limits(const LaunchRequest& request) const;
  void run_blocks();
  void run_block();
  void begin_phase();
  void release_barrier();
  void finish_collective(unsigned warp, unsigned mask);
  void insert_ready(Thread* thread);
  void leave(bool abandoned = false);
  [[noreturn]] void report_deadlock();
  std::string location_of(const Thread& thread) const;
  Thread& lane_of(unsigned warp, unsigned lane) { return threads_[warp * kWarp + lane]; }

  LaunchRequest request_{};
  std::vector<Region> static_shared_;
  unsigned char* dynamic_shared_ = nullptr;
  unsigned char* stacks_ = nullptr;
  std::vector<Thread> threads_;
  unsigned count_ = 0;  // threads of the block
  unsigned exited_ = 0, at_barrier_ = 0;
  std::deque<Thread*> ready_;
  unsigned release_order_ = 0;
  Thread* current_ = nullptr;
  Fiber* scheduler_ = nullptr;
  Random random_{0};
  std::string error_;
};

extern Machine machine;

}  // namespace rcnn_emulation
