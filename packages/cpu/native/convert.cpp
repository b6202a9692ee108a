// Conversions between the float types in memory, a vector at a time.
#include "simd.hpp"

namespace tessera {

namespace {
template <int type> void widenAll(const char* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) storeAs(to + i, loadFloats<type>(from + 2 * i, lanes));
  if (i < n) storeFloats<TS_F32>(reinterpret_cast<char*>(to + i), loadFloats<type>(from + 2 * i, n - i), n - i);
}
template <int type> void narrowAll(const float* from, char* to, int64_t n) {
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) storeFloats<type>(to + 2 * i, loadAs<Floats>(from + i), lanes);
  if (i < n) storeFloats<type>(to + 2 * i, loadPart(from + i, n - i), n - i);
}
}  // namespace

void toFloats(const char* from, int32_t type, float* to, int64_t n) {
  if (type == TS_F32) memcpy(to, from, size_t(n) * 4);
  else if (type == TS_BF16) widenAll<TS_BF16>(from, to, n);
  else widenAll<TS_F16>(from, to, n);
}

void fromFloats(const float* from, char* to, int32_t type, int64_t n) {
  if (type == TS_F32) memmove(to, from, size_t(n) * 4);
  else if (type == TS_BF16) narrowAll<TS_BF16>(from, to, n);
  else narrowAll<TS_F16>(from, to, n);
}

float loadOne(const char* from, int32_t type) {
  if (type == TS_F32) return loadAs<float>(from);
  Halves half{};
  half[0] = loadAs<uint16_t>(from);
  return type == TS_BF16 ? fromBf16(half)[0] : fromF16(half)[0];
}

void storeOne(char* to, int32_t type, float value) {
  if (type == TS_F32) return storeAs(to, value);
  storeAs<uint16_t>(to, type == TS_BF16 ? toBf16(splat(value))[0] : toF16(splat(value))[0]);
}

}  // namespace tessera
