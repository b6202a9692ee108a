// Loop nests over strided operands: dropping sizes of 1, ordering, merging neighbours, and walking the rows of what is left.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <vector>
#include "plan.hpp"

namespace tessera {

struct Axis {
  int64_t size;
  int tag;                       // what the caller wants to remember: an axis number, or whether it is reduced; axes of unlike tags are never merged
  std::vector<int64_t> strides;  // per operand
};

class Nest {
 public:
  std::vector<Axis> axes;  // outermost first

  int64_t elements() const {
    int64_t n = 1;
    for (const Axis& a : axes) n *= a.size;
    return n;
  }
  // Outermost the largest stride of the operand that matters most; ties by the next operand.
  void order(std::initializer_list<int> priority) {
    std::erase_if(axes, [](const Axis& a) { return a.size == 1; });
    std::stable_sort(axes.begin(), axes.end(), [&](const Axis& a, const Axis& b) {
      for (int operand : priority) {
        const int64_t x = std::abs(a.strides[operand]), y = std::abs(b.strides[operand]);
        if (x != y) return x > y;
      }
      return false;
    });
  }
  void merge() {
    for (size_t i = 0; i + 1 < axes.size();) {
      Axis &outer = axes[i], &inner = axes[i + 1];
      bool fits = outer.tag == inner.tag;
      for (size_t o = 0; o < inner.strides.size(); o++) fits &= outer.strides[o] == inner.strides[o] * inner.size;
      if (!fits) {
        i++;
        continue;
      }
      inner.size *= outer.size;
      axes.erase(axes.begin() + int64_t(i));
    }
  }
};

// The position of one row in a nest's outer axes, moved on row by row, with the offset of each operand.
class Walk {
 public:
  Walk(const Axis* axes, int count, int operands) : axes_(axes), count_(count), operands_(operands), offsets(size_t(operands)), index_(size_t(count)) {}
  void seek(int64_t row) {
    std::fill(offsets.begin(), offsets.end(), 0);
    for (int i = count_ - 1; i >= 0; i--) {
      index_[i] = row % axes_[i].size;
      row /= axes_[i].size;
      for (int o = 0; o < operands_; o++) offsets[o] += index_[i] * axes_[i].strides[o];
    }
  }
  void next() {
    for (int i = count_ - 1; i >= 0; i--) {
      for (int o = 0; o < operands_; o++) offsets[o] += axes_[i].strides[o];
      if (++index_[i] < axes_[i].size) return;
      for (int o = 0; o < operands_; o++) offsets[o] -= axes_[i].strides[o] * axes_[i].size;
      index_[i] = 0;
    }
  }
  int64_t index(int axis) const { return index_[axis]; }

 private:
  const Axis* axes_;
  int count_, operands_;

 public:
  std::vector<int64_t> offsets;

 private:
  std::vector<int64_t> index_;
};

}  // namespace tessera
