/**
 * An augmentation of your own: a function from picture to picture, and one on normalised floats, in one pipeline with those of the package.
 *
 * Command: node examples/custom-augmentation.ts
 */
import { Augment, Augmenter, Image } from "@tessera/data"
import * as Effect from "effect/Effect"

/** Every row comes from up to `reach` rows away. `random` belongs to the sample: the same sample, the same jitter. */
const rowJitter = (reach: number): Augment.Operation =>
  Augment.onImage("rowJitter", (image, random) => {
    const { channels, data, height, width } = image
    const size = width * channels
    const out = new Uint8Array(data.length)
    for (let row = 0; row < height; row++) {
      const from = Math.min(height - 1, Math.max(0, row + random.below(2 * reach + 1) - reach))
      out.set(data.subarray(from * size, (from + 1) * size), row * size)
    }
    return Image.raw(height, width, channels, out)
  })

/** Normal noise on what the model sees, after normalisation. */
const noise = (deviation: number): Augment.FloatOperation => ({
  name: "noise",
  spec: null,
  run: (pixels, at, { channels, height, width }, random) => {
    for (let i = at; i < at + height * width * channels; i++) pixels[i]! += deviation * random.normal()
  }
})

const pipeline = Augment.pipeline({
  height: 8,
  width: 16,
  channels: 1,
  normalization: { mean: [0.5], std: [0.5] },
  operations: [rowJitter(1), Augment.horizontalFlip(0.5)],
  after: [noise(0.05)]
})

/** A triangle. */
const triangle = Image.raw(
  8,
  16,
  1,
  Uint8Array.from({ length: 8 * 16 }, (_, i) => (i % 16 <= 2 * Math.floor(i / 16) ? 255 : 0))
)

const shades = " .:-=+*#%@"
const draw = (pixels: Float32Array): string =>
  Array.from({ length: 8 }, (_, row) =>
    Array.from(pixels.subarray(row * 16, (row + 1) * 16), (v) => {
      const shade = Math.round(((v + 1) / 2) * (shades.length - 1))
      return shades[Math.min(shades.length - 1, Math.max(0, shade))]
    }).join("")
  ).join("\n")

const program = Effect.gen(function* () {
  // The key of a draw is (run seed, epoch, sample): nothing else decides, neither worker nor batch.
  const first = yield* Augmenter.apply(triangle, pipeline, { seed: 1, epoch: 0, index: 0 })
  const again = yield* Augmenter.apply(triangle, pipeline, { seed: 1, epoch: 0, index: 0 })
  const next = yield* Augmenter.apply(triangle, pipeline, { seed: 1, epoch: 1, index: 0 })
  console.log(draw(first))
  console.log(`the same key gives the same picture: ${String(first) === String(again)}`)
  console.log(`the next epoch gives another:        ${String(first) !== String(next)}`)
})

await Effect.runPromise(program.pipe(Effect.provide(Augmenter.Augmenter.layerNative)))
