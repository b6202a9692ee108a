const rotations = [13, 15, 26, 6, 17, 29, 16, 24] as const

/**
 * Threefry-2x32, 20 rounds: two random words of key (k0, k1) at counter (c0, c1).
 * @source Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3
 */
export const threefry = (k0: number, k1: number, c0: number, c1: number): readonly [number, number] => {
  const key = [k0 >>> 0, k1 >>> 0, (k0 ^ k1 ^ 0x1bd11bda) >>> 0]
  let x0 = (c0 + key[0]!) >>> 0
  let x1 = (c1 + key[1]!) >>> 0
  for (let round = 0; round < 20; round++) {
    x0 = (x0 + x1) >>> 0
    const r = rotations[round % 8]!
    x1 = (((x1 << r) | (x1 >>> (32 - r))) ^ x0) >>> 0
    if (round % 4 === 3) {
      const inject = (round + 1) / 4
      x0 = (x0 + key[inject % 3]!) >>> 0
      x1 = (x1 + key[(inject + 1) % 3]! + inject) >>> 0
    }
  }
  return [x0, x1]
}
