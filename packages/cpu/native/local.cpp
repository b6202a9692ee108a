// Ranks of one machine. Every rank posts what it brings to a collective in a control file that all map, reads the memory of the others where it
// stands (region.hpp), and says how far it has come. One thread of each process does this for all collectives at once, so that they go on while
// kernels run, and sleeps on a word of its own (futex) while nothing moves. A rank holds a lock on a byte of the control file: the system takes it
// away when the process dies, however it dies.
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <deque>
#include <list>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#include "combine.hpp"
#include "control.hpp"
#include "plan.hpp"
#include "region.hpp"
#include "tessera_cpu.h"

namespace {

using namespace tessera;
using Clock = std::chrono::steady_clock;

struct Own {
  char* send;
  char* receive;
  int64_t count;
  int64_t bytes;         // that are sent
  int64_t received;      // bytes of the result
  int32_t type;
  char* sendAt;          // in the region: the memory itself, or a copy
  char* receiveAt;
};

enum Kind : int32_t { allReduce = 0, allGather = 1, reduceScatter = 2, allToAll = 3, permute = 4, barrier = 5, sendMessage = 6, receiveMessage = 7 };

struct Op {
  int64_t ticket;
  Kind kind;
  int group, by, shift, own, peer;
  uint64_t sequence, hash;
  std::vector<int> members;
  std::vector<Own> spans;
  std::vector<std::pair<char*, int64_t>> copies;  // memory taken for this one
  std::string what;
  Clock::time_point deadline;
  int phase = 0;
  bool cancelled = false, flag = false;
};

struct Ended {
  int64_t ticket;
  int32_t status;
  std::string text;
};

enum Status : int32_t { done = 0, timedOut = 1, rankLost = 2, disagreement = 3, cancelledOp = 4, refused = 5 };

class Comm {
 public:
  Comm(const char* path, int rank, int ranks, double timeout) : rank_(rank), ranks_(ranks), timeout_(timeout), path_(path), maps_(size_t(ranks), nullptr) {}

  // Null, or what is wrong.
  std::string join() {
    if (ranks_ < 1 || ranks_ > maxRanks || rank_ < 0 || rank_ >= ranks_) return "there are 1 to 64 ranks, counted from 0";
    if (!region().base) return "the system gives no shared memory (memfd_create)";
    file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file_ < 0) return std::string("opening ") + path_ + ": " + std::strerror(errno);
    const uint64_t bytes = controlBytes(ranks_);
    if (ftruncate(file_, off_t(bytes)) != 0) return std::string("sizing ") + path_ + ": " + std::strerror(errno);
    struct flock own = lockOf(rank_, F_WRLCK);
    if (fcntl(file_, F_OFD_SETLK, &own) != 0) return "another process is this rank";
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
    if (memory == MAP_FAILED) return std::string("mapping ") + path_ + ": " + std::strerror(errno);
    mapped_ = memory, mappedBytes_ = bytes;
    control_ = reinterpret_cast<Control*>(static_cast<char*>(memory) + lockBytes);
    uint64_t mark = 0;
    if (!control_->mark.compare_exchange_strong(mark, markOf(ranks_)) && mark != markOf(ranks_))
      return path_ + " belongs to other ranks: their number or their library is another";
    posts_ = reinterpret_cast<Post*>(control_ + 1);
    letters_ = reinterpret_cast<Letter*>(posts_ + size_t(ranks_) * maxGroups * slots);
    Desk& desk = mine();
    if (desk.state.load() != absent) return "this rank has been there before";
    desk.process = getpid(), desk.file = region().file;
    desk.state.store(joined, std::memory_order_release);
    worker_ = std::thread([this] { work(); });
    ringAll();
    return "";
  }

  ~Comm() {
    if (worker_.joinable()) {
      {
        std::lock_guard<std::mutex> guard(lock_);
        stop_ = true;
      }
      ringOne(rank_);
      worker_.join();
    }
    for (char* map : maps_)
      if (map) munmap(map, regionBytes);
    if (mapped_) munmap(mapped_, mappedBytes_);
    if (file_ >= 0) close(file_);
  }

