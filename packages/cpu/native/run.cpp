// The interpreter: one plan, instruction by instruction, each a barrier.
#include <chrono>
#include <new>
#include "plan.hpp"

namespace tessera {

namespace {
constexpr int64_t bytesPerTask = 256 << 10;
}

void copyBytes(Pool& pool, char* to, const char* from, int64_t bytes) {
  if (to == from) return;
  pool.each((bytes + bytesPerTask - 1) / bytesPerTask, bytes > 2 * bytesPerTask, [&](int64_t task, int) {
    const int64_t start = task * bytesPerTask;
    memcpy(to + start, from + start, size_t(bytes - start < bytesPerTask ? bytes - start : bytesPerTask));
  });
}

void zeroBytes(Pool& pool, char* to, int64_t bytes) {
  pool.each((bytes + bytesPerTask - 1) / bytesPerTask, bytes > 2 * bytesPerTask, [&](int64_t task, int) {
    const int64_t start = task * bytesPerTask;
    memset(to + start, 0, size_t(bytes - start < bytesPerTask ? bytes - start : bytesPerTask));
  });
}

namespace {

Status runBytes(Pool& pool, Reader& in, bool copy) {
  const int64_t bytes = in.size();
  Operand to = in.optional(), from = copy ? in.optional() : Operand{};
  if (in.bad() || !bytes) return in.bad() ? malformed : ok;
  in.need(to);
  if (copy) in.need(from);
  if (in.bad()) return malformed;
  if (copy) copyBytes(pool, to.data, from.data, bytes);
  else zeroBytes(pool, to.data, bytes);
  return ok;
}

Status runOne(Pool& pool, int64_t opcode, Reader& in) {
  switch (opcode) {
    case TS_POINTWISE: return runPointwise(pool, in);
    case TS_REDUCE: return runReduce(pool, in);
    case TS_DOT: return runDot(pool, in);
    case TS_GEMM: return runGemm(pool, in);
    case TS_ATTENTION: return runAttention(pool, in, false);
    case TS_ATTENTION_BACKWARD: return runAttention(pool, in, true);
    case TS_NORM: return runNorm(pool, in);
    case TS_NORM_BACKWARD: return runNormBackward(pool, in);
    case TS_CROSS_ENTROPY: return runCrossEntropy(pool, in, false);
    case TS_CROSS_ENTROPY_BACKWARD: return runCrossEntropy(pool, in, true);
    case TS_GATHER: return runGather(pool, in);
    case TS_SCATTER_ADD: return runScatterAdd(pool, in);
    case TS_COPY_BYTES: return runBytes(pool, in, true);
    case TS_ZERO: return runBytes(pool, in, false);
    case TS_ADAMW: return runAdamw(pool, in);
    case TS_CUMSUM: return runCumsum(pool, in);
    default: return malformed;
  }
}

}  // namespace

}  // namespace tessera

extern "C" int32_t ts_abi_version(void) { return 1; }

extern "C" const char* ts_isa(void) {
#if defined(__AVX512BF16__)
  return "avx512bf16";
#elif defined(__AVX512F__)
  return "avx512";
#elif defined(__AVX2__)
  return "avx2";
#elif defined(__aarch64__)
  return "neon";
#else
  return "baseline";
#endif
}

extern "C" int32_t ts_run(void* handle, const int64_t* plan, uint64_t words, void* const* bindings, uint64_t bindingCount, const int32_t* cancel,
                          double* profile, uint64_t profileCount, int64_t* error, const void* hooks) {
  using namespace tessera;
  (void)hooks;
  if (!handle || (!plan && words)) return malformed;
  Pool& pool = *static_cast<Pool*>(handle);
  Pool::Turn turn(pool);
  for (uint64_t at = 0; at < words;) {
    const bool header = words - at >= 3;
    const int64_t equation = header ? plan[at + 2] : -1;
    Status status = malformed;
    if (cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED)) status = cancelled;
    else if (header && plan[at + 1] >= 3 && uint64_t(plan[at + 1]) <= words - at) {
      Reader in(plan + at + 3, plan + at + plan[at + 1], bindings, bindingCount);
      const bool timed = profile && equation >= 0 && uint64_t(equation) < profileCount;
      const auto start = timed ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point();
      try {
        status = runOne(pool, plan[at], in);
        if (status == ok && in.left() != 0) status = malformed;
      } catch (const std::bad_alloc&) {
        status = outOfMemory;
      } catch (...) {
        status = malformed;
      }
      if (timed) profile[equation] += double(std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count());
    }
    if (status != ok) {
      if (error) *error = equation;
      return status;
    }
    at += uint64_t(plan[at + 1]);
  }
  return ok;
}
