// TS_GEMM: blocking, threading and the epilogue around the register tile.
//
// The sum over k is cut into blocks whose size depends on the operands alone, so each element of C is summed in one order whatever the number of
// threads. Per block: all threads pack the right operand once, then take blocks of rows, pack those privately and multiply. Small and batched
// products run whole on one thread each; few tiles with a long sum are cut along k into partial products that are added in order.
#include "gemm.hpp"
#include <algorithm>
#include <vector>
#include "math.hpp"
#include "plan.hpp"
#include "tile.hpp"

namespace tessera {

void multiplyPacked(Packing packing, int64_t rows, int64_t columns, int64_t units, float alpha, const uint32_t* a, const uint32_t* b, int64_t rightUnits, float* c,
                    int64_t stride, bool add) {
  for (int64_t j = 0; j < columns; j += tileColumns)
    for (int64_t i = 0; i < rows; i += tileRows)
      tileOf(packing, units, a + i * units, b + j * rightUnits,
             {c + i * stride + j, stride, int(std::min<int64_t>(tileRows, rows - i)), int(std::min<int64_t>(tileColumns, columns - j)), add, alpha, nullptr});
}

namespace {

constexpr int maxBatchRank = 4;
constexpr int64_t blockUnits = 768;       // a panel of the right operand stays in the second-level cache
constexpr int64_t wideBlockUnits = 1536;  // for 16-bit results, which cannot hold partial sums
constexpr int64_t blockWords = 192 * blockUnits;  // a packed block of rows

struct Strided {
  Operand operand;
  int64_t rowStride = 0, columnStride = 0, batch[maxBatchRank] = {};
};
struct Result {
  int64_t columns = 0, firstColumn = 0, firstPanel = 0;  // among the columns and panels of all segments
  Strided c, aux, residual;
  int64_t panels() const { return (columns + tileColumns - 1) / tileColumns; }
};
struct Block {
  int segment;
  int64_t start, k, units;
};

struct Product {
  int batchRank = 0;
  int64_t batchSizes[maxBatchRank] = {}, batches = 1;
  int64_t rows = 0, columns = 0, panels = 0;
  Packing packing = Packing::floats;
  bool accumulate = false;
  int activation = 0;
  float alpha = 1;
  bool hasBias = false, hasAux = false, hasResidual = false;
  Operand bias;
  int64_t biasStride = 0;
  std::vector<int64_t> k;
  std::vector<Strided> a;  // per k segment
  std::vector<Strided> b;  // per k segment and n segment
  std::vector<Result> results;
  std::vector<Block> blocks;
  const float* biasFloats = nullptr;