  void leave(bool failed, const char* detail) {
    Desk& desk = mine();
    if (desk.state.load() != joined) return;  // the first reason stays
    std::snprintf(desk.detail, textBytes, "%s", detail);
    desk.state.store(failed ? failedRank : ended, std::memory_order_release);
    ringAll();
  }

  void start(Op&& op) {
    op.deadline = Clock::now() + std::chrono::milliseconds(int64_t(timeout_ * 1000));
    {
      std::lock_guard<std::mutex> guard(lock_);
      arriving_.push_back(std::move(op));
    }
    ringOne(rank_);
  }

  void cancel(int64_t ticket) {
    {
      std::lock_guard<std::mutex> guard(lock_);
      cancels_.push_back(ticket);
    }
    ringOne(rank_);
  }

  Ended next() {
    std::unique_lock<std::mutex> guard(lock_);
    ready_.wait(guard, [this] { return !ended_.empty(); });
    Ended e = std::move(ended_.front());
    ended_.pop_front();
    return e;
  }

 private:
  Desk& mine() { return control_->desks[rank_]; }
  Post& post(int rank, int group, uint64_t sequence) { return posts_[(size_t(rank) * maxGroups + group) * slots + sequence % slots]; }
  Letter& letter(int from, int to, uint64_t number) { return letters_[(size_t(from) * ranks_ + to) * slots + number % slots]; }

  static struct flock lockOf(int rank, short type) {
    struct flock l {};
    l.l_type = type, l.l_whence = SEEK_SET, l.l_start = rank, l.l_len = 1;
    return l;
  }

