// Packing the operands of products: strided rows of any float type into panels of units (see gemm.hpp).
#include <algorithm>
#include "gemm.hpp"

namespace tessera {

namespace {

// One vector of units taken along a row that is contiguous along k; `left` elements of k remain.
template <Packing packing, int type> TESSERA_INLINE Words unitsAlong(const char* from, int64_t left) {
#if defined(TESSERA_PAIRS)
  if constexpr (packing == Packing::pairs) {
    if constexpr (type == TS_BF16)
      return (Words)(left >= 2 * lanes ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16((__mmask32(1) << left) - 1, from));
    else {
      constexpr int bytes = type == TS_F32 ? 4 : 2;
      Floats low = loadFloats<type>(from, left), high = left > lanes ? loadFloats<type>(from + lanes * bytes, left - lanes) : Floats{};
      return (Words)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    }
  }
#endif
  Floats x = loadFloats<type>(from, left);
  return packing == Packing::roundedFloats && type != TS_BF16 ? bits(roundBf16(x)) : bits(x);
}

// One vector of units across rows that are contiguous along the panel; `second` is the next k, null behind the last.
template <Packing packing, int type> TESSERA_INLINE Words unitsAcross(const char* first, const char* second, int64_t left) {
#if defined(TESSERA_PAIRS)
  if constexpr (packing == Packing::pairs) {
    if constexpr (type == TS_BF16) {
      Words high = second ? widen(loadHalves(second, left)) : Words{};
      return widen(loadHalves(first, left)) | (high << 16);
    } else {
      Floats high = second ? loadFloats<type>(second, left) : Floats{};
      const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
      return (Words)_mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)loadFloats<type>(first, left)));
    }
  }
#endif
  (void)second;
  return unitsAlong<packing, type>(first, left);
}

// Panels of `panel` columns out of n: column p, element k stands at data + (p * stride) or (k * stride) elements; the other stride is 1.
template <Packing packing, int panel, int type> struct Packer {
  static constexpr int bytes = type == TS_F32 ? 4 : 2;
  static constexpr int perUnit = packing == Packing::pairs ? 2 : 1;
  // Columns handled together: a vector of them, unless panels do not divide one.
  static constexpr int group = panel % lanes == 0 || lanes % panel == 0 ? lanes : panel;
  const char* data;
  int64_t stride, n, k, units;
  uint32_t* to;

  TESSERA_INLINE void put(int64_t column, int64_t unit, Words v) const {
    uint32_t* at = to + column / panel * units * panel + unit * panel + column % panel;
    if constexpr (panel % lanes == 0) storeAs(at, v);
#if defined(TESSERA_AVX512)
    else if constexpr (panel == 8) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_castsi512_si256((__m512i)v));
      if (column + 8 < n) _mm256_storeu_si256(reinterpret_cast<__m256i*>(at + units * 8), _mm512_extracti64x4_epi64((__m512i)v, 1));
    }
#endif
    else {
      static_assert(panel % lanes == 0 || group == panel || lanes == 16);
      storePart(reinterpret_cast<float*>(at), fromBits(v), panel);
    }
  }

  void alongK() const {
    for (int64_t p = 0; p < n; p += group) {
      const int present = int(std::min<int64_t>(group, n - p));
      for (int64_t u = 0; u < units; u += lanes) {
        Words rows[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes; i++)
          rows[i] = i < present ? unitsAlong<packing, type>(data + ((p + i) * stride + u * perUnit) * bytes, k - u * perUnit) : Words{};
        transpose(rows);
        if (units - u >= lanes) {
#pragma GCC unroll 16
          for (int i = 0; i < lanes; i++) put(p, u + i, rows[i]);
        } else {
          for (int i = 0; i < units - u; i++) put(p, u + i, rows[i]);
        }
      }
    }
  }

  void acrossPanel() const {
    for (int64_t u = 0; u < units; u++) {
      const char* first = data + u * perUnit * stride * bytes;
      const char* second = perUnit == 2 && 2 * u + 1 < k ? first + stride * bytes : nullptr;
      for (int64_t p = 0; p < n; p += group) {
        // A vector may hold more columns than the group; `put` writes only those of the panel.
        put(p, u, unitsAcross<packing, type>(first + p * bytes, second ? second + p * bytes : nullptr, n - p));
      }
    }
  }

  void padLastPanel() const {
    if constexpr (panel > group)
      for (int64_t p = roundUp(n, group); p < roundUp(n, panel); p += group)
        for (int64_t u = 0; u < units; u++) put(p, u, Words{});
  }
};

template <Packing packing, int panel, int type>
void packAs(const char* data, int64_t columnStride, int64_t kStride, int64_t n, int64_t k, bool alongK, uint32_t* to) {
  const Packer<packing, panel, type> packer{data, alongK ? columnStride : kStride, n, k, unitsOf(packing, k), to};
  if (alongK) packer.alongK();
  else packer.acrossPanel();
  packer.padLastPanel();
}

template <Packing packing, int panel>
void packTyped(int32_t type, const char* data, int64_t columnStride, int64_t kStride, int64_t n, int64_t k, uint32_t* to) {
  // Both ways are right when one of the sizes is 1; the longer one is the better vector.
  const bool kFits = kStride == 1 || k == 1, panelFits = columnStride == 1 || n == 1;
  const bool alongK = kFits && !(panelFits && n > k);
  if (type == TS_F32) packAs<packing, panel, TS_F32>(data, columnStride, kStride, n, k, alongK, to);
  else if (type == TS_BF16) packAs<packing, panel, TS_BF16>(data, columnStride, kStride, n, k, alongK, to);
  else packAs<packing, panel, TS_F16>(data, columnStride, kStride, n, k, alongK, to);
}

template <int panel> void pack(Packing packing, int32_t type, const char* data, int64_t columnStride, int64_t kStride, int64_t n, int64_t k, uint32_t* to) {
  if (n <= 0 || k <= 0) return;
#if defined(TESSERA_PAIRS)
  if (packing == Packing::pairs) return packTyped<Packing::pairs, panel>(type, data, columnStride, kStride, n, k, to);
#else
  if (packing == Packing::roundedFloats) return packTyped<Packing::roundedFloats, panel>(type, data, columnStride, kStride, n, k, to);
#endif
  packTyped<Packing::floats, panel>(type, data, columnStride, kStride, n, k, to);
}

}  // namespace

void packRows(Packing packing, const Matrix& a, int64_t rows, int64_t k, uint32_t* to) {
  pack<tileRows>(packing, a.type, a.data, a.rowStride, a.columnStride, rows, k, to);
}
void packColumns(Packing packing, const Matrix& b, int64_t k, int64_t columns, uint32_t* to) {
  pack<tileColumns>(packing, b.type, b.data, b.columnStride, b.rowStride, columns, k, to);
}

bool packable(const Matrix& m, int64_t rows, int64_t columns) {
  return m.rowStride == 1 || m.columnStride == 1 || rows <= 1 || columns <= 1;
}

}  // namespace tessera
