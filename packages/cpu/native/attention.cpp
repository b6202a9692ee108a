// TS_ATTENTION and its backward: exact, in blocks of query rows and of keys, so that only one block of scores exists at a time.
//
// With few keys (vision transformers) one block holds them all, and the keys and values of a head are packed once. With many, the softmax runs
// online: a row keeps its maximum and its sum, and what it has gathered is rescaled when the maximum grows (Milakov and Gimelshein, 2018). The
// backward recomputes the scores from the stored log-sum-exp (Dao et al., FlashAttention, 2022).
#include <algorithm>
#include <cmath>
#include "gemm.hpp"
#include "math.hpp"
#include "plan.hpp"
#include "threefry.hpp"

namespace tessera {

namespace {

constexpr int64_t mostWholeKeys = 1024, keyBlockSize = 512;

struct Rows {  // [batch, seq, head, depth] in any order, depth contiguous
  Operand operand;
  int64_t batch, seq, head;
  void read(Reader& in) {
    operand = in.optional();
    batch = in.word();
    seq = in.word();
    head = in.word();
  }
  int64_t offset(int64_t b, int64_t h, int64_t row) const { return b * batch + h * head + row * seq; }
  Matrix matrix(int64_t b, int64_t h, int64_t row) const { return {operand.at(offset(b, h, row)), operand.type, seq, 1}; }
};

struct Segments {
  Operand operand;
  int64_t batch, seq;
  void read(Reader& in) {
    operand = in.optional();
    batch = in.word();
    seq = in.word();
  }
  int32_t at(int64_t b, int64_t i) const { return loadAs<int32_t>(operand.at(b * batch + i * seq)); }
};

struct Attention {
  int64_t batch, heads, keyHeads, queries, keys, depth, valueDepth;
  float scale;
  bool causal, segmented, bounded, positioned;
  int64_t maskOffset;
  Packing packing;
  double rate;
  Rows q, k, v, out, dOut, dq, dk, dv;
  Operand lse;
  int64_t lseBatch, lseHead, lseSeq;
  Segments querySegments, keySegments;
  Operand lengths, key, counter, queryAt, keyAt, headAt;
  int64_t lengthStride, counterBatch, headAtStride;
  int64_t allQueries, allKeys;            // by which dropout counts
  int64_t firstQuery = 0, firstKey = 0;  // where these queries and keys begin in the whole sequence

  // How work is cut, from the sizes alone.
  int64_t keyBlock, queryBlock, stride, keyBlocks, queryBlocks, depthUnits, valueUnits;

