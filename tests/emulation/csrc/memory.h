// The memory that kernels see: guarded buffers and shared memory.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace rcnn_emulation {

// A buffer between two guard zones, aligned to 16 bytes, that ends where the zone behind it begins.
// Touching a zone is an error: at once where the hardware or AddressSanitizer sees it, and for the
// few bytes of alignment on release.
unsigned char* allocate_guarded(size_t bytes, int fill);
// The message of an error where a guard zone was written to, else empty.
std::string release_guarded(unsigned char* data);

// "8 bytes after the end of a buffer of 120 bytes" where a guard zone is hit, else empty.
std::string describe_address(const void* address);

struct Region {
  unsigned char* address;
  size_t size;
};

// The __shared__ variables of a kernel, from the symbol table of the library it lies in: they are
// static variables of the function. Throws std::runtime_error where the table doesn't know it.
const std::vector<Region>& static_shared_of(const void* kernel);

}  // namespace rcnn_emulation
