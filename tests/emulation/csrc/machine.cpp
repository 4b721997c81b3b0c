#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include "messages.h"
#include "sanitizer.h"
#include "signals.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace rcnn_emulation {

Machine machine;

namespace {

constexpr size_t kPage = 4096;
// AddressSanitizer's frames are larger.
constexpr size_t kStack = (kAddressSanitizer ? 64 : 16) * kPage;

std::mutex one_launch_at_a_time;

void enter_thread() { machine.thread_main(); }

}  // namespace

void Machine::check_limits(const LaunchRequest& request) const {
  const dim3 &grid = request.grid, &block = request.block;
  const std::string name = request.name;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 2147483647u || grid.y > 65535u ||
      grid.z > 65535u) {
    throw std::runtime_error(name + ": a grid of " +
                             format("%llu x %llu x %llu", grid.x, grid.y, grid.z) +
                             " blocks cannot be launched");
  }
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.z > 64) {
    throw std::runtime_error(name + ": a block of " +
                             format("%llu x %llu x %llu", block.x, block.y, block.z) +
                             " threads cannot be launched");
  }
  size_t bytes = 0;
  for (const Region& region : static_shared_) bytes += region.size;
  if (bytes > kMaxStaticShared) {
    throw std::runtime_error(name + format(": %llu bytes of static shared memory, of at most %llu",
                                           bytes, kMaxStaticShared));
  }
  if (bytes + request.dynamic_shared_bytes > kMaxShared) {
    throw std::runtime_error(
        name + format(": %llu bytes of static and %llu of dynamic shared memory, of at most %llu",
                      bytes, request.dynamic_shared_bytes, kMaxShared));
  }
}

void Machine::run(const LaunchRequest& request) {
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  static_shared_ = static_shared_of(request.kernel);
  check_limits(request);
  request_ = request;
  error_.clear();
  random_ = Random(mix(seed ^ mix(launches++)));
  blockDim = request.block;
  gridDim = request.grid;
  count_ = request.block.x * request.block.y * request.block.z;
  if (stacks_ == nullptr) {
    void* const memory = mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("emulation: no memory for the stacks");
    stacks_ = static_cast<unsigned char*>(memory);
    for (unsigned t = 0; t < kMaxThreads; ++t) mprotect(stacks_ + t * kStack, kPage, PROT_NONE);
    threads_.resize(kMaxThreads);
  }
  const size_t bytes = request.dynamic_shared_bytes;
  dynamic_shared_ = bytes == 0 ? nullptr : allocate_guarded(bytes, poison_byte());
  Fiber scheduler;
  scheduler_ = &scheduler;
  {
    const FaultHandler handler;
    run_blocks();
  }
  current_ = nullptr;
  scheduler_ = nullptr;
  if (dynamic_shared_ != nullptr) {
    const std::string damage = release_guarded(dynamic_shared_);
    if (!damage.empty() && error_.empty()) {
      error_ = std::string(request.name) + ": dynamic shared memory: " + damage;
    }
    dynamic_shared_ = nullptr;
  }
  if (!error_.empty()) {
    throw std::runtime_error(error_ + " [seed " + std::to_string(seed) + "]");
  }
}

void Machine::run_blocks() {
  const uint64_t plane = uint64_t{gridDim.x} * gridDim.y;
  const uint64_t blocks = plane * gridDim.z;
  // No kernel may count on an order of blocks: forwards, backwards or by leaps.
  uint64_t step = 1;
  if (random_.below(3) != 0 && blocks > 1) {
    step = blocks - 1;
    if (random_.below(2) == 0) {
      do {
        step = 1 + random_.below(blocks - 1);
      } while (std::gcd(step, blocks) != 1);
    }
  }
  uint64_t block = random_.below(blocks);
  for (uint64_t done = 0; done < blocks && error_.empty(); ++done) {
    blockIdx = {static_cast<unsigned>(block % gridDim.x),
                static_cast<unsigned>(block / gridDim.x % gridDim.y),
                static_cast<unsigned>(block / plane)};
    run_block();
    block = static_cast<uint64_t>((static_cast<unsigned __int128>(block) + step) % blocks);
  }
}

