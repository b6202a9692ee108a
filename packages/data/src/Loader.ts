/**
 * Batches of a source: decoded, augmented and collated, as a stream that can be resumed at any sample.
 *
 * ```ts
 * const loader = yield* Loader.make({ source, batchSize: 256, train: true, pipeline, seed: 1 })
 * yield* loader.batches(loader.start).pipe(Stream.take(loader.stepsPerEpoch), Stream.runForEach(step))
 * ```
 */
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { Pipeline } from "./Augment.ts"
import { Augmenter, type Request } from "./Augmenter.ts"
import * as Cursor from "./Cursor.ts"
import * as Decode from "./Decode.ts"
import { BadRequest, DataError, fail, LabelMissing, LabelOutOfRange } from "./Errors.ts"
import type { RawImage } from "./Image.ts"
import * as Mix from "./Mix.ts"
import * as Order from "./Order.ts"
import * as Random from "./Random.ts"
import type { ImageSample, Source } from "./Samples.ts"

/** One step's data. Every array has `size` rows. */
export interface Batch {
  /** `[batch, row, col, channel]`, contiguous, normalised */
  readonly images: Float32Array
  /** -1 where there is no label */
  readonly labels: Int32Array
  /** 1, or 0 for a row that only fills up the batch */
  readonly weights: Float32Array
  readonly keys: ReadonlyArray<string>
  /** captions, null where there is none */
  readonly texts: ReadonlyArray<string | null>
  /** `.json` values, null where there is none */
  readonly json: ReadonlyArray<unknown>
  /** of the sample in its source, -1 for filling; the randomness is keyed by it */
  readonly indices: Int32Array
  /** `[batch, classes]`, when a mix is set */
  readonly softLabels?: Float32Array
  readonly size: number
  /** the position after this batch: save it, and the next batch is the one that would have followed */
  readonly cursor: Cursor.Cursor
  /** bad samples met in this batch: replaced when training, of weight 0 when evaluating */
  readonly skipped: number
}

export interface LoaderOptions {
  readonly source: Source<ImageSample>
  /** rows of the global batch, over all ranks */
  readonly batchSize: number
  /**
   * true: shuffled by epoch, without end, the incomplete last batch of an epoch left out. false: in order, once, the
   * last batch filled up with rows of weight 0.
   */
  readonly train: boolean
  readonly pipeline: Pipeline
  readonly seed: number
  /** finished batches kept ready; default 2 */
  readonly prefetch?: number
  /** images being decoded at once; default 4, the size of libuv's pool */
  readonly decodeConcurrency?: number
  /**
   * What to do with a sample that does not decode or has a bad label. "fail" (default), or "skip": counted in
   * `Batch.skipped` and logged when the stream ends. When training, the next good sample of the order takes its place
   * (and also appears at its own), so batches, cursors and ranks stay in step; when evaluating, its row has weight 0.
   */
  readonly onBadSample?: "fail" | "skip"
  /** keep decoded pixels in memory up to `cacheBytes`; default true */
  readonly cacheDecoded?: boolean
  /** default 512 MiB */
  readonly cacheBytes?: number
  /** labels must be below this; default: the source's number of classes, if known */
  readonly classCount?: number
  readonly decode?: Omit<Decode.DecodeOptions, "channels">
  /** mixes images and labels of training batches */
  readonly mix?: Mix.Mix
  /** which contiguous rows of every global batch to load; default all. `batchSize` must be a multiple of `count`. */
  readonly rank?: { readonly index: number; readonly count: number }
}

/** What a training or evaluation loop needs to know of its data. */
export interface DataSource {
  /** fails with `CursorMismatch` when the cursor belongs to other data or another seed */
  readonly batches: (from: Cursor.Cursor) => Stream.Stream<Batch, DataError>
  readonly start: Cursor.Cursor
  readonly stepsPerEpoch: number
  /** samples in the source */
  readonly sampleCount: number
  /** rows of this rank's batches */
  readonly rows: number
  readonly height: number
  readonly width: number
  readonly channels: 1 | 3
  readonly classes: ReadonlyArray<string> | null
}

/** A sample ready for augmentation. */
interface Loaded {
  readonly key: string
  readonly origin: string
  readonly label: number
  readonly text: string | null
  readonly json: unknown
  readonly image: RawImage
}

/** The samples of one batch, before augmentation. A null row is filling. */
interface Loads {
  readonly plan: Plan
  readonly rows: ReadonlyArray<{ readonly index: number; readonly loaded: Loaded } | null>
  readonly skipped: number
}

/** Which samples make a batch: pure, from a cursor. */
interface Plan {
  readonly epoch: number
  /** position of the global batch in its epoch */
  readonly position: number
  /** positions in the epoch's order, one per row of this rank; null for filling */
  readonly positions: ReadonlyArray<number | null>
  readonly order: Order.Order
  readonly next: Cursor.Cursor
}

