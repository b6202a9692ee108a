#include "combine.hpp"
#include <algorithm>
#include "plan.hpp"
#include "simd.hpp"

namespace tessera {

namespace {

template <int type> void addFloats(char* out, const std::vector<const char*>& from, int64_t begin, int64_t count, int by) {
  const int64_t size = elementBytes(type);
  const size_t p = from.size();
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t n = count - i, at = (begin + i) * size;
    Floats sum = loadFloats<type>(from[0] + at, n);
    for (size_t r = 1; r < p; r++) {
      const Floats x = loadFloats<type>(from[r] + at, n);
      sum = by == 0 ? sum + x : maxNan(sum, x);
    }
    storeFloats<type>(out + i * size, sum, n);
  }
}

template <class T> void addWhole(char* out, const std::vector<const char*>& from, int64_t begin, int64_t count, int by) {
  for (int64_t i = 0; i < count; i++) {
    T sum = loadAs<T>(from[0] + (begin + i) * int64_t(sizeof(T)));
    for (size_t r = 1; r < from.size(); r++) {
      const T x = loadAs<T>(from[r] + (begin + i) * int64_t(sizeof(T)));
      sum = by == 0 ? T(sum + x) : std::max(sum, x);
    }
    storeAs(out + i * int64_t(sizeof(T)), sum);
  }
}

}  // namespace

void addInto(char* out, const std::vector<const char*>& from, int64_t begin, int64_t count, int32_t type, int by) {
  switch (type) {
    case TS_F32: return addFloats<TS_F32>(out, from, begin, count, by);
    case TS_BF16: return addFloats<TS_BF16>(out, from, begin, count, by);
    case TS_F16: return addFloats<TS_F16>(out, from, begin, count, by);
    case TS_I32: case TS_U32: return type == TS_I32 && by == 1 ? addWhole<int32_t>(out, from, begin, count, by) : addWhole<uint32_t>(out, from, begin, count, by);
    default: return addWhole<uint8_t>(out, from, begin, count, by);
  }
}

}  // namespace tessera
