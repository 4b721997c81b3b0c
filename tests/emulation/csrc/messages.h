// How errors of a launch are put into words.
#pragma once

#include <string>

#include "machine.h"

namespace rcnn_emulation {

std::string format(const char* pattern, unsigned long long a, unsigned long long b = 0,
                   unsigned long long c = 0);
const char* name_of(Barrier kind);
const char* name_of(Collective kind);
std::string text_of(const uint3& index);
// File and line of what a thread waits for.
std::string call_site(const Thread& thread);
std::string mask_text(unsigned mask);
// Waits or has exited: in words.
std::string whereabouts(const Thread& thread);

}  // namespace rcnn_emulation