/** Prepares batches. Fails with `BadRequest` for sizes that cannot work: a batch larger than the training data, rows that do not split over ranks. */
export const make = (options: LoaderOptions): Effect.Effect<DataSource, DataError, Augmenter> =>
  Effect.gen(function* () {
    const { batchSize, pipeline, seed, source, train } = options
    const rank = options.rank ?? { index: 0, count: 1 }
    const bad = (what: string, found: number, expected: string) =>
      fail(new BadRequest({ what, found: String(found), expected }))
    if (!(Number.isInteger(batchSize) && batchSize > 0))
      return yield* bad("batchSize", batchSize, "a whole number above 0")
    if (batchSize % rank.count !== 0)
      return yield* bad("batchSize", batchSize, `a multiple of the number of ranks, ${rank.count}`)
    if (train && source.count < batchSize) {
      return yield* bad(
        "batchSize",
        batchSize,
        `at most ${source.count}, the number of samples of ${source.name}, since training leaves incomplete batches out`
      )
    }
    if (!train && options.mix !== undefined) {
      return yield* fail(
        new BadRequest({
          what: "mix",
          found: `"${options.mix.name}" for evaluation`,
          expected: "none, or train: true: only training batches are mixed"
        })
      )
    }
    const augmenter = yield* Augmenter
    const load = sampleLoader(options)
    const next = planner(options, rank)
    return {
      start: Cursor.start(seed, source.digest),
      stepsPerEpoch: train ? Math.floor(source.count / batchSize) : Math.ceil(source.count / batchSize),
      sampleCount: source.count,
      rows: batchSize / rank.count,
      height: pipeline.height,
      width: pipeline.width,
      channels: pipeline.channels,
      classes: source.classes,
      batches: (from) =>
        Stream.unwrap(
          Effect.map(Cursor.check(from, source, seed), (cursor) => {
            let skipped = 0
            const step = next()
            return Stream.unfold(cursor, (at) => Effect.sync(() => step(at))).pipe(
              Stream.mapEffect((plan) => loadAll(plan, load, options)),
              Stream.buffer({ capacity: 1 }), // the next batch decodes on libuv's threads while this one is augmented
              Stream.mapEffect((loads) => {
                skipped += loads.skipped
                return collate(loads, options, augmenter)
              }),
              Stream.buffer({ capacity: options.prefetch ?? 2 }),
              Stream.ensuring(
                Effect.suspend(() =>
                  skipped === 0 ? Effect.void : Effect.logWarning(`${source.name}: ${skipped} bad samples skipped`)
                )
              )
            )
          })
        )
    }
  })

/** The pure walk over cursors. The order of the current epoch is kept, so each call starts its own. */
const planner = (options: LoaderOptions, rank: { readonly index: number; readonly count: number }) => () => {
  const { batchSize, source, train } = options
  const rows = batchSize / rank.count
  let order = Order.sequential(source.count)
  let orderEpoch = -1
  return (from: Cursor.Cursor): readonly [Plan, Cursor.Cursor] | undefined => {
    const wraps = train && from.position + batchSize > source.count
    const { epoch, position } = wraps ? { epoch: from.epoch + 1, position: 0 } : from
    if (!train && position >= source.count) return undefined
    if (train && orderEpoch !== epoch) {
      order = Order.shuffled(from.seed, epoch, source.count)
      orderEpoch = epoch
    }
    const end = Math.min(position + batchSize, source.count)
    const atEnd = train && end + batchSize > source.count
    const next = { ...from, ...(atEnd ? { epoch: epoch + 1, position: 0 } : { epoch, position: end }) }
    const first = position + rank.index * rows
    const positions = Array.from({ length: rows }, (_, row) => (first + row < end ? first + row : null))
    return [{ epoch, position, positions, order, next }, next]
  }
}

interface SampleLoader {
  /** from memory, or undefined */
  readonly cached: (index: number) => Loaded | undefined
  readonly load: (index: number) => Effect.Effect<Loaded, DataError>
}

const sampleLoader = (options: LoaderOptions): SampleLoader => {
  const { pipeline, source } = options
  const classCount = options.classCount ?? options.mix?.classCount ?? source.classes?.length ?? null
  const decodeOptions = { ...options.decode, channels: pipeline.channels }
  const cache: Array<Loaded | undefined> = []
  let room = options.cacheDecoded === false ? 0 : (options.cacheBytes ?? 512 * 1024 * 1024)
  const load = Effect.fnUntraced(function* (index: number) {
    const sample = yield* source.get(index)
    yield* checkLabel(sample, options.classCount !== undefined || options.mix !== undefined, classCount)
    const image = yield* Decode.decode(sample, decodeOptions)
    const loaded: Loaded = {
      key: sample.key,
      origin: sample.origin,
      label: sample.label ?? -1,
      text: sample.text ?? null,
      json: sample.json ?? null,
      image
    }
    // Pixels that are the source's own cost nothing more, whatever the bound.
    const cost = image === sample.image ? 0 : image.data.length
    if (options.cacheDecoded !== false && cost <= room && cache[index] === undefined) {
      cache[index] = loaded
      room -= cost
    }
    return loaded
  })
  return { cached: (index) => cache[index], load }
}

