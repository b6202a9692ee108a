/** A training run: the stream of steps with evaluation, checkpoints and trackers put on it, then pictures and a report. */
import type { EvaluationReport } from "@tessera/core/services/Tracker"
import { Tracker } from "@tessera/core/services/Tracker"
import { Backend } from "@tessera/core/services/Backend"
import { CheckpointStore } from "@tessera/core/services/CheckpointStore"
import * as FileCheckpoints from "@tessera/core/layers/FileCheckpoints"
import * as Tasks from "@tessera/core/Tasks"
import * as Trainer from "@tessera/core/Trainer"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Ref from "effect/Ref"
import type * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as Dataset from "./Dataset.ts"
import * as Experiment from "./Experiment.ts"
import * as Gallery from "./Gallery.ts"
import type { RunState } from "./LoadedModel.ts"
import { note } from "./Output.ts"
import { factsOf } from "./pictures/Report.ts"
import type { Recipe } from "./Recipe.ts"
import * as RunFolder from "./RunFolder.ts"
import * as RunTrackers from "./RunTrackers.ts"

export interface TrainOptions {
  readonly recipe: Recipe
  readonly folder: string
  readonly resume: boolean
  /** Progress as JSON lines on standard output instead of a live line. */
  readonly json: boolean
}

/** Test pictures at once; the result does not depend on it beyond rounding. */
const evaluationBatch = 250

const seconds = Effect.map(Clock.currentTimeMillis, (millis) => millis / 1000)

/** Compiles and loads everything, trains to the end and evaluates. Interruption and a loss that is not finite leave a checkpoint behind. */
const loop = Effect.fnUntraced(function* ({ folder, json, recipe, resume }: TrainOptions, paths: RunFolder.Paths) {
  const store = yield* CheckpointStore
  const data = yield* Dataset.training(recipe)
  const test = recipe.data.test === null ? null : yield* Dataset.evaluation(recipe, { batchSize: evaluationBatch })
  const classes = data.classes ?? test?.classes ?? null
  yield* note(`compiling the step of ${recipe.name} ...`)
  const training = yield* Trainer.make(Experiment.config(recipe, Dataset.isSoft(recipe)))
  const evaluator =
    test === null
      ? null
      : yield* Tasks.evaluator(Experiment.task(recipe, evaluationBatch, false), {
          precision: Experiment.precision(recipe)
        })
  const resumed = resume ? yield* restore(training, recipe) : 0
  if (resumed === 0) yield* Trainer.initialise(training, recipe.seed)

  const totalSteps = Experiment.totalSteps(recipe, data.stepsPerEpoch)
  const latest = yield* Ref.make<EvaluationReport | null>(null)
  const saved = yield* Ref.make(resumed)
  const state: RunState = { recipe, classes }

  const save = Effect.gen(function* () {
    const { step } = yield* Ref.get(training.position)
    if ((yield* Ref.get(saved)) === step) return
    const evaluated = yield* Ref.get(latest)
    const metric =
      evaluated?.step === step && evaluated.accuracy !== undefined
        ? { metric: { name: "accuracy", value: evaluated.accuracy } }
        : {}
    yield* Trainer.save(training, { run: state as unknown as Schema.Json, ...metric })
    yield* Ref.set(saved, step)
  }).pipe(Effect.uninterruptible)

  const evaluate = Effect.gen(function* () {
    const { epoch, step } = yield* Ref.get(training.position)
    const known = yield* Ref.get(latest)
    if (evaluator === null || test === null || known?.step === step) return
    const began = yield* seconds
    const result = yield* Effect.scoped(
      Effect.flatMap(Trainer.parameters(training), (parameters) => evaluator.run(parameters, test.batches))
    ).pipe(Effect.map(Tasks.summary))
    const report = { run: recipe.name, step, epoch, name: "validation", ...result, seconds: (yield* seconds) - began }
    yield* Ref.set(latest, report)
    const tracker = yield* Tracker
    yield* tracker.evaluation(report)
  })

  const farewell = (why: string) =>
    Effect.gen(function* () {
      const { step } = yield* Ref.get(training.position)
      if (step === 0) return
      yield* save
      yield* note(`${why} after step ${step}; saved in ${paths.checkpoints}; go on with --resume --run ${folder}`)
    }).pipe(Effect.catch((error) => note(`${why}, and the checkpoint could not be saved: ${error.message}`)))

  const evaluateEvery = Experiment.interval(recipe.evaluateEvery, data.stepsPerEpoch)
  const saveEvery = Experiment.interval(recipe.checkpoint.every, data.stepsPerEpoch)
  const train = Effect.gen(function* () {
    const tracker = yield* Tracker
    const schedule = Experiment.schedule(recipe, totalSteps)
    const reports = Trainer.steps(training, {
      run: recipe.name,
      data: data.data,
      schedule,
      totalSteps,
      seed: recipe.seed,
      onStep: tracker.report
    })
    const evaluated =
      evaluateEvery === null
        ? reports
        : Trainer.every<Reported, EvaluateError, EvaluateNeeds>(evaluateEvery, () => evaluate)(reports)
    const kept =
      saveEvery === null ? evaluated : Trainer.every<Reported, SaveError, SaveNeeds>(saveEvery, () => save)(evaluated)
    yield* Stream.runDrain(kept)
    yield* evaluate
    yield* save
  })
  type Reported = Stream.Success<ReturnType<typeof Trainer.steps>>
  type EvaluateError = Effect.Error<typeof evaluate>
  type EvaluateNeeds = Effect.Services<typeof evaluate>
  type SaveError = Effect.Error<typeof save>
  type SaveNeeds = Effect.Services<typeof save>

  yield* train.pipe(
    Effect.onInterrupt(() => farewell("interrupted")),
    Effect.tapError((error) => (error._tag === "TrainError" ? farewell("stopped") : Effect.void)),
    Effect.provide(RunTrackers.layer({ paths, json, resumedStep: resumed }))
  )
  const evaluation = yield* Ref.get(latest)
  return { parameters: yield* Trainer.parameters(training), classes, evaluation, folder: store.folder }
})

