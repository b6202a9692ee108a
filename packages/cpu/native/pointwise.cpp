// TS_POINTWISE: fused elementwise work. The loop nest is merged, then cut into blocks of lanes; a block is loaded into registers that stay in the
// first-level cache, the program runs over it instruction by instruction, and its results are stored. Copies take their own way.
#include <algorithm>
#include <vector>
#include "nest.hpp"
#include "simd.hpp"
#include "vm.hpp"

namespace tessera {

namespace {

constexpr int maxOperands = 256, maxRegisters = 1024;

struct Program {
  int inputs = 0, outputs = 0, registers = 0;
  std::vector<Operand> operands;  // inputs first
  std::vector<VmInstruction> code;
  Nest nest;
  std::vector<int> direct;    // per input: 1 when instructions may read it where it stands
  std::vector<char> constant;  // per instruction: a constant that needs to be filled in once only
};

template <class T> void gatherLanes(const char* from, int64_t stride, uint32_t* to, int64_t n) {
  const T* x = reinterpret_cast<const T*>(from);
  for (int64_t i = 0; i < n; i++) to[i] = x[i * stride];
}
template <class T> void scatterLanes(const uint32_t* from, char* to, int64_t stride, int64_t n) {
  T* y = reinterpret_cast<T*>(to);
  for (int64_t i = 0; i < n; i++) y[i * stride] = T(from[i]);
}

// One row of an operand into lanes.
void loadRow(const Operand& operand, int64_t offset, int64_t stride, float* to, int64_t n) {
  const char* from = operand.at(offset);
  uint32_t* words = reinterpret_cast<uint32_t*>(to);
  const bool half = operand.type == TS_BF16 || operand.type == TS_F16;
  if (stride == 0) {
    uint32_t word;
    if (half) {
      const float value = loadOne(from, operand.type);
      memcpy(&word, &value, 4);
    } else if (operand.bytes() == 4) memcpy(&word, from, 4);
    else word = uint8_t(*from);
    std::fill(words, words + n, word);
  } else if (operand.bytes() == 4) {
    if (stride == 1) memcpy(to, from, size_t(n) * 4);
    else gatherLanes<uint32_t>(from, stride, words, n);
  } else if (half) {
    if (stride == 1) return toFloats(from, operand.type, to, n);
    for (int64_t i = 0; i < n; i++) to[i] = loadOne(from + i * stride * 2, operand.type);
  } else gatherLanes<uint8_t>(from, stride, words, n);
}
void storeRow(const float* from, const Operand& operand, int64_t offset, int64_t stride, int64_t n) {
  char* to = operand.at(offset);
  const uint32_t* words = reinterpret_cast<const uint32_t*>(from);
  if (operand.bytes() == 4) {
    if (stride == 1) memmove(to, from, size_t(n) * 4);
    else scatterLanes<uint32_t>(words, to, stride, n);
  } else if (operand.type == TS_BF16 || operand.type == TS_F16) {
    if (stride == 1) return fromFloats(from, to, operand.type, n);
    for (int64_t i = 0; i < n; i++) storeOne(to + i * stride * 2, operand.type, from[i]);
  } else scatterLanes<uint8_t>(words, to, stride, n);
}

// How the nest is cut: blocks are parts of one row, or several whole short rows.
struct Blocks {
  int64_t inner, rows, lanesPerBlock, perRow, rowsPerBlock, count;
  Blocks(const Nest& nest, int registers) {
    const int64_t most = registers <= 8 ? 1024 : registers <= 24 ? 512 : 256;  // registers stay in the first-level cache
    inner = nest.axes.empty() ? 1 : nest.axes.back().size;
    rows = inner ? nest.elements() / inner : 0;
    if (inner > most / 2) {
      rowsPerBlock = 1;
      perRow = (inner + most - 1) / most;
      lanesPerBlock = ((inner + perRow - 1) / perRow + lanes - 1) / lanes * lanes;
      perRow = (inner + lanesPerBlock - 1) / lanesPerBlock;
      count = rows * perRow;
    } else {
      perRow = 1;
      lanesPerBlock = most;
      rowsPerBlock = inner ? most / inner : 1;
      count = (rows + rowsPerBlock - 1) / rowsPerBlock;
    }
  }
};

void analyse(Program& p) {
  std::vector<int> writes(size_t(p.registers), 0), lastRead(size_t(p.registers), -1);
  int firstStore = int(p.code.size());
  for (int i = int(p.code.size()) - 1; i >= 0; i--)
    if (p.code[i].op == TS_VM_STORE) firstStore = i;
  for (int i = 0; i < int(p.code.size()); i++) {
    const VmInstruction& s = p.code[i];
    const int reads[4] = {s.a, s.b, s.c, int(s.immediate)};
    for (int r = 0; r < vmArity(s.op); r++) lastRead[reads[r]] = i;
    if (s.op != TS_VM_STORE) writes[s.dst]++;
  }
  // Reading in place would see results stored over an input, or write over it: only inputs that are done with by then.
  for (int i = 0; i < p.inputs; i++) p.direct.push_back(p.operands[i].bytes() == 4 && writes[i] == 0 && lastRead[i] <= firstStore);
  for (const VmInstruction& s : p.code)
    p.constant.push_back((s.op == TS_VM_CONST_F || s.op == TS_VM_CONST_I) && writes[s.dst] == 1 && s.dst >= p.inputs);
}

class Runner {
 public:
  Runner(const Program& p, const Blocks& blocks, float* memory)
      : p_(p), blocks_(blocks), walk_(p.nest.axes.data(), std::max(0, int(p.nest.axes.size()) - 1), p.inputs + p.outputs),
        registers_(size_t(p.registers)), sources_(size_t(p.registers)) {
    for (int r = 0; r < p.registers; r++) sources_[r] = registers_[r] = memory + r * (blocks.lanesPerBlock + lanes);
    for (size_t i = 0; i < p.code.size(); i++)
      if (p.constant[i]) vmRun(p.code[i], blocks.lanesPerBlock, registers_[p.code[i].dst], nullptr, nullptr, nullptr, nullptr);
  }