const checkLabel = (
  sample: ImageSample,
  required: boolean,
  classCount: number | null
): Effect.Effect<void, DataError> => {
  if (sample.label === null)
    return required ? fail(new LabelMissing({ file: sample.origin, key: sample.key })) : Effect.void
  return classCount !== null && sample.label >= classCount
    ? fail(
        new LabelOutOfRange({ file: sample.origin, key: sample.key, label: String(sample.label), classes: classCount })
      )
    : Effect.void
}

/** Whether an error is about one sample only, so that leaving the sample out makes sense. */
const isAboutOneSample = (error: DataError): boolean =>
  error.reason._tag === "DecodeFailed" ||
  error.reason._tag === "LabelOutOfRange" ||
  error.reason._tag === "LabelMissing"

/** Bad samples in a row before giving up: beyond this the data are wrong, not a sample. */
const replacementsCount = 100

const loadAll = (plan: Plan, loader: SampleLoader, options: LoaderOptions): Effect.Effect<Loads, DataError> =>
  Effect.gen(function* () {
    const { order, positions } = plan
    let skipped = 0
    const row = (position: number): Effect.Effect<Loads["rows"][number], DataError> => {
      const index = order.at(position)
      const loaded = Effect.map(loader.load(index), (found) => ({ index, loaded: found }))
      if (options.onBadSample !== "skip") return loaded
      return Effect.catchIf(loaded, isAboutOneSample, (error) => {
        skipped += 1
        return options.train
          ? replacement(position + 1, Math.min(replacementsCount, order.count - 1), error)
          : Effect.succeed(null)
      })
    }
    const replacement = (
      position: number,
      left: number,
      error: DataError
    ): Effect.Effect<Loads["rows"][number], DataError> => {
      if (left <= 0) return Effect.fail(error)
      const index = order.at(position % order.count)
      return Effect.catchIf(
        Effect.map(loader.load(index), (found) => ({ index, loaded: found })),
        isAboutOneSample,
        (next) => replacement(position + 1, left - 1, next)
      )
    }
    const rows: Array<Loads["rows"][number]> = positions.map((position) => {
      const index = position === null ? -1 : order.at(position)
      const loaded = position === null ? undefined : loader.cached(index)
      return loaded === undefined ? null : { index, loaded }
    })
    const wanted = positions.flatMap((position, at) =>
      position !== null && rows[at] === null ? [{ at, position }] : []
    )
    yield* Effect.forEach(
      wanted,
      ({ at, position }) =>
        Effect.map(row(position), (found) => {
          rows[at] = found
        }),
      { concurrency: options.decodeConcurrency ?? 4, discard: true }
    )
    return { plan, rows, skipped }
  })

const collate = (
  loads: Loads,
  options: LoaderOptions,
  augmenter: Augmenter["Service"]
): Effect.Effect<Batch, DataError> =>
  Effect.gen(function* () {
    const { pipeline, seed } = options
    const { plan, rows } = loads
    const size = rows.length
    const pixels = pipeline.height * pipeline.width * pipeline.channels
    const images = augmenter.allocate(size * pixels)
    const filled = rows.flatMap((row, at) => (row === null ? [] : [{ ...row, at }]))
    const requests = filled.map(({ index, loaded }): Request => ({
      image: loaded.image,
      key: loaded.key,
      origin: loaded.origin,
      at: { seed, epoch: plan.epoch, index }
    }))
    yield* augmenter.applyAll(requests, pipeline, images)
    // Requests are written one after the other; move rows apart where filling lies between them.
    for (const [from, { at }] of [...filled.entries()].toReversed()) {
      if (from !== at) {
        images.copyWithin(at * pixels, from * pixels, (from + 1) * pixels)
        images.fill(0, from * pixels, (from + 1) * pixels)
      }
    }
    const labels = Int32Array.from(rows, (row) => row?.loaded.label ?? -1)
    const softLabels = options.mix === undefined ? undefined : mixed(images, labels, plan, options.mix, options)
    yield* Effect.yieldNow
    return {
      images,
      labels,
      weights: Float32Array.from(rows, (row) => (row === null ? 0 : 1)),
      keys: rows.map((row) => row?.loaded.key ?? ""),
      texts: rows.map((row) => row?.loaded.text ?? null),
      json: rows.map((row) => row?.loaded.json ?? null),
      indices: Int32Array.from(rows, (row) => row?.index ?? -1),
      size,
      cursor: plan.next,
      skipped: loads.skipped,
      ...(softLabels === undefined ? {} : { softLabels })
    }
  })

const mixed = (
  images: Float32Array,
  labels: Int32Array,
  plan: Plan,
  mix: Mix.Mix,
  options: LoaderOptions
): Float32Array => {
  const random = Random.make(Random.purposes.mix, options.seed, plan.epoch, plan.position)
  return Mix.softLabels(labels, mix.run(images, labels.length, options.pipeline, random), mix)
}