  bool read(Reader& in, bool backward) {
    batch = in.size(), heads = in.size(), keyHeads = in.size(), queries = in.size(), keys = in.size(), depth = in.size(), valueDepth = in.size();
    scale = float(in.real());
    const int64_t mask = in.word();
    causal = mask & 1, segmented = mask & 2, bounded = mask & 4, positioned = mask & 8;
    maskOffset = in.word();
    packing = packingOf(in.choice(2));
    rate = in.real();
    q.read(in), k.read(in), v.read(in), out.read(in);
    lse = in.optional();
    lseBatch = in.word(), lseHead = in.word(), lseSeq = in.word();
    querySegments.read(in), keySegments.read(in);
    lengths = in.optional();
    lengthStride = in.word();
    key = in.optional();
    counter = in.optional();
    counterBatch = in.word();
    queryAt = in.optional(), keyAt = in.optional();
    headAt = in.optional();
    headAtStride = in.word();
    allQueries = in.word(), allKeys = in.word();
    if (backward) dOut.read(in), dq.read(in), dk.read(in), dv.read(in);
    if (in.bad()) return false;
    if (!batch || !heads) return true;
    if (keyHeads <= 0 || heads % keyHeads != 0) return false;
    if (queries) {
      if (depth) in.needFloat(q.operand);
      if (valueDepth) in.needFloat(out.operand);
      in.need(lse);
      if (lse.type != TS_F32) return false;
    }
    if (keys) {
      if (depth) in.needFloat(k.operand);
      if (valueDepth) in.needFloat(v.operand);
    }
    if (segmented && queries && keys) {
      in.need(querySegments.operand), in.need(keySegments.operand);
      if (querySegments.operand.type != TS_I32 || keySegments.operand.type != TS_I32) return false;
    }
    if (bounded) {
      in.need(lengths);
      if (lengths.type != TS_I32) return false;
    }
    if (positioned) {
      if (queries) in.need(queryAt);
      if (keys) in.need(keyAt);
      if (queryAt.type != TS_I32 || keyAt.type != TS_I32) return false;
    }
    if (rate > 0) in.need(key), in.need(counter), in.need(headAt);
    if (backward) {
      if (queries && valueDepth) in.needFloat(dOut.operand);
      if (queries && depth) in.needFloat(dq.operand);
      if (keys && depth) in.needFloat(dk.operand);
      if (keys && valueDepth) in.needFloat(dv.operand);
    }
    if (in.bad()) return false;
    if (positioned && queries) firstQuery = loadAs<int32_t>(queryAt.at(0));
    if (positioned && keys) firstKey = loadAs<int32_t>(keyAt.at(0));

    keyBlock = std::max<int64_t>(1, keys <= mostWholeKeys ? keys : keyBlockSize);
    keyBlocks = (keys + keyBlock - 1) / keyBlock;
    // Scores of a block: about 256 KB, so that with the packed operands they stay in the second-level cache.
    const int64_t most = std::clamp<int64_t>(65536 / keyBlock, 32, 256);
    queryBlocks = (queries + most - 1) / most;
    queryBlock = queryBlocks ? roundUp((queries + queryBlocks - 1) / queryBlocks, tileRows) : tileRows;
    queryBlocks = (queries + queryBlock - 1) / queryBlock;
    stride = roundUp(keyBlock, lanes) + lanes;  // not a power of two
    depthUnits = unitsOf(packing, depth);
    valueUnits = unitsOf(packing, valueDepth);
    return true;
  }

  int64_t keyHead(int64_t h) const { return h / (heads / keyHeads); }
  // Keys that anyone may see.
  int64_t length(int64_t b) const { return bounded ? std::clamp<int64_t>(loadAs<int32_t>(lengths.at(b * lengthStride)) - firstKey, 0, keys) : keys; }
  // Keys that row i may see, segments aside.
  int64_t visible(int64_t i, int64_t length) const {
    return causal ? std::clamp<int64_t>(firstQuery + i + maskOffset + 1 - firstKey, 0, length) : length;
  }
  // Counter of the probability of row i and the first key of a block.
  uint32_t counterOf(int64_t h, int64_t i, int64_t start) const {
    const int64_t number = loadAs<uint32_t>(headAt.at(h * headAtStride));
    return uint32_t(uint32_t(number * allQueries + firstQuery + i) * allKeys + firstKey + start);
  }
  float* lseAt(int64_t b, int64_t h, int64_t i) const { return reinterpret_cast<float*>(lse.at(b * lseBatch + h * lseHead + i * lseSeq)); }

  // Hides what the row must not see among its scores for keys [start, start + n): the end of the last vector, and other segments.
  void hide(float* scores, int64_t b, int64_t i, int64_t start, int64_t n) const {
    for (int64_t j = n; j < roundUp(n, lanes); j++) scores[j] = -infinity;
    if (!segmented) return;
    const int32_t own = querySegments.at(b, i);
    for (int64_t j = 0; j < n; j++)
      if (keySegments.at(b, start + j) != own) scores[j] = -infinity;
  }
};

// Which probabilities of a row survive, as factors 0 or 1 / (1 - rate).
class Dropout {
 public:
  Dropout(const Attention& a, int64_t b) : on_(a.rate > 0) {
    if (!on_) return;
    key0_ = splatWord(loadAs<uint32_t>(a.key.at(0)));
    key1_ = splatWord(loadAs<uint32_t>(a.key.at(1)));
    counter_ = splatWord(loadAs<uint32_t>(a.counter.at(b * a.counterBatch)));
    threshold_ = uint32_t(std::ceil(std::min(a.rate, 1.0) * 16777216.0));
    factor_ = a.rate < 1 ? float(1 / (1 - a.rate)) : 0.0f;
    for (int l = 0; l < lanes; l++) ramp_[l] = uint32_t(l);
  }
  bool on() const { return on_; }
  TESSERA_INLINE Floats factors(uint32_t first) const {
    const Words random = threefry(key0_, key1_, counter_, ramp_ + first) >> 8;
    return select(random >= threshold_, splat(factor_), Floats{});
  }

