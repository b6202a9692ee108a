// Reading a plan: words into operands, sizes and immediates, with every access checked, so that a malformed plan is an error and never a crash.
#pragma once
#include <cstdint>
#include <cstring>
#include "pool.hpp"
#include "tessera_cpu.h"

namespace tessera {

enum Status : int32_t { ok = 0, cancelled = 1, malformed = 2, outOfMemory = 3 };

constexpr int maxRank = 16;

inline int64_t elementBytes(int32_t type) {
  switch (type) {
    case TS_F32: case TS_I32: case TS_U32: return 4;
    case TS_BF16: case TS_F16: return 2;
    default: return 1;
  }
}
inline bool isFloat(int32_t type) { return type == TS_F32 || type == TS_BF16 || type == TS_F16; }

// `data` is null when the binding does not exist, which is legal for operands that flags leave unused.
struct Operand {
  char* data = nullptr;
  int32_t type = 0;
  int64_t bytes() const { return elementBytes(type); }
  char* at(int64_t element) const { return data + element * bytes(); }
};

class Reader {
 public:
  Reader(const int64_t* begin, const int64_t* end, void* const* bindings, uint64_t bindingCount)
      : at_(begin), end_(end), bindings_(bindings), bindingCount_(bindingCount) {}
  int64_t word() {
    if (at_ >= end_) return bad_ = true, 0;
    return *at_++;
  }
  double real() {
    int64_t bits = word();
    double value;
    memcpy(&value, &bits, 8);
    return value;
  }
  // A size: not negative.
  int64_t size() {
    int64_t n = word();
    return n < 0 ? (bad_ = true, 0) : n;
  }
  int rank(int most = maxRank) {
    int64_t n = word();
    return n < 0 || n > most ? (bad_ = true, 0) : int(n);
  }
  int choice(int count) {
    int64_t n = word();
    return n < 0 || n >= count ? (bad_ = true, 0) : int(n);
  }
  void sizes(int64_t* to, int rank) {
    for (int i = 0; i < rank; i++) to[i] = size();
  }
  void strides(int64_t* to, int rank) {
    for (int i = 0; i < rank; i++) to[i] = word();
  }
  Operand optional() {
    int64_t binding = word(), offset = word(), type = word();
    word();
    Operand operand;
    operand.type = type < 0 || type > TS_BOOL ? -1 : int32_t(type);
    if (binding >= 0 && uint64_t(binding) < bindingCount_ && bindings_[binding]) operand.data = static_cast<char*>(bindings_[binding]) + offset;
    return operand;
  }
  Operand operand() { return need(optional()); }
  Operand need(Operand operand) {
    if (!operand.data || operand.type < 0) bad_ = true;
    return operand;
  }
  Operand floats() { return needFloat(optional()); }
  Operand needFloat(Operand operand) {
    need(operand);
    if (!isFloat(operand.type)) bad_ = true;
    return operand;
  }
  Operand typed(int32_t type) {
    Operand operand = need(optional());
    if (operand.type != type) bad_ = true;
    return operand;
  }
  void fail() { bad_ = true; }
  bool bad() const { return bad_; }
  int64_t left() const { return end_ - at_; }

 private:
  const int64_t *at_, *end_;
  void* const* bindings_;
  uint64_t bindingCount_;
  bool bad_ = false;
};

// One function per instruction, each in the file of its family.
Status runPointwise(Pool&, Reader&);
Status runReduce(Pool&, Reader&);
Status runDot(Pool&, Reader&);
Status runCumsum(Pool&, Reader&);
Status runGemm(Pool&, Reader&);
Status runAttention(Pool&, Reader&, bool backward);
Status runNorm(Pool&, Reader&);
Status runNormBackward(Pool&, Reader&);
Status runCrossEntropy(Pool&, Reader&, bool backward);
Status runGather(Pool&, Reader&);
Status runScatterAdd(Pool&, Reader&);
Status runAdamw(Pool&, Reader&);

// Copies with fixed chunks over the pool; used by TS_COPY_BYTES, TS_ZERO and contiguous copies.
void copyBytes(Pool&, char* to, const char* from, int64_t bytes);
void zeroBytes(Pool&, char* to, int64_t bytes);

}  // namespace tessera
