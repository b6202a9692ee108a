/**
 * Counter-based random numbers: a draw is a pure function of its key and its number, so no draw depends on which
 * worker, rank or batch asks for it, nor on what was drawn before.
 *
 * @source Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (2011): Threefry-2x32, 20 rounds
 */

/** Draws in sequence from one key. */
export interface Random {
  /** the next 32 bits, `0 .. 2^32 - 1` */
  readonly bits: () => number
  /** uniform in `[0, 1)`, 32 bits of resolution */
  readonly unit: () => number
  /** uniform in `[low, high)` */
  readonly between: (low: number, high: number) => number
  /** a whole number in `[0, count)`, without modulo bias */
  readonly below: (count: number) => number
  /** standard normal */
  readonly normal: () => number
}

const parity = 0x1bd11bda

/**
 * Threefry-2x32-20: the 64 bits of block `(counter0, counter1)` under `(key0, key1)`, written to `out[0]` and `out[1]`.
 */
export const threefry = (key0: number, key1: number, counter0: number, counter1: number, out: Uint32Array): void => {
  const key2 = parity ^ key0 ^ key1
  let a = (counter0 + key0) | 0
  let b = (counter1 + key1) | 0
  for (let group = 0; group < 5; group++) {
    if ((group & 1) === 0) {
      a = (a + b) | 0
      b = ((b << 13) | (b >>> 19)) ^ a
      a = (a + b) | 0
      b = ((b << 15) | (b >>> 17)) ^ a
      a = (a + b) | 0
      b = ((b << 26) | (b >>> 6)) ^ a
      a = (a + b) | 0
      b = ((b << 6) | (b >>> 26)) ^ a
    } else {
      a = (a + b) | 0
      b = ((b << 17) | (b >>> 15)) ^ a
      a = (a + b) | 0
      b = ((b << 29) | (b >>> 3)) ^ a
      a = (a + b) | 0
      b = ((b << 16) | (b >>> 16)) ^ a
      a = (a + b) | 0
      b = ((b << 24) | (b >>> 8)) ^ a
    }
    const next = group + 1
    a = (a + (next % 3 === 0 ? key0 : next % 3 === 1 ? key1 : key2)) | 0
    b = (b + ((next + 1) % 3 === 0 ? key0 : (next + 1) % 3 === 1 ? key1 : key2) + next) | 0
  }
  out[0] = a
  out[1] = b
}

/** What a stream of draws is for. Different purposes never share numbers, even for equal seeds and indices. */
export const purposes = { order: 1, augment: 2, mix: 3 } as const

/**
 * The draws for `(seed, epoch, index)` and one purpose. `seed`, `epoch` and `index` are whole numbers; the low 53
 * bits of each count.
 */
export const make = (purpose: number, seed: number, epoch: number, index: number): Random => {
  const out = new Uint32Array(2)
  // Fold the words into one key, one block per word, so that no two tuples collide by addition.
  threefry(low(seed), high(seed), purpose, 0, out)
  threefry(out[0]!, out[1]!, low(epoch), high(epoch), out)
  threefry(out[0]!, out[1]!, low(index), high(index), out)
  const key0 = out[0]!
  const key1 = out[1]!
  let block = 0
  let have = 0
  let spare = Number.NaN
  const bits = (): number => {
    if (have === 0) {
      threefry(key0, key1, low(block), high(block), out)
      block += 1
      have = 2
    }
    have -= 1
    return out[1 - have]!
  }
  const unit = () => bits() / 4294967296
  const below = (count: number): number => {
    if (count <= 1) return 0
    const limit = 4294967296 - (4294967296 % count)
    let drawn = bits()
    while (drawn >= limit) drawn = bits()
    return drawn % count
  }
  const normal = (): number => {
    if (!Number.isNaN(spare)) {
      const value = spare
      spare = Number.NaN
      return value
    }
    const radius = Math.sqrt(-2 * Math.log(1 - unit()))
    const angle = 2 * Math.PI * unit()
    spare = radius * Math.sin(angle)
    return radius * Math.cos(angle)
  }
  return { bits, unit, below, normal, between: (from, to) => from + (to - from) * unit() }
}

const low = (value: number): number => value >>> 0
const high = (value: number): number => Math.floor(value / 4294967296) >>> 0

/**
 * A draw from Beta(alpha, alpha).
 *
 * @source Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables" (2000); Beta as a ratio of two gammas
 */
export const beta = (random: Random, alpha: number): number => {
  const first = gamma(random, alpha)
  const second = gamma(random, alpha)
  return first + second === 0 ? (random.unit() < 0.5 ? 0 : 1) : first / (first + second)
}

const gamma = (random: Random, shape: number): number => {
  if (shape < 1) return gamma(random, shape + 1) * Math.pow(1 - random.unit(), 1 / shape)
  const d = shape - 1 / 3
  const c = 1 / Math.sqrt(9 * d)
  for (;;) {
    const x = random.normal()
    const v = Math.pow(1 + c * x, 3)
    if (v > 0 && Math.log(1 - random.unit()) < 0.5 * x * x + d - d * v + d * Math.log(v)) return d * v
  }
}
