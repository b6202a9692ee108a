// TS_NORM and TS_NORM_BACKWARD: rows that stay in the first-level cache, so the mean and the variance take two passes and no tricks.
#include <algorithm>
#include <cmath>
#include "plan.hpp"
#include "simd.hpp"

namespace tessera {

namespace {

constexpr int64_t rowsPerChunk = 128;  // sums over rows are cut here, whatever the number of threads

// f(position, lanes present) over a row, a vector at a time.
template <class F> TESSERA_INLINE void vectors(int64_t width, F&& f) {
  int64_t j = 0;
  for (; j + lanes <= width; j += lanes) f(j, int64_t(lanes));
  if (j < width) f(j, width - j);
}
TESSERA_INLINE Floats at(const float* p, int64_t j, int64_t n) { return loadFloats<TS_F32>(reinterpret_cast<const char*>(p + j), n); }
TESSERA_INLINE void put(float* p, int64_t j, int64_t n, Floats v) { storeFloats<TS_F32>(reinterpret_cast<char*>(p + j), v, n); }
// Keeps absent lanes at zero where a row is shifted by its mean.
TESSERA_INLINE Floats present(Floats v, int64_t n) {
  if (n >= lanes) return v;
  Ints ramp;
  for (int i = 0; i < lanes; i++) ramp[i] = i;
  return select(ramp < splatInt(int32_t(n)), v, Floats{});
}

float mean(const float* x, int64_t width) {
  Floats sum{}, sum2{};
  int64_t j = 0;
  for (; j + 2 * lanes <= width; j += 2 * lanes) {
    sum += loadAs<Floats>(x + j);
    sum2 += loadAs<Floats>(x + j + lanes);
  }
  vectors(width - j, [&](int64_t i, int64_t n) { sum += at(x, j + i, n); });
  return sumLanes(sum + sum2) / float(width);
}
float meanSquare(const float* x, int64_t width, float shift) {
  Floats sum{};
  const Floats s = splat(shift);
  vectors(width, [&](int64_t j, int64_t n) {
    const Floats d = present(at(x, j, n) - s, n);
    sum += d * d;
  });
  return sumLanes(sum) / float(width);
}

}  // namespace

Status runNorm(Pool& pool, Reader& in) {
  const bool rms = in.choice(2) == 1;
  const int64_t rows = in.size(), width = in.size();
  const float epsilon = float(in.real());
  Operand x = in.optional();
  const int64_t xRow = in.word();
  Operand gamma = in.optional(), beta = in.optional(), y = in.optional();
  const int64_t yRow = in.word();
  Operand means = in.optional(), rstds = in.optional();
  const int64_t flags = in.word();
  const bool hasGamma = flags & 1, hasBeta = (flags & 2) && !rms;
  if (in.bad()) return malformed;
  if (!rows) return ok;
  in.need(rstds);
  if (!rms) in.need(means);
  if (rstds.type != TS_F32 || (!rms && means.type != TS_F32)) return malformed;
  if (width) {
    in.needFloat(x), in.needFloat(y);
    if (hasGamma) in.needFloat(gamma);
    if (hasBeta) in.needFloat(beta);
  }
  if (in.bad()) return malformed;

  // Shared: gamma and beta as floats. Private: one row in, one row out.
  float* shared = reinterpret_cast<float*>(pool.shared(uint64_t(width) * 8 + 64));
  const float* g = hasGamma ? floatsOf(gamma.data, gamma.type, shared, width) : nullptr;
  const float* b = hasBeta ? floatsOf(beta.data, beta.type, shared + width, width) : nullptr;
  pool.reservePrivate(uint64_t(width) * 8 + 64);
  constexpr int64_t rowsPerTask = 16;
  pool.each((rows + rowsPerTask - 1) / rowsPerTask, rows * width > 16384, [&](int64_t task, int thread) {
    float* rowIn = reinterpret_cast<float*>(pool.mine(thread));
    for (int64_t i = task * rowsPerTask; i < std::min(rows, (task + 1) * rowsPerTask); i++) {
      const float* p = width ? floatsOf(x.at(i * xRow), x.type, rowIn, width) : nullptr;
      const float m = rms ? 0.0f : mean(p, width);
      const float k = 1.0f / std::sqrt(meanSquare(p, width, m) + epsilon);
      if (!rms) reinterpret_cast<float*>(means.data)[i] = m;
      reinterpret_cast<float*>(rstds.data)[i] = k;
      const Floats vm = splat(m), vk = splat(k);
      char* to = width ? y.at(i * yRow) : nullptr;
      const int64_t bytes = y.bytes();
      auto row = [&](auto type) {
        vectors(width, [&](int64_t j, int64_t n) {
          Floats v = (at(p, j, n) - vm) * vk;
          if (g) v *= at(g, j, n);
          if (b) v += at(b, j, n);
          storeFloats<type.value>(to + j * bytes, v, n);
        });
      };
      if (y.type == TS_F32) row(std::integral_constant<int, TS_F32>());
      else if (y.type == TS_BF16) row(std::integral_constant<int, TS_BF16>());
      else row(std::integral_constant<int, TS_F16>());
    }
  });
  return ok;
}

Status runNormBackward(Pool& pool, Reader& in) {
  const bool rms = in.choice(2) == 1;
  const int64_t rows = in.size(), width = in.size();
  in.real();  // epsilon is in rstd already
  Operand x = in.optional();
  const int64_t xRow = in.word();
  Operand gamma = in.optional(), means = in.optional(), rstds = in.optional(), dy = in.optional();
  const int64_t dyRow = in.word();
  Operand dx = in.optional();
  const int64_t dxRow = in.word();
  Operand dgamma = in.optional(), dbeta = in.optional();
  const int64_t flags = in.word();
  const bool hasGamma = flags & 1, hasBeta = flags & 2, add = flags & 4;
  if (in.bad()) return malformed;
  if (!width) return ok;
  if (rows) {
    in.needFloat(x), in.need(rstds), in.needFloat(dy), in.needFloat(dx);
    if (!rms) in.need(means);
    if (rstds.type != TS_F32 || (!rms && means.type != TS_F32)) return malformed;
    if (hasGamma) in.needFloat(gamma);
  }
  if (hasGamma) in.needFloat(dgamma);
  if (hasBeta) in.needFloat(dbeta);
  if (in.bad()) return malformed;

  const bool sums = hasGamma || hasBeta;
  const int64_t chunks = (rows + rowsPerChunk - 1) / rowsPerChunk;
  // Shared: gamma, then per chunk the sums for dgamma and dbeta. Private: rows of x, dy and dx.
  float* shared = reinterpret_cast<float*>(pool.shared(uint64_t(width) * 4 + uint64_t(sums ? chunks * 2 * width : 0) * 4 + 64));
  float* partial = shared + width;
  const float* g = hasGamma && rows ? floatsOf(gamma.data, gamma.type, shared, width) : nullptr;
  pool.reservePrivate(uint64_t(width) * 12 + 64);
  pool.each(chunks, rows * width > 16384, [&](int64_t chunk, int thread) {
    float* mine = reinterpret_cast<float*>(pool.mine(thread));
    float *sumG = partial + chunk * 2 * width, *sumB = sumG + width;
    if (sums) std::fill(sumG, sumG + 2 * width, 0.0f);
    for (int64_t i = chunk * rowsPerChunk; i < std::min(rows, (chunk + 1) * rowsPerChunk); i++) {
      const float* p = floatsOf(x.at(i * xRow), x.type, mine, width);
      const float* q = floatsOf(dy.at(i * dyRow), dy.type, mine + width, width);
      const Floats m = splat(rms ? 0.0f : reinterpret_cast<const float*>(means.data)[i]), k = splat(reinterpret_cast<const float*>(rstds.data)[i]);
      Floats sum1{}, sum2{};
      vectors(width, [&](int64_t j, int64_t n) {
        const Floats h = (at(p, j, n) - m) * k, d = at(q, j, n), w = g ? d * at(g, j, n) : d;
        sum1 += w;
        sum2 += w * h;  // absent lanes: w is zero there, h finite or not at all used
        if (hasGamma) put(sumG, j, n, at(sumG, j, n) + d * h);
        if (hasBeta) put(sumB, j, n, at(sumB, j, n) + d);
      });
      const Floats m1 = splat(rms ? 0.0f : sumLanes(sum1) / float(width)), m2 = splat(sumLanes(sum2) / float(width));
      char* to = dx.at(i * dxRow);
      const int64_t bytes = dx.bytes();
      auto row = [&](auto type) {
        vectors(width, [&](int64_t j, int64_t n) {
          const Floats h = (at(p, j, n) - m) * k, d = at(q, j, n), w = g ? d * at(g, j, n) : d;
          Floats r = k * (w - m1 - h * m2);
          if (add) r += loadFloats<type.value>(to + j * bytes, n);
          storeFloats<type.value>(to + j * bytes, r, n);
        });
      };
      if (dx.type == TS_F32) row(std::integral_constant<int, TS_F32>());
      else if (dx.type == TS_BF16) row(std::integral_constant<int, TS_BF16>());
      else row(std::integral_constant<int, TS_F16>());
    }
  });
  if (!sums) return ok;
  constexpr int64_t columnsPerTask = 256;
  pool.each((width + columnsPerTask - 1) / columnsPerTask, chunks * width > 32768, [&](int64_t task, int) {
    const int64_t first = task * columnsPerTask, count = std::min(width - first, columnsPerTask);
    for (int which = 0; which < 2; which++) {
      if (which ? !hasBeta : !hasGamma) continue;
      double sum[columnsPerTask] = {};
      for (int64_t c = 0; c < chunks; c++)
        for (int64_t j = 0; j < count; j++) sum[j] += partial[(2 * c + which) * width + first + j];
      const Operand& out = which ? dbeta : dgamma;
      for (int64_t j = 0; j < count; j++) storeOne(out.at(first + j), out.type, float(sum[j]));
    }
  });
  return ok;
}

}  // namespace tessera
