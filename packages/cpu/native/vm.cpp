#include "vm.hpp"
#include <cmath>
#include "math.hpp"
#include "threefry.hpp"

namespace tessera {

int vmArity(int64_t op) {
  switch (op) {
    case TS_VM_CONST_F: case TS_VM_CONST_I: case TS_VM_IOTA:
      return 0;
    case TS_VM_STORE:
    case TS_VM_NEG: case TS_VM_ABS: case TS_VM_EXP: case TS_VM_EXPM1: case TS_VM_LOG: case TS_VM_TANH: case TS_VM_ERF: case TS_VM_SQRT: case TS_VM_SIN:
    case TS_VM_COS: case TS_VM_FLOOR: case TS_VM_SIGN: case TS_VM_SIGMOID: case TS_VM_GELU: case TS_VM_GELU_GRAD:
    case TS_VM_INEG: case TS_VM_IABS: case TS_VM_ISIGN: case TS_VM_ISFINITE: case TS_VM_NOT:
    case TS_VM_F2I: case TS_VM_F2U: case TS_VM_I2F: case TS_VM_U2F: case TS_VM_F2B: case TS_VM_I2B: case TS_VM_ROUND_BF16: case TS_VM_ROUND_F16:
    case TS_VM_F2U8: case TS_VM_I2U8:
      return 1;
    case TS_VM_ADD: case TS_VM_SUB: case TS_VM_MUL: case TS_VM_DIV: case TS_VM_MAX: case TS_VM_MIN:
    case TS_VM_IADD: case TS_VM_ISUB: case TS_VM_IMUL: case TS_VM_IDIV: case TS_VM_IMAX: case TS_VM_IMIN: case TS_VM_UDIV: case TS_VM_UMAX: case TS_VM_UMIN:
    case TS_VM_LESS_F: case TS_VM_LESS_I: case TS_VM_LESS_U: case TS_VM_EQUAL_F: case TS_VM_EQUAL_I: case TS_VM_AND: case TS_VM_OR:
      return 2;
    case TS_VM_FMA: case TS_VM_SELECT:
      return 3;
    case TS_VM_THREEFRY:
      return 4;
    default:
      return -1;
  }
}

namespace {

// Saturating, NaN to 0. The comparison comes first: converting what does not fit is undefined.
inline int32_t toInt(float x) { return x >= 2147483648.0f ? INT32_MAX : x < -2147483648.0f ? INT32_MIN : x != x ? 0 : int32_t(x); }
inline uint32_t toWord(float x) { return x >= 4294967296.0f ? UINT32_MAX : x > 0 ? uint32_t(x) : 0; }
inline int32_t floorDivide(int32_t x, int32_t y) {
  if (y == 0) return 0;
  if (y == -1) return int32_t(0u - uint32_t(x));
  const int32_t q = x / y;
  return x % y != 0 && (x ^ y) < 0 ? q - 1 : q;
}

}  // namespace

// x, y, z are vectors of floats; i, j, k the same lanes as int32; u, v, w as uint32.
#define EACH(V, ...)                                                                   \
  for (int64_t at = 0; at < n; at += lanes) {                                          \
    storeAs<V>(dst + at, __VA_ARGS__);                                                 \
  }                                                                                    \
  return
#define X loadAs<Floats>(a + at)
#define Y loadAs<Floats>(b + at)
#define Z loadAs<Floats>(c + at)
#define I loadAs<Ints>(a + at)
#define J loadAs<Ints>(b + at)
#define U loadAs<Words>(a + at)
#define V loadAs<Words>(b + at)
#define W loadAs<Words>(c + at)
// Lane by lane, for the compiler to vectorise (or libm to compute).
#define LANES(T, S, expression)                                                        \
  {                                                                                    \
    const S* x = reinterpret_cast<const S*>(a);                                        \
    const S* y = reinterpret_cast<const S*>(b);                                        \
    T* to = reinterpret_cast<T*>(dst);                                                 \
    (void)y;                                                                           \
    for (int64_t at = 0; at < n; at++) to[at] = (expression);                          \
    return;                                                                            \
  }

void vmRun(const VmInstruction& instruction, int64_t n, float* dst, const float* a, const float* b, const float* c, const float* d) {
  switch (instruction.op) {
    case TS_VM_CONST_F: {
      double value;
      memcpy(&value, &instruction.immediate, 8);
      const Floats all = splat(float(value));
      EACH(Floats, all);
    }
    case TS_VM_CONST_I: {
      const Words all = splatWord(uint32_t(instruction.immediate));
      EACH(Words, all);
    }
    case TS_VM_ADD: EACH(Floats, X + Y);
    case TS_VM_SUB: EACH(Floats, X - Y);
    case TS_VM_MUL: EACH(Floats, X * Y);
    case TS_VM_DIV: EACH(Floats, X / Y);
    case TS_VM_MAX: EACH(Floats, maxNan(X, Y));
    case TS_VM_MIN: EACH(Floats, minNan(X, Y));
    case TS_VM_NEG: EACH(Words, U ^ 0x80000000u);
    case TS_VM_ABS: EACH(Words, U & 0x7fffffffu);
    case TS_VM_EXP: EACH(Floats, exp(X));
    case TS_VM_EXPM1: EACH(Floats, expm1(X));
    case TS_VM_LOG: EACH(Floats, log(X));
    case TS_VM_TANH: EACH(Floats, tanh(X));
    case TS_VM_ERF: EACH(Floats, erf(X));
    case TS_VM_SQRT: LANES(float, float, __builtin_sqrtf(x[at]))
    case TS_VM_SIN: LANES(float, float, std::sin(x[at]))
    case TS_VM_COS: LANES(float, float, std::cos(x[at]))
    case TS_VM_FLOOR: LANES(float, float, __builtin_floorf(x[at]))
    case TS_VM_SIGN: EACH(Floats, select(X > 0.0f, splat(1.0f), select(X < 0.0f, splat(-1.0f), X)));
    case TS_VM_SIGMOID: EACH(Floats, sigmoid(X));
    case TS_VM_GELU:
      if (instruction.immediate == geluErf) { EACH(Floats, gelu(geluErf, X)); }
      if (instruction.immediate == geluTanh) { EACH(Floats, gelu(geluTanh, X)); }
      EACH(Floats, gelu(quickGelu, X));
    case TS_VM_GELU_GRAD:
      if (instruction.immediate == geluErf) { EACH(Floats, geluGradient(geluErf, X)); }
      if (instruction.immediate == geluTanh) { EACH(Floats, geluGradient(geluTanh, X)); }
      EACH(Floats, geluGradient(quickGelu, X));
    case TS_VM_FMA: EACH(Floats, X * Y + Z);

    case TS_VM_IADD: EACH(Words, U + V);
    case TS_VM_ISUB: EACH(Words, U - V);
    case TS_VM_IMUL: EACH(Words, U * V);
    case TS_VM_IDIV: LANES(int32_t, int32_t, floorDivide(x[at], y[at]))
    case TS_VM_IMAX: EACH(Ints, I > J ? I : J);
    case TS_VM_IMIN: EACH(Ints, I < J ? I : J);
    case TS_VM_UDIV: LANES(uint32_t, uint32_t, y[at] ? x[at] / y[at] : 0)
    case TS_VM_UMAX: EACH(Words, U > V ? U : V);
    case TS_VM_UMIN: EACH(Words, U < V ? U : V);
    case TS_VM_INEG: EACH(Words, -U);
    case TS_VM_IABS: EACH(Words, I < 0 ? -U : U);
    case TS_VM_ISIGN: EACH(Ints, (I < 0) - (I > 0));

    // A true lane of a comparison is -1.
    case TS_VM_LESS_F: EACH(Ints, -(X < Y));
    case TS_VM_LESS_I: EACH(Ints, -(I < J));
    case TS_VM_LESS_U: EACH(Ints, -(U < V));
    case TS_VM_EQUAL_F: EACH(Ints, -(X == Y));
    case TS_VM_EQUAL_I: EACH(Ints, -(I == J));
    case TS_VM_ISFINITE: EACH(Ints, -((U & 0x7f800000u) != 0x7f800000u));
    case TS_VM_SELECT: EACH(Words, I != 0 ? V : W);
    case TS_VM_AND: EACH(Words, U & V);
    case TS_VM_OR: EACH(Words, U | V);
    case TS_VM_NOT: EACH(Ints, -(I == 0));

    case TS_VM_F2I: LANES(int32_t, float, toInt(x[at]))
    case TS_VM_F2U: LANES(uint32_t, float, toWord(x[at]))
    case TS_VM_I2F: EACH(Floats, __builtin_convertvector(I, Floats));
    case TS_VM_U2F: LANES(float, uint32_t, float(x[at]))
    case TS_VM_F2B: EACH(Ints, -(X != 0.0f));
    case TS_VM_I2B: EACH(Ints, -(I != 0));
    case TS_VM_ROUND_BF16: EACH(Floats, roundBf16(X));
    case TS_VM_ROUND_F16: EACH(Floats, fromF16(toF16(X)));
    case TS_VM_F2U8: LANES(int32_t, float, x[at] >= 255.0f ? 255 : x[at] > 0 ? int32_t(x[at]) : 0)
    case TS_VM_I2U8: EACH(Words, U & 0xffu);
    case TS_VM_THREEFRY: EACH(Words, threefry(U, V, W, loadAs<Words>(d + at)));
  }
}

}  // namespace tessera