void Machine::run_block() {
  for (const Region& region : static_shared_) {
    std::memset(region.address, poison_byte(), region.size);
  }
  if (dynamic_shared_ != nullptr) {
    std::memset(dynamic_shared_, poison_byte(), request_.dynamic_shared_bytes);
  }
  exited_ = at_barrier_ = 0;
  for (unsigned t = 0; t < count_; ++t) {
    Thread& thread = threads_[t];
    thread.state = State::kReady;
    thread.index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
    unsigned char* const stack = stacks_ + t * kStack + kPage;
    // An earlier fiber on this stack may have been abandoned in the middle of its frames.
    RCNN_ALLOW(stack, kStack - kPage);
    thread.fiber.prepare(stack, kStack - kPage, enter_thread);
  }
  begin_phase();
  while (error_.empty() && exited_ < count_) {
    if (ready_.empty()) {
      try {
        report_deadlock();
      } catch (const std::runtime_error& error) {
        error_ = error.what();
      }
      break;
    }
    current_ = ready_.back();
    ready_.pop_back();
    threadIdx = current_->index;
    Fiber::switch_between(*scheduler_, current_->fiber);
    current_ = nullptr;
  }
  ready_.clear();
}

// All threads of the block are ready: in which order do they run?
void Machine::begin_phase() {
  std::vector<unsigned> order(count_);
  std::iota(order.begin(), order.end(), 0u);
  const auto shuffle = [&](auto first, auto last) {
    for (auto left = last - first; left > 1; --left) {
      std::swap(first[left - 1], first[random_.below(static_cast<uint64_t>(left))]);
    }
  };
  const unsigned style = random_.below(5);
  if (style == 1) {
    std::reverse(order.begin(), order.end());
  } else if (style == 2) {
    shuffle(order.begin(), order.end());
  } else if (style >= 3) {  // whole warps
    std::vector<unsigned> warps((count_ + kWarp - 1) / kWarp);
    std::iota(warps.begin(), warps.end(), 0u);
    shuffle(warps.begin(), warps.end());
    order.clear();
    for (const unsigned warp : warps) {
      const size_t first = order.size();
      for (unsigned t = warp * kWarp; t < std::min(count_, (warp + 1) * kWarp); ++t) {
        order.push_back(t);
      }
      if (style == 4) shuffle(order.begin() + static_cast<std::ptrdiff_t>(first), order.end());
    }
  }
  ready_.clear();
  for (const unsigned t : order) {
    threads_[t].state = State::kReady;
    ready_.push_front(&threads_[t]);  // the back runs first
  }
  release_order_ = random_.below(3);
}

// Lanes that finished a collective run ahead of everybody else, behind, or somewhere between.
void Machine::insert_ready(Thread* thread) {
  thread->state = State::kReady;
  if (release_order_ == 0) {
    ready_.push_back(thread);
  } else {
    ready_.push_front(thread);
    if (release_order_ == 2) std::swap(ready_.front(), ready_[random_.below(ready_.size())]);
  }
}

void Machine::leave(bool abandoned) {
  Thread* const self = current_;
  Fiber::switch_between(self->fiber, *scheduler_, abandoned);
}

void Machine::thread_main() {
  Fiber::arrived(current_->fiber);
  request_.call(request_.argument);
  current_->state = State::kExited;
  ++exited_;
  leave(/*abandoned=*/true);
  __builtin_unreachable();
}

void Machine::yield_point() {
  if (current_ == nullptr || random_.below(4) != 0) return;
  ready_.push_front(current_);
  std::swap(ready_.front(), ready_[random_.below(ready_.size())]);
  leave();
}

std::string Machine::location_of(const Thread& thread) const {
  return std::string(request_.name) + ", block " + text_of(blockIdx) + ", thread " +
         text_of(thread.index);
}

std::string Machine::location() const { return location_of(*current_); }

void Machine::fail(const std::string& what) {
  record_error(location() + ": " + what);
  leave(/*abandoned=*/true);
  __builtin_unreachable();
}

void Machine::record_error(const std::string& message) {
  std::string& error = scheduler_ == nullptr ? pending_error : error_;
  if (error.empty()) error = message;
}

}  // namespace rcnn_emulation
