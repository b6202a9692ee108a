// TS_REDUCE, TS_DOT, TS_CUMSUM. Floats are added in short runs of vectors, and the runs in double: better than pairwise summation. How a sum is cut
// depends on the sizes alone, and the parts are added in order, so the number of threads does not show.
#include <algorithm>
#include <vector>
#include "nest.hpp"
#include "simd.hpp"

namespace tessera {

namespace {

enum Kind { sum = 0, maximum = 1, argmax = 2 };

constexpr int64_t run = 1024;        // elements of a row added in float
constexpr int64_t runRows = 32;      // rows added in float
constexpr int64_t columnBlock = 512;
constexpr float lowest = -__builtin_inff();

double better(double a, double b) { return a > b || a != a ? a : b; }

struct Reduction {
  int kind;
  Operand x, y;
  std::vector<Axis> kept, reduced;  // strides: x, y
  int64_t outputs, reducedRows, inner;  // `inner` is the last reduced axis, or 1
};

// One run of a row, contiguous floats of any type, as float vectors.
template <int type> double sumRun(const char* from, int64_t n) {
  constexpr int bytes = type == TS_F32 ? 4 : 2;
  Floats s[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes)
    for (int v = 0; v < 4; v++) s[v] += loadFloats<type>(from + (i + v * lanes) * bytes, lanes);
  for (; i < n; i += lanes) s[0] += loadFloats<type>(from + i * bytes, n - i);
  return sumLanes((s[0] + s[1]) + (s[2] + s[3]));
}
template <int type> double maxRun(const char* from, int64_t n) {
  constexpr int bytes = type == TS_F32 ? 4 : 2;
  Floats m = splat(lowest);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) m = maxNan(m, loadFloats<type>(from + i * bytes, lanes));
  float r = maxLanes(m);
  if (i < n) {
    Floats last = loadFloats<type>(from + i * bytes, n - i);
    for (int l = 0; l < n - i; l++) r = last[l] > r || last[l] != last[l] ? last[l] : r;
  }
  return r;
}
double contiguousRun(int kind, const Operand& x, int64_t offset, int64_t n) {
  const char* from = x.at(offset);
  if (x.type == TS_F32) return kind == sum ? sumRun<TS_F32>(from, n) : maxRun<TS_F32>(from, n);
  if (x.type == TS_BF16) return kind == sum ? sumRun<TS_BF16>(from, n) : maxRun<TS_BF16>(from, n);
  return kind == sum ? sumRun<TS_F16>(from, n) : maxRun<TS_F16>(from, n);
}
double number(const Operand& x, int64_t offset) {
  switch (x.type) {
    case TS_I32: return loadAs<int32_t>(x.at(offset));
    case TS_U32: return loadAs<uint32_t>(x.at(offset));
    case TS_U8: case TS_BOOL: return uint8_t(*x.at(offset));
    default: return loadOne(x.at(offset), x.type);
  }
}
double identity(const Reduction& r) { return r.kind == sum ? 0 : isFloat(r.x.type) ? lowest : r.x.type == TS_I32 ? -2147483648.0 : 0; }
void storeNumber(const Operand& y, int64_t offset, double value) {
  char* to = y.at(offset);
  if (isFloat(y.type)) storeOne(to, y.type, float(value));
  else if (y.bytes() == 4) storeAs<uint32_t>(to, uint32_t(int64_t(value)));  // sums of integers wrap
  else *to = char(uint8_t(int64_t(value)));
}

double reduceInner(const Reduction& r, int64_t offset, int64_t stride, int64_t n) {
  if (stride == 1 && isFloat(r.x.type)) return contiguousRun(r.kind, r.x, offset, n);
  if (r.kind == sum) {
    double s = 0;
    for (int64_t i = 0; i < n; i++) s += number(r.x, offset + i * stride);
    return s;
  }
  double m = identity(r);
  for (int64_t i = 0; i < n; i++) m = better(number(r.x, offset + i * stride), m);
  return m;
}

// The innermost axis is reduced: every output is a list of runs. With few outputs the list is cut into chunks.
void reduceRows(Pool& pool, const Reduction& r) {
  const int64_t stride = r.reduced.empty() ? 0 : r.reduced.back().strides[0];
  const int64_t perRow = (r.inner + run - 1) / run, runs = r.reducedRows * perRow;
  const int64_t chunks = r.outputs >= 64 ? 1 : std::clamp<int64_t>(runs / 8, 1, 64);
  double* parts = reinterpret_cast<double*>(pool.shared(uint64_t(r.outputs * chunks) * 8));
  const int64_t outputsPerTask = chunks > 1 ? 1 : std::max<int64_t>(1, 16384 / std::max<int64_t>(1, r.reducedRows * r.inner));
  const int64_t tasks = (r.outputs + outputsPerTask - 1) / outputsPerTask * chunks;
  pool.each(tasks, r.outputs * r.reducedRows * r.inner > 32768, [&](int64_t task, int) {
    const int64_t chunk = task % chunks, first = task / chunks * outputsPerTask;
    Walk out(r.kept.data(), int(r.kept.size()), 2), rows(r.reduced.data(), std::max(0, int(r.reduced.size()) - 1), 2);
    out.seek(first);
    for (int64_t o = first; o < std::min(r.outputs, first + outputsPerTask); o++, out.next()) {
      double total = identity(r);
      int64_t row = -1;
      for (int64_t i = chunk * runs / chunks; i < (chunk + 1) * runs / chunks; i++) {
        if (i / perRow != row) {
          if (row < 0) rows.seek(i / perRow);
          else rows.next();
          row = i / perRow;
        }
        const int64_t start = i % perRow * run;
        const double part = reduceInner(r, out.offsets[0] + rows.offsets[0] + start * stride, stride, std::min(run, r.inner - start));
        total = r.kind == sum ? total + part : better(part, total);
      }
      parts[o * chunks + chunk] = total;
    }
  });
  Walk out(r.kept.data(), int(r.kept.size()), 2);
  out.seek(0);
  for (int64_t o = 0; o < r.outputs; o++, out.next()) {
    double total = parts[o * chunks];
    for (int64_t c = 1; c < chunks; c++) total = r.kind == sum ? total + parts[o * chunks + c] : better(parts[o * chunks + c], total);
    storeNumber(r.y, out.offsets[1], total);
  }
}

template <int type> void addRows(const Reduction& r, Walk& rows, int64_t offset, int64_t count, int64_t n, float* acc) {
  for (int64_t i = 0; i < count; i++, rows.next()) {
    const char* from = r.x.at(offset + rows.offsets[0]);
    constexpr int bytes = type == TS_F32 ? 4 : 2;
    if (r.kind == sum)
      for (int64_t j = 0; j < n; j += lanes) storeAs(acc + j, loadAs<Floats>(acc + j) + loadFloats<type>(from + j * bytes, n - j));
    else
      for (int64_t j = 0; j < n; j += lanes) storeAs(acc + j, maxNan(loadAs<Floats>(acc + j), loadFloats<type>(from + j * bytes, n - j)));
  }
}

// The innermost axis is kept and contiguous in x: rows are added to rows, in blocks of columns and chunks of rows.
void reduceColumns(Pool& pool, const Reduction& r) {
  const Axis columns = r.kept.back();
  const std::vector<Axis> outer(r.kept.begin(), r.kept.end() - 1);
  const int64_t width = columns.size, outputs = r.outputs / width, rows = r.reducedRows * r.inner;
  const int64_t blocks = (width + columnBlock - 1) / columnBlock;
  const int64_t chunks = outputs * blocks >= 64 ? 1 : std::clamp<int64_t>(rows / 64, 1, 64);
  double* parts = reinterpret_cast<double*>(pool.shared(uint64_t(r.outputs * chunks) * 8));
  pool.each(outputs * blocks * chunks, r.outputs * rows > 32768, [&](int64_t task, int) {
    const int64_t chunk = task % chunks, column = task / chunks % blocks * columnBlock, output = task / chunks / blocks;
    const int64_t n = std::min(columnBlock, width - column);
    Walk out(outer.data(), int(outer.size()), 2), walk(r.reduced.data(), int(r.reduced.size()), 2);
    out.seek(output);
    const int64_t first = chunk * rows / chunks, last = (chunk + 1) * rows / chunks;
    walk.seek(first);
    double* total = parts + (output * chunks + chunk) * width + column;
    std::fill(total, total + n, r.kind == sum ? 0.0 : double(lowest));
    alignas(64) float acc[columnBlock + lanes];
    for (int64_t row = first; row < last; row += runRows) {
      std::fill(acc, acc + columnBlock, r.kind == sum ? 0.0f : lowest);
      const int64_t count = std::min(runRows, last - row), offset = out.offsets[0] + column;
      if (r.x.type == TS_F32) addRows<TS_F32>(r, walk, offset, count, n, acc);
      else if (r.x.type == TS_BF16) addRows<TS_BF16>(r, walk, offset, count, n, acc);
      else addRows<TS_F16>(r, walk, offset, count, n, acc);
      if (r.kind == sum)
        for (int64_t j = 0; j < n; j++) total[j] += acc[j];
      else
        for (int64_t j = 0; j < n; j++) total[j] = better(acc[j], total[j]);
    }
  });
  Walk out(outer.data(), int(outer.size()), 2);
  out.seek(0);
  for (int64_t o = 0; o < outputs; o++, out.next())
    for (int64_t j = 0; j < width; j++) {
      double total = parts[o * chunks * width + j];
      for (int64_t c = 1; c < chunks; c++) total = r.kind == sum ? total + parts[(o * chunks + c) * width + j] : better(parts[(o * chunks + c) * width + j], total);
      storeNumber(r.y, out.offsets[1] + j * columns.strides[1], total);
    }
}

void reduceArgmax(Pool& pool, const Reduction& r) {
  const int64_t n = r.reduced.empty() ? 1 : r.reduced[0].size, stride = r.reduced.empty() ? 0 : r.reduced[0].strides[0];
  const int64_t perTask = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, n));
  pool.each((r.outputs + perTask - 1) / perTask, r.outputs * n > 16384, [&](int64_t task, int) {
    Walk out(r.kept.data(), int(r.kept.size()), 2);
    out.seek(task * perTask);
    for (int64_t o = task * perTask; o < std::min(r.outputs, (task + 1) * perTask); o++, out.next()) {
      int64_t best = 0;
      double value = n ? number(r.x, out.offsets[0]) : 0;
      for (int64_t i = 1; i < n && value == value; i++) {
        const double other = number(r.x, out.offsets[0] + i * stride);
        if (other > value || other != other) value = other, best = i;
      }
      storeNumber(r.y, out.offsets[1], double(best));
    }
  });
}

}  // namespace