  void block(int64_t b) {
    if (blocks_.rowsPerBlock == 1) {
      walk_.seek(b / blocks_.perRow);
      start_ = b % blocks_.perRow * blocks_.lanesPerBlock;
      length_ = std::min(blocks_.lanesPerBlock, blocks_.inner - start_);
      rows_ = 1;
    } else {
      row_ = b * blocks_.rowsPerBlock;
      start_ = 0;
      length_ = blocks_.inner;
      rows_ = std::min(blocks_.rowsPerBlock, blocks_.rows - row_);
      walk_.seek(row_);
    }
    const int64_t n = (rows_ * length_ + lanes - 1) / lanes * lanes;
    load();
    for (size_t i = 0; i < p_.code.size(); i++) {
      const VmInstruction& s = p_.code[i];
      if (p_.constant[i]) continue;
      if (s.op == TS_VM_STORE) store(s.a, int(s.immediate));
      else if (s.op == TS_VM_IOTA) iota(s);
      else {
        const int arity = vmArity(s.op);
        vmRun(s, n, registers_[s.dst], arity > 0 ? sources_[s.a] : nullptr, arity > 1 ? sources_[s.b] : nullptr, arity > 2 ? sources_[s.c] : nullptr,
              arity > 3 ? sources_[s.immediate] : nullptr);
      }
    }
  }

 private:
  int64_t stride(int operand) const { return p_.nest.axes.empty() ? 0 : p_.nest.axes.back().strides[operand]; }

  // f(lane of the row in the block), with the walk standing on that row.
  template <class F> void eachRow(F&& f) {
    if (rows_ == 1) return f(0);
    walk_.seek(row_);
    for (int64_t r = 0; r < rows_; r++) {
      f(r * length_);
      walk_.next();
    }
  }

  void load() {
    bool copied = false;
    for (int i = 0; i < p_.inputs; i++) {
      const int64_t inner = stride(i);
      if (rows_ == 1) {
        const int64_t offset = walk_.offsets[i] + start_ * inner;
        if (p_.direct[i] && inner == 1 && length_ % lanes == 0) sources_[i] = reinterpret_cast<const float*>(p_.operands[i].at(offset));
        else {
          sources_[i] = registers_[i];
          loadRow(p_.operands[i], offset, inner, registers_[i], length_);
        }
      } else copied = true;
    }
    if (!copied) return;
    eachRow([&](int64_t lane) {
      for (int i = 0; i < p_.inputs; i++) loadRow(p_.operands[i], walk_.offsets[i], stride(i), registers_[i] + lane, length_);
    });
    for (int i = 0; i < p_.inputs; i++) sources_[i] = registers_[i];
  }

  void store(int from, int output) {
    const int operand = p_.inputs + output;
    const int64_t inner = stride(operand);
    eachRow([&](int64_t lane) {
      storeRow(sources_[from] + lane, p_.operands[operand], walk_.offsets[operand] + start_ * inner, inner, length_);
    });
  }

