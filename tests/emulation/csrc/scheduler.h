// Runs the threads of a block as fibers on one OS thread, in an order drawn from a seed, and finds
// out when they misuse a barrier or a warp collective. Blocks run one after another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "vectors.h"

namespace rcnn_emulation {

// Compute capability 9.0.
constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxStaticShared = 48 * 1024;
constexpr size_t kMaxShared = 227 * 1024;

struct LaunchRequest {
  const char* name;    // for messages
  const void* kernel;  // its address, which tells its static shared memory
  dim3 grid, block;
  size_t dynamic_shared_bytes;
  void (*call)(void*);  // each thread runs call(argument)
  void* argument;
};

// Throws std::runtime_error that names the kernel, the block and the thread.
void run(const LaunchRequest& request);

// --- For code on a fiber -----------------------------------------------------------------------

enum class Barrier { kPlain, kCount, kAnd, kOr };

// All threads of the block wait for one another.
int wait_at_barrier(Barrier kind, int predicate, const char* file, int line);

enum class Collective {
  kSync,
  kBallot,
  kAny,
  kAll,
  kShuffle,
  kMatchAny,
  kMatchAll,
  kAdd,
  kMinimumSigned,
  kMaximumSigned,
  kMinimumUnsigned,
  kMaximumUnsigned,
  kBitAnd,
  kBitOr,
  kBitXor,
};

// The lanes that `mask` names wait for one another. `value` is this lane's operand, `source` the
// lane that a shuffle reads.
uint64_t wait_for_lanes(Collective kind, unsigned mask, uint64_t value, unsigned source,
                        const char* file, int line);

// Another thread may run here. Called before every atomic, since kernels must not rely on an order
// of atomics.
void yield_point();

// The launch's dynamic shared memory.
void* dynamic_shared();

unsigned lane();

// Ends the launch with an error that names the running kernel, block and thread.
[[noreturn]] void fail(const std::string& what);

// --- For the parts of the emulator -------------------------------------------------------------

// Whether the caller is on a fiber.
bool on_fiber();

// The kernel, block and thread of the running fiber, for error messages.
std::string location();

// Records an error, which ends the launch once the running fiber yields; only the first one counts.
void record_error(const std::string& message);

// An upper limit of blocks, at most `limit`, that depends on the seed.
int64_t max_blocks(int64_t limit);

// The byte that fills memory not written yet.
int poison_byte();

}  // namespace rcnn_emulation
