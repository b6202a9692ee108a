// Speed of the kernels at the shapes of vision transformers, through plans as the framework makes them:
//   c++ -O2 -std=c++20 -pthread bench/kernels.cpp <the library>.so -o kernels && LD_LIBRARY_PATH=. ./kernels [threads] [name filter]
// Best of a few runs; GFLOP/s for products and attention, GB/s of memory moved for the rest.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>
#include "../tessera_cpu.h"

namespace {

void* pool;
std::string filter;
char* arena;
int64_t used;
constexpr int64_t arenaBytes = int64_t(3) << 30;

struct Buffer {
  int64_t offset, type;
};
Buffer buffer(int64_t type, int64_t count) {
  const int64_t bytes = type == TS_BF16 || type == TS_F16 ? 2 : 4;
  Buffer b{used, type};
  used += (count * bytes + 4095) / 4096 * 4096;
  if (used > arenaBytes) abort();
  if (type == TS_F32)
    for (int64_t i = 0; i < count; i++) reinterpret_cast<float*>(arena + b.offset)[i] = float((i * 7919) % 1001 - 500) / 500;
  else if (type == TS_BF16)
    for (int64_t i = 0; i < count; i++) reinterpret_cast<uint16_t*>(arena + b.offset)[i] = uint16_t(0x3f80 + (i * 7919) % 100);
  else memset(arena + b.offset, 0, size_t(count * bytes));
  return b;
}

class Plan {
 public:
  explicit Plan(int64_t opcode) { words_ = {opcode, 0, 0}; }
  Plan& add(std::initializer_list<int64_t> words) {
    words_.insert(words_.end(), words);
    return *this;
  }
  Plan& add(Buffer b) { return add({0, b.offset, b.type, 0}); }
  Plan& none() { return add({-1, 0, 0, 0}); }
  Plan& real(double x) {
    int64_t word;
    memcpy(&word, &x, 8);
    return add({word});
  }
  void run() {
    words_[1] = int64_t(words_.size());
    void* bindings[] = {arena};
    if (ts_run(pool, words_.data(), words_.size(), bindings, 1, nullptr, nullptr, 0, nullptr, nullptr) != 0) {
      fprintf(stderr, "not run\n");
      exit(1);
    }
  }

 private:
  std::vector<int64_t> words_;
};

void measure(const char* name, const char* unit, double amount, const std::function<Plan()>& make) {
  if (!filter.empty() && !strstr(name, filter.c_str())) return;
  used = 0;
  Plan plan = make();
  double best = 1e9, total = 0;
  for (int i = 0; i < 40 && (i < 3 || total < 0.4); i++) {
    const auto start = std::chrono::steady_clock::now();
    plan.run();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = seconds < best ? seconds : best;
    total += seconds;
  }
  printf("%-44s %9.1f %s  %10.1f us\n", name, amount / best / 1e9, unit, best * 1e6);
  fflush(stdout);
}

// dY^T X and so on: which strides are 1 is what matters.
void product(const char* name, int64_t m, int64_t n, int64_t k, bool aByRow, bool bByRow, int64_t typeA, int64_t typeB, int64_t typeC, int64_t precision,
             int64_t activation = 0, bool aux = false) {
  measure(name, "GFLOP/s", 2.0 * double(m) * double(n) * double(k), [=] {
    Buffer a = buffer(typeA, m * k), b = buffer(typeB, k * n), c = buffer(typeC, m * n), bias = buffer(TS_F32, n), before = buffer(TS_BF16, aux ? m * n : 1);
    Plan p(TS_GEMM);
    p.add({0, m, 1, 1, precision, 0, activation}).real(1).add({aux ? 3 : 1}).add(bias).add({1});
    p.add({k}).add(a).add({aByRow ? k : 1, aByRow ? 1 : m});
    p.add(b).add({bByRow ? n : 1, bByRow ? 1 : k});
    p.add({n}).add(c).add({n, 1}).add(before).add({n}).none().add({0});
    return p;
  });
}

void attention(const char* name, int64_t batch, int64_t heads, int64_t seq, int64_t depth, int64_t type, int64_t precision, bool backward) {
  const double products = backward ? 5 : 2;
  measure(name, "GFLOP/s", products * 2 * double(batch * heads) * double(seq) * double(seq) * double(depth), [=] {
    const int64_t width = heads * depth, row = 3 * width;
    Buffer qkv = buffer(type, batch * seq * row), out = buffer(type, batch * seq * width), lse = buffer(TS_F32, batch * heads * seq);
    Buffer dOut = buffer(type, batch * seq * width), dqkv = buffer(type, batch * seq * row);
    auto third = [=](Buffer b, int64_t i) { return Buffer{b.offset + i * width * (type == TS_F32 ? 4 : 2), b.type}; };
    auto make = [&](int64_t opcode) {
      Plan p(opcode);
      p.add({batch, heads, heads, seq, seq, depth, depth}).real(0.125).add({0, 0, precision}).real(0);
      for (int i = 0; i < 3; i++) p.add(third(qkv, i)).add({seq * row, row, depth});
      p.add(out).add({seq * width, width, depth}).add(lse).add({heads * seq, seq, 1});
      p.none().add({0, 0}).none().add({0, 0}).none().add({0}).none().none().add({0});
      return p;
    };
    if (!backward) return make(TS_ATTENTION);
    make(TS_ATTENTION).run();
    Plan p = make(TS_ATTENTION_BACKWARD);
    p.add(dOut).add({seq * width, width, depth});
    for (int i = 0; i < 3; i++) p.add(third(dqkv, i)).add({seq * row, row, depth});
    return p;
  });
}

}  // namespace

