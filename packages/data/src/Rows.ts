/** The work of an augmenter on some rows of a batch: one thread, no Effect, so that worker threads start fast. */
import * as Augment from "./Augment.ts"
import type { RawImage } from "./Image.ts"
import * as Policy from "./Policy.ts"
import * as Random from "./Random.ts"
import * as View from "./View.ts"

/** What an image's randomness depends on, and nothing else. */
export interface AugmentKey {
  readonly seed: number
  readonly epoch: number
  /** of the sample in its whole source */
  readonly index: number
}

export type Shape = { readonly height: number; readonly width: number; readonly channels: number }

/**
 * Augments one picture and writes it into `out` from `at` on. Gives null, or the shape the operations ended in when it
 * is not the pipeline's; then nothing is written.
 */
export const writeRow = (
  image: RawImage,
  key: AugmentKey,
  pipeline: Augment.Pipeline,
  out: Float32Array,
  at: number
): Shape | null => {
  const random = Random.make(Random.purposes.augment, key.seed, key.epoch, key.index)
  const view = Augment.run(image, pipeline.operations, random)
  const { height, width } = view.window
  const { channels } = view.image
  if (height !== pipeline.height || width !== pipeline.width || channels !== pipeline.channels)
    return { height, width, channels }
  View.write(view, pipeline.table, out, at)
  for (const operation of pipeline.after) operation.run(out, at, pipeline, random)
  return null
}

/** A pipeline as plain data, which can be sent to another thread. */
export interface PipelineSpec extends Augment.PixelShape, Augment.Normalization {
  readonly operations: ReadonlyArray<Augment.Spec>
  readonly after: ReadonlyArray<Augment.Spec>
}

/** The name of the first operation that is not plain data, or the pipeline as plain data. */
export const toSpec = (pipeline: Augment.Pipeline): PipelineSpec | string => {
  const operations: Array<Augment.Spec> = []
  const after: Array<Augment.Spec> = []
  for (const operation of pipeline.operations) {
    if (operation.spec === null) return operation.name
    operations.push(operation.spec)
  }
  for (const operation of pipeline.after) {
    if (operation.spec === null) return operation.name
    after.push(operation.spec)
  }
  const { channels, height, mean, std, width } = pipeline
  return { channels, height, mean, std, width, operations, after }
}

const constructors: Readonly<Record<string, (...settings: Array<never>) => Augment.Operation>> = {
  resizeShorter: Augment.resizeShorter,
  resizeSquare: Augment.resizeSquare,
  centerCrop: Augment.centerCrop,
  padCrop: Augment.padCrop,
  horizontalFlip: Augment.horizontalFlip,
  randomResizedCrop: Augment.randomResizedCrop,
  colorJitter: Augment.colorJitter,
  randAugment: Policy.randAugment,
  autoAugmentImagenet: Policy.autoAugmentImagenet
}

const floatConstructors: Readonly<Record<string, (...settings: Array<never>) => Augment.FloatOperation>> = {
  randomErasing: Augment.randomErasing
}

/** The inverse of `toSpec`. */
export const fromSpec = (spec: PipelineSpec): Augment.Pipeline =>
  Augment.pipeline({
    ...spec,
    normalization: spec,
    operations: spec.operations.map(({ name, settings }) => constructors[name]!(...(settings as Array<never>))),
    after: spec.after.map(({ name, settings }) => floatConstructors[name]!(...(settings as Array<never>)))
  })

/** What a worker thread is asked: some pictures, and where their rows begin in shared memory. */
export interface Job {
  readonly id: number
  readonly pipeline: PipelineSpec
  readonly images: ReadonlyArray<RawImage>
  readonly keys: ReadonlyArray<AugmentKey>
  readonly out: SharedArrayBuffer
  /** in floats, of the first picture; the others follow */
  readonly at: number
}

/** What it answers: null, or which picture had another shape. */
export interface Done {
  readonly id: number
  readonly mismatch: { readonly picture: number; readonly found: Shape } | null
}
