#include "messages.h"

#include <cstdio>
#include <cstring>

namespace rcnn_emulation {

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

std::string format(const char* pattern, unsigned long long a, unsigned long long b,
                   unsigned long long c) {
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

std::string describe_state(const Thread& thread) {
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

}  // namespace rcnn_emulation
