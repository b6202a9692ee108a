// TS_CROSS_ENTROPY and its backward. Logits are shifted by their maximum throughout, so large ones cancel exactly.
#include <algorithm>
#include <cmath>
#include "math.hpp"
#include "plan.hpp"

namespace tessera {

namespace {

struct Loss {
  int64_t rows, classes;
  bool distribution;
  float smoothing;
  Operand logits, targets;
  int64_t logitsRow, targetRow;

  void read(Reader& in) {
    rows = in.size();
    classes = in.size();
    distribution = in.choice(2) == 1;
    smoothing = float(in.real());
    logits = in.optional();
    logitsRow = in.word();
    targets = in.optional();
    targetRow = in.word();
  }
  void check(Reader& in) const {
    if (classes) in.needFloat(logits);
    if (!distribution) {
      in.need(targets);
      if (targets.type != TS_I32) in.fail();
    } else if (classes) in.needFloat(targets);
  }
  // -1 when the row is ignored.
  int64_t label(int64_t row) const {
    const int32_t id = loadAs<int32_t>(targets.at(row * targetRow));
    return id >= 0 && id < classes ? id : -1;
  }
};

float largest(const float* x, int64_t n) {
  Floats m = splat(-infinity);
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes) m = maxNan(m, loadAs<Floats>(x + j));
  float r = maxLanes(m);
  for (; j < n; j++) r = x[j] > r || x[j] != x[j] ? x[j] : r;
  return r;
}
// Sum of f over a row; f sees whole vectors, and absent lanes of the last are zeroed. Runs of a few thousand are added in double.
template <class F> double sumOf(int64_t n, F&& f) {
  double total = 0;
  for (int64_t start = 0; start < n; start += 4096) {
    Floats sum{};
    const int64_t end = std::min(n, start + 4096);
    int64_t j = start;
    for (; j + lanes <= end; j += lanes) sum += f(j, int64_t(lanes));
    if (j < end) {
      Floats last = f(j, end - j);
      for (int i = int(end - j); i < lanes; i++) last[i] = 0;
      sum += last;
    }
    total += sumLanes(sum);
  }
  return total;
}
TESSERA_INLINE Floats at(const float* p, int64_t j, int64_t n) { return loadFloats<TS_F32>(reinterpret_cast<const char*>(p + j), n); }

}  // namespace

static Status forward(Pool& pool, Reader& in) {
  Loss l;
  l.read(in);
  Operand loss = in.optional(), lse = in.optional();
  if (in.bad()) return malformed;
  if (!l.rows) return ok;
  l.check(in);
  in.need(loss), in.need(lse);
  if (in.bad() || loss.type != TS_F32 || lse.type != TS_F32) return malformed;
  const int64_t classes = l.classes;
  pool.reservePrivate(uint64_t(classes) * 8);
  pool.each(l.rows, l.rows * classes > 8192, [&](int64_t row, int thread) {
    float* buffer = reinterpret_cast<float*>(pool.mine(thread));
    const float* x = classes ? floatsOf(l.logits.at(row * l.logitsRow), l.logits.type, buffer, classes) : nullptr;
    const float m = largest(x, classes);
    const float shift = std::isinf(m) && m < 0 ? 0.0f : m;
    const Floats vm = splat(shift);
    const double logSum = std::log(sumOf(classes, [&](int64_t j, int64_t n) { return expNoOverflow(at(x, j, n) - vm); }));
    reinterpret_cast<float*>(lse.data)[row] = float(logSum + shift);
    const double s = l.smoothing, even = classes ? s / double(classes) : 0;
    double total = 0;
    if (!l.distribution) {
      const int64_t id = l.label(row);
      if (id >= 0) {
        total = (1 - s) * (logSum - (double(x[id]) - shift));
        if (s != 0) total += even * (double(classes) * logSum - sumOf(classes, [&](int64_t j, int64_t n) { return at(x, j, n) - vm; }));
      }
    } else if (classes) {
      const float* t = floatsOf(l.targets.at(row * l.targetRow), l.targets.type, buffer + classes, classes);
      const Floats keep = splat(float(1 - s)), add = splat(float(even)), top = splat(float(logSum));
      total = sumOf(classes, [&](int64_t j, int64_t n) { return (keep * at(t, j, n) + add) * (top - (at(x, j, n) - vm)); });
    }
    reinterpret_cast<float*>(loss.data)[row] = float(total);
  });
  return ok;
}

static Status backward(Pool& pool, Reader& in) {
  Loss l;
  l.read(in);
  Operand lse = in.optional(), dloss = in.optional();
  const int64_t dlossStride = in.word();
  Operand dlogits = in.optional();
  const int64_t dRow = in.word();
  if (in.bad()) return malformed;
  if (!l.rows || !l.classes) return ok;
  l.check(in);
  in.need(lse), in.need(dloss), in.needFloat(dlogits);
  if (in.bad() || lse.type != TS_F32 || dloss.type != TS_F32) return malformed;
  const int64_t classes = l.classes;
  pool.reservePrivate(uint64_t(classes) * 12);
  pool.each(l.rows, l.rows * classes > 8192, [&](int64_t row, int thread) {
    float* buffer = reinterpret_cast<float*>(pool.mine(thread));
    const float* x = floatsOf(l.logits.at(row * l.logitsRow), l.logits.type, buffer, classes);
    char* out = dlogits.at(row * dRow);
    float* y = dlogits.type == TS_F32 ? reinterpret_cast<float*>(out) : buffer + 2 * classes;
    const float scale = loadAs<float>(dloss.at(row * dlossStride)), top = loadAs<float>(lse.at(row));
    const float s = l.smoothing, even = s / float(classes);
    auto each = [&](auto&& f) {
      int64_t j = 0;
      for (; j + lanes <= classes; j += lanes) storeAs(y + j, f(j, int64_t(lanes)));
      if (j < classes) storePart(y + j, f(j, classes - j), classes - j);
    };
    if (l.distribution) {
      const float* t = floatsOf(l.targets.at(row * l.targetRow), l.targets.type, buffer + classes, classes);
      const float sum = float((1 - s) * sumOf(classes, [&](int64_t j, int64_t n) { return at(t, j, n); }) + s);
      each([&](int64_t j, int64_t n) { return scale * (sum * expNoOverflow(at(x, j, n) - top) - ((1 - s) * at(t, j, n) + even)); });
    } else {
      const int64_t id = l.label(row);
      if (id < 0) std::fill(y, y + classes, 0.0f);
      else {
        const float own = loadAs<float>(x + id);  // before the row is overwritten, when dlogits are the logits
        each([&](int64_t j, int64_t n) { return scale * (expNoOverflow(at(x, j, n) - top) - even); });
        Floats one = splat(own - top);
        y[id] = scale * (expNoOverflow(one)[0] - even - (1 - s));
      }
    }
    if (dlogits.type != TS_F32) fromFloats(y, out, dlogits.type, classes);
  });
  return ok;
}

Status runCrossEntropy(Pool& pool, Reader& in, bool isBackward) { return isBackward ? backward(pool, in) : forward(pool, in); }

}  // namespace tessera
