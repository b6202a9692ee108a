// Vectors of the width of this ISA, in GCC vector extensions: arithmetic, comparisons and `mask ? a : b` need no intrinsics.
// Intrinsics stand only where the extensions give slow code: masked tails, half precision, dot products of bf16 pairs.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#include "tessera_cpu.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tessera {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define TESSERA_AVX512 1
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif
#if defined(TESSERA_AVX512) && defined(__AVX512BF16__)
#define TESSERA_PAIRS 1
#endif

typedef float Floats __attribute__((vector_size(lanes * 4), may_alias));
typedef int32_t Ints __attribute__((vector_size(lanes * 4), may_alias));
typedef uint32_t Words __attribute__((vector_size(lanes * 4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(lanes * 2), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(lanes), may_alias));

#define TESSERA_INLINE inline __attribute__((always_inline))

template <class V> TESSERA_INLINE V loadAs(const void* from) {
  V v;
  memcpy(&v, from, sizeof(V));
  return v;
}
template <class V> TESSERA_INLINE void storeAs(void* to, V v) { memcpy(to, &v, sizeof(V)); }

TESSERA_INLINE Floats splat(float x) { return x - Floats{}; }
TESSERA_INLINE Ints splatInt(int32_t x) { return x - Ints{}; }
TESSERA_INLINE Words splatWord(uint32_t x) { return x - Words{}; }

// Bits of a float vector and back; plain casts between vectors of one size keep the bits.
TESSERA_INLINE Words bits(Floats x) { return (Words)x; }
TESSERA_INLINE Floats fromBits(Words x) { return (Floats)x; }
TESSERA_INLINE Floats select(Ints mask, Floats a, Floats b) { return mask ? a : b; }
TESSERA_INLINE Words select(Ints mask, Words a, Words b) { return mask ? a : b; }

// The first n lanes (0 < n < lanes), zeros behind; touches nothing beyond them.
TESSERA_INLINE Floats loadPart(const float* from, int64_t n) {
#if defined(TESSERA_AVX512)
  return (Floats)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), from);
#elif defined(__AVX2__)
  const Ints ramp = {0, 1, 2, 3, 4, 5, 6, 7};
  return (Floats)_mm256_maskload_ps(from, (__m256i)(ramp < splatInt(int32_t(n))));
#else
  Floats v{};
  memcpy(&v, from, size_t(n) * 4);
  return v;
#endif
}
TESSERA_INLINE void storePart(float* to, Floats v, int64_t n) {
#if defined(TESSERA_AVX512)
  _mm512_mask_storeu_ps(to, __mmask16((1u << n) - 1), (__m512)v);
#elif defined(__AVX2__)
  const Ints ramp = {0, 1, 2, 3, 4, 5, 6, 7};
  _mm256_maskstore_ps(to, (__m256i)(ramp < splatInt(int32_t(n))), (__m256)v);
#else
  memcpy(to, &v, size_t(n) * 4);
#endif
}
TESSERA_INLINE Halves loadHalves(const void* from, int64_t n) {
  if (n >= lanes) return loadAs<Halves>(from);
#if defined(TESSERA_AVX512)
  return (Halves)_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), from);
#else
  Halves v{};
  memcpy(&v, from, size_t(n) * 2);
  return v;
#endif
}
TESSERA_INLINE void storeHalves(void* to, Halves v, int64_t n) {
  if (n >= lanes) return storeAs(to, v);
#if defined(TESSERA_AVX512)
  _mm256_mask_storeu_epi16(to, __mmask16((1u << n) - 1), (__m256i)v);
#else
  memcpy(to, &v, size_t(n) * 2);
#endif
}

TESSERA_INLINE Words widen(Halves x) { return __builtin_convertvector(x, Words); }
TESSERA_INLINE Halves narrow(Words x) { return __builtin_convertvector(x, Halves); }

TESSERA_INLINE Floats fromBf16(Halves x) { return fromBits(widen(x) << 16); }
// Round to nearest even in integers: unlike the instruction, it keeps subnormals. NaN stays NaN, made quiet.
TESSERA_INLINE Words roundBf16Bits(Floats x) {
  Words u = bits(x);
  Words rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  return select((Ints)(u & 0x7fffffff) > 0x7f800000, (u >> 16) | 0x40, rounded);
}
TESSERA_INLINE Halves toBf16(Floats x) { return narrow(roundBf16Bits(x)); }
TESSERA_INLINE Floats roundBf16(Floats x) { return fromBits(roundBf16Bits(x) << 16); }