  int64_t offset(const Strided& s, int64_t batch) const {
    int64_t at = 0;
    for (int i = batchRank - 1; i >= 0; i--) {
      at += batch % batchSizes[i] * s.batch[i];
      batch /= batchSizes[i];
    }
    return at;
  }
  Matrix matrix(const Strided& s, int64_t batch) const { return {s.operand.at(offset(s, batch)), s.operand.type, s.rowStride, s.columnStride}; }
  // Sums that C itself cannot hold between blocks: 16-bit ones, and those whose C is still to be read by the epilogue.
  bool plain(const Result& r) const { return r.c.operand.type == TS_F32 && !activation && !hasAux && !hasResidual; }
  bool partialInC(const Result& r) const {
    return plain(r) || (r.c.operand.type == TS_F32 && !accumulate && !(hasResidual && r.residual.operand.data == r.c.operand.data));
  }
};

// Where one batch entry's sums are kept: every panel as floats [rows][panels * tileColumns], or null when C holds them.
struct Partial {
  float* data = nullptr;
  int64_t stride = 0;
};

void makeBlocks(Product& p) {
  bool narrow = false;
  for (const Result& r : p.results) narrow |= !p.partialInC(r);
  for (size_t s = 0; s < p.k.size(); s++) {
    const int64_t units = unitsOf(p.packing, p.k[s]), per = elementsPerUnit(p.packing);
    if (!units) continue;
    const int64_t count = narrow && units <= wideBlockUnits ? 1 : (units + blockUnits - 1) / blockUnits;
    const int64_t step = (units + count - 1) / count * per;
    for (int64_t start = 0; start < p.k[s]; start += step) {
      const int64_t k = std::min(step, p.k[s] - start);
      p.blocks.push_back({int(s), start, k, unitsOf(p.packing, k)});
    }
  }
  if (p.blocks.empty()) p.blocks.push_back({0, 0, 0, 0});  // an empty sum still has an epilogue
}

// The end of a product for some rows and columns of a tile: sums in `sums`, already times alpha.
void finish(const Product& p, const Result& r, int64_t batch, int64_t row, int64_t column, int rows, int columns, const float* sums, int64_t stride) {
  const int32_t type = r.c.operand.type;
  const int64_t bytes = r.c.operand.bytes();
  char* c = r.c.operand.at(p.offset(r.c, batch) + row * r.c.rowStride + column);
  const int64_t auxBytes = p.hasAux ? r.aux.operand.bytes() : 0, residualBytes = p.hasResidual ? r.residual.operand.bytes() : 0;
  char* aux = p.hasAux ? r.aux.operand.at(p.offset(r.aux, batch) + row * r.aux.rowStride + column) : nullptr;
  const char* residual = p.hasResidual ? r.residual.operand.at(p.offset(r.residual, batch) + row * r.residual.rowStride + column) : nullptr;
  const float* bias = p.biasFloats ? p.biasFloats + r.firstColumn + column : nullptr;
  for (int i = 0; i < rows; i++, c += r.c.rowStride * bytes, aux += r.aux.rowStride * auxBytes, residual += r.residual.rowStride * residualBytes)
    for (int j = 0; j < columns; j += lanes) {
      const int64_t left = columns - j;
      Floats x = loadFloats<TS_F32>(reinterpret_cast<const char*>(sums + i * stride + j), left);
      if (bias) x += loadFloats<TS_F32>(reinterpret_cast<const char*>(bias + j), left);
      if (p.hasAux) storeTyped(r.aux.operand.type, aux + j * auxBytes, x, left);
      x = activate(p.activation, x);
      if (p.hasResidual) x += loadTyped(r.residual.operand.type, residual + j * residualBytes, left);
      if (p.accumulate) x += loadTyped(type, c + j * bytes, left);
      storeTyped(type, c + j * bytes, x, left);
    }
}

// Rows [row, row + rows) times the panels [firstPanel, lastPanel) of one block; `b` holds all panels of the block.
// `first` and `last` say whether the block begins or ends the sum.
void multiplyBlock(const Product& p, int64_t batch, const Block& block, bool first, bool last, int64_t row, int64_t rows, const uint32_t* a, const uint32_t* b,
                   int64_t firstPanel, int64_t lastPanel, const Partial& partial) {
  alignas(64) float sums[tileRows * tileColumns];
  for (const Result& r : p.results)
    for (int64_t panel = std::max(firstPanel, r.firstPanel); panel < std::min(lastPanel, r.firstPanel + r.panels()); panel++) {
      const int64_t column = (panel - r.firstPanel) * tileColumns;
      const int columns = int(std::min<int64_t>(tileColumns, r.columns - column));
      const uint32_t* right = b + panel * tileColumns * block.units;
      const bool plain = p.plain(r), inC = !partial.data;
      float* c = inC ? reinterpret_cast<float*>(r.c.operand.at(p.offset(r.c, batch) + column)) : partial.data + panel * tileColumns;
      const int64_t stride = inC ? r.c.rowStride : partial.stride;
      for (int64_t i = 0; i < rows; i += tileRows) {
        const int height = int(std::min<int64_t>(tileRows, rows - i));
        const uint32_t* left = a + i * block.units;
        float* to = c + (row + i) * stride;
        if (!last) {
          tileOf(p.packing, block.units, left, right, {to, stride, height, columns, !first || (inC && p.accumulate), p.alpha, nullptr});
        } else if (plain && inC) {
          tileOf(p.packing, block.units, left, right,
                 {to, stride, height, columns, !first || p.accumulate, p.alpha, p.biasFloats ? p.biasFloats + r.firstColumn + column : nullptr});
        } else {
          tileOf(p.packing, block.units, left, right, {sums, tileColumns, height, columns, false, p.alpha, nullptr});
          if (!first)
            for (int y = 0; y < height; y++)
              for (int x = 0; x < columns; x++) sums[y * tileColumns + x] += to[y * stride + x];
          finish(p, r, batch, row + i, column, height, columns, sums, tileColumns);
        }
      }
    }
}

void packPanels(const Product& p, int64_t batch, const Block& block, int64_t firstPanel, int64_t lastPanel, uint32_t* to) {
  if (!block.units) return;
  for (size_t n = 0; n < p.results.size(); n++) {
    const Result& r = p.results[n];
    const int64_t from = std::max(firstPanel, r.firstPanel), until = std::min(lastPanel, r.firstPanel + r.panels());
    if (from >= until) continue;
    const int64_t column = (from - r.firstPanel) * tileColumns, columns = std::min(r.columns, (until - r.firstPanel) * tileColumns) - column;
    packColumns(p.packing, p.matrix(p.b[block.segment * p.results.size() + n], batch).at(block.start, column), block.k, columns,
                to + from * tileColumns * block.units);
  }
}
void packRowBlock(const Product& p, int64_t batch, const Block& block, int64_t row, int64_t rows, uint32_t* to) {
  if (block.units) packRows(p.packing, p.matrix(p.a[block.segment], batch).at(row, block.start), rows, block.k, to);
}

int64_t mostUnits(const Product& p) {
  int64_t most = 0;
  for (const Block& b : p.blocks) most = std::max(most, b.units);
  return most;
}
int64_t rowsPerBlock(const Product& p) { return std::max<int64_t>(tileRows, blockWords / std::max<int64_t>(1, mostUnits(p)) / tileRows * tileRows); }
int64_t rightWords(const Product& p) { return p.panels * tileColumns * mostUnits(p); }

// A whole sum, or some blocks of it, on one thread. `scratch` holds the packed operands.
void productAlone(const Product& p, int64_t batch, size_t firstBlock, size_t lastBlock, bool finishes, const Partial& partial, uint32_t* scratch) {
  uint32_t *right = scratch, *left = scratch + roundUp(rightWords(p), 16);
  const int64_t height = rowsPerBlock(p);
  for (size_t k = firstBlock; k < lastBlock; k++) {
    const Block& block = p.blocks[k];
    packPanels(p, batch, block, 0, p.panels, right);
    for (int64_t row = 0; row < p.rows; row += height) {
      const int64_t rows = std::min(height, p.rows - row);
      packRowBlock(p, batch, block, row, rows, left);
      multiplyBlock(p, batch, block, k == firstBlock, finishes && k + 1 == lastBlock, row, rows, left, right, 0, p.panels, partial);
    }
  }
}
int64_t aloneWords(const Product& p) {
  return roundUp(rightWords(p), 16) + packedRowsWords(std::min(rowsPerBlock(p), p.rows), mostUnits(p)) + 64;
}

// All threads on one batch entry.
void productTogether(Pool& pool, const Product& p, int64_t batch, const Partial& partial, uint32_t* right) {
  const int64_t threads = pool.threads();
  int64_t rowBlocks = roundUp((p.rows + rowsPerBlock(p) - 1) / rowsPerBlock(p), threads);
  const int64_t height = roundUp((p.rows + rowBlocks - 1) / rowBlocks, tileRows);
  rowBlocks = (p.rows + height - 1) / height;
  // With fewer blocks of rows than threads, the panels are dealt out too, and each thread packs its rows again.
  const int64_t groups = rowBlocks >= threads ? 1 : std::min(p.panels, (threads + rowBlocks - 1) / rowBlocks);
  const int64_t panelsPerGroup = (p.panels + groups - 1) / groups;
  const int64_t panelsPerTask = std::clamp<int64_t>(p.panels / (2 * threads), 1, 4);
  const int64_t half = roundUp(rightWords(p), 16);
  std::vector<std::atomic<int64_t>> nextRight(p.blocks.size()), nextLeft(p.blocks.size());
  for (auto& n : nextRight) n = 0;
  for (auto& n : nextLeft) n = 0;
  pool.together([&](int thread) {
    uint32_t* left = reinterpret_cast<uint32_t*>(pool.mine(thread));
    for (size_t k = 0; k < p.blocks.size(); k++) {
      const Block& block = p.blocks[k];
      // Two right operands in turn: one block is packed while others still multiply the one before, and one barrier a block is enough.
      uint32_t* b = right + (k % 2) * half;
      for (int64_t j; (j = panelsPerTask * nextRight[k].fetch_add(1, std::memory_order_relaxed)) < p.panels;)
        packPanels(p, batch, block, j, std::min(p.panels, j + panelsPerTask), b);
      pool.barrier();
      for (int64_t t; (t = nextLeft[k].fetch_add(1, std::memory_order_relaxed)) < rowBlocks * groups;) {
        const int64_t row = t % rowBlocks * height, rows = std::min(height, p.rows - row), group = t / rowBlocks;
        packRowBlock(p, batch, block, row, rows, left);
        multiplyBlock(p, batch, block, k == 0, k + 1 == p.blocks.size(), row, rows, left, b, group * panelsPerGroup,
                      std::min(p.panels, (group + 1) * panelsPerGroup), partial);
      }
    }
  });
}

// Few tiles, long sum: partial products over runs of blocks, added in order.
void productSplit(Pool& pool, const Product& p, size_t parts) {
  const int64_t stride = p.panels * tileColumns, size = p.rows * stride;
  float* sums = reinterpret_cast<float*>(pool.shared(uint64_t(size) * parts * 4));
  pool.reservePrivate(uint64_t(aloneWords(p)) * 4);
  const size_t count = p.blocks.size();
  pool.each(int64_t(parts), true, [&](int64_t part, int thread) {
    productAlone(p, 0, part * count / parts, (part + 1) * count / parts, false, {sums + part * size, stride}, reinterpret_cast<uint32_t*>(pool.mine(thread)));
  });
  for (size_t part = 1; part < parts; part++)
    for (int64_t i = 0; i < size; i++) sums[i] += sums[part * size + i];
  for (const Result& r : p.results)
    for (int64_t row = 0; row < p.rows; row += tileRows)
      finish(p, r, 0, row, 0, int(std::min<int64_t>(tileRows, p.rows - row)), int(r.columns), sums + row * stride + r.firstPanel * tileColumns, stride);
}

void run(Pool& pool, Product& p) {
  p.panels = p.columns = 0;
  int64_t realColumns = 0;
  for (Result& r : p.results) {
    r.firstPanel = p.panels;
    r.firstColumn = p.columns;
    p.panels += r.panels();
    p.columns += r.columns;
    realColumns += r.columns;
  }
  if (!p.rows || !realColumns || !p.batches) return;
  makeBlocks(p);
  int64_t k = 0;
  for (int64_t n : p.k) k += n;
  const double work = double(p.rows) * double(realColumns) * double(k + 16);
  const int64_t tiles = (p.rows + tileRows - 1) / tileRows * p.panels;
  if (p.batches == 1 && tiles <= 32 && p.blocks.size() >= 4 && work > 1e6) return productSplit(pool, p, std::min<size_t>(p.blocks.size(), 64));

  bool needsPartial = false;
  if (p.blocks.size() > 1)
    for (const Result& r : p.results) needsPartial |= !p.partialInC(r);
  const int64_t partialFloats = needsPartial ? p.rows * p.panels * tileColumns : 0;
  // Both ways sum in the same order, so the choice may depend on the threads.
  const bool small = work < 1e6 || pool.threads() == 1;
  const bool alone = small || (p.batches >= pool.threads() && aloneWords(p) < (4 << 20) && work < 1e9);
  if (alone) {
    const uint64_t packed = uint64_t(roundUp(aloneWords(p), 16));
    pool.reservePrivate((packed + uint64_t(partialFloats)) * 4);
    pool.each(p.batches, work * double(p.batches) > 2e5, [&](int64_t batch, int thread) {
      uint32_t* scratch = reinterpret_cast<uint32_t*>(pool.mine(thread));
      const Partial partial{needsPartial ? reinterpret_cast<float*>(scratch + packed) : nullptr, p.panels * tileColumns};
      productAlone(p, batch, 0, p.blocks.size(), true, partial, scratch);
    });
    return;
  }
  const uint64_t packed = uint64_t(roundUp(rightWords(p), 16)) * 2;
  uint32_t* right = reinterpret_cast<uint32_t*>(pool.shared((packed + uint64_t(partialFloats)) * 4));
  pool.reservePrivate(uint64_t(packedRowsWords(std::min(rowsPerBlock(p), roundUp(p.rows, tileRows)), mostUnits(p)) + 64) * 4);
  const Partial partial{needsPartial ? reinterpret_cast<float*>(right + packed) : nullptr, p.panels * tileColumns};
  for (int64_t batch = 0; batch < p.batches; batch++) productTogether(pool, p, batch, partial, right);
}

// C whose columns are not contiguous is computed as its transpose: B' A'.
void runTransposed(Pool& pool, const Product& p, size_t segment) {
  Product t;
  t.batchRank = p.batchRank;
  std::copy(p.batchSizes, p.batchSizes + maxBatchRank, t.batchSizes);
  t.batches = p.batches;
  t.rows = p.results[segment].columns;
  t.packing = p.packing;
  t.accumulate = p.accumulate;
  t.activation = p.activation;
  t.alpha = p.alpha;
  t.k = p.k;
  auto flip = [](Strided s) {
    std::swap(s.rowStride, s.columnStride);
    return s;
  };
  for (size_t s = 0; s < p.k.size(); s++) {
    t.a.push_back(flip(p.b[s * p.results.size() + segment]));
    t.b.push_back(flip(p.a[s]));
  }
  Result r;
  r.columns = p.rows;
  r.c = flip(p.results[segment].c);
  t.results.push_back(r);
  run(pool, t);
}

}  // namespace

Status runGemm(Pool& pool, Reader& in) {
  Product p;
  p.batchRank = in.rank(maxBatchRank);
  in.sizes(p.batchSizes, p.batchRank);
  for (int i = 0; i < p.batchRank; i++) p.batches *= p.batchSizes[i];
  p.rows = in.size();
  const int64_t kSegments = in.size(), nSegments = in.size();
  if (in.bad() || kSegments > in.left() || nSegments > in.left()) return malformed;
  p.packing = packingOf(in.choice(2));
  p.accumulate = in.word() != 0;
  p.activation = in.choice(relu + 1);
  p.alpha = float(in.real());
  const int64_t flags = in.word();
  p.hasBias = flags & 1;
  p.hasAux = flags & 2;
  p.hasResidual = flags & 4;
  p.bias = p.hasBias ? in.floats() : in.optional();
  p.biasStride = in.word();

  auto strided = [&](Operand operand) {
    Strided s;
    s.operand = operand;
    s.rowStride = in.word();
    s.columnStride = in.word();
    in.strides(s.batch, p.batchRank);
    return s;
  };
  for (int64_t s = 0; s < kSegments && !in.bad(); s++) {
    p.k.push_back(in.size());
    p.a.push_back(strided(in.optional()));
  }
  for (int64_t i = 0; i < kSegments * nSegments && !in.bad(); i++) p.b.push_back(strided(in.optional()));
  bool direct = true;
  for (int64_t n = 0; n < nSegments && !in.bad(); n++) {
    Result r;
    r.columns = in.size();
    r.c = strided(in.optional());
    r.aux.operand = p.hasAux ? in.optional() : (in.optional(), Operand{});
    r.aux.rowStride = in.word();
    r.residual.operand = p.hasResidual ? in.optional() : (in.optional(), Operand{});
    r.residual.rowStride = in.word();
    // One batch layout for what stands next to C: entries follow each other row by row.
    int64_t auxBatch = p.rows * r.aux.rowStride, residualBatch = p.rows * r.residual.rowStride;
    for (int i = p.batchRank - 1; i >= 0; i--) {
      r.aux.batch[i] = auxBatch;
      r.residual.batch[i] = residualBatch;
      auxBatch *= p.batchSizes[i];
      residualBatch *= p.batchSizes[i];
    }
    if (r.columns == 1) r.c.columnStride = 1;
    if (r.c.columnStride != 1 && p.rows == 1) r.c.rowStride = 1;
    direct &= r.c.columnStride == 1 || !r.columns;
    p.results.push_back(r);
  }
  if (in.bad()) return malformed;
  if (!p.rows || !p.batches) return ok;
  for (size_t s = 0; s < p.k.size(); s++) {
    if (!p.k[s]) continue;
    in.needFloat(p.a[s].operand);
    if (!packable({nullptr, 0, p.a[s].rowStride, p.a[s].columnStride}, p.rows, p.k[s])) return malformed;
    for (size_t n = 0; n < p.results.size(); n++) {
      const Strided& b = p.b[s * p.results.size() + n];
      if (!p.results[n].columns) continue;
      in.needFloat(b.operand);
      if (!packable({nullptr, 0, b.rowStride, b.columnStride}, p.k[s], p.results[n].columns)) return malformed;
    }
  }
  for (Result& r : p.results) {
    if (!r.columns) continue;
    in.needFloat(r.c.operand);
    if (p.hasAux) in.needFloat(r.aux.operand);
    if (p.hasResidual) in.needFloat(r.residual.operand);
    if (r.c.columnStride != 1 && (r.c.rowStride != 1 || flags)) return malformed;
  }
  if (in.bad()) return malformed;
  if (!direct) {
    for (size_t n = 0; n < p.results.size(); n++) {
      if (!p.results[n].columns) continue;
      if (p.results[n].c.columnStride != 1) {
        runTransposed(pool, p, n);
        continue;
      }
      Product one = p;
      one.results = {p.results[n]};
      one.b.clear();
      for (size_t s = 0; s < p.k.size(); s++) one.b.push_back(p.b[s * p.results.size() + n]);
      run(pool, one);
    }
    return ok;
  }
  std::vector<float> bias;
  if (p.hasBias) {
    int64_t columns = 0;
    for (const Result& r : p.results) columns += r.columns;
    if (p.bias.type == TS_F32 && p.biasStride == 1) p.biasFloats = reinterpret_cast<const float*>(p.bias.data);
    else {
      bias.resize(size_t(columns));
      for (int64_t i = 0; i < columns; i++) bias[i] = loadOne(p.bias.at(i * p.biasStride), p.bias.type);
      p.biasFloats = bias.data();
    }
  }
  run(pool, p);
  return ok;
}

}  // namespace tessera