int main(int count, char** arguments) {
  const int threads = count > 1 ? atoi(arguments[1]) : 2;
  if (count > 2) filter = arguments[2];
  pool = ts_pool_create(threads);
  arena = static_cast<char*>(ts_memory_create(arenaBytes, 0));
  printf("%s, %d threads\n", ts_isa(), threads);

  for (int64_t precision = 0; precision < 2; precision++) {
    const std::string label = precision ? "gemm bf16 products, f32 memory: " : "gemm f32: ";
    auto run = [&](const char* shape, int64_t m, int64_t n, int64_t k, bool aByRow, bool bByRow) {
      product((label + shape).c_str(), m, n, k, aByRow, bByRow, TS_F32, TS_F32, TS_F32, precision);
    };
    run("1576x768x768", 1576, 768, 768, true, false);
    run("1576x3072x768", 1576, 3072, 768, true, false);
    run("1576x768x3072", 1576, 768, 3072, true, true);
    run("dW 768x3072x1576", 768, 3072, 1576, false, true);
    run("6304x768x192", 6304, 768, 192, true, false);
    run("6304x192x768", 6304, 192, 768, true, false);
    run("dW 768x192x6304", 768, 192, 6304, false, true);
    run("dW 192x192x6304", 192, 192, 6304, false, true);
    run("head 256x10x192", 256, 10, 192, true, false);
    run("dW head 10x192x100000", 10, 192, 100000, false, true);
    run("64x64x64", 64, 64, 64, true, true);
  }
  product("gemm bf16 memory: 1576x768x768", 1576, 768, 768, true, false, TS_BF16, TS_BF16, TS_BF16, 1);
  product("gemm bf16 memory: 1576x768x3072", 1576, 768, 3072, true, false, TS_BF16, TS_BF16, TS_BF16, 1);
  product("gemm bf16 memory: 1576x3072x768 gelu aux", 1576, 3072, 768, true, false, TS_BF16, TS_BF16, TS_BF16, 1, 1, true);
  product("gemm bf16 memory: 6304x768x192 gelu aux", 6304, 768, 192, true, false, TS_BF16, TS_BF16, TS_BF16, 1, 1, true);
  product("gemm bf16 memory: dW 768x3072x1576", 768, 3072, 1576, false, true, TS_BF16, TS_BF16, TS_F32, 1);
  product("gemm bf16 memory: dW 768x192x6304", 768, 192, 6304, false, true, TS_BF16, TS_BF16, TS_F32, 1);

  attention("attention f32 8x12x197x64", 8, 12, 197, 64, TS_F32, 0, false);
  attention("attention bf16 8x12x197x64", 8, 12, 197, 64, TS_BF16, 1, false);
  attention("attention bf16 256x3x65x64", 256, 3, 65, 64, TS_BF16, 1, false);
  attention("attention f32 1x8x2048x64", 1, 8, 2048, 64, TS_F32, 0, false);
  attention("attention backward f32 8x12x197x64", 8, 12, 197, 64, TS_F32, 0, true);
  attention("attention backward bf16 8x12x197x64", 8, 12, 197, 64, TS_BF16, 1, true);
  attention("attention backward bf16 256x3x65x64", 256, 3, 65, 64, TS_BF16, 1, true);

  for (int64_t type : {TS_F32, TS_BF16}) {
    const int64_t rows = 6304, width = 768, n = rows * width, bytes = type == TS_F32 ? 4 : 2;
    const std::string suffix = type == TS_F32 ? " f32" : " bf16";
    auto pointwise = [&](const char* name, int64_t inputs, std::vector<std::vector<int64_t>> code) {
      measure((name + suffix).c_str(), "GB/s", double((inputs + 1) * n * bytes), [=] {
        Plan p(TS_POINTWISE);
        p.add({1, inputs, 1, int64_t(code.size()), n});
        for (int64_t i = 0; i <= inputs; i++) p.add(buffer(type, n)).add({1});
        for (auto& c : code)
          for (int64_t w : c) p.add({w});
        return p;
      });
    };
    pointwise("copy", 1, {{0, 0, 0, 0, 0, 0}});
    pointwise("add", 2, {{TS_VM_ADD, 2, 0, 1, 0, 0}, {0, 0, 2, 0, 0, 0}});
    pointwise("gelu erf", 1, {{TS_VM_GELU, 1, 0, 0, 0, 1}, {0, 0, 1, 0, 0, 0}});
    pointwise("gelu erf backward", 2, {{TS_VM_GELU_GRAD, 2, 0, 0, 0, 1}, {TS_VM_MUL, 2, 2, 1, 0, 0}, {0, 0, 2, 0, 0, 0}});
    pointwise("exp", 1, {{TS_VM_EXP, 1, 0, 0, 0, 0}, {0, 0, 1, 0, 0, 0}});
    measure(("transpose" + suffix).c_str(), "GB/s", double(2 * n * bytes), [=] {
      Plan p(TS_POINTWISE);
      p.add({2, 1, 1, 1, rows, width}).add(buffer(type, n)).add({width, 1}).add(buffer(type, n)).add({1, rows}).add({0, 0, 0, 0, 0, 0});
      return p;
    });
    measure(("bias add" + suffix).c_str(), "GB/s", double(2 * n * bytes), [=] {
      Plan p(TS_POINTWISE);
      p.add({2, 2, 1, 2, rows, width}).add(buffer(type, n)).add({width, 1}).add(buffer(TS_F32, width)).add({0, 1}).add(buffer(type, n)).add({width, 1});
      p.add({TS_VM_ADD, 2, 0, 1, 0, 0}).add({0, 0, 2, 0, 0, 0});
      return p;
    });
    measure(("norm" + suffix).c_str(), "GB/s", double(2 * n * bytes), [=] {
      Plan p(TS_NORM);
      p.add({0, rows, width}).real(1e-6).add(buffer(type, n)).add({width}).add(buffer(TS_F32, width)).add(buffer(TS_F32, width));
      p.add(buffer(type, n)).add({width}).add(buffer(TS_F32, rows)).add(buffer(TS_F32, rows)).add({3});
      return p;
    });
    measure(("norm backward" + suffix).c_str(), "GB/s", double(4 * n * bytes), [=] {
      Plan p(TS_NORM_BACKWARD);
      p.add({0, rows, width}).real(1e-6).add(buffer(type, n)).add({width}).add(buffer(TS_F32, width)).add(buffer(TS_F32, rows)).add(buffer(TS_F32, rows));
      p.add(buffer(type, n)).add({width}).add(buffer(type, n)).add({width}).add(buffer(TS_F32, width)).add(buffer(TS_F32, width)).add({7});
      return p;
    });
    measure(("column sums" + suffix).c_str(), "GB/s", double(n * bytes), [=] {
      Plan p(TS_REDUCE);
      p.add({0, 2, rows, width}).add(buffer(type, n)).add({width, 1}).add(buffer(TS_F32, width)).add({0, 1});
      return p;
    });
    measure(("row sums" + suffix).c_str(), "GB/s", double(n * bytes), [=] {
      Plan p(TS_REDUCE);
      p.add({0, 2, rows, width}).add(buffer(type, n)).add({width, 1}).add(buffer(TS_F32, rows)).add({1, 0});
      return p;
    });
  }
  const int64_t parameters = 20 << 20;
  measure("adamw f32", "GB/s", 28.0 * double(parameters), [=] {
    Buffer p = buffer(TS_F32, parameters), g = buffer(TS_F32, parameters), m = buffer(TS_F32, parameters), v = buffer(TS_F32, parameters), s = buffer(TS_F32, 4);
    float* scalars = reinterpret_cast<float*>(arena + s.offset);
    scalars[0] = 1e-3f, scalars[1] = scalars[2] = 0.5f, scalars[3] = 1;
    return Plan(TS_ADAMW).add({parameters}).add(p).add(g).add(m).add(v).add(p).add(m).add(v).add(s).real(0.9).real(0.999).real(1e-8).real(0.05);
  });
  measure("instruction of 64 elements", "Gelem/s", 64, [=] {
    Plan p(TS_POINTWISE);
    p.add({1, 2, 1, 2, 64}).add(buffer(TS_F32, 64)).add({1}).add(buffer(TS_F32, 64)).add({1}).add(buffer(TS_F32, 64)).add({1});
    return p.add({TS_VM_ADD, 2, 0, 1, 0, 0}).add({0, 0, 2, 0, 0, 0});
  });
  return 0;
}
