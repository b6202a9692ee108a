// Elementary functions on vectors. No tables and no branches; NaN goes through, infinities and overflow behave as in C.
#pragma once
#include "simd.hpp"

namespace tessera {

constexpr float infinity = __builtin_inff();

// x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer that the low bits of the sum then hold.
struct Reduced {
  Floats r;
  Ints n;
};
TESSERA_INLINE Reduced reduceByLog2(Floats x) {
  Floats shifted = x * 1.44269504f + 12582912.0f;
  Floats n = shifted - 12582912.0f;
  return {x - n * 0.693359375f + n * 2.12194440e-4f, (Ints)bits(shifted) - 0x4b400000};
}
TESSERA_INLINE Floats powerOfTwo(Ints n) { return (Floats)((n + 127) << 23); }
TESSERA_INLINE Floats clamp(Floats x, float low, float high) {
  x = select(x > high, splat(high), x);
  return select(x < low, splat(low), x);
}
// (e^r - 1 - r) / r^2 (minimax, Cephes expf)
TESSERA_INLINE Floats expTail(Floats r) {
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  return p * r + 5.0000001201e-1f;
}

TESSERA_INLINE Floats exp(Floats x) {
  x = clamp(x, -104.0f, 89.0f);
  auto [r, n] = reduceByLog2(x);
  Floats p = expTail(r) * (r * r) + (r + 1.0f);
#if defined(TESSERA_AVX512)
  return (Floats)_mm512_scalef_ps((__m512)p, _mm512_cvtepi32_ps((__m512i)n));
#else
  Ints half = n >> 1;  // in two steps, so that subnormal results and the largest floats come out
  return p * powerOfTwo(half) * powerOfTwo(n - half);
#endif
}

// For softmax and sigmoid: x <= 88, and results under 2^-126 may be zero.
TESSERA_INLINE Floats expNoOverflow(Floats x) {
#if defined(TESSERA_AVX512)
  return exp(x);
#else
  x = clamp(x, -87.0f, 88.0f);
  auto [r, n] = reduceByLog2(x);
  Floats p = expTail(r) * (r * r) + (r + 1.0f);
  return select(x <= -87.0f, Floats{}, p * powerOfTwo(n));
#endif
}

TESSERA_INLINE Floats expm1(Floats x) {
  x = clamp(x, -30.0f, 89.0f);
  auto [r, n] = reduceByLog2(x);
  Floats p = expTail(r) * (r * r) + r;
  Floats s = powerOfTwo(n - 1);  // halved, because 2^128 does not exist
  return select(n == 0, p, 2.0f * (s * p + (s - 0.5f)));
}

TESSERA_INLINE Floats log(Floats x) {
  Ints tiny = x < 0x1p-126f;
  Floats scaled = select(tiny, x * 0x1p23f, x);
  Words u = bits(scaled);
  // The mantissa goes to [sqrt(1/2), sqrt(2)).
  Words offset = u - 0x3f3504f3u;
  Ints exponent = ((Ints)offset >> 23) - (tiny & 23);
  Floats m = fromBits((offset & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  Floats e = __builtin_convertvector(exponent, Floats);
  Floats z = m * m;
  Floats p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  Floats y = p * m * z + e * -2.12194440e-4f - 0.5f * z;
  Floats r = m + y + e * 0.693359375f;
  r = select(x == infinity, x, r);
  r = select(x == 0.0f, splat(-infinity), r);
  return select((x < 0.0f) | (x != x), splat(__builtin_nanf("")), r);
}

TESSERA_INLINE Floats copySign(Floats magnitude, Floats sign) {
  return fromBits((bits(magnitude) & 0x7fffffffu) | (bits(sign) & 0x80000000u));
}
TESSERA_INLINE Floats absolute(Floats x) { return fromBits(bits(x) & 0x7fffffffu); }

TESSERA_INLINE Floats tanh(Floats x) {
  Floats e = expm1(2.0f * clamp(x, -10.0f, 10.0f));
  return e / (e + 2.0f);
}

TESSERA_INLINE Floats sigmoid(Floats x) { return 1.0f / (1.0f + exp(-x)); }

// Two minimax polynomials (N. Juffa's erff, below 1 ulp): x P(x^2) near zero, 1 - exp(Q(|x|)) beyond.
TESSERA_INLINE Floats erf(Floats x) {
  Floats t = absolute(x), s = x * x;
  Floats near = splat(-5.96761703e-4f);
  near = near * s + 4.99119423e-3f;
  near = near * s - 2.67681349e-2f;
  near = near * s + 1.12819925e-1f;
  near = near * s - 3.76125336e-1f;
  near = near * s + 1.28379166e-1f;
  near = near * x + x;
  t = select(t > 4.0f, splat(4.0f), t);
  s = t * t;
  Floats far = t * -1.72853470e-5f + 3.83197126e-4f;
  Floats u = t * -3.88396438e-3f + 2.42546219e-2f;
  far = far * s + u;
  far = far * t - 1.06777877e-1f;
  far = far * t - 6.34846687e-1f;
  far = far * t - 1.28717512e-1f;
  far = far * t - t;
  far = copySign(1.0f - expNoOverflow(far), x);
  return select(t > 0.927734375f, far, near);
}

enum Activation { noActivation = 0, geluErf = 1, geluTanh = 2, quickGelu = 3, relu = 4 };

// x sigmoid(2 u) is x/2 (1 + tanh u), with one division.
TESSERA_INLINE Floats gelu(int kind, Floats x) {
  if (kind == geluErf) return 0.5f * x * (1.0f + erf(x * 0.70710678f));
  if (kind == geluTanh) return x / (1.0f + exp(x * -1.5957691216f * (1.0f + 0.044715f * x * x)));
  return x / (1.0f + exp(-1.702f * x));
}
TESSERA_INLINE Floats geluGradient(int kind, Floats x) {
  if (kind == geluErf) return 0.5f * (1.0f + erf(x * 0.70710678f)) + x * 0.39894228f * expNoOverflow(-0.5f * x * x);
  if (kind == geluTanh) {
    Floats s = 1.0f / (1.0f + exp(x * -1.5957691216f * (1.0f + 0.044715f * x * x)));
    Floats slope = s * (1.0f - s) * 1.5957691216f * (1.0f + 3.0f * 0.044715f * x * x);
    return s + select(s * (1.0f - s) == 0.0f, Floats{}, x * slope);
  }
  Floats s = 1.0f / (1.0f + exp(-1.702f * x));
  return s + select(s * (1.0f - s) == 0.0f, Floats{}, 1.702f * x * s * (1.0f - s));
}
TESSERA_INLINE Floats activate(int kind, Floats x) {
  if (kind == noActivation) return x;
  if (kind == relu) return select(x < 0.0f, Floats{}, x);
  return gelu(kind, x);
}

}  // namespace tessera
