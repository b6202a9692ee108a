// The register tile: included by gemm.cpp only, so that it is compiled once.
#pragma once
#include "gemm.hpp"

namespace tessera {

template <bool pairs> TESSERA_INLINE Floats multiplyAdd(Floats sum, Floats a, Floats b) {
#if defined(TESSERA_PAIRS)
  if constexpr (pairs) return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
  return a * b + sum;
}

struct TileStore {
  float* c;
  int64_t stride;
  int rows, columns;  // how many of the tile exist
  bool add;
  float alpha;
  const float* bias;  // nullable
};

template <bool pairs, int vectors>
static __attribute__((noinline)) void tile(int64_t units, const uint32_t* aWords, const uint32_t* bWords, const TileStore& store) {
  const float* __restrict a = reinterpret_cast<const float*>(aWords);
  const float* __restrict b = reinterpret_cast<const float*>(bWords);
  Floats v[tileRows][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < tileRows; i++) {
    if (i < store.rows)
      for (int j = 0; j < vectors; j++) __builtin_prefetch(store.c + i * store.stride + j * lanes, 1);
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) v[i][j] = Floats{};
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < units; k++) {
    Floats right[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) right[j] = loadAs<Floats>(b + j * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < tileRows; i++) {
#if defined(TESSERA_AVX512)
      Floats left = (Floats)_mm512_set1_ps(a[i]);  // keeps the bits of a pair; x - 0 would not
#elif defined(__AVX2__)
      Floats left = (Floats)_mm256_set1_ps(a[i]);
#else
      Floats left = splat(a[i]);
#endif
#pragma GCC unroll 4
      for (int j = 0; j < vectors; j++) v[i][j] = multiplyAdd<pairs>(v[i][j], left, right[j]);
    }
    a += tileRows;
    b += tileColumns;
  }
  const Floats alpha = splat(store.alpha);
#pragma GCC unroll 16
  for (int i = 0; i < tileRows; i++)
    if (i < store.rows) {
      float* c = store.c + i * store.stride;
#pragma GCC unroll 4
      for (int j = 0; j < vectors; j++) {
        const int64_t left = store.columns - j * lanes;
        if (left <= 0) continue;
        char* to = reinterpret_cast<char*>(c + j * lanes);
        Floats x = v[i][j] * alpha;
        if (store.add) x += loadFloats<TS_F32>(to, left);
        if (store.bias) x += loadFloats<TS_F32>(reinterpret_cast<const char*>(store.bias + j * lanes), left);
        storeFloats<TS_F32>(to, x, left);
      }
    }
}

template <bool pairs> static inline void tileOf(int64_t units, const uint32_t* a, const uint32_t* b, const TileStore& store) {
  if constexpr (tileVectors > 2)
    if (store.columns > 2 * lanes) return tile<pairs, 3>(units, a, b, store);
  if (store.columns > lanes) return tile<pairs, 2>(units, a, b, store);
  return tile<pairs, 1>(units, a, b, store);
}
static inline void tileOf(Packing packing, int64_t units, const uint32_t* a, const uint32_t* b, const TileStore& store) {
#if defined(TESSERA_PAIRS)
  if (packing == Packing::pairs) return tileOf<true>(units, a, b, store);
#endif
  tileOf<false>(units, a, b, store);
}

}  // namespace tessera
