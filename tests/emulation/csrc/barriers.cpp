// Where threads wait for each other: barriers of a block, collectives of a warp, and deadlocks.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "machine.h"
#include "messages.h"

namespace rcnn_emulation {

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
    // All that wait do so at one call site, so one comparison is enough.
    if (other.line != line || other.barrier != kind || std::strcmp(other.file, file) != 0) {
      fail(describe_state(*self) + ", but thread " + text_of(other.index) + " " +
           describe_state(other) + ": the barrier is not reached by all threads of the block");
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
  if ((mask >> lane() & 1) == 0) fail(describe_state(*self) + ", which does not name its own lane");
  bool all_here = true;
  for (unsigned l = 0; l < kWarp; ++l) {
    if ((mask >> l & 1) == 0) continue;
    if (warp * kWarp + l >= count_) {
      fail(describe_state(*self) + ", which names lane " + std::to_string(l) +
           ": the block has no such thread");
    }
    const Thread& other = lane_of(warp, l);
    if (other.state == State::kExited) {
      fail(describe_state(*self) + ", which names lane " + std::to_string(l) + ": thread " +
           text_of(other.index) + " has exited");
    }
    if (other.state != State::kInCollective) {
      all_here = false;
    } else if (other.collective != kind || other.mask != mask) {
      fail(describe_state(*self) + ", which names lane " + std::to_string(l) + ": thread " +
           text_of(other.index) + " " + describe_state(other));
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

  // The result of all lanes, except for shuffles and match_any.
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
      // The value of a lane outside the mask is undefined.
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

// No thread can run. Reports a warp collective first, since it holds up the barrier too.
void Machine::report_deadlock() {
  for (unsigned t = 0; t < count_; ++t) {
    const Thread& thread = threads_[t];
    if (thread.state != State::kInCollective) continue;
    for (unsigned l = 0; l < kWarp; ++l) {
      const Thread& other = lane_of(t / kWarp, l);
      if ((thread.mask >> l & 1) == 0 || other.state == State::kInCollective) continue;
      throw std::runtime_error(location_of(thread) + ": " + describe_state(thread) + ", but lane " +
                               std::to_string(l) + ", which the mask names, does not arrive: it " +
                               describe_state(other));
    }
  }
  for (unsigned t = 0; t < count_; ++t) {
    const Thread& thread = threads_[t];
    if (thread.state != State::kAtBarrier) continue;
    for (unsigned o = 0; o < count_; ++o) {
      const Thread& other = threads_[o];
      if (other.state == State::kAtBarrier) continue;
      throw std::runtime_error(location_of(thread) + ": " + describe_state(thread) +
                               ", but thread " + text_of(other.index) + " never reaches it: it " +
                               describe_state(other));
    }
  }
  throw std::runtime_error(std::string(request_.name) + ": no thread can go on");
}

}  // namespace rcnn_emulation
