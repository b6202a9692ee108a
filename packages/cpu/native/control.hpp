// What ranks of one machine share beside their memory: who is there, what each brings to its next collectives, and messages that wait.
#pragma once
#include <atomic>
#include <cstdint>

namespace tessera {

constexpr int maxRanks = 64, maxGroups = 8, slots = 64, maxSpans = 64, textBytes = 224;
constexpr uint32_t absent = 0, joined = 1, ended = 2, failedRank = 3;

struct Span {
  int64_t send, bytes, receive;  // offsets in the region of whoever posts
};

// What a rank brings to its n-th collective of a group; `posted` is n + 1, written last.
struct Post {
  std::atomic<uint64_t> posted;
  std::atomic<uint32_t> stage;
  uint32_t spans;
  uint32_t flag;  // of barriers: whether any brings 1
  uint64_t hash;
  char what[textBytes];
  Span table[maxSpans];
};

// A message; full until the receiver has copied it.
struct Letter {
  std::atomic<uint64_t> posted;
  std::atomic<uint32_t> full;
  uint32_t spans;
  uint64_t tag;
  char what[textBytes];
  Span table[maxSpans];
};

struct alignas(64) Desk {
  std::atomic<uint32_t> bell;
  std::atomic<uint32_t> state;
  int32_t process, file;
  char detail[textBytes];
};

// Of this layout; ranks that were built otherwise, or count otherwise, must not meet.
inline uint64_t markOf(int ranks) { return (uint64_t(0x7465737365726131) << 8 ^ sizeof(Post) << 8) + uint64_t(ranks); }

struct Control {
  std::atomic<uint64_t> mark;
  Desk desks[maxRanks];
  // Behind it: Post[ranks][maxGroups][slots], then Letter[ranks from][ranks to][slots].
};

// Behind a page of locks.
constexpr uint64_t lockBytes = 4096;
inline uint64_t controlBytes(int ranks) {
  return lockBytes + sizeof(Control) + sizeof(Post) * uint64_t(ranks) * maxGroups * slots + sizeof(Letter) * uint64_t(ranks) * uint64_t(ranks) * slots;
}

}  // namespace tessera
