/** The service that turns decoded pictures into a batch's floats. Layers differ in where they run; the numbers agree. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Pool from "effect/Pool"
import type * as Augment from "./Augment.ts"
import * as AugmentWorkers from "./AugmentWorkers.ts"
import { BadRequest, type DataError, fail, ShapeMismatch } from "./Errors.ts"
import { type RawImage, shapeText } from "./Image.ts"
import { type AugmentKey, type Shape, toSpec, writeRow } from "./Rows.ts"

export type { AugmentKey } from "./Rows.ts"

/** One picture and its place. `key` and `origin` are for messages. */
export interface Request {
  readonly image: RawImage
  readonly at: AugmentKey
  readonly key: string
  readonly origin: string
}

/** Pixels read or written before other fibers get a turn, and below which a batch is not worth sending to threads: about 5 ms of resizing. */
const pixelsPerTurn = 400_000

/** Pictures in one message to a thread. */
const picturesPerJob = 4

export class Augmenter extends Context.Service<
  Augmenter,
  {
    /** room for a batch, where this augmenter can write it: plain memory, or memory shared with threads */
    readonly allocate: (length: number) => Float32Array
    /**
     * Writes request `i` into `out` at `i * height * width * channels`: `[batch, row, col, channel]`, normalised. Fails
     * with `ShapeMismatch` when the operations do not end in the pipeline's shape.
     */
    readonly applyAll: (
      requests: ReadonlyArray<Request>,
      pipeline: Augment.Pipeline,
      out: Float32Array
    ) => Effect.Effect<void, DataError>
  }
>()("@tessera/data/Augmenter") {
  /** Typed arrays on this thread, giving way to other fibers every few milliseconds. */
  static readonly layerNative = Layer.sync(Augmenter, () => ({
    allocate: (length) => new Float32Array(length),
    applyAll: here
  }))

  /**
   * The same code on `count` threads, for photographs. Batches of small pictures (less than about 5 ms of work) stay on
   * this thread, where they are done sooner than sent. Fails with `BadRequest` for operations of your own, which
   * cannot be sent, and with `WorkerFailed` when a thread dies.
   */
  static readonly layerWorkers = (count: number) =>
    Layer.effect(
      Augmenter,
      Effect.gen(function* () {
        let started = 0
        const pool = yield* Pool.make({
          acquire: Effect.suspend(() => AugmentWorkers.make(`augment-${started++}`)),
          size: count
        })
        return Augmenter.of({
          allocate: (length) => new Float32Array(new SharedArrayBuffer(length * 4)),
          applyAll: (requests, pipeline, out) => {
            const shared = out.buffer
            if (pixelsOf(requests, pipeline) < pixelsPerTurn || !(shared instanceof SharedArrayBuffer))
              return here(requests, pipeline, out)
            const spec = toSpec(pipeline)
            if (typeof spec === "string") {
              return fail(
                new BadRequest({
                  what: `operation "${spec}"`,
                  found: "one of your own, a function that cannot be sent to a worker thread",
                  expected: "operations of this package, or Augmenter.layerNative"
                })
              )
            }
            const size = pipeline.height * pipeline.width * pipeline.channels
            const starts = Array.from(
              { length: Math.ceil(requests.length / picturesPerJob) },
              (_, job) => job * picturesPerJob
            )
            return Effect.forEach(
              starts,
              (start) => {
                const part = requests.slice(start, start + picturesPerJob)
                const job = {
                  pipeline: spec,
                  images: part.map((request) => ownPixels(request.image)),
                  keys: part.map((request) => request.at),
                  out: shared,
                  at: out.byteOffset / 4 + start * size
                }
                return Effect.flatMap(
                  Effect.scoped(Effect.flatMap(Pool.get(pool), (worker) => worker.run(job))),
                  (mismatch) =>
                    mismatch === null ? Effect.void : shapeMismatch(part[mismatch.picture]!, pipeline, mismatch.found)
                )
              },
              { concurrency: count, discard: true }
            )
          }
        })
      })
    )
}

const here: Augmenter["Service"]["applyAll"] = Effect.fnUntraced(function* (requests, pipeline, out) {
  const size = pipeline.height * pipeline.width * pipeline.channels
  let pixels = 0
  for (const [row, request] of requests.entries()) {
    const found = writeRow(request.image, request.at, pipeline, out, row * size)
    if (found !== null) return yield* shapeMismatch(request, pipeline, found)
    pixels += pixelsOf([request], pipeline)
    if (pixels >= pixelsPerTurn) {
      pixels = 0
      yield* Effect.yieldNow
    }
  }
})

const pixelsOf = (requests: ReadonlyArray<Request>, pipeline: Augment.Pipeline): number =>
  requests.reduce((sum, { image }) => sum + Math.max(image.height * image.width, pipeline.height * pipeline.width), 0)

/** Sending a view sends all of the memory it looks into, which may be a whole data set. */
const ownPixels = (image: RawImage): RawImage =>
  image.data.byteLength === image.data.buffer.byteLength ? image : { ...image, data: image.data.slice() }

const shapeMismatch = (request: Request, pipeline: Augment.Pipeline, found: Shape) =>
  fail(
    new ShapeMismatch({
      file: request.origin,
      key: request.key,
      expected: shapeText(pipeline),
      found: shapeText(found)
    })
  )

/** One picture: `[row, col, channel]` floats. */
export const apply = (
  image: RawImage,
  pipeline: Augment.Pipeline,
  at: AugmentKey
): Effect.Effect<Float32Array, DataError, Augmenter> =>
  Effect.gen(function* () {
    const augmenter = yield* Augmenter
    const out = augmenter.allocate(pipeline.height * pipeline.width * pipeline.channels)
    yield* augmenter.applyAll([{ image, at, key: String(at.index), origin: "memory" }], pipeline, out)
    return out
  })
