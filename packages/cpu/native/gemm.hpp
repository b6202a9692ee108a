// Packed matrix products for one thread, shared by TS_GEMM and attention.
//
// A 32-bit "unit" is a float, or two bf16 neighbours along k where the machine multiplies those: packing, blocking and threading are one code
// for both. The left operand is packed in panels of `tileRows` rows ([panel][unit][row]), the right one in panels of `tileColumns` columns; a
// register tile walks along the units of two panels.
#pragma once
#include <cstdint>
#include "simd.hpp"

namespace tessera {

#if defined(TESSERA_AVX512)
constexpr int tileRows = 8, tileVectors = 3;  // 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int tileRows = 6, tileVectors = 2;  // 12 of 16
#elif defined(__aarch64__)
constexpr int tileRows = 8, tileVectors = 3;  // 24 of 32
#else
constexpr int tileRows = 4, tileVectors = 2;  // 8 of 16
#endif
constexpr int tileColumns = tileVectors * lanes;

// What precision 1 means here: pairs where the machine has their dot product, else floats rounded while they are packed.
enum class Packing { floats, roundedFloats, pairs };
inline Packing packingOf(int precision) {
#if defined(TESSERA_PAIRS)
  return precision ? Packing::pairs : Packing::floats;
#else
  return precision ? Packing::roundedFloats : Packing::floats;
#endif
}
inline int64_t elementsPerUnit(Packing packing) { return packing == Packing::pairs ? 2 : 1; }
inline int64_t unitsOf(Packing packing, int64_t k) { return (k + elementsPerUnit(packing) - 1) / elementsPerUnit(packing); }

// Element (row, column) stands at data + row * rowStride + column * columnStride, strides in elements.
struct Matrix {
  const char* data;
  int32_t type;
  int64_t rowStride, columnStride;
  Matrix at(int64_t row, int64_t column) const {
    return {data + (row * rowStride + column * columnStride) * (type == TS_F32 ? 4 : 2), type, rowStride, columnStride};
  }
  Matrix transposed() const { return {data, type, columnStride, rowStride}; }
};

inline int64_t roundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
// 32-bit words that a packed operand takes.
inline int64_t packedRowsWords(int64_t rows, int64_t units) { return roundUp(rows, tileRows) * units; }
inline int64_t packedColumnsWords(int64_t columns, int64_t units) { return roundUp(columns, tileColumns) * units; }

// `a` is rows x k, `b` is k x columns; one stride of each is 1, or the size of that dimension is 1. Missing rows, columns and the odd half unit are
// packed as zeros.
void packRows(Packing, const Matrix& a, int64_t rows, int64_t k, uint32_t* to);
void packColumns(Packing, const Matrix& b, int64_t k, int64_t columns, uint32_t* to);
bool packable(const Matrix&, int64_t rows, int64_t columns);

// c = alpha * a b, or c += it, for packed operands of any size; `c` is float with contiguous rows. The right operand may have been packed with more
// units than are multiplied: `rightUnits` of them.
void multiplyPacked(Packing, int64_t rows, int64_t columns, int64_t units, float alpha, const uint32_t* a, const uint32_t* b, int64_t rightUnits, float* c,
                    int64_t stride, bool add);

}  // namespace tessera
