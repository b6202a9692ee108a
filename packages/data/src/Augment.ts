/**
 * What happens to a picture between decoding and the batch. An operation is a value made by a function of its
 * settings; its randomness is a pure function of (run seed, epoch, sample index), so the same sample is augmented
 * alike whichever worker, rank or batch holds it.
 */
import * as Color from "./Color.ts"
import type { RawImage } from "./Image.ts"
import type { Random } from "./Random.ts"
import * as Resample from "./Resample.ts"
import * as View from "./View.ts"

/** How an operation was made: the name of its constructor and the arguments. What a worker thread is told. */
export interface Spec {
  readonly name: string
  readonly settings: ReadonlyArray<unknown>
}

/** One step: `[row, col, channel]` to `[row, col, channel]`, 8 bits. Deterministic operations ignore `random`. */
export interface Operation {
  readonly name: string
  /** null for operations of your own: those run on the calling thread only */
  readonly spec: Spec | null
  readonly run: (view: View.View, random: Random) => View.View
}

/** A step on normalised floats, in place: `[height, width, channels]` from `at` on. */
export interface FloatOperation {
  readonly name: string
  readonly spec: Spec | null
  readonly run: (pixels: Float32Array, at: number, shape: PixelShape, random: Random) => void
}

export interface PixelShape {
  readonly height: number
  readonly width: number
  readonly channels: 1 | 3
}

/** Operations in order, then `(pixel / 255 - mean) / std` per channel, then operations on floats. */
export interface Pipeline extends PixelShape {
  readonly operations: ReadonlyArray<Operation>
  readonly mean: ReadonlyArray<number>
  readonly std: ReadonlyArray<number>
  readonly after: ReadonlyArray<FloatOperation>
  /** `[channel, 256]`: normalised values by grey level */
  readonly table: Float32Array
}

/** Means and standard deviations of the channels, in `[0, 1]`. */
export interface Normalization {
  readonly mean: ReadonlyArray<number>
  readonly std: ReadonlyArray<number>
}

/** @source openai/CLIP clip/clip.py */
export const clipNormalization: Normalization = {
  mean: [0.48145466, 0.4578275, 0.40821073],
  std: [0.26862954, 0.26130258, 0.27577711]
}
/** @source pytorch/vision references/classification/presets.py */
export const imagenetNormalization: Normalization = { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] }
/** To `[-1, 1]`. @source google-research/vision_transformer vit_jax/input_pipeline.py */
export const halfNormalization: Normalization = { mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] }
/** @source the published statistics of the CIFAR-10 training set */
export const cifarNormalization: Normalization = { mean: [0.4914, 0.4822, 0.4465], std: [0.247, 0.2435, 0.2616] }
/** One channel. @source pytorch/examples mnist/main.py */
export const mnistNormalization: Normalization = { mean: [0.1307], std: [0.3081] }

/** A pipeline whose operations end in images of `height x width x channels`. */
export const pipeline = (
  options: PixelShape & {
    readonly operations: ReadonlyArray<Operation>
    readonly normalization: Normalization
    readonly after?: ReadonlyArray<FloatOperation>
  }
): Pipeline => {
  const { mean, std } = options.normalization
  const table = new Float32Array(options.channels * 256)
  for (let channel = 0; channel < options.channels; channel++) {
    for (let value = 0; value < 256; value++) {
      table[channel * 256 + value] = (value / 255 - mean[channel % mean.length]!) / std[channel % std.length]!
    }
  }
  return {
    height: options.height,
    width: options.width,
    channels: options.channels,
    operations: options.operations,
    mean,
    std,
    after: options.after ?? [],
    table
  }
}

/** All operations, in order. The result may be a window that is not copied yet. */
export const run = (image: RawImage, operations: ReadonlyArray<Operation>, random: Random): View.View => {
  let view = View.of(image)
  for (const operation of operations) view = operation.run(view, random)
  return view
}