 private:
  bool on_;
  Words key0_{}, key1_{}, counter_{}, ramp_{};
  uint32_t threshold_ = 0;
  float factor_ = 1;
};

// Consecutive pieces of a thread's scratch, each on a cache line, with room for a vector behind it.
class Pieces {
 public:
  explicit Pieces(uint32_t* memory) : memory_(memory) {}
  uint32_t* words(int64_t n) {
    uint32_t* at = memory_ ? memory_ + used_ : nullptr;
    used_ += roundUp(n, 16) + 16;
    return at;
  }
  float* floats(int64_t n) { return reinterpret_cast<float*>(words(n)); }
  uint64_t bytes() const { return uint64_t(used_) * 4; }

 private:
  uint32_t* memory_;
  int64_t used_ = 0;
};

struct Forward {
  const Attention& a;
  Pieces pieces;
  uint32_t *q, *k, *v, *p;
  float *scores, *gathered, *maxima, *sums;

  Forward(const Attention& attention, uint32_t* memory) : a(attention), pieces(memory) {
    const int64_t blockUnits = unitsOf(a.packing, a.keyBlock);
    q = pieces.words(packedRowsWords(a.queryBlock, a.depthUnits));
    k = pieces.words(packedColumnsWords(a.keyBlock, a.depthUnits));
    v = pieces.words(packedColumnsWords(a.valueDepth, blockUnits));
    p = pieces.words(packedRowsWords(a.queryBlock, blockUnits));
    scores = pieces.floats(a.queryBlock * a.stride);
    gathered = pieces.floats(a.queryBlock * a.valueDepth);
    maxima = pieces.floats(a.queryBlock);
    sums = pieces.floats(a.queryBlock);
  }

  // Scores become unnormalised probabilities; returns what earlier gatherings of this row have to be multiplied with.
  float softmaxRow(float* s, int64_t n, int64_t visible, float& maximum, float& sum) const {
    Floats top = splat(-infinity);
    for (int64_t j = 0; j < visible; j += lanes) top = maxNan(top, loadAs<Floats>(s + j));
    const float before = maximum, now = maxLanes(maxNan(splat(maximum), top));
    if (now == -infinity) {
      std::fill(s, s + n, 0.0f);
      return 1;
    }
    const Floats shift = splat(now);
    Floats total{};
    int64_t j = 0;
    for (; j < visible; j += lanes) {
      const Floats e = expNoOverflow(loadAs<Floats>(s + j) - shift);
      total += e;
      storeAs(s + j, e);
    }
    if (j < n) std::fill(s + j, s + n, 0.0f);
    const float rescale = before == -infinity ? 0.0f : std::exp(before - now);
    maximum = now;
    sum = sum * rescale + sumLanes(total);
    return rescale;
  }

  void packKeys(int64_t b, int64_t kh, int64_t start, int64_t n) {
    packColumns(a.packing, a.k.matrix(b, kh, start).transposed(), a.depth, n, k);
    packColumns(a.packing, a.v.matrix(b, kh, start), n, a.valueDepth, v);
  }

