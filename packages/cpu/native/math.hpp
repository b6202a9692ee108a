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
// The instructions hand through their second operand when one is NaN: x, here.
TESSERA_INLINE Floats atMost(Floats x, float high) {
#if defined(TESSERA_AVX512)
  return (Floats)_mm512_min_ps(_mm512_set1_ps(high), (__m512)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_min_ps(_mm256_set1_ps(high), (__m256)x);
#else
  return select(x > high, splat(high), x);
#endif
}
TESSERA_INLINE Floats atLeast(Floats x, float low) {
#if defined(TESSERA_AVX512)
  return (Floats)_mm512_max_ps(_mm512_set1_ps(low), (__m512)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps(_mm256_set1_ps(low), (__m256)x);
#else
  return select(x < low, splat(low), x);
#endif
}
TESSERA_INLINE Floats clamp(Floats x, float low, float high) { return atLeast(atMost(x, high), low); }
// (e^r - 1 - r) / r^2 (minimax, Cephes expf)
TESSERA_INLINE Floats expTail(Floats r) {
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  return p * r + 5.0000001201e-1f;
}

#if defined(TESSERA_AVX512)
// Scaling by 2^n is one instruction, whatever n, and takes it as a float.
TESSERA_INLINE Floats expInRange(Floats x) {
  Floats n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = expTail(r) * (r * r) + (r + 1.0f);
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)n);
}
TESSERA_INLINE Floats exp(Floats x) { return expInRange(clamp(x, -104.0f, 89.0f)); }
TESSERA_INLINE Floats expNoOverflow(Floats x) { return expInRange(atLeast(x, -104.0f)); }
#else
TESSERA_INLINE Floats exp(Floats x) {
  x = clamp(x, -104.0f, 89.0f);
  auto [r, n] = reduceByLog2(x);
  Floats p = expTail(r) * (r * r) + (r + 1.0f);
  Ints half = n >> 1;  // in two steps, so that subnormal results and the largest floats come out
  return p * powerOfTwo(half) * powerOfTwo(n - half);
}
// For softmax and its like: x <= 88, and results under 2^-126 are zero.
TESSERA_INLINE Floats expNoOverflow(Floats x) {
  Floats bounded = atLeast(x, -87.0f);
  auto [r, n] = reduceByLog2(bounded);
  Floats p = expTail(r) * (r * r) + (r + 1.0f);
  return select(x < -87.0f, Floats{}, p * powerOfTwo(n));
}
#endif

// 2^y for y <= 0; results under 2^-126 may be zero.
TESSERA_INLINE Floats exp2Negative(Floats y) {
  Floats bounded = atLeast(y, -126.0f);
  Floats shifted = bounded + 12582912.0f;
  Floats n = shifted - 12582912.0f, f = bounded - n;
  Floats p = splat(1.5370705e-4f);
  p = p * f + 1.3399848e-3f;
  p = p * f + 9.6183736e-3f;
  p = p * f + 5.5503290e-2f;
  p = p * f + 2.4022648e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
#if defined(TESSERA_AVX512)
  p = (Floats)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  p *= powerOfTwo((Ints)bits(shifted) - 0x4b400000);
#endif
  return select(y < -126.0f, Floats{}, p);
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
  t = atMost(t, 4.0f);
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

// The normal distribution function at -t for t in 0..20, to 2e-8: log2 of it is a polynomial of degree 8 there (a weighted minimax fit of ours),
// so GELU costs one exponential and no branch.
TESSERA_INLINE Floats normalTail(Floats t) {
  Floats y = splat(-1.56889439e-6f);
  y = y * t + 2.43983611e-5f;
  y = y * t - 1.15967873e-4f;
  y = y * t - 3.03845998e-4f;
  y = y * t + 7.27701653e-3f;
  y = y * t - 5.26395738e-2f;
  y = y * t - 4.59163398e-1f;
  y = y * t - 1.15110981f;
  return exp2Negative(y * t - 1.0f);
}

// Bounds on what is exponentiated keep 1 + e finite, and x / (1 + e) zero where it should be.
TESSERA_INLINE Floats onePlusExp(Floats x) { return 1.0f + expNoOverflow(atMost(x, 88.0f)); }
// For finite x >= 1, to about 1 ulp.
TESSERA_INLINE Floats reciprocal(Floats x) {
#if defined(TESSERA_AVX512)
  Floats r = (Floats)_mm512_rcp14_ps((__m512)x);
  return r * (2.0f - x * r);
#else
  return 1.0f / x;
#endif
}

// x sigmoid(2 u) is x/2 (1 + tanh u), with one division. Far below zero the value is zero, its limit at minus infinity too.
TESSERA_INLINE Floats gelu(int kind, Floats x) {
  if (kind == geluErf) {
    Floats t = atMost(absolute(x), 20.0f);
    return atLeast(x, 0.0f) - t * normalTail(t);
  }
  Floats e = kind == geluTanh ? x * -1.5957691216f * (1.0f + 0.044715f * x * x) : -1.702f * x;
  return select(x < -50.0f, splat(0.0f), x * reciprocal(onePlusExp(e)));
}
TESSERA_INLINE Floats geluGradient(int kind, Floats x) {
  if (kind == geluErf) {
    Floats t = atMost(absolute(x), 20.0f);
    Floats tail = normalTail(t), density = exp2Negative(t * t * -0.72134752f) * 0.39894228f;
    Floats slope = t * density;  // even in the tails: Phi(x) + x phi(x) = 1 - (Phi(-x) - x phi(x))
    return select(x < 0.0f, tail - slope, 1.0f - tail + slope);
  }
  Floats s, slope;
  if (kind == geluTanh) {
    Floats bounded = clamp(x, -20.0f, 20.0f), square = bounded * bounded;
    s = reciprocal(onePlusExp(bounded * -1.5957691216f * (1.0f + 0.044715f * square)));
    slope = bounded * 1.5957691216f * (1.0f + 3.0f * 0.044715f * square);
  } else {
    Floats bounded = clamp(x, -60.0f, 60.0f);
    s = reciprocal(onePlusExp(-1.702f * bounded));
    slope = 1.702f * bounded;
  }
  return s + s * (1.0f - s) * slope;
}
TESSERA_INLINE Floats activate(int kind, Floats x) {
  if (kind == noActivation) return x;
  if (kind == relu) return atLeast(x, 0.0f);
  return gelu(kind, x);
}

}  // namespace tessera
