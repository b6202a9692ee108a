/**
 * The order of an epoch: an exact permutation of all samples, a pure function of `(seed, epoch, count)`. Ranks, workers
 * and prefetch only decide who reads which position, never what is at it.
 */
import * as Random from "./Random.ts"

/** `at(position)` is the sample at `position`, both in `[0, count)`. */
export interface Order {
  readonly count: number
  readonly at: (position: number) => number
}

/** The samples as stored. */
export const sequential = (count: number): Order => ({ count, at: (position) => position })

/**
 * A uniformly random permutation (Fisher-Yates over Threefry draws). Takes 4 bytes per sample and about 50 ns per
 * sample: 5 MiB and 0.1 s for ImageNet.
 */
export const shuffled = (seed: number, epoch: number, count: number): Order => {
  const order = new Uint32Array(count)
  for (let i = 0; i < count; i++) order[i] = i
  const random = Random.make(Random.purposes.order, seed, epoch, count)
  for (let i = count - 1; i > 0; i--) {
    const j = random.below(i + 1)
    const kept = order[i]!
    order[i] = order[j]!
    order[j] = kept
  }
  return { count, at: (position) => order[position]! }
}

/** The half-open range of part `index` of `parts` nearly equal parts of `count` samples: starts at `floor(count * index / parts)`. */
export const part = (
  count: number,
  index: number,
  parts: number
): { readonly start: number; readonly end: number } => ({
  start: Math.floor((count * index) / parts),
  end: Math.floor((count * (index + 1)) / parts)
})
