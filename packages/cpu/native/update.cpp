// TS_ADAMW: the whole optimizer step of one run of parameters in one pass over memory.
#include <algorithm>
#include <cmath>
#include "plan.hpp"
#include "simd.hpp"

namespace tessera {

Status runAdamw(Pool& pool, Reader& in) {
  const int64_t count = in.size();
  // param, gradient, m, v, then the outputs param, m, v
  const Operand operands[7] = {in.optional(), in.optional(), in.optional(), in.optional(), in.optional(), in.optional(), in.optional()};
  Operand scalars = in.optional();
  const double b1 = in.real(), b2 = in.real(), eps = in.real(), decay = in.real();
  if (in.bad()) return malformed;
  if (!count) return ok;
  for (const Operand& o : operands) in.needFloat(o);
  in.need(scalars);
  if (in.bad() || scalars.type != TS_F32) return malformed;
  const float* s = reinterpret_cast<const float*>(scalars.data);
  const double rate = s[0];
  const float keep = float(1 - rate * decay), step = float(rate / s[1]), c2 = float(1 / std::sqrt(double(s[2]))), scale = s[3];
  const float m1 = float(b1), n1 = float(1 - b1), m2 = float(b2), n2 = float(1 - b2), e = float(eps);

  constexpr int64_t block = 512, perTask = 32 * block;
  pool.reservePrivate(7 * block * 4);
  pool.each((count + perTask - 1) / perTask, count > perTask, [&](int64_t task, int thread) {
    float* buffer = reinterpret_cast<float*>(pool.mine(thread));
    for (int64_t start = task * perTask; start < std::min(count, (task + 1) * perTask); start += block) {
      const int64_t n = std::min(block, count - start);
      const float* from[4];
      float* to[3];
      for (int i = 0; i < 4; i++) from[i] = floatsOf(operands[i].at(start), operands[i].type, buffer + i * block, n);
      for (int i = 0; i < 3; i++)
        to[i] = operands[4 + i].type == TS_F32 ? reinterpret_cast<float*>(operands[4 + i].at(start)) : buffer + (4 + i) * block;
      for (int64_t j = 0; j < n; j += lanes) {
        const int64_t left = n - j;
        auto at = [&](int i) __attribute__((always_inline)) { return loadFloats<TS_F32>(reinterpret_cast<const char*>(from[i] + j), left); };
        auto put = [&](int i, Floats v) __attribute__((always_inline)) { storeFloats<TS_F32>(reinterpret_cast<char*>(to[i] + j), v, left); };
        const Floats g = at(1) * scale, m = at(2) * m1 + g * n1, v = at(3) * m2 + g * g * n2;
        Floats root;
#if defined(TESSERA_AVX512)
        root = (Floats)_mm512_sqrt_ps((__m512)v);
#else
        for (int i = 0; i < lanes; i++) root[i] = __builtin_sqrtf(v[i]);
#endif
        const Floats p = at(0) * keep - step * m / (root * c2 + e);
        put(0, p);
        put(1, m);
        put(2, v);
      }
      for (int i = 0; i < 3; i++)
        if (operands[4 + i].type != TS_F32) fromFloats(to[i], operands[4 + i].at(start), operands[4 + i].type, n);
    }
  });
  return ok;
}

}  // namespace tessera