/** Opens the newest sound checkpoint, if there is one, and goes back to it. Gives the step. */
const restore = Effect.fnUntraced(function* (training: Trainer.Training, recipe: Recipe) {
  const store = yield* CheckpointStore
  if ((yield* store.list).length === 0) {
    yield* note("no checkpoint yet: starting from the beginning")
    return 0
  }
  const state = yield* Effect.scoped(
    Effect.flatMap(store.open("latest"), (reader) => Trainer.restore(training, reader))
  )
  const before = new Map(factsOf((state.run as unknown as RunState).recipe))
  const changed = factsOf(recipe).filter(([key, value]) => before.get(key) !== value)
  if (changed.length > 0) {
    const list = changed.map(([key, value]) => `${key} ${before.get(key) ?? "none"} -> ${value}`).join(", ")
    yield* note(`settings differ from those the run was started with: ${list}`)
  }
  const { step } = yield* Ref.get(training.position)
  yield* note(`resuming after step ${step}`)
  return step
})

/** Trains a recipe in a folder; gives the summary that the report shows. */
export const run = Effect.fn("Train.run")(function* (options: TrainOptions) {
  const { folder, recipe, resume } = options
  const fs = yield* FileSystem.FileSystem
  const backend = yield* Backend
  const paths = yield* RunFolder.prepare(folder, resume)
  if (!resume) yield* fs.writeFileString(paths.recipe, `${JSON.stringify(recipe, null, 2)}\n`)
  const services = Layer.mergeAll(
    Dataset.augmenter(recipe),
    FileCheckpoints.layer(RunFolder.checkpointOptions(paths.checkpoints, recipe))
  )
  return yield* Effect.gen(function* () {
    const done = yield* loop(options, paths)
    const { accuracy, loss, samples } = done.evaluation ?? {}
    const validation =
      accuracy === undefined || loss === undefined || samples === undefined ? undefined : { accuracy, loss, samples }
    const summary = yield* Gallery.write({
      recipe,
      parameters: done.parameters,
      paths,
      classes: done.classes,
      machine: backend.description,
      ...(validation === undefined ? {} : { validation })
    })
    return { paths, summary }
  }).pipe(Effect.scoped, Effect.provide(services))
})
