/** The service that turns decoded pictures into a batch's floats. A layer may run it elsewhere; the numbers must agree. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Augment from "./Augment.ts"
import { DataError, ShapeMismatch } from "./Errors.ts"
import { type RawImage, shapeText } from "./Image.ts"
import * as Random from "./Random.ts"
import * as View from "./View.ts"

/** What an image's randomness depends on, and nothing else. */
export interface AugmentKey {
  readonly seed: number
  readonly epoch: number
  /** of the sample in its whole source */
  readonly index: number
}

/** One picture and its place. `key` and `origin` are for messages. */
export interface Request {
  readonly image: RawImage
  readonly at: AugmentKey
  readonly key: string
  readonly origin: string
}

/** Samples worked on before other fibers get a turn, counted in pixels read or written: about 5 ms of resizing. */
const pixelsPerTurn = 400_000

export class Augmenter extends Context.Service<Augmenter, {
  /**
   * Writes request `i` into `out` at `i * height * width * channels`: `[batch, row, col, channel]`, normalised. Fails
   * with `ShapeMismatch` when the operations do not end in the pipeline's shape.
   */
  readonly applyAll: (requests: ReadonlyArray<Request>, pipeline: Augment.Pipeline, out: Float32Array) => Effect.Effect<void, DataError>
}>()("@tessera/data/Augmenter") {
  /** Typed arrays on this thread, giving way to other fibers every few milliseconds. */
  static readonly layerNative = Layer.succeed(Augmenter, {
    applyAll: Effect.fnUntraced(function* (requests, pipeline, out) {
      const size = pipeline.height * pipeline.width * pipeline.channels
      let pixels = 0
      for (const [row, request] of requests.entries()) {
        const random = Random.make(Random.purposes.augment, request.at.seed, request.at.epoch, request.at.index)
        const view = Augment.run(request.image, pipeline.operations, random)
        const found = { height: view.window.height, width: view.window.width, channels: view.image.channels }
        if (found.height !== pipeline.height || found.width !== pipeline.width || found.channels !== pipeline.channels) {
          return yield* Effect.fail(new DataError({
            reason: new ShapeMismatch({ file: request.origin, key: request.key, expected: shapeText(pipeline), found: shapeText(found) })
          }))
        }
        View.write(view, pipeline.table, out, row * size)
        for (const operation of pipeline.after) operation.run(out, row * size, pipeline, random)
        pixels += Math.max(request.image.height * request.image.width, pipeline.height * pipeline.width)
        if (pixels >= pixelsPerTurn) {
          pixels = 0
          yield* Effect.yieldNow
        }
      }
    })
  })
}

/** One picture: `[row, col, channel]` floats. */
export const apply = (image: RawImage, pipeline: Augment.Pipeline, at: AugmentKey): Effect.Effect<Float32Array, DataError, Augmenter> =>
  Effect.gen(function* () {
    const augmenter = yield* Augmenter
    const out = new Float32Array(pipeline.height * pipeline.width * pipeline.channels)
    yield* augmenter.applyAll([{ image, at, key: String(at.index), origin: "memory" }], pipeline, out)
    return out
  })
