#include "memory.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>

#include "interface.h"
#include "sanitizer.h"

namespace rcnn_emulation {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 16;
// Wide, so that an index wrong by a row or a plane still lands in it; it costs address space only.
constexpr size_t kGuard = 256 * kPage;
constexpr int kSentinel = 0xc3;

struct Buffer {
  unsigned char* mapping;
  size_t mapping_size;
  size_t bytes;  // asked for
};

std::mutex buffers_lock;
std::map<unsigned char*, Buffer> buffers;  // by their data

size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

bool all_sentinels(const unsigned char* first, const unsigned char* last) {
  for (; first < last; ++first) {
    if (*first != kSentinel) return false;
  }
  return true;
}

// The symbol table of a loaded library.
class Symbols {
 public:
  explicit Symbols(const Dl_info& library) : base_(static_cast<unsigned char*>(library.dli_fbase)) {
    std::ifstream stream(library.dli_fname, std::ios::binary);
    file_.assign(std::istreambuf_iterator<char>(stream), {});
    if (file_.size() < sizeof(ElfW(Ehdr))) {
      throw std::runtime_error(std::string("emulation: cannot read ") + library.dli_fname);
    }
    const auto* header = at<ElfW(Ehdr)>(0);
    sections_ = at<ElfW(Shdr)>(header->e_shoff);
    for (unsigned s = 0; s < header->e_shnum; ++s) {
      if (sections_[s].sh_type != SHT_SYMTAB) continue;
      symbols_ = at<ElfW(Sym)>(sections_[s].sh_offset);
      count_ = sections_[s].sh_size / sizeof(ElfW(Sym));
      names_ = at<char>(sections_[sections_[s].sh_link].sh_offset);
      section_count_ = header->e_shnum;
    }
  }

  // A function-local variable is named after its function: _ZZ<function>E<variable>.
  std::vector<Region> statics_of(const void* function) const {
    const std::string name = function_at(function);
    const std::string prefix = "_ZZ" + name.substr(2) + "E";
    std::vector<Region> found;
    for (size_t i = 0; i < count_; ++i) {
      const ElfW(Sym) & symbol = symbols_[i];
      if (symbol.st_shndx == SHN_UNDEF || symbol.st_shndx >= section_count_) continue;
      if ((sections_[symbol.st_shndx].sh_flags & SHF_WRITE) == 0) continue;
      if (std::strncmp(names_ + symbol.st_name, prefix.c_str(), prefix.size()) != 0) continue;
      found.push_back({base_ + symbol.st_value, symbol.st_size});
    }
    return found;
  }

 private:
  template <class T>
  const T* at(size_t offset) const {
    return reinterpret_cast<const T*>(file_.data() + offset);
  }

  std::string function_at(const void* function) const {
    for (size_t i = 0; i < count_; ++i) {
      const ElfW(Sym) & symbol = symbols_[i];
      const char* name = names_ + symbol.st_name;
      if ((symbol.st_info & 0xf) == STT_FUNC && base_ + symbol.st_value == function &&
          std::strncmp(name, "_Z", 2) == 0) {
        return name;
      }
    }
    throw std::runtime_error("emulation: a kernel without a symbol; was the library stripped?");
  }

  unsigned char* base_;
  std::string file_;
  const ElfW(Shdr) * sections_ = nullptr;
  const ElfW(Sym) * symbols_ = nullptr;
  const char* names_ = nullptr;
  size_t count_ = 0;
  unsigned section_count_ = 0;
};

}  // namespace

unsigned char* allocate_guarded(size_t bytes, int fill) {
  const size_t space = round_up(bytes, kAlignment);
  const size_t pages = round_up(space, kPage);
  const size_t size = pages + 2 * kGuard;
  void* const memory = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  auto* const mapping = static_cast<unsigned char*>(memory);
  unsigned char* const end = mapping + kGuard + pages;
  unsigned char* const data = end - space;
  // Bytes that share a page with the data cannot be protected: they hold sentinels.
  std::memset(mapping + kGuard, kSentinel, pages - space);
  std::memset(data + bytes, kSentinel, space - bytes);
  std::memset(data, fill, bytes);
  if (kAddressSanitizer) {
    RCNN_FORBID(mapping, static_cast<size_t>(data - mapping));
    RCNN_FORBID(data + bytes, space - bytes + kGuard);
  } else {
    mprotect(mapping, kGuard, PROT_NONE);
    mprotect(end, kGuard, PROT_NONE);
  }
  const std::lock_guard<std::mutex> lock(buffers_lock);
  buffers[data] = {mapping, size, bytes};
  return data;
}

std::string release_guarded(unsigned char* data) {
  Buffer buffer;
  {
    const std::lock_guard<std::mutex> lock(buffers_lock);
    const auto found = buffers.find(data);
    if (found == buffers.end()) return "not a guarded buffer";
    buffer = found->second;
    buffers.erase(found);
  }
  RCNN_ALLOW(buffer.mapping, buffer.mapping_size);
  const unsigned char* const end = data + round_up(buffer.bytes, kAlignment);
  std::string damage;
  if (!all_sentinels(buffer.mapping + kGuard, data)) {
    damage = "something wrote before the beginning of a buffer";
  } else if (!all_sentinels(data + buffer.bytes, end)) {
    damage = "something wrote behind the end of a buffer";
  }
  if (!damage.empty()) damage += " of " + std::to_string(buffer.bytes) + " bytes";
  munmap(buffer.mapping, buffer.mapping_size);
  return damage;
}

std::string describe_address(const void* address) {
  const auto* const byte = static_cast<const unsigned char*>(address);
  const std::lock_guard<std::mutex> lock(buffers_lock);
  for (const auto& [data, buffer] : buffers) {
    if (byte < buffer.mapping || byte >= buffer.mapping + buffer.mapping_size) continue;
    const std::string of = " of a buffer of " + std::to_string(buffer.bytes) + " bytes";
    if (byte < data) return std::to_string(data - byte) + " bytes before the beginning" + of;
    return std::to_string(byte - data - static_cast<std::ptrdiff_t>(buffer.bytes)) +
           " bytes after the end" + of;
  }
  return "";
}

const std::vector<Region>& static_shared_of(const void* kernel) {
  static std::map<const void*, Symbols> libraries;
  static std::map<const void*, std::vector<Region>> known;
  const auto found = known.find(kernel);
  if (found != known.end()) return found->second;
  Dl_info library;
  if (dladdr(kernel, &library) == 0) throw std::runtime_error("emulation: an unknown kernel");
  auto symbols = libraries.find(library.dli_fbase);
  if (symbols == libraries.end()) {
    symbols = libraries.emplace(library.dli_fbase, Symbols(library)).first;
  }
  return known[kernel] = symbols->second.statics_of(kernel);
}

}  // namespace rcnn_emulation

void* rcnn_emulation_allocate(size_t bytes, int fill) {
  try {
    return rcnn_emulation::allocate_guarded(bytes, fill);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

const char* rcnn_emulation_release(void* data) {
  static std::string damage;
  damage = rcnn_emulation::release_guarded(static_cast<unsigned char*>(data));
  return damage.c_str();
}

int rcnn_emulation_has_address_sanitizer() { return rcnn_emulation::kAddressSanitizer; }