TESSERA_INLINE Floats fromF16(Halves x) {
#if defined(TESSERA_AVX512)
  return (Floats)_mm512_cvtph_ps((__m256i)x);
#elif defined(__F16C__) && defined(__AVX2__)
  return (Floats)_mm256_cvtph_ps((__m128i)x);
#else
  // Moving the bits up leaves a float whose exponent is 112 too small; the product mends that, and subnormals with it.
  Words u = widen(x), magnitude = (u & 0x7fff) << 13;
  Words scaled = bits(fromBits(magnitude) * splat(0x1p112f));
  return fromBits(select((Ints)magnitude >= 0x0f800000, magnitude | 0x7f800000, scaled) | ((u & 0x8000) << 16));
#endif
}
TESSERA_INLINE Halves toF16(Floats x) {
#if defined(TESSERA_AVX512)
  return (Halves)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__) && defined(__AVX2__)
  return (Halves)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  Words u = bits(x), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
  Words normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 puts the last bit of a subnormal half at the last bit of the sum, so the addition itself rounds.
  Words small = bits(fromBits(magnitude) + splat(0.5f)) - 0x3f000000;
  Words r = select((Ints)magnitude < (113 << 23), small, normal);
  r = select((Ints)magnitude >= (143 << 23), splatWord(0x7c00), r);
  r = select((Ints)magnitude > 0x7f800000, ((magnitude >> 13) & 0x3ff) | 0x7e00, r);
  return narrow(r | sign);
#endif
}

// n lanes (any n > 0; more than a vector counts as a whole one) of a float type known at compile time.
template <int type> TESSERA_INLINE Floats loadFloats(const char* from, int64_t n) {
  if constexpr (type == TS_F32) return n >= lanes ? loadAs<Floats>(from) : loadPart(reinterpret_cast<const float*>(from), n);
  else if constexpr (type == TS_BF16) return fromBf16(loadHalves(from, n));
  else return fromF16(loadHalves(from, n));
}
template <int type> TESSERA_INLINE void storeFloats(char* to, Floats v, int64_t n) {
  if constexpr (type == TS_F32) {
    if (n >= lanes) storeAs(to, v);
    else storePart(reinterpret_cast<float*>(to), v, n);
  } else if constexpr (type == TS_BF16) storeHalves(to, toBf16(v), n);
  else storeHalves(to, toF16(v), n);
}
TESSERA_INLINE Floats loadTyped(int32_t type, const char* from, int64_t n) {
  if (type == TS_F32) return loadFloats<TS_F32>(from, n);
  return type == TS_BF16 ? loadFloats<TS_BF16>(from, n) : loadFloats<TS_F16>(from, n);
}
TESSERA_INLINE void storeTyped(int32_t type, char* to, Floats v, int64_t n) {
  if (type == TS_F32) storeFloats<TS_F32>(to, v, n);
  else if (type == TS_BF16) storeFloats<TS_BF16>(to, v, n);
  else storeFloats<TS_F16>(to, v, n);
}

// Sums and maxima over the lanes of one vector, in one fixed order.
TESSERA_INLINE float sumLanes(Floats v) {
  float x[lanes];
  memcpy(x, &v, sizeof(v));
  for (int half = lanes / 2; half; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}
TESSERA_INLINE float maxLanes(Floats v) {
  float x[lanes];
  memcpy(x, &v, sizeof(v));
  for (int half = lanes / 2; half; half /= 2)
    for (int i = 0; i < half; i++) x[i] = x[i] > x[i + half] || x[i] != x[i] ? x[i] : x[i + half];
  return x[0];
}
TESSERA_INLINE Floats maxNan(Floats a, Floats b) { return select((a > b) | (a != a), a, b); }
TESSERA_INLINE Floats minNan(Floats a, Floats b) { return select((a < b) | (a != a), a, b); }

// Converting whole arrays (convert.cpp). `floatsOf` hands back the memory itself when it holds floats already.
void toFloats(const char* from, int32_t type, float* to, int64_t n);
void fromFloats(const float* from, char* to, int32_t type, int64_t n);
inline const float* floatsOf(const char* from, int32_t type, float* buffer, int64_t n) {
  if (type == TS_F32) return reinterpret_cast<const float*>(from);
  toFloats(from, type, buffer, n);
  return buffer;
}
// One element of any type as a float or an int, for layouts that no vector fits.
float loadOne(const char* from, int32_t type);
void storeOne(char* to, int32_t type, float value);

// rows[i][j] <-> rows[j][i] for a square of vectors: log2(lanes) rounds, each exchanging neighbours at one distance.
template <int distance, bool upper, int... i> TESSERA_INLINE Words exchange(Words a, Words b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (upper ? ((i & distance) ? lanes + i : i + distance) : ((i & distance) ? lanes + i - distance : i))...);
}
template <int distance> TESSERA_INLINE void transposeRound(Words* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < lanes; i++)
    if (!(i & distance)) {
      Words a = rows[i], b = rows[i + distance];
      rows[i] = exchange<distance, false>(a, b, std::make_integer_sequence<int, lanes>());
      rows[i + distance] = exchange<distance, true>(a, b, std::make_integer_sequence<int, lanes>());
    }
}
TESSERA_INLINE void transpose(Words* rows) {
  if constexpr (lanes == 16) transposeRound<8 % lanes>(rows);
  if constexpr (lanes >= 8) transposeRound<4 % lanes>(rows);
  transposeRound<2>(rows);
  transposeRound<1>(rows);
}

}  // namespace tessera