  void ringOne(int rank) {
    Desk& desk = control_->desks[rank];
    desk.bell.fetch_add(1, std::memory_order_release);
    syscall(SYS_futex, &desk.bell, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  }
  void ring(const std::vector<int>& members) {
    for (int r : members)
      if (r != rank_) ringOne(r);
  }
  void ringAll() {
    for (int r = 0; r < ranks_; r++)
      if (r != rank_) ringOne(r);
  }

  // Whether the process of a rank that has joined is still there.
  bool alive(int rank) {
    struct flock l = lockOf(rank, F_WRLCK);
    return fcntl(file_, F_OFD_GETLK, &l) != 0 || l.l_type != F_UNLCK;
  }

  // Why a rank will never come; empty while it may.
  std::string gone(int rank, bool look) {
    Desk& desk = control_->desks[rank];
    const uint32_t state = desk.state.load(std::memory_order_acquire);
    const std::string name = "rank " + std::to_string(rank);
    if (state == ended) return name + " has ended";
    if (state == failedRank) return name + " has failed: " + desk.detail;
    if (state == joined && look && !alive(rank)) return name + " (process " + std::to_string(desk.process) + ") has died";
    return "";
  }

  bool reached(int rank, const Op& op, uint32_t stage) {
    Post& p = post(rank, op.group, op.sequence);
    const uint64_t posted = p.posted.load(std::memory_order_acquire);
    return posted > op.sequence + 1 || (posted == op.sequence + 1 && p.stage.load(std::memory_order_acquire) >= stage);
  }

  std::vector<int> waitedFor(const Op& op) {
    std::vector<int> found;
    if (op.kind == sendMessage || op.kind == receiveMessage) return {op.peer};
    for (int r : op.members)
      if (!reached(r, op, uint32_t(op.phase - 1))) found.push_back(r);
    return found;
  }

  const char* memoryOf(int rank) {
    if (rank == rank_) return region().base;
    if (maps_[rank]) return maps_[rank];
    char name[64];
    std::snprintf(name, sizeof name, "/proc/%d/fd/%d", control_->desks[rank].process, control_->desks[rank].file);
    int file = open(name, O_RDONLY | O_CLOEXEC);
    if (file < 0) return nullptr;
    void* memory = mmap(nullptr, regionBytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, file, 0);
    close(file);
    if (memory == MAP_FAILED) return nullptr;
    return maps_[rank] = static_cast<char*>(memory);
  }

  void finish(Op& op, int32_t status, const std::string& text) {
    if (status == done)
      for (Own& s : op.spans)
        if (s.receiveAt != s.receive && s.received > 0 && op.kind == allReduce) std::memcpy(s.receive, s.receiveAt, size_t(s.received));
    for (auto& [memory, bytes] : op.copies) regionGive(memory, uint64_t(bytes));
    std::lock_guard<std::mutex> guard(lock_);
    ended_.push_back({op.ticket, status, text});
    ready_.notify_all();
  }

  // Brings what others read into the region.
  bool place(Op& op) {
    const Region& r = region();
    auto take = [&](int64_t bytes) {
      char* memory = static_cast<char*>(regionTake(uint64_t(bytes)));
      if (memory) op.copies.push_back({memory, bytes});
      return memory;
    };
    const bool copies = op.kind == sendMessage || op.kind == permute;  // the sender goes on, or its memory is written while others read
    for (Own& s : op.spans) {
      s.sendAt = s.send, s.receiveAt = s.receive;
      if (s.bytes > 0 && op.kind != receiveMessage && (copies || !inRegion(r, s.send, uint64_t(s.bytes)))) {
        if (!(s.sendAt = take(s.bytes))) return false;
        std::memcpy(s.sendAt, s.send, size_t(s.bytes));
      }
      if (s.received > 0 && op.kind == allReduce && !inRegion(r, s.receive, uint64_t(s.received)) && !(s.receiveAt = take(s.received))) return false;
    }
    return true;
  }

  static void fill(Span* table, const Op& op) {
    const char* base = region().base;
    for (size_t i = 0; i < op.spans.size(); i++) {
      const Own& s = op.spans[i];
      table[i] = {s.bytes > 0 ? s.sendAt - base : 0, s.bytes, s.received > 0 ? s.receiveAt - base : 0};
    }
  }

  // What most do not bring; empty when all agree.
  std::string odd(const Op& op) {
    auto count = [&](uint64_t hash) { return std::count_if(op.members.begin(), op.members.end(), [&](int r) { return post(r, op.group, op.sequence).hash == hash; }); };
    int most = op.members[0];
    for (int r : op.members)
      if (count(post(r, op.group, op.sequence).hash) > count(post(most, op.group, op.sequence).hash)) most = r;
    Post& right = post(most, op.group, op.sequence);
    std::string text;
    for (int r : op.members) {
      Post& p = post(r, op.group, op.sequence);
      if (p.hash != right.hash) text += (text.empty() ? "rank " : ", rank ") + std::to_string(r) + " brings " + p.what;
    }
    return text.empty() ? text : text + "; rank " + std::to_string(most) + " brings " + right.what;
  }

  void reduce(Op& op, size_t span, int64_t begin, int64_t count, char* to) {
    std::vector<const char*> from;
    for (int r : op.members) from.push_back(memoryOf(r) + post(r, op.group, op.sequence).table[span].send);
    addInto(to, from, begin, count, op.spans[span].type, op.by);
  }

  // Where the share of one member begins, on a cache line.
  static int64_t shareOf(int64_t count, int64_t members, int64_t member) { return std::min(count, (count + members * 16 - 1) / (members * 16) * 16 * member); }

  void exchange(Op& op) {
    const int64_t p = int64_t(op.members.size());
    for (size_t i = 0; i < op.spans.size(); i++) {
      Own& s = op.spans[i];
      const int64_t size = elementBytes(s.type);
      auto sent = [&](int64_t member) { return memoryOf(op.members[member]) + post(op.members[member], op.group, op.sequence).table[i].send; };
      switch (op.kind) {
        case allReduce: {
          const int64_t begin = shareOf(s.count, p, op.own), end = shareOf(s.count, p, op.own + 1);
          reduce(op, i, begin, end - begin, s.receiveAt + begin * size);
          break;
        }
        case allGather:
          for (int64_t m = 0; m < p; m++) std::memcpy(s.receive + m * s.bytes, sent(m), size_t(s.bytes));
          break;
        case reduceScatter:
          reduce(op, i, s.count / p * op.own, s.count / p, s.receive);
          break;
        case allToAll:
          for (int64_t m = 0; m < p; m++) std::memcpy(s.receive + m * (s.bytes / p), sent(m) + op.own * (s.bytes / p), size_t(s.bytes / p));
          break;
        case permute:
          std::memcpy(s.receive, sent(((op.own - op.shift) % p + p) % p), size_t(s.bytes));
          break;
        default:
          break;
      }
    }
  }

  void collect(Op& op) {
    const int64_t p = int64_t(op.members.size());
    for (size_t i = 0; i < op.spans.size(); i++) {
      Own& s = op.spans[i];
      const int64_t size = elementBytes(s.type);
      for (int64_t m = 0; m < p; m++) {
        if (m == op.own) continue;
        const int64_t begin = shareOf(s.count, p, m) * size, end = shareOf(s.count, p, m + 1) * size;
        const char* from = memoryOf(op.members[m]) + post(op.members[m], op.group, op.sequence).table[i].receive;
        if (end > begin) std::memcpy(s.receiveAt + begin, from + begin, size_t(end - begin));
      }
    }
  }

  void say(Op& op, uint32_t stage) {
    post(rank_, op.group, op.sequence).stage.store(stage, std::memory_order_release);
    ring(op.members);
  }

  bool all(const Op& op, uint32_t stage) {
    return std::all_of(op.members.begin(), op.members.end(), [&](int r) { return reached(r, op, stage); });
  }

  // Moves a collective on as far as it goes; true once it has ended.
  bool advance(Op& op) {
    if (op.kind == sendMessage) return mail(op);
    if (op.kind == receiveMessage) return fetch(op);
    if (op.phase == 0) {
      // The place of the collective that many before may still be read.
      if (std::any_of(pending_.begin(), pending_.end(), [&](const Op& o) { return o.kind != sendMessage && o.kind != receiveMessage && o.group == op.group && o.sequence + slots <= op.sequence; }))
        return false;
      Post& p = post(rank_, op.group, op.sequence);
      p.stage.store(0, std::memory_order_relaxed);
      p.spans = uint32_t(op.spans.size()), p.hash = op.hash, p.flag = uint32_t(op.by);
      std::snprintf(p.what, textBytes, "%s", op.what.c_str());
      fill(p.table, op);
      p.posted.store(op.sequence + 1, std::memory_order_release);
      ring(op.members);
      op.phase = 1;
    }
    if (op.phase == 1) {
      if (!all(op, 0)) return false;
      if (std::string text = odd(op); !text.empty()) return finish(op, disagreement, text), true;
      for (int r : op.members)
        if (!memoryOf(r)) return finish(op, refused, "the memory of rank " + std::to_string(r) + " cannot be read: /proc of its process is closed to this one"), true;
      exchange(op);
      if (op.kind == barrier)
        op.flag = std::any_of(op.members.begin(), op.members.end(), [&](int r) { return post(r, op.group, op.sequence).flag != 0; });
      say(op, 1);
      op.phase = 2;
    }
    if (op.phase == 2) {
      if (!all(op, 1)) return false;
      if (op.kind != allReduce) return finish(op, done, op.flag ? "1" : ""), true;
      collect(op);
      say(op, 2);
      op.phase = 3;
    }
    if (!all(op, 2)) return false;
    return finish(op, done, ""), true;
  }

  bool mail(Op& op) {
    const uint64_t number = sent_[op.peer];
    Letter& l = letter(rank_, op.peer, number);
    if (number >= slots && l.full.load(std::memory_order_acquire)) return false;
    l.spans = uint32_t(op.spans.size()), l.tag = op.hash;
    std::snprintf(l.what, textBytes, "%s", op.what.c_str());
    fill(l.table, op);
    l.full.store(1, std::memory_order_relaxed);
    l.posted.store(number + 1, std::memory_order_release);
    sent_[op.peer]++;
    for (auto& copy : op.copies) mailed_.push_back({&l, number, copy});
    op.copies.clear();
    ringOne(op.peer);
    return finish(op, done, ""), true;
  }

  // Memory of messages that have been read.
  void tidy() {
    std::erase_if(mailed_, [](Mailed& m) {
      if (m.letter->posted.load(std::memory_order_acquire) == m.number + 1 && m.letter->full.load(std::memory_order_acquire)) return false;
      regionGive(m.copy.first, uint64_t(m.copy.second));
      return true;
    });
  }

  bool fetch(Op& op) {
    for (uint64_t back = 0; back < slots; back++) {
      const uint64_t number = read_[op.peer] + back;
      Letter& l = letter(op.peer, rank_, number);
      if (l.posted.load(std::memory_order_acquire) != number + 1) break;
      if (!l.full.load(std::memory_order_acquire) || l.tag != op.hash) continue;
      bool equal = l.spans == op.spans.size();
      for (size_t i = 0; equal && i < op.spans.size(); i++) equal = l.table[i].bytes == op.spans[i].received;
      const char* from = memoryOf(op.peer);
      std::string text = equal ? "" : "rank " + std::to_string(op.peer) + " brings " + l.what + "; rank " + std::to_string(rank_) + " brings " + op.what;
      for (size_t i = 0; from && equal && i < op.spans.size(); i++)
        if (op.spans[i].received > 0) std::memcpy(op.spans[i].receive, from + l.table[i].send, size_t(op.spans[i].received));
      l.full.store(0, std::memory_order_release);
      ringOne(op.peer);
      while (true) {
        Letter& first = letter(op.peer, rank_, read_[op.peer]);
        if (first.posted.load(std::memory_order_acquire) != read_[op.peer] + 1 || first.full.load(std::memory_order_acquire)) break;
        read_[op.peer]++;
      }
      if (!from) return finish(op, refused, "the memory of rank " + std::to_string(op.peer) + " cannot be read: /proc of its process is closed to this one"), true;
      return finish(op, equal ? done : disagreement, text), true;
    }
    return false;
  }

  // Ends what can never go on.
  bool hopeless(Op& op, bool look) {
    if (op.cancelled) return finish(op, cancelledOp, ""), true;
    if (op.phase == 0 && op.kind != sendMessage && op.kind != receiveMessage) return false;
    const std::vector<int> waiting = waitedFor(op);
    for (int r : waiting)
      if (std::string text = gone(r, look); !text.empty()) {
        // It may have said its last word between the two looks.
        if (advance(op)) return true;
        return finish(op, rankLost, std::to_string(r) + ' ' + text), true;
      }
    if (Clock::now() < op.deadline) return false;
    std::string late;
    for (int r : waiting) late += (late.empty() ? "" : ",") + std::to_string(r);
    return finish(op, timedOut, late), true;
  }

  void work() {
    uint32_t heard = 0;
    Clock::time_point looked = Clock::now();
    for (;;) {
      const uint32_t bell = mine().bell.load(std::memory_order_acquire);
      {
        std::lock_guard<std::mutex> guard(lock_);
        if (stop_) return;
        for (Op& op : arriving_) pending_.push_back(std::move(op));
        arriving_.clear();
        for (int64_t ticket : cancels_)
          for (Op& op : pending_)
            if (op.ticket == ticket) op.cancelled = true;
        cancels_.clear();
      }
      const bool look = Clock::now() - looked > std::chrono::milliseconds(100);
      if (look) looked = Clock::now();
      for (auto op = pending_.begin(); op != pending_.end();) {
        if (!op->cancelled && op->phase == 0 && op->copies.empty() && !placed(*op) && !place(*op)) {
          finish(*op, refused, "no shared memory is left for a copy of what is sent");
          op = pending_.erase(op);
          continue;
        }
        if ((!op->cancelled && advance(*op)) || hopeless(*op, look)) op = pending_.erase(op);
        else ++op;
      }
      if (!mailed_.empty()) tidy();
      heard = bell;
      if (mine().bell.load(std::memory_order_acquire) != heard) continue;
      const struct timespec nap {0, 100'000'000};
      syscall(SYS_futex, &mine().bell, FUTEX_WAIT, heard, pending_.empty() && mailed_.empty() ? nullptr : &nap, nullptr, 0);
    }
  }

  static bool placed(const Op& op) { return op.spans.empty() || op.spans[0].sendAt || op.spans[0].receiveAt; }

  struct Mailed {
    Letter* letter;
    uint64_t number;
    std::pair<char*, int64_t> copy;
  };

  const int rank_, ranks_;
  const double timeout_;
  const std::string path_;
  int file_ = -1;
  void* mapped_ = nullptr;
  uint64_t mappedBytes_ = 0;
  Control* control_ = nullptr;
  Post* posts_ = nullptr;
  Letter* letters_ = nullptr;
  std::vector<char*> maps_;
  std::thread worker_;
  std::mutex lock_;
  std::condition_variable ready_;
  bool stop_ = false;
  std::deque<Op> arriving_;
  std::deque<int64_t> cancels_;
  std::deque<Ended> ended_;
  // Of the worker alone.
  std::list<Op> pending_;
  std::vector<Mailed> mailed_;
  uint64_t sent_[maxRanks] = {}, read_[maxRanks] = {};
};

}  // namespace

