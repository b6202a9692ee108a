// The one thread pool of a process part: the caller takes part as thread 0, workers spin briefly, then sleep in the kernel.
// Everything parallel in the library goes through `together` or `each`, so two pools never fight for the cores.
#pragma once
#include <unistd.h>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace tessera {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Memory that grows and is reused from instruction to instruction; its contents never survive one.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();
  char* reserve(uint64_t bytes);  // throws std::bad_alloc
 private:
  char* data_ = nullptr;
  uint64_t bytes_ = 0;
};

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();

  int threads() const { return active_; }

  // f(thread) once on every thread at the same time; barrier() may be used inside.
  template <class F> void together(F&& f) {
    if (active_ == 1) return f(0);
    start([](void* context, int thread) { (*static_cast<std::remove_reference_t<F>*>(context))(thread); }, &f);
  }

  // f(index, thread) for each index below count, in any order. Only worth the wake-up when the work is more than a few microseconds.
  template <class F> void each(int64_t count, bool worth, F&& f) {
    if (!worth || count <= 1 || active_ == 1) {
      for (int64_t i = 0; i < count; i++) f(i, 0);
      return;
    }
    std::atomic<int64_t> next{0};
    together([&](int thread) {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) f(i, thread);
    });
  }

  void barrier();

  // Reserved by the caller before the parallel part, where running out of memory can still be reported.
  char* shared(uint64_t bytes) { return shared_.reserve(bytes); }
  void reservePrivate(uint64_t bytes) {
    for (int t = 0; t < active_; t++) private_[t].reserve(bytes);
  }
  char* mine(int thread) { return private_[thread].reserve(0); }

  // One plan at a time. In a forked child the workers do not exist, and the caller works alone.
  class Turn {
   public:
    explicit Turn(Pool& pool) : lock_(pool.turn_) { pool.active_ = getpid() == pool.owner_ ? pool.threads_ : 1; }
   private:
    std::lock_guard<std::mutex> lock_;
  };

 private:
  void start(void (*function)(void*, int), void* context);
  void work(int thread);

  int threads_, active_;
  pid_t owner_;
  std::vector<std::thread> workers_;
  std::vector<Scratch> private_;
  Scratch shared_;
  std::mutex turn_;
  void (*function_)(void*, int) = nullptr;
  void* context_ = nullptr;
  bool stop_ = false;
  // Apart, because each is hammered by spinning threads.
  alignas(64) std::atomic<int> generation_{0};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> passed_{0};
};

}  // namespace tessera
