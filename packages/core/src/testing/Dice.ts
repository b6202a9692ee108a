/** Choices that depend on a seed only. Seed 0 always takes the first choice, so that shrinking ends at something plain. */
export interface Dice {
  /** In [0, 1). */
  readonly next: () => number
  /** A whole number in low..high, both included. */
  readonly int: (low: number, high: number) => number
  readonly chance: (probability: number) => boolean
  readonly pick: <A>(xs: ReadonlyArray<A>) => A
  readonly shuffle: <A>(xs: ReadonlyArray<A>) => ReadonlyArray<A>
}

export const make = (seed: number): Dice => {
  let state = seed >>> 0
  const next = (): number => {
    if (seed === 0) return 0
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
  const int = (low: number, high: number) => low + Math.floor(next() * (high - low + 1))
  return {
    next,
    int,
    chance: (probability) => next() > 1 - probability,
    pick: (xs) => xs[int(0, xs.length - 1)]!,
    shuffle: (xs) => {
      const all = [...xs]
      for (let i = 0; i < all.length - 1; i++) {
        const j = int(i, all.length - 1)
        const kept = all[i]!
        all[i] = all[j]!
        all[j] = kept
      }
      return all
    }
  }
}