  // The query blocks [first, last) of one head.
  void run(int64_t b, int64_t h, int64_t first, int64_t last) {
    const int64_t length = a.length(b), kh = a.keyHead(h);
    const bool whole = a.keyBlocks <= 1;
    const Dropout dropout(a, b);
    if (whole && length) packKeys(b, kh, 0, length);
    for (int64_t block = first; block < last; block++) {
      const int64_t row = block * a.queryBlock, rows = std::min(a.queryBlock, a.queries - row);
      const int64_t end = a.visible(row + rows - 1, length);
      packRows(a.packing, a.q.matrix(b, h, row), rows, a.depth, q);
      std::fill(maxima, maxima + rows, -infinity);
      std::fill(sums, sums + rows, 0.0f);
      if (!end) std::fill(gathered, gathered + rows * a.valueDepth, 0.0f);
      for (int64_t start = 0; start < end; start += a.keyBlock) {
        const int64_t n = std::min(a.keyBlock, end - start), units = unitsOf(a.packing, n);
        if (!whole) packKeys(b, kh, start, n);
        multiplyPacked(a.packing, rows, n, a.depthUnits, a.scale, q, k, a.depthUnits, scores, a.stride, false);
        for (int64_t i = 0; i < rows; i++) {
          float* s = scores + i * a.stride;
          const int64_t visible = std::clamp<int64_t>(a.visible(row + i, length) - start, 0, n);
          a.hide(s, b, row + i, start, visible);
          const float rescale = softmaxRow(s, n, visible, maxima[i], sums[i]);
          if (dropout.on()) {
            const uint32_t counter = a.counterOf(h, row + i, start);
            for (int64_t j = 0; j < visible; j += lanes) storeAs(s + j, loadAs<Floats>(s + j) * dropout.factors(counter + uint32_t(j)));
          }
          if (start > 0 && rescale != 1)
            for (int64_t j = 0; j < a.valueDepth; j++) gathered[i * a.valueDepth + j] *= rescale;
        }
        packRows(a.packing, {reinterpret_cast<const char*>(scores), TS_F32, a.stride, 1}, rows, n, p);
        multiplyPacked(a.packing, rows, a.valueDepth, units, 1, p, v, whole ? unitsOf(a.packing, length) : units, gathered, a.valueDepth, start > 0);
      }
      for (int64_t i = 0; i < rows; i++) {
        float* g = gathered + i * a.valueDepth;
        const float inverse = maxima[i] == -infinity ? 0.0f : 1 / sums[i];
        for (int64_t j = 0; j < a.valueDepth; j++) g[j] *= inverse;
        if (a.valueDepth) fromFloats(g, a.out.operand.at(a.out.offset(b, h, row + i)), a.out.operand.type, a.valueDepth);
        *a.lseAt(b, h, row + i) = maxima[i] == -infinity ? -infinity : maxima[i] + std::log(sums[i]);
      }
    }
  }
};

struct Backward {
  const Attention& a;
  Pieces pieces;
  uint32_t *qRows, *qColumns, *dRows, *dColumns;  // queries and dOut of a block, as left and as right operands
  uint32_t *kScores, *vScores, *kColumns;         // keys and values as right operands of the scores, keys as that of dq
  uint32_t* left;
  float *scores, *grads, *dqSum, *dkSum, *dvSum, *deltas, *rowA, *rowB;

  Backward(const Attention& attention, uint32_t* memory) : a(attention), pieces(memory) {
    const int64_t blockUnits = unitsOf(a.packing, a.keyBlock), rowUnits = unitsOf(a.packing, a.queryBlock);
    qRows = pieces.words(packedRowsWords(a.queryBlock, a.depthUnits));
    qColumns = pieces.words(packedColumnsWords(a.depth, rowUnits));
    dRows = pieces.words(packedRowsWords(a.queryBlock, a.valueUnits));
    dColumns = pieces.words(packedColumnsWords(a.valueDepth, rowUnits));
    kScores = pieces.words(packedColumnsWords(a.keyBlock, a.depthUnits));
    vScores = pieces.words(packedColumnsWords(a.keyBlock, a.valueUnits));
    kColumns = pieces.words(packedColumnsWords(a.depth, blockUnits));
    left = pieces.words(std::max(packedRowsWords(a.keyBlock, rowUnits), packedRowsWords(a.queryBlock, blockUnits)));
    scores = pieces.floats(a.queryBlock * a.stride);
    grads = pieces.floats(a.queryBlock * a.stride);
    dqSum = pieces.floats(a.queryBlock * a.depth);
    dkSum = pieces.floats(a.keys * a.depth);
    dvSum = pieces.floats(a.keys * a.valueDepth);
    deltas = pieces.floats(a.queryBlock);
    rowA = pieces.floats(a.valueDepth);
    rowB = pieces.floats(a.valueDepth);
  }

