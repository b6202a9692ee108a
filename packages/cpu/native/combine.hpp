// Sums and maxima over ranks.
#pragma once
#include <cstdint>
#include <vector>

namespace tessera {

// Elements begin..begin+count of all, in the order given: whoever adds gets the same bits. Sums of 16-bit floats are rounded once. by: 0 sum, 1 max.
void addInto(char* out, const std::vector<const char*>& from, int64_t begin, int64_t count, int32_t type, int by);

}  // namespace tessera