  // An axis that an iota names is never merged; one of size 1 is gone, and its index is 0.
  void iota(const VmInstruction& s) {
    const uint32_t first = uint32_t(s.immediate), step = uint32_t(uint64_t(s.immediate) >> 32);
    uint32_t* to = reinterpret_cast<uint32_t*>(registers_[s.dst]);
    int axis = -1;
    for (size_t i = 0; i < p_.nest.axes.size(); i++)
      if (p_.nest.axes[i].tag == s.a + 1) axis = int(i);
    const int innermost = int(p_.nest.axes.size()) - 1;
    eachRow([&](int64_t lane) {
      if (axis >= 0 && axis == innermost)
        for (int64_t i = 0; i < length_; i++) to[lane + i] = first + step * uint32_t(start_ + i);
      else std::fill(to + lane, to + lane + length_, first + (axis < 0 ? 0 : step * uint32_t(walk_.index(axis))));
    });
  }

  const Program& p_;
  const Blocks& blocks_;
  Walk walk_;
  std::vector<float*> registers_;
  std::vector<const float*> sources_;
  int64_t row_ = 0, start_ = 0, length_ = 0, rows_ = 0;
};

// Copies of one type into contiguous rows whose input is contiguous along another axis: squares that fit the cache.
template <class T> void transposeTile(const char* from, int64_t fromStride, char* to, int64_t toStride, int64_t rows, int64_t columns) {
  // to[r * toStride + c] = from[c * fromStride + r]
  const T* x = reinterpret_cast<const T*>(from);
  T* y = reinterpret_cast<T*>(to);
  if constexpr (sizeof(T) == 4)
    if (rows == lanes && columns == lanes) {
      Words square[lanes];
      for (int c = 0; c < lanes; c++) square[c] = loadAs<Words>(x + c * fromStride);
      transpose(square);
      for (int r = 0; r < lanes; r++) storeAs(y + r * toStride, square[r]);
      return;
    }
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < columns; c++) y[r * toStride + c] = x[c * fromStride + r];
}

bool copyTransposed(Pool& pool, const Program& p) {
  const Operand &from = p.operands[0], &to = p.operands[1];
  Nest nest = p.nest;
  if (nest.axes.size() < 2) return false;
  const Axis columns = nest.axes.back();
  nest.axes.pop_back();
  const auto found = std::find_if(nest.axes.begin(), nest.axes.end(), [](const Axis& a) { return a.strides[0] == 1; });
  if (found == nest.axes.end() || columns.strides[1] != 1 || columns.strides[0] == 1 || columns.size < 4 || found->size < 4) return false;
  const Axis rows = *found;
  nest.axes.erase(found);
  const int64_t tile = from.bytes() == 4 ? lanes : 32;
  const int64_t tilesDown = (rows.size + tile - 1) / tile, squares = nest.elements();
  constexpr int64_t columnsPerTask = 512;
  const int64_t strips = (columns.size + columnsPerTask - 1) / columnsPerTask;
  pool.each(squares * tilesDown * strips, squares * rows.size * columns.size > 32768, [&](int64_t task, int) {
    Walk walk(nest.axes.data(), int(nest.axes.size()), 2);
    walk.seek(task / (tilesDown * strips));
    const int64_t row = task / strips % tilesDown * tile, height = std::min(tile, rows.size - row), strip = task % strips * columnsPerTask;
    for (int64_t c = strip; c < std::min(columns.size, strip + columnsPerTask); c += tile) {
      const int64_t width = std::min(tile, columns.size - c);
      const char* x = from.at(walk.offsets[0] + row + c * columns.strides[0]);
      char* y = to.at(walk.offsets[1] + row * rows.strides[1] + c);
      if (from.bytes() == 4) transposeTile<uint32_t>(x, columns.strides[0], y, rows.strides[1], height, width);
      else if (from.bytes() == 2) transposeTile<uint16_t>(x, columns.strides[0], y, rows.strides[1], height, width);
      else transposeTile<uint8_t>(x, columns.strides[0], y, rows.strides[1], height, width);
    }
  });
  return true;
}

bool copyRows(Pool& pool, const Program& p) {
  const Operand &from = p.operands[0], &to = p.operands[1];
  if (p.nest.axes.empty() || p.nest.axes.back().strides[0] != 1 || p.nest.axes.back().strides[1] != 1) return false;
  const int64_t bytes = p.nest.axes.back().size * from.bytes(), rows = p.nest.elements() / p.nest.axes.back().size;
  if (bytes < 64) return false;  // the lanes of the general way carry several short rows
  if (rows == 1) {
    copyBytes(pool, to.data, from.data, bytes);
    return true;
  }
  const int64_t rowsPerTask = std::max<int64_t>(1, 65536 / bytes);
  pool.each((rows + rowsPerTask - 1) / rowsPerTask, rows * bytes > (128 << 10), [&](int64_t task, int) {
    Walk walk(p.nest.axes.data(), int(p.nest.axes.size()) - 1, 2);
    walk.seek(task * rowsPerTask);
    for (int64_t r = task * rowsPerTask; r < std::min(rows, (task + 1) * rowsPerTask); r++, walk.next())
      memmove(to.at(walk.offsets[1]), from.at(walk.offsets[0]), size_t(bytes));
  });
  return true;
}

bool readCode(Reader& in, Program& p, int64_t count, int rank) {
  p.registers = p.inputs;
  for (int64_t i = 0; i < count; i++) {
    int64_t words[6];
    for (int64_t& w : words) w = in.word();
    const int arity = vmArity(words[0]);
    if (arity < 0) return false;
    const int64_t reads[4] = {words[2], words[3], words[4], words[5]};
    for (int r = 0; r < arity; r++) {
      if (reads[r] < 0 || reads[r] >= maxRegisters) return false;
      p.registers = std::max(p.registers, int(reads[r]) + 1);
    }
    if (words[0] == TS_VM_STORE) {
      if (words[5] < 0 || words[5] >= p.outputs) return false;
    } else {
      if (words[1] < 0 || words[1] >= maxRegisters) return false;
      p.registers = std::max(p.registers, int(words[1]) + 1);
    }
    if (words[0] == TS_VM_IOTA && (words[2] < 0 || words[2] >= rank)) return false;
    p.code.push_back({int(words[0]), int(words[1]), int(words[2]), int(words[3]), int(words[4]), words[5]});
  }
  return true;
}

}  // namespace

