#include "region.hpp"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <map>
#include <mutex>

namespace tessera {

namespace {

constexpr uint64_t hugePage = 2u << 20;

std::mutex lock;
std::map<uint64_t, uint64_t> gaps;  // offset and size of what is free; neighbours are one

uint64_t roundUp(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }
uint64_t unitOf(uint64_t bytes) { return bytes >= hugePage ? hugePage : uint64_t(sysconf(_SC_PAGESIZE)); }

Region make() {
  int file = memfd_create("tessera", MFD_CLOEXEC);
  if (file < 0) return {nullptr, -1};
  void* base = ftruncate(file, off_t(regionBytes)) == 0
                   ? mmap(nullptr, regionBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0)
                   : MAP_FAILED;
  if (base == MAP_FAILED) {
    close(file);
    return {nullptr, -1};
  }
  madvise(base, regionBytes, MADV_HUGEPAGE);
  gaps[0] = regionBytes;
  return {static_cast<char*>(base), file};
}

}  // namespace

const Region& region() {
  static const Region made = make();
  return made;
}

void* regionTake(uint64_t bytes) {
  const Region& r = region();
  if (!r.base) return nullptr;
  const uint64_t unit = unitOf(bytes), size = roundUp(bytes ? bytes : 1, unit);
  std::lock_guard<std::mutex> guard(lock);
  for (auto gap = gaps.begin(); gap != gaps.end(); ++gap) {
    const uint64_t begin = gap->first, end = begin + gap->second, at = roundUp(begin, unit);
    if (at + size > end) continue;
    gaps.erase(gap);
    if (at > begin) gaps[begin] = at - begin;
    if (end > at + size) gaps[at + size] = end - at - size;
    return r.base + at;
  }
  return nullptr;
}

void regionGive(void* memory, uint64_t bytes) {
  const Region& r = region();
  uint64_t at = uint64_t(static_cast<char*>(memory) - r.base), size = roundUp(bytes ? bytes : 1, unitOf(bytes));
  fallocate(r.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off_t(at), off_t(size));
  std::lock_guard<std::mutex> guard(lock);
  auto next = gaps.lower_bound(at);
  if (next != gaps.end() && at + size == next->first) size += next->second, next = gaps.erase(next);
  if (next != gaps.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == at) {
      before->second += size;
      return;
    }
  }
  gaps[at] = size;
}

}  // namespace tessera
