#include "pool.hpp"
#include <sys/mman.h>
#include <cstdlib>
#include <new>

namespace tessera {

// About 100 microseconds. A thread that waits longer waits for one that was put off its core: spinning on would only keep the core from it.
constexpr int longestSpin = 4000;

Scratch::~Scratch() {
  if (data_) munmap(data_, bytes_);
}

char* Scratch::reserve(uint64_t bytes) {
  if (bytes <= bytes_) return data_;
  constexpr uint64_t hugePage = 2u << 20;
  bytes = (bytes + hugePage - 1) / hugePage * hugePage;
  if (data_) munmap(data_, bytes_);
  data_ = nullptr;
  bytes_ = 0;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  madvise(memory, bytes, MADV_HUGEPAGE);
  data_ = static_cast<char*>(memory);
  bytes_ = bytes;
  return data_;
}

Pool::Pool(int threads) : threads_(threads), active_(threads), owner_(getpid()), private_(threads) {
  try {
    for (int t = 1; t < threads; t++) workers_.emplace_back([this, t] { work(t); });
  } catch (...) {
    stop_ = true;
    generation_.fetch_add(1);
    generation_.notify_all();
    for (auto& worker : workers_) worker.join();
    throw;
  }
}

Pool::~Pool() {
  if (getpid() != owner_) {
    for (auto& worker : workers_) worker.detach();
    return;
  }
  stop_ = true;
  generation_.fetch_add(1, std::memory_order_acq_rel);
  generation_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::work(int thread) {
  int seen = 0;
  for (;;) {
    // About 50 microseconds: the gap between two instructions of a plan is shorter, the gap between two plans longer.
    int spins = 0, now;
    while ((now = generation_.load(std::memory_order_acquire)) == seen) {
      if (++spins < 2000) relax();
      else generation_.wait(seen, std::memory_order_acquire);
    }
    seen = now;
    if (stop_) return;
    function_(context_, thread);
    if (done_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 2) done_.notify_one();
  }
}

void Pool::start(void (*function)(void*, int), void* context) {
  done_.store(0, std::memory_order_relaxed);
  function_ = function;
  context_ = context;
  generation_.fetch_add(1, std::memory_order_acq_rel);
  generation_.notify_all();
  function(context, 0);
  int spins = 0, done;
  while ((done = done_.load(std::memory_order_acquire)) != threads_ - 1) {
    if (++spins < longestSpin) relax();
    else done_.wait(done, std::memory_order_acquire);
  }
}

void Pool::barrier() {
  if (active_ == 1) return;
  int passed = passed_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == active_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    passed_.fetch_add(1, std::memory_order_acq_rel);
    passed_.notify_all();
    return;
  }
  int spins = 0;
  while (passed_.load(std::memory_order_acquire) == passed) {
    if (++spins < longestSpin) relax();
    else passed_.wait(passed, std::memory_order_acquire);
  }
}

}  // namespace tessera

extern "C" void* ts_pool_create(int32_t threads) {
  if (threads < 1 || threads > 1024) return nullptr;
  try {
    return new tessera::Pool(threads);
  } catch (...) {
    return nullptr;
  }
}

extern "C" void ts_pool_destroy(void* pool) { delete static_cast<tessera::Pool*>(pool); }