extern "C" void* ts_local_join(const char* path, int32_t rank, int32_t ranks, double timeout, char* problem, uint64_t problemBytes) {
  Comm* comm = new Comm(path, rank, ranks, timeout);
  const std::string text = comm->join();
  std::snprintf(problem, problemBytes, "%s", text.c_str());
  if (text.empty()) return comm;
  delete comm;
  return nullptr;
}

extern "C" void ts_local_leave(void* comm, int32_t failed, const char* detail) { static_cast<Comm*>(comm)->leave(failed != 0, detail); }
extern "C" void ts_local_destroy(void* comm) { delete static_cast<Comm*>(comm); }
extern "C" void ts_local_cancel(void* comm, int64_t ticket) { static_cast<Comm*>(comm)->cancel(ticket); }

extern "C" int32_t ts_local_start(void* comm, const int64_t* words, uint64_t count, const char* what) {
  const int64_t *at = words, *end = words + count;
  auto word = [&]() -> int64_t { return at < end ? *at++ : 0; };
  Op op;
  op.ticket = word(), op.kind = Kind(word()), op.group = int(word()), op.sequence = uint64_t(word()), op.hash = uint64_t(word());
  op.by = int(word()), op.shift = int(word()), op.peer = int(word()), op.own = 0;
  const int64_t members = word(), spans = word();
  if (op.kind < allReduce || op.kind > receiveMessage || op.group < 0 || op.group >= maxGroups || op.peer < 0 || op.peer >= maxRanks) return 0;
  if (members < 0 || members > maxRanks || spans < 0 || spans > maxSpans || end - at != members + 1 + spans * 6) return 0;
  op.own = int(word());
  for (int64_t i = 0; i < members; i++) {
    const int64_t rank = word();
    if (rank < 0 || rank >= maxRanks) return 0;
    op.members.push_back(int(rank));
  }
  for (int64_t i = 0; i < spans; i++) {
    Own s{};
    s.type = int32_t(word()), s.count = word();
    s.send = reinterpret_cast<char*>(word()), s.bytes = word();
    s.receive = reinterpret_cast<char*>(word()), s.received = word();
    op.spans.push_back(s);
  }
  op.what = what;
  static_cast<Comm*>(comm)->start(std::move(op));
  return 1;
}

// Waits for the next that ends.
extern "C" int64_t ts_local_next(void* comm, int32_t* status, char* text, uint64_t textBytes) {
  const Ended e = static_cast<Comm*>(comm)->next();
  *status = e.status;
  std::snprintf(text, textBytes, "%s", e.text.c_str());
  return e.ticket;
}