  void packKeys(int64_t b, int64_t kh, int64_t start, int64_t n) {
    packColumns(a.packing, a.k.matrix(b, kh, start).transposed(), a.depth, n, kScores);
    packColumns(a.packing, a.v.matrix(b, kh, start).transposed(), a.valueDepth, n, vScores);
    packColumns(a.packing, a.k.matrix(b, kh, start), n, a.depth, kColumns);
  }

  float delta(int64_t b, int64_t h, int64_t i) {
    if (!a.valueDepth) return 0;
    const float* o = floatsOf(a.out.operand.at(a.out.offset(b, h, i)), a.out.operand.type, rowA, a.valueDepth);
    const float* d = floatsOf(a.dOut.operand.at(a.dOut.offset(b, h, i)), a.dOut.operand.type, rowB, a.valueDepth);
    Floats sum{};
    for (int64_t j = 0; j < a.valueDepth; j += lanes) {
      const int64_t n = a.valueDepth - j;
      sum += loadFloats<TS_F32>(reinterpret_cast<const char*>(o + j), n) * loadFloats<TS_F32>(reinterpret_cast<const char*>(d + j), n);
    }
    return sumLanes(sum);
  }

  // Scores become probabilities (with dropout), gradients of probabilities become gradients of scores, times the scale.
  void probabilities(float* s, float* g, int64_t n, int64_t visible, float lse, float delta, const Dropout& dropout, uint32_t counter) const {
    int64_t j = 0;
    if (lse != -infinity) {
      const Floats shift = splat(lse), center = splat(delta), factor = splat(a.scale);
      for (; j < visible; j += lanes) {
        Floats p = expNoOverflow(loadAs<Floats>(s + j) - shift), d = loadAs<Floats>(g + j);
        const Floats hidden = p;
        if (dropout.on()) {
          const Floats keep = dropout.factors(counter + uint32_t(j));
          d *= keep;
          p *= keep;
        }
        storeAs(s + j, p);
        storeAs(g + j, select(hidden == 0.0f, Floats{}, hidden * (d - center) * factor));  // what stands behind the last column is anything
      }
    }
    if (j < n) {
      std::fill(s + j, s + n, 0.0f);
      std::fill(g + j, g + n, 0.0f);
    }
  }

