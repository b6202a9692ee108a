// One file of memory for everything of this process that other ranks may read: they map it whole, and an address is an offset on both sides.
#pragma once
#include <cstdint>

namespace tessera {

struct Region {
  char* base;
  int file;
};

// Addresses that are reserved, not memory: a page exists once it was written.
constexpr uint64_t regionBytes = uint64_t(1) << 40;

// The region of this process, made on first need; base null when the system refuses.
const Region& region();
// Zeros, on a page, on a huge page when that large; null when nothing is left.
void* regionTake(uint64_t bytes);
// Gives the pages back to the system.
void regionGive(void* memory, uint64_t bytes);
inline bool inRegion(const Region& r, const void* address, uint64_t bytes) {
  const char* at = static_cast<const char*>(address);
  return r.base && at >= r.base && at + bytes <= r.base + regionBytes;
}

}  // namespace tessera
