// The functions of scheduler.h and interface.h, which act on the one Machine.
#include "scheduler.h"

#include <algorithm>

#include "interface.h"
#include "machine.h"

namespace rcnn_emulation {

void run(const LaunchRequest& request) { machine.run(request); }
int wait_at_barrier(Barrier kind, int predicate, const char* file, int line) {
  return machine.wait_at_barrier(kind, predicate, file, line);
}
uint64_t wait_for_lanes(Collective kind, unsigned mask, uint64_t value, unsigned source,
                        const char* file, int line) {
  return machine.wait_for_lanes(kind, mask, value, source, file, line);
}
void yield_point() { machine.yield_point(); }
void* dynamic_shared() { return machine.dynamic_shared(); }
unsigned lane() { return machine.lane(); }
void fail(const std::string& what) { machine.fail(what); }
bool on_fiber() { return machine.on_fiber(); }
std::string location() { return machine.location(); }
void record_error(const std::string& message) { machine.record_error(message); }
int64_t max_blocks(int64_t limit) {
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