  void run(int64_t b, int64_t kh) {
    const int64_t length = a.length(b), group = a.heads / a.keyHeads;
    const bool whole = a.keyBlocks <= 1;
    const Dropout dropout(a, b);
    std::fill(dkSum, dkSum + a.keys * a.depth, 0.0f);
    std::fill(dvSum, dvSum + a.keys * a.valueDepth, 0.0f);
    if (whole && length) packKeys(b, kh, 0, length);
    for (int64_t h = kh * group; h < (kh + 1) * group; h++)
      for (int64_t row = 0; row < a.queries; row += a.queryBlock) {
        const int64_t rows = std::min(a.queryBlock, a.queries - row), rowUnits = unitsOf(a.packing, rows);
        const int64_t end = a.visible(row + rows - 1, length);
        packRows(a.packing, a.q.matrix(b, h, row), rows, a.depth, qRows);
        packColumns(a.packing, a.q.matrix(b, h, row), rows, a.depth, qColumns);
        packRows(a.packing, a.dOut.matrix(b, h, row), rows, a.valueDepth, dRows);
        packColumns(a.packing, a.dOut.matrix(b, h, row), rows, a.valueDepth, dColumns);
        for (int64_t i = 0; i < rows; i++) deltas[i] = delta(b, h, row + i);
        if (!end) std::fill(dqSum, dqSum + rows * a.depth, 0.0f);
        for (int64_t start = 0; start < end; start += a.keyBlock) {
          const int64_t n = std::min(a.keyBlock, end - start), units = unitsOf(a.packing, n);
          if (!whole) packKeys(b, kh, start, n);
          multiplyPacked(a.packing, rows, n, a.depthUnits, a.scale, qRows, kScores, a.depthUnits, scores, a.stride, false);
          multiplyPacked(a.packing, rows, n, a.valueUnits, 1, dRows, vScores, a.valueUnits, grads, a.stride, false);
          for (int64_t i = 0; i < rows; i++) {
            float* s = scores + i * a.stride;
            const int64_t visible = std::clamp<int64_t>(a.visible(row + i, length) - start, 0, n);
            a.hide(s, b, row + i, start, visible);
            probabilities(s, grads + i * a.stride, n, visible, *a.lseAt(b, h, row + i), deltas[i], dropout,
                          dropout.on() ? a.counterOf(h, row + i, start) : 0);
          }
          const Matrix p{reinterpret_cast<const char*>(scores), TS_F32, a.stride, 1}, ds{reinterpret_cast<const char*>(grads), TS_F32, a.stride, 1};
          packRows(a.packing, p.transposed(), n, rows, left);
          multiplyPacked(a.packing, n, a.valueDepth, rowUnits, 1, left, dColumns, rowUnits, dvSum + start * a.valueDepth, a.valueDepth, true);
          packRows(a.packing, ds.transposed(), n, rows, left);
          multiplyPacked(a.packing, n, a.depth, rowUnits, 1, left, qColumns, rowUnits, dkSum + start * a.depth, a.depth, true);
          packRows(a.packing, ds, rows, n, left);
          multiplyPacked(a.packing, rows, a.depth, units, 1, left, kColumns, whole ? unitsOf(a.packing, length) : units, dqSum, a.depth, start > 0);
        }
        if (a.depth)
          for (int64_t i = 0; i < rows; i++) fromFloats(dqSum + i * a.depth, a.dq.operand.at(a.dq.offset(b, h, row + i)), a.dq.operand.type, a.depth);
      }
    for (int64_t j = 0; j < a.keys; j++) {
      if (a.depth) fromFloats(dkSum + j * a.depth, a.dk.operand.at(a.dk.offset(b, kh, j)), a.dk.operand.type, a.depth);
      if (a.valueDepth) fromFloats(dvSum + j * a.valueDepth, a.dv.operand.at(a.dv.offset(b, kh, j)), a.dv.operand.type, a.valueDepth);
    }
  }
};

}  // namespace

Status runAttention(Pool& pool, Reader& in, bool backward) {
  Attention a;
  if (!a.read(in, backward)) return malformed;
  if (!a.batch || !a.heads) return ok;
  const double work = double(a.batch) * double(a.heads) * double(a.queries + 1) * double(a.keys + 1) * double(a.depth + a.valueDepth + 16);
  if (backward) {
    pool.reservePrivate(Backward(a, nullptr).pieces.bytes());
    pool.each(a.batch * a.keyHeads, work > 1e5, [&](int64_t task, int thread) {
      Backward(a, reinterpret_cast<uint32_t*>(pool.mine(thread))).run(task / a.keyHeads, task % a.keyHeads);
    });
    return ok;
  }
  pool.reservePrivate(Forward(a, nullptr).pieces.bytes());
  const int64_t heads = a.batch * a.heads;
  // With few heads the query blocks of one are dealt out too; rows do not depend on each other.
  const int64_t parts = heads >= 2 * pool.threads() ? 1 : std::clamp<int64_t>(2 * pool.threads() / heads, 1, std::max<int64_t>(1, a.queryBlocks));
  pool.each(heads * parts, work > 2e5, [&](int64_t task, int thread) {
    const int64_t part = task % parts, head = task / parts;
    Forward(a, reinterpret_cast<uint32_t*>(pool.mine(thread)))
        .run(head / a.heads, head % a.heads, part * a.queryBlocks / parts, (part + 1) * a.queryBlocks / parts);
  });
  return ok;
}

}  // namespace tessera
