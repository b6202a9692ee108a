/** Small trainings that an application runs: recipes of the command line, or synthetic pictures through `Trainer.Data`. */
import * as Dataset from "@tessera/cli/Dataset"
import * as Experiment from "@tessera/cli/Experiment"
import * as RecipeSource from "@tessera/cli/RecipeSource"
import * as Optimizer from "@tessera/core/Optimizer"
import { adamw } from "@tessera/core/optimizers/adamw"
import * as Schedule from "@tessera/core/Schedule"
import type { StepReport } from "@tessera/core/services/Tracker"
import * as Tasks from "@tessera/core/Tasks"
import * as Trainer from "@tessera/core/Trainer"
import * as Vit from "@tessera/models/Vit"
import * as VitConfig from "@tessera/models/VitConfig"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"

export interface Sizes {
  readonly batch: number
  readonly hidden: number
  readonly layers: number
}

const [side, classes] = [16, 10]

/** A classifier of pictures of 16 x 16 in grey with a step that takes as long as `sizes` say. */
export const config = ({ batch, hidden, layers }: Sizes) => {
  const model = VitConfig.make({
    imageSize: { height: side, width: side },
    patch: 4,
    channels: 1,
    hidden,
    mlp: 4 * hidden,
    heads: 4,
    layers,
    head: { kind: "linear", classes, kernel: "normal", bias: 0 }
  })
  const task = Tasks.classification(Vit.classifier(model), {
    batchSize: batch,
    height: side,
    width: side,
    channels: 1,
    classes
  })
  return { ...task, optimizer: Optimizer.make(adamw()) }
}

const bytes = (array: Float32Array | Int32Array | Uint32Array) =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength)

/** Pictures and labels of one step: a function of its number alone. */
const batchOf = (step: number, batch: number): Trainer.DataBatch => {
  const pixels = Float32Array.from({ length: batch * side * side }, (_, i) => Math.sin(i * 0.37 + step * 1.7))
  return {
    arrays: {
      images: bytes(pixels),
      labels: bytes(Int32Array.from({ length: batch }, (_, i) => (i + step) % classes)),
      weights: bytes(new Float32Array(batch).fill(1)),
      examples: bytes(Uint32Array.from({ length: batch }, (_, i) => i))
    },
    samples: batch,
    skipped: 0,
    epoch: step,
    cursor: step + 1
  }
}

/** Endless; the cursor is the number of the next batch. */
export const data = ({ batch }: Sizes): Trainer.Data => ({
  batches: (from) =>
    Stream.map(
      Stream.iterate(Number(from ?? 0), (step) => step + 1),
      (step) => batchOf(step, batch)
    )
})

/** The stream of a training on synthetic pictures. */
export const steps = (
  training: Trainer.Training,
  sizes: Sizes,
  options: Pick<Trainer.StepsOptions<never, never>, "run" | "totalSteps" | "onStep">
) => Trainer.steps(training, { ...options, data: data(sizes), schedule: Schedule.constant(1e-3), seed: 3 })

/** A recipe trained from its beginning; every report goes to `each`. */
export const recipe = <E, R>(options: {
  readonly name: string
  readonly set: ReadonlyArray<string>
  readonly run: string
  readonly totalSteps: number
  readonly each: (report: StepReport, training: Trainer.Training) => Effect.Effect<unknown, E, R>
}) =>
  Effect.gen(function* () {
    const { recipe: found } = yield* RecipeSource.load(options.name, { set: options.set })
    const source = yield* Dataset.training(found)
    const training = yield* Trainer.make(Experiment.config(found, Dataset.isSoft(found)))
    yield* Trainer.initialise(training, found.seed)
    const { run, totalSteps } = options
    const schedule = Experiment.schedule(found, totalSteps)
    yield* Trainer.steps(training, { run, totalSteps, schedule, data: source.data, seed: found.seed }).pipe(
      Stream.runForEach((report) => options.each(report, training))
    )
  }).pipe(Effect.scoped)