Status runPointwise(Pool& pool, Reader& in) {
  Program p;
  const int rank = in.rank();
  p.inputs = in.choice(maxOperands);
  p.outputs = in.choice(maxOperands);
  const int64_t count = in.size();
  if (in.bad() || count > in.left()) return malformed;
  int64_t sizes[maxRank];
  in.sizes(sizes, rank);
  int64_t total = 1;
  for (int i = 0; i < rank; i++) {
    total *= sizes[i];
    p.nest.axes.push_back({sizes[i], 0, std::vector<int64_t>(size_t(p.inputs + p.outputs))});
  }
  for (int o = 0; o < p.inputs + p.outputs; o++) {
    p.operands.push_back(total ? in.operand() : in.optional());
    for (int i = 0; i < rank; i++) p.nest.axes[i].strides[o] = in.word();
  }
  if (in.bad() || !readCode(in, p, count, rank) || in.bad()) return malformed;
  if (!total || !p.outputs) return ok;

  for (const VmInstruction& s : p.code)
    if (s.op == TS_VM_IOTA) p.nest.axes[s.a].tag = s.a + 1;
  if (p.inputs) p.nest.order({p.inputs, 0});
  else p.nest.order({0});
  p.nest.merge();

  const bool copy = p.inputs == 1 && p.outputs == 1 && p.code.size() == 1 && p.code[0].op == TS_VM_STORE && p.code[0].a == 0 && p.operands[0].type == p.operands[1].type;
  if (copy && (copyRows(pool, p) || copyTransposed(pool, p))) return ok;

  analyse(p);
  const Blocks blocks(p.nest, p.registers);
  const uint64_t bytes = uint64_t(p.registers) * uint64_t(blocks.lanesPerBlock + lanes) * 4;
  const bool worth = total * int64_t(p.code.size() + 2) > 65536;
  const int64_t perTask = std::max<int64_t>(1, 16384 / blocks.lanesPerBlock), tasks = (blocks.count + perTask - 1) / perTask;
  pool.reservePrivate(bytes);
  if (!worth || tasks == 1) {
    Runner runner(p, blocks, reinterpret_cast<float*>(pool.mine(0)));
    for (int64_t b = 0; b < blocks.count; b++) runner.block(b);
    return ok;
  }
  std::atomic<int64_t> next{0};
  pool.together([&](int thread) {
    Runner runner(p, blocks, reinterpret_cast<float*>(pool.mine(thread)));
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      for (int64_t b = task * perTask; b < std::min(blocks.count, (task + 1) * perTask); b++) runner.block(b);
  });
  return ok;
}

}  // namespace tessera
