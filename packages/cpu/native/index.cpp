// TS_GATHER and TS_SCATTER_ADD: rows of a table by id, and its transpose.
#include <algorithm>
#include <vector>
#include "nest.hpp"
#include "simd.hpp"

namespace tessera {

namespace {

bool sameKind(const Operand& a, const Operand& b) { return a.type == b.type || (isFloat(a.type) && isFloat(b.type)); }

int64_t idAt(const Operand& ids, int64_t offset, int64_t first) {
  const int64_t id = ids.type == TS_U32 ? int64_t(loadAs<uint32_t>(ids.at(offset))) : ids.type == TS_I32 ? int64_t(loadAs<int32_t>(ids.at(offset))) : int64_t(uint8_t(*ids.at(offset)));
  return id - first;
}

void addRow(float* to, const float* x, int64_t n) {
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes) storeAs(to + j, loadAs<Floats>(to + j) + loadAs<Floats>(x + j));
  for (; j < n; j++) to[j] += x[j];
}

struct Shape {
  int rank;
  int64_t sizes[maxRank], width, count = 1;
  void read(Reader& in) {
    rank = in.rank();
    in.sizes(sizes, rank);
    for (int i = 0; i < rank; i++) count *= sizes[i];
    width = in.size();
  }
  Nest nest(std::initializer_list<const int64_t*> strides) const {
    Nest n;
    for (int i = 0; i < rank; i++) {
      std::vector<int64_t> each;
      for (const int64_t* s : strides) each.push_back(s[i]);
      n.axes.push_back({sizes[i], 0, each});
    }
    return n;
  }
};

}  // namespace

Status runGather(Pool& pool, Reader& in) {
  Shape shape;
  shape.read(in);
  Operand table = in.optional();
  int64_t tableStrides[maxRank], idStrides[maxRank], outStrides[maxRank];
  in.strides(tableStrides, shape.rank);
  const int64_t tableIdStride = in.word();
  Operand ids = in.optional();
  in.strides(idStrides, shape.rank);
  const int64_t first = in.word(), rows = in.word();
  Operand out = in.optional();
  in.strides(outStrides, shape.rank);
  if (in.bad()) return malformed;
  if (!shape.count || !shape.width) return ok;
  in.need(ids), in.need(out);
  if (rows > 0) in.need(table);
  if (in.bad() || isFloat(ids.type) || (rows > 0 && !sameKind(table, out))) return malformed;

  const Nest nest = shape.nest({tableStrides, idStrides, outStrides});
  const int64_t width = shape.width, perTask = std::max<int64_t>(1, 16384 / width);
  pool.reservePrivate(uint64_t(width) * 4);
  pool.each((shape.count + perTask - 1) / perTask, shape.count * width > 32768, [&](int64_t task, int thread) {
    Walk walk(nest.axes.data(), shape.rank, 3);
    walk.seek(task * perTask);
    for (int64_t n = task * perTask; n < std::min(shape.count, (task + 1) * perTask); n++, walk.next()) {
      const int64_t id = idAt(ids, walk.offsets[1], first);
      char* to = out.at(walk.offsets[2]);
      if (id < 0 || id >= rows) {
        memset(to, 0, size_t(width * out.bytes()));
        continue;
      }
      const char* from = table.at(walk.offsets[0] + id * tableIdStride);
      if (table.type == out.type) memcpy(to, from, size_t(width * out.bytes()));
      else fromFloats(floatsOf(from, table.type, reinterpret_cast<float*>(pool.mine(thread)), width), to, out.type, width);
    }
  });
  return ok;
}

Status runScatterAdd(Pool& pool, Reader& in) {
  Shape shape;
  shape.read(in);
  Operand x = in.optional();
  int64_t xStrides[maxRank], idStrides[maxRank], outStrides[maxRank];
  in.strides(xStrides, shape.rank);
  Operand ids = in.optional();
  in.strides(idStrides, shape.rank);
  const int64_t first = in.word(), rows = in.word();
  Operand out = in.optional();
  in.strides(outStrides, shape.rank);
  const int64_t outIdStride = in.word(), outZero = in.size();
  if (in.bad()) return malformed;
  if (outZero) {
    in.need(out);
    if (in.bad()) return malformed;
    zeroBytes(pool, out.data, outZero * out.bytes());
  }
  if (!shape.count || !shape.width || rows <= 0) return ok;
  in.need(x), in.need(ids), in.need(out);
  if (in.bad() || isFloat(ids.type) || !sameKind(x, out)) return malformed;
  const bool integers = !isFloat(out.type);
  if (integers && out.bytes() != 4) return malformed;

  // 16-bit sums are kept in floats and rounded once, so all of `out` has to be the zeroed part.
  const bool wide = !integers && out.type != TS_F32;
  if (wide) {
    int64_t last = shape.width - 1 + (rows - 1) * outIdStride;
    for (int i = 0; i < shape.rank; i++) last += (shape.sizes[i] - 1) * outStrides[i];
    if (last >= outZero) return malformed;
  }
  float* sums = reinterpret_cast<float*>(out.data);
  if (wide) {
    sums = reinterpret_cast<float*>(pool.shared(uint64_t(outZero) * 4 + 64));
    std::fill(sums, sums + outZero, 0.0f);
  }
  // Threads share the width, never the rows: each element is summed in the order of x.
  const Nest nest = shape.nest({xStrides, idStrides, outStrides});
  const int64_t width = shape.width, strips = std::clamp<int64_t>(width / 32, 1, 64), strip = (width + strips - 1) / strips;
  pool.reservePrivate(uint64_t(strip) * 4);
  pool.each(strips, shape.count * width > 32768, [&](int64_t task, int thread) {
    const int64_t start = task * strip, n = std::min(strip, width - start);
    if (n <= 0) return;
    Walk walk(nest.axes.data(), shape.rank, 3);
    walk.seek(0);
    for (int64_t i = 0; i < shape.count; i++, walk.next()) {
      const int64_t id = idAt(ids, walk.offsets[1], first);
      if (id < 0 || id >= rows) continue;
      const char* from = x.at(walk.offsets[0] + start);
      const int64_t to = walk.offsets[2] + id * outIdStride + start;
      if (integers) {
        uint32_t* sum = reinterpret_cast<uint32_t*>(out.data) + to;
        for (int64_t j = 0; j < n; j++) sum[j] += loadAs<uint32_t>(from + 4 * j);
      } else addRow(sums + to, floatsOf(from, x.type, reinterpret_cast<float*>(pool.mine(thread)), n), n);
    }
  });
  if (wide) fromFloats(sums, out.data, out.type, outZero);
  return ok;
}

}  // namespace tessera
