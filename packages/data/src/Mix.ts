/**
 * Mixing the images and labels of neighbouring rows of a batch. Row 2k is mixed with row 2k + 1 (an odd last row stays),
 * and the numbers drawn belong to the global batch, so ranks that hold an even number of rows agree with a single one.
 */
import type { PixelShape } from "./Augment.ts"
import * as Random from "./Random.ts"

/** A way of mixing, and the labels it gives. */
export interface Mix {
  readonly name: string
  readonly classCount: number
  /** in `[0, 1)`: this much of every label is spread over all classes */
  readonly smoothing: number
  /** mixes `images` `[batch, row, col, channel]` in place and returns the part each row keeps of itself, in `[0, 1]` */
  readonly run: (images: Float32Array, rows: number, shape: PixelShape, random: Random.Random) => number
}

export interface MixOptions {
  readonly classCount: number
  /** of the Beta(alpha, alpha) distribution of the part kept; mixup's paper uses 0.2 to 0.4, cutmix's 1 */
  readonly alpha: number
  /** chance that a batch is mixed at all; default 1 */
  readonly probability?: number
  readonly smoothing?: number
}

/** `image <- part * image + (1 - part) * neighbour`. @source Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2017) */
export const mixup = (options: MixOptions): Mix =>
  make("mixup", options, (images, rows, shape, part) => {
    const size = shape.height * shape.width * shape.channels
    eachPair(rows, size, (first, second) => {
      for (let i = 0; i < size; i++) {
        const a = images[first + i]!
        const b = images[second + i]!
        images[first + i] = part * a + (1 - part) * b
        images[second + i] = part * b + (1 - part) * a
      }
    })
    return part
  })

/**
 * A box of area `1 - part`, cut off at the border, comes from the neighbour; the part kept is counted in pixels.
 *
 * @source Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers" (2019), equation 2
 */
export const cutmix = (options: MixOptions): Mix =>
  make("cutmix", options, (images, rows, { channels, height, width }, part, random) => {
    const side = Math.sqrt(1 - part)
    const centreRow = random.below(height)
    const centreCol = random.below(width)
    const halfHeight = Math.floor((height * side) / 2)
    const halfWidth = Math.floor((width * side) / 2)
    const top = Math.max(0, centreRow - halfHeight)
    const bottom = Math.min(height, centreRow + halfHeight)
    const left = Math.max(0, centreCol - halfWidth)
    const right = Math.min(width, centreCol + halfWidth)
    eachPair(rows, height * width * channels, (first, second) => {
      for (let row = top; row < bottom; row++) {
        for (let i = (row * width + left) * channels; i < (row * width + right) * channels; i++) {
          const kept = images[first + i]!
          images[first + i] = images[second + i]!
          images[second + i] = kept
        }
      }
    })
    return 1 - ((bottom - top) * (right - left)) / (height * width)
  })

/** One of two ways for each batch; `chance` is that of the first. */
export const either = (first: Mix, second: Mix, chance = 0.5): Mix => ({
  ...first,
  name: `${first.name} or ${second.name}`,
  run: (images, rows, shape, random) => (random.unit() < chance ? first : second).run(images, rows, shape, random)
})

/** Only smooths the labels. */
export const labelSmoothing = (classCount: number, smoothing: number): Mix => ({
  name: "labelSmoothing",
  classCount,
  smoothing,
  run: () => 1
})

type Change = (images: Float32Array, rows: number, shape: PixelShape, part: number, random: Random.Random) => number

const make = (name: string, options: MixOptions, change: Change): Mix => ({
  name,
  classCount: options.classCount,
  smoothing: options.smoothing ?? 0,
  run: (images, rows, shape, random) => {
    if (random.unit() >= (options.probability ?? 1)) return 1
    const part = Random.beta(random, options.alpha)
    return change(images, rows, shape, part, random)
  }
})

const eachPair = (rows: number, size: number, visit: (first: number, second: number) => void): void => {
  for (let row = 0; row + 1 < rows; row += 2) visit(row * size, (row + 1) * size)
}

/** `[batch, classes]`: each row's own label with weight `part`, its neighbour's with the rest, then smoothed. Rows sum to 1. */
export const softLabels = (
  labels: Int32Array,
  part: number,
  mix: { readonly classCount: number; readonly smoothing: number }
): Float32Array => {
  const { classCount, smoothing } = mix
  const soft = new Float32Array(labels.length * classCount).fill(smoothing / classCount)
  for (let row = 0; row < labels.length; row++) {
    const neighbour = (row ^ 1) < labels.length ? row ^ 1 : row
    soft[row * classCount + labels[row]!]! += part * (1 - smoothing)
    soft[row * classCount + labels[neighbour]!]! += (1 - part) * (1 - smoothing)
  }
  return soft
}