/** An operation on whole pictures. Use it to make your own. */
export const onImage = (
  name: string,
  run: (image: RawImage, random: Random) => RawImage,
  settings: ReadonlyArray<unknown> | null = null
): Operation => ({
  name,
  spec: settings === null ? null : { name, settings },
  run: (view, random) => View.of(run(View.toImage(view), random))
})

/** Python's rounding: halves go to the even neighbour. */
const roundHalfEven = (value: number): number => {
  const floor = Math.floor(value)
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value)
}

/** The shorter side becomes `size`, the longer `floor(size * long / short)`. */
export const resizeShorter = (size: number, interpolation: Resample.Interpolation = "bicubic"): Operation =>
  onImage(
    "resizeShorter",
    (image) => {
      const { height, width } = image
      const target =
        width <= height
          ? { width: size, height: Math.floor((size * height) / width) }
          : { height: size, width: Math.floor((size * width) / height) }
      return Resample.resize(image, target, interpolation)
    },
    [size, interpolation]
  )

/** Both sides become `size`, whatever the proportions (Rosetta's evaluation). */
export const resizeSquare = (size: number, interpolation: Resample.Interpolation = "bilinear"): Operation =>
  onImage("resizeSquare", (image) => Resample.resize(image, { height: size, width: size }, interpolation), [
    size,
    interpolation
  ])

/** The middle `size x size`; a smaller picture gets black borders. Offsets as torchvision rounds them. */
export const centerCrop = (size: number): Operation => ({
  name: "centerCrop",
  spec: { name: "centerCrop", settings: [size] },
  run: (view) => {
    const { height, width } = view.window
    return View.crop(view, {
      top: roundHalfEven((height - size) / 2),
      left: roundHalfEven((width - size) / 2),
      height: size,
      width: size
    })
  }
})

/** A random `size x size` window of the picture padded by `padding` pixels on every side. */
export const padCrop = (size: number, padding: number, outside: View.Outside = "zero"): Operation => ({
  name: "padCrop",
  spec: { name: "padCrop", settings: [size, padding, outside] },
  run: (view, random) => {
    const { height, width } = view.window
    const top = random.below(height + 2 * padding - size + 1) - padding
    const left = random.below(width + 2 * padding - size + 1) - padding
    return View.crop(view, { top, left, height: size, width: size }, outside)
  }
})

/** Left and right exchanged with a chance. */
export const horizontalFlip = (probability = 0.5): Operation => ({
  name: "horizontalFlip",
  spec: { name: "horizontalFlip", settings: [probability] },
  run: (view, random) => (random.unit() < probability ? View.flip(view) : view)
})

/**
 * A box of a random part of the area and random proportions, resized to `size x size`. After ten boxes that do not fit,
 * the largest centred box of legal proportions. `scale` is the part of the area, `ratio` width over height.
 *
 * @source Szegedy et al., "Going Deeper with Convolutions" (2014); pytorch/vision transforms.RandomResizedCrop
 */
export const randomResizedCrop = (
  size: number,
  options: {
    readonly scale?: readonly [number, number]
    readonly ratio?: readonly [number, number]
    readonly interpolation?: Resample.Interpolation
  } = {}
): Operation => {
  const [leastArea, mostArea] = options.scale ?? [0.08, 1]
  const [leastRatio, mostRatio] = options.ratio ?? [3 / 4, 4 / 3]
  const box = (height: number, width: number, random: Random): Resample.Box => {
    for (let attempt = 0; attempt < 10; attempt++) {
      const area = height * width * random.between(leastArea, mostArea)
      const ratio = Math.exp(random.between(Math.log(leastRatio), Math.log(mostRatio)))
      const boxWidth = roundHalfEven(Math.sqrt(area * ratio))
      const boxHeight = roundHalfEven(Math.sqrt(area / ratio))
      if (boxWidth > 0 && boxWidth <= width && boxHeight > 0 && boxHeight <= height) {
        return {
          top: random.below(height - boxHeight + 1),
          left: random.below(width - boxWidth + 1),
          height: boxHeight,
          width: boxWidth
        }
      }
    }
    const ratio = width / height
    const boxWidth = ratio > mostRatio ? Math.min(width, roundHalfEven(height * mostRatio)) : width
    const boxHeight = ratio < leastRatio ? Math.min(height, roundHalfEven(width / leastRatio)) : height
    return {
      top: (height - boxHeight) >> 1,
      left: (width - boxWidth) >> 1,
      height: Math.max(1, boxHeight),
      width: Math.max(1, boxWidth)
    }
  }
  return onImage(
    "randomResizedCrop",
    (image, random) =>
      Resample.resize(
        image,
        { height: size, width: size },
        options.interpolation ?? "bilinear",
        box(image.height, image.width, random)
      ),
    [size, options]
  )
}

