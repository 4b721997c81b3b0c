// Results that no memory can hold are refused before any work is done for them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <new>
#include <sstream>
#include <string>
#include <utility>

#ifdef __unix__
#include <unistd.h>
#endif

namespace rcnn_ext {

// Reaches Python as MemoryError.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// Bytes of this machine's memory; the largest number where the system does not say.
inline double physical_memory() {
#if defined(__unix__) && defined(_SC_PHYS_PAGES)
  static const double bytes = [] {
    const double pages = static_cast<double>(sysconf(_SC_PHYS_PAGES));
    return pages > 0 ? pages * static_cast<double>(sysconf(_SC_PAGESIZE)) : 1e300;
  }();
  return bytes;
#else
  return 1e300;
#endif
}

// Throws OutOfMemory, with the bytes that it would take, for a tensor that this machine cannot
// hold, or whose size overflows. A GPU's allocator knows its own limit.
inline void check_fits_memory(std::initializer_list<int64_t> shape, int64_t element_size,
                              bool on_cpu) {
  // Exact up to 2^53 bytes, and no machine has as many.
  double bytes = static_cast<double>(element_size);
  for (const int64_t size : shape) bytes *= static_cast<double>(size);
  const double limit = on_cpu ? physical_memory() : 9e18;
  if (bytes <= limit) return;
  std::ostringstream text;
  text << "a result of shape [";
  for (const int64_t* size = shape.begin(); size != shape.end(); ++size) {
    text << (size == shape.begin() ? "" : ", ") << *size;
  }
  text << "] would take ";
  text.precision(20);
  text << bytes << " bytes";
  if (on_cpu && limit < 1e300) text << ", and this machine has " << limit;
  throw OutOfMemory(text.str());
}

}  // namespace rcnn_ext