Status runReduce(Pool& pool, Reader& in) {
  Reduction r;
  r.kind = in.choice(3);
  const int rank = in.rank();
  int64_t sizes[maxRank], xStrides[maxRank], yStrides[maxRank];
  in.sizes(sizes, rank);
  r.x = in.optional();
  in.strides(xStrides, rank);
  r.y = in.optional();
  in.strides(yStrides, rank);
  if (in.bad()) return malformed;
  Nest kept, reduced;
  int64_t total = 1;
  r.outputs = 1;
  int axes = 0;
  for (int i = 0; i < rank; i++) {
    total *= sizes[i];
    if (sizes[i] == 1) continue;
    if (yStrides[i] != 0) r.outputs *= sizes[i];
    else axes++;
    (yStrides[i] != 0 ? kept : reduced).axes.push_back({sizes[i], 0, {xStrides[i], yStrides[i]}});
  }
  if (!r.outputs) return ok;
  in.need(r.y);
  if (total) in.need(r.x);
  if (in.bad() || (r.kind == argmax && axes > 1) || (r.kind != argmax && isFloat(r.y.type) != isFloat(r.x.type))) return malformed;
  kept.order({0, 1});
  kept.merge();
  reduced.order({0});
  reduced.merge();
  r.kept = kept.axes;
  r.reduced = reduced.axes;
  r.inner = r.reduced.empty() ? 1 : r.reduced.back().size;
  const int64_t all = reduced.elements();
  r.reducedRows = r.inner ? all / r.inner : 0;
  if (r.kind == argmax) reduceArgmax(pool, r);
  else if (total && isFloat(r.x.type) && !r.kept.empty() && r.kept.back().strides[0] == 1 && !(r.reduced.size() == 1 && r.reduced[0].strides[0] == 1)) reduceColumns(pool, r);
  else reduceRows(pool, r);
  return ok;
}