/**
 * Brightness, contrast and saturation each by a factor in `[max(0, 1 - x), 1 + x]`, hue by a turn in `[-hue, hue]`
 * (at most 0.5), in a random order.
 *
 * @source pytorch/vision transforms.ColorJitter
 */
export const colorJitter = (amounts: {
  readonly brightness?: number
  readonly contrast?: number
  readonly saturation?: number
  readonly hue?: number
}): Operation => {
  const byFactor =
    (amount: number, change: (image: RawImage, factor: number) => RawImage) => (image: RawImage, random: Random) =>
      amount === 0 ? image : change(image, random.between(Math.max(0, 1 - amount), 1 + amount))
  const turn = amounts.hue ?? 0
  const changes = [
    byFactor(amounts.brightness ?? 0, Color.brightness),
    byFactor(amounts.contrast ?? 0, Color.contrast),
    byFactor(amounts.saturation ?? 0, Color.saturation),
    (image: RawImage, random: Random) => (turn === 0 ? image : Color.hue(image, random.between(-turn, turn)))
  ]
  return onImage(
    "colorJitter",
    (image, random) => {
      const left = changes.slice()
      let changed = image
      while (left.length > 0) changed = left.splice(random.below(left.length), 1)[0]!(changed, random)
      return changed
    },
    [amounts]
  )
}

/**
 * With a chance, one rectangle of a random part of the area becomes 0 (the mean) or normal noise.
 *
 * @source Zhong et al., "Random Erasing Data Augmentation" (2017); pytorch/vision transforms.RandomErasing
 */
export const randomErasing = (
  options: {
    readonly probability?: number
    readonly area?: readonly [number, number]
    readonly ratio?: readonly [number, number]
    readonly fill?: "zero" | "noise"
  } = {}
): FloatOperation => ({
  name: "randomErasing",
  spec: { name: "randomErasing", settings: [options] },
  run: (pixels, at, { channels, height, width }, random) => {
    if (random.unit() >= (options.probability ?? 0.25)) return
    const [leastArea, mostArea] = options.area ?? [0.02, 1 / 3]
    const [leastRatio, mostRatio] = options.ratio ?? [0.3, 3.3]
    for (let attempt = 0; attempt < 10; attempt++) {
      const area = height * width * random.between(leastArea, mostArea)
      const ratio = Math.exp(random.between(Math.log(leastRatio), Math.log(mostRatio)))
      const boxHeight = roundHalfEven(Math.sqrt(area * ratio))
      const boxWidth = roundHalfEven(Math.sqrt(area / ratio))
      if (boxHeight >= height || boxWidth >= width) continue
      const top = random.below(height - boxHeight + 1)
      const left = random.below(width - boxWidth + 1)
      for (let row = top; row < top + boxHeight; row++) {
        const start = at + (row * width + left) * channels
        for (let i = start; i < start + boxWidth * channels; i++)
          pixels[i] = options.fill === "noise" ? random.normal() : 0
      }
      return
    }
  }
})
