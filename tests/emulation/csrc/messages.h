// Texts for the error messages of a launch.
#pragma once

#include <string>

#include "machine.h"

namespace rcnn_emulation {

std::string format(const char* pattern, unsigned long long a, unsigned long long b = 0,
                   unsigned long long c = 0);
const char* name_of(Barrier kind);
const char* name_of(Collective kind);
std::string text_of(const uint3& index);
// File and line of the call that a thread waits in.
std::string call_site(const Thread& thread);
std::string mask_text(unsigned mask);
// Whether a thread runs, waits (and where) or has exited, as a phrase for messages.
std::string describe_state(const Thread& thread);

}  // namespace rcnn_emulation