Status runDot(Pool& pool, Reader& in) {
  in.choice(1);
  const int64_t count = in.size();
  Operand x = in.optional();
  const int64_t xStride = in.word();
  Operand y = in.optional();
  const int64_t yStride = in.word();
  Operand out = in.floats();
  if (count) in.needFloat(x), in.needFloat(y);
  if (in.bad()) return malformed;
  constexpr int64_t chunk = 16384, block = 512;
  const int64_t chunks = (count + chunk - 1) / chunk;
  double* parts = reinterpret_cast<double*>(pool.shared(uint64_t(chunks) * 8 + 8));
  pool.each(chunks, count > chunk, [&](int64_t c, int) {
    double total[8] = {};
    float xs[block], ys[block];
    for (int64_t start = c * chunk; start < std::min(count, (c + 1) * chunk); start += block) {
      const int64_t n = std::min(block, count - start);
      auto fetch = [&](const Operand& o, int64_t stride, float* buffer) -> const float* {
        if (stride == 1) return floatsOf(o.at(start), o.type, buffer, n);
        for (int64_t i = 0; i < n; i++) buffer[i] = loadOne(o.at((start + i) * stride), o.type);
        return buffer;
      };
      const float *p = fetch(x, xStride, xs), *q = fetch(y, yStride, ys);
      int64_t i = 0;
      for (; i + 8 <= n; i += 8)
        for (int l = 0; l < 8; l++) total[l] += double(p[i + l]) * double(q[i + l]);
      for (; i < n; i++) total[0] += double(p[i]) * double(q[i]);
    }
    parts[c] = ((total[0] + total[1]) + (total[2] + total[3])) + ((total[4] + total[5]) + (total[6] + total[7]));
  });
  double total = 0;
  for (int64_t c = 0; c < chunks; c++) total += parts[c];
  storeOne(out.data, out.type, float(total));
  return ok;
}

