#include "scheduler.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "fiber.h"
#include "interface.h"
#include "memory.h"
#include "random.h"
#include "sanitizer.h"
#include "signals.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace rcnn_emulation {
namespace {

constexpr size_t kPage = 4096;
// AddressSanitizer's frames are larger.
constexpr size_t kStack = (kAddressSanitizer ? 64 : 16) * kPage;

enum class State { kReady, kAtBarrier, kInCollective, kExited };

struct Thread {
  Fiber fiber;
  State state;
  uint3 index;
  // What it waits for: a barrier or a collective, called at file:line.
  Barrier barrier;
  Collective collective;
  unsigned mask, source;
  int predicate, line;
  const char* file;
  uint64_t value;
  uint64_t result;
};

const char* name_of(Barrier kind) {
  switch (kind) {
    case Barrier::kPlain: return "__syncthreads()";
    case Barrier::kCount: return "__syncthreads_count()";
    case Barrier::kAnd: return "__syncthreads_and()";
    case Barrier::kOr: return "__syncthreads_or()";
  }
  return "";
}

const char* name_of(Collective kind) {
  switch (kind) {
    case Collective::kSync: return "__syncwarp()";
    case Collective::kBallot: return "__ballot_sync()";
    case Collective::kAny: return "__any_sync()";
    case Collective::kAll: return "__all_sync()";
    case Collective::kShuffle: return "a shuffle";
    case Collective::kMatchAny: return "__match_any_sync()";
    case Collective::kMatchAll: return "__match_all_sync()";
    default: return "a __reduce_*_sync()";
  }
}

std::string format(const char* pattern, unsigned long long a, unsigned long long b = 0,
                   unsigned long long c = 0) {
  char text[128];
  std::snprintf(text, sizeof(text), pattern, a, b, c);
  return text;
}

std::string text_of(const uint3& index) {
  return format("(%llu, %llu, %llu)", index.x, index.y, index.z);
}

std::string call_site(const Thread& thread) {
  const char* slash = std::strrchr(thread.file, '/');
  return std::string(slash == nullptr ? thread.file : slash + 1) + ":" +
         std::to_string(thread.line);
}

std::string mask_text(unsigned mask) { return format("0x%08llx", mask); }

// Waits or has exited: in words.
std::string whereabouts(const Thread& thread) {
  switch (thread.state) {
    case State::kReady: return "still runs";
    case State::kAtBarrier:
      return std::string("waits at ") + name_of(thread.barrier) + " in " + call_site(thread);
    case State::kInCollective:
      return std::string("waits in ") + name_of(thread.collective) + " with mask " +
             mask_text(thread.mask) + " in " + call_site(thread);
    case State::kExited: return "has exited";
  }
  return "";
}

// Everything about the launch that runs.
class Machine {
 public:
  void run(const LaunchRequest& request);
  int wait_at_barrier(Barrier kind, int predicate, const char* file, int line);
  uint64_t wait_for_lanes(Collective kind, unsigned mask, uint64_t value, unsigned source,
                          const char* file, int line);
  void may_switch();
  [[noreturn]] void fail(const std::string& what);
  void fail_later(const std::string& message);
  [[noreturn]] void thread_main();
  std::string place() const;
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
  std::string place_of(const Thread& thread) const;
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

Machine machine;
std::mutex one_launch_at_a_time;

void enter_thread() { machine.thread_main(); }

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
  if (threads == 0 || threads > kMostThreads || block.z > 64) {
    throw std::runtime_error(name + ": a block of " +
                             format("%llu x %llu x %llu", block.x, block.y, block.z) +
                             " threads cannot be launched");
  }
  size_t bytes = 0;
  for (const Region& region : static_shared_) bytes += region.size;
  if (bytes > kMostStaticShared) {
    throw std::runtime_error(name + format(": %llu bytes of static shared memory, of at most %llu",
                                           bytes, kMostStaticShared));
  }
  if (bytes + request.dynamic_shared_bytes > kMostShared) {
    throw std::runtime_error(
        name + format(": %llu bytes of static and %llu of dynamic shared memory, of at most %llu",
                      bytes, request.dynamic_shared_bytes, kMostShared));
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
    void* const memory = mmap(nullptr, kMostThreads * kStack, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("emulation: no memory for the stacks");
    stacks_ = static_cast<unsigned char*>(memory);
    for (unsigned t = 0; t < kMostThreads; ++t) mprotect(stacks_ + t * kStack, kPage, PROT_NONE);
    threads_.resize(kMostThreads);
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

int Machine::wait_at_barrier(Barrier kind, int predicate, const char* file, int line) {
  Thread* const self = current_;
  self->state = State::kAtBarrier;
  self->barrier = kind;
  self->predicate = predicate;
  self->file = file;
  self->line = line;
  for (unsigned t = 0; at_barrier_ > 0 && t < count_; ++t) {
    const Thread& other = threads_[t];
    if (&other == self || other.state != State::kAtBarrier) continue;
    // All that wait do so at one place; so one comparison is enough.
    if (other.line != line || other.barrier != kind || std::strcmp(other.file, file) != 0) {
      fail(whereabouts(*self) + ", but thread " + text_of(other.index) + " " + whereabouts(other) +
           ": the barrier is not reached by all threads of the block");
    }
    break;
  }
  if (++at_barrier_ == count_) release_barrier();
  leave();
  return static_cast<int>(self->result);
}

void Machine::release_barrier() {
  int count = 0;
  for (unsigned t = 0; t < count_; ++t) count += threads_[t].predicate != 0;
  const Barrier kind = threads_[0].barrier;
  const int result = kind == Barrier::kCount ? count
                     : kind == Barrier::kAnd ? count == static_cast<int>(count_)
                                             : count > 0;
  for (unsigned t = 0; t < count_; ++t) threads_[t].result = static_cast<uint64_t>(result);
  at_barrier_ = 0;
  begin_phase();
}

uint64_t Machine::wait_for_lanes(Collective kind, unsigned mask, uint64_t value, unsigned source,
                                 const char* file, int line) {
  Thread* const self = current_;
  self->state = State::kInCollective;
  self->collective = kind;
  self->mask = mask;
  self->value = value;
  self->source = source;
  self->file = file;
  self->line = line;
  const unsigned warp = static_cast<unsigned>(self - threads_.data()) / kWarp;
  if ((mask >> lane() & 1) == 0) fail(whereabouts(*self) + ", which does not name its own lane");
  bool all_here = true;
  for (unsigned l = 0; l < kWarp; ++l) {
    if ((mask >> l & 1) == 0) continue;
    if (warp * kWarp + l >= count_) {
      fail(whereabouts(*self) + ", which names lane " + std::to_string(l) +
           ": the block has no such thread");
    }
    const Thread& other = lane_of(warp, l);
    if (other.state == State::kExited) {
      fail(whereabouts(*self) + ", which names lane " + std::to_string(l) + ": thread " +
           text_of(other.index) + " has exited");
    }
    if (other.state != State::kInCollective) {
      all_here = false;
    } else if (other.collective != kind || other.mask != mask) {
      fail(whereabouts(*self) + ", which names lane " + std::to_string(l) + ": thread " +
           text_of(other.index) + " " + whereabouts(other));
    }
  }
  if (all_here) finish_collective(warp, mask);
  leave();
  return self->result;
}

void Machine::finish_collective(unsigned warp, unsigned mask) {
  unsigned lanes[kWarp];
  unsigned count = 0;
  for (unsigned l = 0; l < kWarp; ++l) {
    if (mask >> l & 1) lanes[count++] = l;
  }
  const auto value = [&](unsigned l) { return lane_of(warp, l).value; };
  const Collective kind = lane_of(warp, lanes[0]).collective;

  // What all lanes get, but for shuffles and match_any.
  uint64_t common = 0;
  switch (kind) {
    case Collective::kSync:
    case Collective::kShuffle:
    case Collective::kMatchAny: break;
    case Collective::kBallot:
      for (unsigned i = 0; i < count; ++i) common |= value(lanes[i]) << lanes[i];
      break;
    case Collective::kAny:
      for (unsigned i = 0; i < count; ++i) common |= value(lanes[i]);
      break;
    case Collective::kAll:
      common = 1;
      for (unsigned i = 0; i < count; ++i) common &= value(lanes[i]);
      break;
    case Collective::kMatchAll:
      common = mask;
      for (unsigned i = 0; i < count; ++i) {
        if (value(lanes[i]) != value(lanes[0])) common = 0;
      }
      break;
    default: {
      uint32_t sum = static_cast<uint32_t>(value(lanes[0]));
      for (unsigned i = 1; i < count; ++i) {
        const auto next = static_cast<uint32_t>(value(lanes[i]));
        const auto signed_sum = static_cast<int32_t>(sum);
        const auto signed_next = static_cast<int32_t>(next);
        if (kind == Collective::kAdd) sum += next;
        if (kind == Collective::kMinimumSigned) sum = signed_next < signed_sum ? next : sum;
        if (kind == Collective::kMaximumSigned) sum = signed_next > signed_sum ? next : sum;
        if (kind == Collective::kMinimumUnsigned) sum = next < sum ? next : sum;
        if (kind == Collective::kMaximumUnsigned) sum = next > sum ? next : sum;
        if (kind == Collective::kBitAnd) sum &= next;
        if (kind == Collective::kBitOr) sum |= next;
        if (kind == Collective::kBitXor) sum ^= next;
      }
      common = sum;
    }
  }

  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = lane_of(warp, lanes[i]);
    thread.result = common;
    if (kind == Collective::kMatchAny) {
      for (unsigned j = 0; j < count; ++j) {
        if (value(lanes[j]) == thread.value) thread.result |= uint64_t{1} << lanes[j];
      }
    } else if (kind == Collective::kShuffle) {
      // What a lane outside of the mask would give is undefined.
      const bool defined = thread.source < kWarp && (mask >> thread.source & 1) != 0;
      std::memset(&thread.result, poison_byte(), sizeof(thread.result));
      if (defined) thread.result = value(thread.source);
    }
  }
  while (count > 0) {  // in any order
    const auto pick = static_cast<unsigned>(random_.below(count));
    insert_ready(&lane_of(warp, lanes[pick]));
    lanes[pick] = lanes[--count];
  }
}

void Machine::may_switch() {
  if (current_ == nullptr || random_.below(4) != 0) return;
  ready_.push_front(current_);
  std::swap(ready_.front(), ready_[random_.below(ready_.size())]);
  leave();
}

std::string Machine::place_of(const Thread& thread) const {
  return std::string(request_.name) + ", block " + text_of(blockIdx) + ", thread " +
         text_of(thread.index);
}

std::string Machine::place() const { return place_of(*current_); }

void Machine::fail(const std::string& what) {
  fail_later(place() + ": " + what);
  leave(/*abandoned=*/true);
  __builtin_unreachable();
}

void Machine::fail_later(const std::string& message) {
  std::string& error = scheduler_ == nullptr ? pending_error : error_;
  if (error.empty()) error = message;
}

// Nobody can run. Prefers to speak of a warp collective, which is what holds up the barrier too.
void Machine::report_deadlock() {
  for (unsigned t = 0; t < count_; ++t) {
    const Thread& thread = threads_[t];
    if (thread.state != State::kInCollective) continue;
    for (unsigned l = 0; l < kWarp; ++l) {
      const Thread& other = lane_of(t / kWarp, l);
      if ((thread.mask >> l & 1) == 0 || other.state == State::kInCollective) continue;
      throw std::runtime_error(place_of(thread) + ": " + whereabouts(thread) + ", but lane " +
                               std::to_string(l) + ", which the mask names, does not arrive: it " +
                               whereabouts(other));
    }
  }
  for (unsigned t = 0; t < count_; ++t) {
    const Thread& thread = threads_[t];
    if (thread.state != State::kAtBarrier) continue;
    for (unsigned o = 0; o < count_; ++o) {
      const Thread& other = threads_[o];
      if (other.state == State::kAtBarrier) continue;
      throw std::runtime_error(place_of(thread) + ": " + whereabouts(thread) + ", but thread " +
                               text_of(other.index) + " never reaches it: it " +
                               whereabouts(other));
    }
  }
  throw std::runtime_error(std::string(request_.name) + ": no thread can go on");
}

}  // namespace

void run(const LaunchRequest& request) { machine.run(request); }
int wait_at_barrier(Barrier kind, int predicate, const char* file, int line) {
  return machine.wait_at_barrier(kind, predicate, file, line);
}
uint64_t wait_for_lanes(Collective kind, unsigned mask, uint64_t value, unsigned source,
                        const char* file, int line) {
  return machine.wait_for_lanes(kind, mask, value, source, file, line);
}
void may_switch() { machine.may_switch(); }
void* dynamic_shared() { return machine.dynamic_shared(); }
unsigned lane() { return machine.lane(); }
void fail(const std::string& what) { machine.fail(what); }
bool on_fiber() { return machine.on_fiber(); }
std::string place() { return machine.place(); }
void fail_later(const std::string& message) { machine.fail_later(message); }
int64_t most_blocks(int64_t limit) {
  const uint64_t choice = mix(machine.seed) % 5;
  return choice == 0 ? limit : std::min(limit, static_cast<int64_t>(choice));
}
int poison_byte() {
  // NaN and -1; huge numbers; small negative numbers; bools that look valid.
  constexpr int kPoison[] = {0xff, 0x7f, 0xa5, 0x01};
  return kPoison[machine.seed % 4];
}

}  // namespace rcnn_emulation

void rcnn_emulation_set_seed(uint64_t seed) {
  rcnn_emulation::machine.seed = seed;
  rcnn_emulation::machine.launches = 0;
}
uint64_t rcnn_emulation_launches() { return rcnn_emulation::machine.launches; }
int rcnn_emulation_poison_byte() { return rcnn_emulation::poison_byte(); }
const char* rcnn_emulation_take_error() {
  static std::string taken;
  taken = std::move(rcnn_emulation::machine.pending_error);
  rcnn_emulation::machine.pending_error.clear();
  return taken.c_str();
}
