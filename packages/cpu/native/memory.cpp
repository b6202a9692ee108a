// Memory that plans work on. Anonymous maps are zero already and come back to the system at once when destroyed.
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>
#include <atomic>
#include <cstdint>
#include "region.hpp"
#include "tessera_cpu.h"

namespace {

enum Kind { privateMemory = 0, sharedMemory = 1, pinnedMemory = 2, guardedMemory = 3 };

constexpr uint64_t hugePage = 2u << 20;
std::atomic<uint64_t> live{0}, peak{0};

uint64_t roundUp(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }
uint64_t pageBytes() { return uint64_t(sysconf(_SC_PAGESIZE)); }

// Large buffers start on a huge page, or the kernel could use none at either end.
uint64_t mappedBytes(uint64_t bytes, int32_t kind) {
  if (kind == guardedMemory) return roundUp(bytes, pageBytes()) + pageBytes();
  return roundUp(bytes ? bytes : 1, bytes >= hugePage ? hugePage : pageBytes());
}

void* mapAligned(uint64_t bytes) {
  if (bytes < hugePage) return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char* memory = static_cast<char*>(mmap(nullptr, bytes + hugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) return MAP_FAILED;
  uint64_t before = roundUp(uintptr_t(memory), hugePage) - uintptr_t(memory);
  if (before) munmap(memory, before);
  if (hugePage - before) munmap(memory + before + bytes, hugePage - before);
  madvise(memory + before, bytes, MADV_HUGEPAGE);
  return memory + before;
}

void* mapGuarded(uint64_t bytes, uint64_t mapped) {
  char* memory = static_cast<char*>(mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) return MAP_FAILED;
  char* guard = memory + mapped - pageBytes();
  if (mprotect(guard, pageBytes(), PROT_NONE) != 0) {
    munmap(memory, mapped);
    return MAP_FAILED;
  }
  uint32_t* words = reinterpret_cast<uint32_t*>(memory);
  for (uint64_t i = 0; i < (mapped - pageBytes()) / 4; i++) words[i] = 0x7fa0dead;  // a signalling NaN as a float, and its upper half as bf16
  return guard - bytes;
}

}  // namespace

extern "C" void* ts_memory_create(uint64_t bytes, int32_t kind) {
  if (kind < privateMemory || kind > guardedMemory || bytes > (uint64_t(1) << 47)) return nullptr;
  uint64_t mapped = mappedBytes(bytes, kind);
  void* memory = kind == sharedMemory ? tessera::regionTake(bytes) : kind == guardedMemory ? mapGuarded(bytes, mapped) : mapAligned(mapped);
  if (memory == MAP_FAILED || !memory) return nullptr;
  if (kind == pinnedMemory && mlock(memory, mapped) != 0) {
    munmap(memory, mapped);
    return nullptr;
  }
  uint64_t now = live.fetch_add(bytes) + bytes, before = peak.load();
  while (before < now && !peak.compare_exchange_weak(before, now)) {}
  return memory;
}

extern "C" void ts_memory_destroy(void* memory, uint64_t bytes, int32_t kind) {
  if (!memory) return;
  uint64_t mapped = mappedBytes(bytes, kind);
  live.fetch_sub(bytes);
  if (kind == sharedMemory) return tessera::regionGive(memory, bytes);
  char* start = static_cast<char*>(memory);
  if (kind == guardedMemory) start += bytes + pageBytes() - mapped;
  munmap(start, mapped);
}

extern "C" void ts_memory_copy(void* to, const void* from, uint64_t bytes) { std::memcpy(to, from, bytes); }
extern "C" uint64_t ts_memory_live(void) { return live.load(); }
extern "C" uint64_t ts_memory_peak(void) { return peak.load(); }
extern "C" void ts_memory_reset_peak(void) { peak.store(live.load()); }