Status runCumsum(Pool& pool, Reader& in) {
  const int rank = in.rank();
  int64_t sizes[maxRank], xStrides[maxRank], yStrides[maxRank];
  in.sizes(sizes, rank);
  const int axis = in.choice(std::max(rank, 1));
  Operand x = in.optional();
  in.strides(xStrides, rank);
  Operand y = in.optional();
  in.strides(yStrides, rank);
  if (in.bad() || rank == 0) return malformed;
  Nest outer;
  int64_t outputs = 1;
  for (int i = 0; i < rank; i++)
    if (i != axis) {
      outputs *= sizes[i];
      outer.axes.push_back({sizes[i], 0, {xStrides[i], yStrides[i]}});
    }
  const int64_t n = sizes[axis];
  if (!outputs || !n) return ok;
  in.need(x), in.need(y);
  if (in.bad() || isFloat(x.type) != isFloat(y.type)) return malformed;
  const int64_t perTask = std::max<int64_t>(1, 8192 / n);
  pool.each((outputs + perTask - 1) / perTask, outputs * n > 8192, [&](int64_t task, int) {
    Walk walk(outer.axes.data(), int(outer.axes.size()), 2);
    walk.seek(task * perTask);
    for (int64_t o = task * perTask; o < std::min(outputs, (task + 1) * perTask); o++, walk.next()) {
      double total = 0;
      int64_t whole = 0;
      for (int64_t i = 0; i < n; i++) {
        const double value = number(x, walk.offsets[0] + i * xStrides[axis]);
        if (isFloat(y.type)) storeNumber(y, walk.offsets[1] + i * yStrides[axis], total += value);
        else {
          whole += int64_t(value);
          const char* bytes = reinterpret_cast<const char*>(&whole);
          memcpy(y.at(walk.offsets[1] + i * yStrides[axis]), bytes, size_t(y.bytes()));  // the low bytes: integers wrap
        }
      }
    }
  });
  return ok;
}

}  // namespace tessera
