// Threefry-2x32 with 20 rounds (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011): the first of its two result words.
#pragma once
#include "simd.hpp"

namespace tessera {

TESSERA_INLINE Words threefry(Words key0, Words key1, Words counter0, Words counter1) {
  constexpr int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const Words keys[3] = {key0, key1, key0 ^ key1 ^ 0x1bd11bda};
  Words x0 = counter0 + key0, x1 = counter1 + key1;
#pragma GCC unroll 5
  for (int group = 0; group < 5; group++) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const int r = rotations[group % 2][i];
      x0 += x1;
      x1 = ((x1 << r) | (x1 >> (32 - r))) ^ x0;
    }
    x0 += keys[(group + 1) % 3];
    x1 += keys[(group + 2) % 3] + uint32_t(group + 1);
  }
  return x0;
}

}  // namespace tessera
