/** A training run: the stream of steps with evaluation, checkpoints and trackers put on it, then pictures and a report. */
import type { EvaluationReport } from "@tessera/core/services/Tracker"
import { Tracker } from "@tessera/core/services/Tracker"
import { Backend } from "@tessera/core/services/Backend"
import { CheckpointStore } from "@tessera/core/services/CheckpointStore"
import * as FileCheckpoints from "@tessera/core/layers/FileCheckpoints"
import * as Tasks from "@tessera/core/Tasks"
import * as Trainer from "@tessera/core/Trainer"
import * as Trackers from "@tessera/core/layers/Trackers"
import * as Mesh from "@tessera/core/Mesh"
import * as Program from "@tessera/core/Program"
import { tesseraVersion } from "@tessera/core/version"
import { Collectives, single } from "@tessera/core/services/Collectives"
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
import * as Ranks from "./Ranks.ts"
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
  const ranks = yield* Collectives
  const isFirst = ranks.rank === 0
  const several = Mesh.rankCount(ranks.mesh) > 1
  yield* ranks.agree("the version", `tessera ${tesseraVersion}, Node ${process.version}`)
  yield* ranks.agree("the configuration", digestOf(factsOf(recipe)))
  const source = yield* Dataset.trainingSource(recipe)
  const test = recipe.data.test === null ? null : yield* Dataset.evaluation(recipe, { batchSize: evaluationBatch })
  const classes = source.classes ?? test?.classes ?? null
  yield* ranks.agree("the data", digestOf([source.digest, source.count, source.classes]))
  if (isFirst) yield* note(`compiling the step of ${recipe.name} ...`)
  const training = yield* Trainer.make(Experiment.config(recipe, Dataset.isSoft(recipe)))
  yield* ranks.agree("the program", training.runner.digest)
  const data = yield* Dataset.training(recipe, { source, rows: Trainer.rowsOf(training) })
  const evaluator =
    test === null || !isFirst
      ? null
      : yield* Tasks.evaluator(Experiment.task(recipe, evaluationBatch, false), {
          precision: Experiment.precision(recipe)
        }).pipe(Effect.provideService(Collectives, single))
  const resumed = resume ? yield* restore(training, recipe, isFirst) : 0
  if (resumed === 0) yield* Trainer.initialise(training, recipe.seed)

  const totalSteps = Experiment.totalSteps(recipe, data.stepsPerEpoch)
  const latest = yield* Ref.make<EvaluationReport | null>(null)
  const evaluatedAt = yield* Ref.make(-1)
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
    if (test === null || (yield* Ref.getAndSet(evaluatedAt, step)) === step) return
    const began = yield* seconds
    // All bring the parameters together, the first rank evaluates.
    const result = yield* Effect.scoped(
      Effect.flatMap(Trainer.parameters(training), (parameters) =>
        evaluator === null ? Effect.succeed(null) : evaluator.run(parameters, test.batches)
      )
    ).pipe(Effect.map((found) => (found === null ? null : Tasks.summary(found))))
    if (result === null) return
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
      if (isFirst)
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
      onStep: tracker.report,
      stop: Ranks.stopAsked
    })
    const evaluated =
      evaluateEvery === null
        ? reports
        : Trainer.every<Reported, EvaluateError, EvaluateNeeds>(evaluateEvery, () => evaluate)(reports)
    const kept =
      saveEvery === null ? evaluated : Trainer.every<Reported, SaveError, SaveNeeds>(saveEvery, () => save)(evaluated)
    yield* Stream.runDrain(kept)
    if (several && (yield* Ref.get(training.position)).step < totalSteps) {
      yield* farewell("interrupted")
      return yield* Effect.interrupt
    }
    yield* evaluate
    yield* save
  })
  type Reported = Stream.Success<ReturnType<typeof Trainer.steps>>
  type EvaluateError = Effect.Error<typeof evaluate>
  type EvaluateNeeds = Effect.Services<typeof evaluate>
  type SaveError = Effect.Error<typeof save>
  type SaveNeeds = Effect.Services<typeof save>

  yield* train.pipe(
    // One of several ranks that is interrupted alone cannot save: the others are elsewhere.
    Effect.onInterrupt(() => (several ? Effect.void : farewell("interrupted"))),
    Effect.tapError((error) => (error._tag === "TrainError" ? farewell("stopped") : Effect.void)),
    Effect.provide(isFirst ? RunTrackers.layer({ paths, json, resumedStep: resumed }) : Trackers.silent)
  )
  const evaluation = yield* Ref.get(latest)
  return { parameters: yield* Trainer.parameters(training), classes, evaluation, folder: store.folder }
})

/** Opens the newest sound checkpoint, if there is one, and goes back to it. Gives the step. */
const restore = Effect.fnUntraced(function* (training: Trainer.Training, recipe: Recipe, speaks: boolean) {
  const store = yield* CheckpointStore
  if ((yield* store.list).length === 0) {
    if (speaks) yield* note("no checkpoint yet: starting from the beginning")
    return 0
  }
  const state = yield* Effect.scoped(
    Effect.flatMap(store.open("latest"), (reader) => Trainer.restore(training, reader))
  )
  const before = new Map(factsOf((state.run as unknown as RunState).recipe))
  const changed = factsOf(recipe).filter(([key, value]) => before.get(key) !== value)
  if (changed.length > 0 && speaks) {
    const list = changed.map(([key, value]) => `${key} ${before.get(key) ?? "none"} -> ${value}`).join(", ")
    yield* note(`settings differ from those the run was started with: ${list}`)
  }
  const { step } = yield* Ref.get(training.position)
  if (speaks) yield* note(`resuming after step ${step}`)
  return step
})

const digestOf = (value: unknown): string => Program.fingerprint(JSON.stringify(value))

/** Trains a recipe in a folder; gives the summary that the report shows, of several ranks on the first only. */
export const run = Effect.fn("Train.run")(function* (options: TrainOptions) {
  const { folder, recipe, resume } = options
  const fs = yield* FileSystem.FileSystem
  const backend = yield* Backend
  const { barrier, mesh, rank } = yield* Collectives
  const isFirst = rank === 0
  if (Mesh.rankCount(mesh) > 1) yield* Ranks.listen
  const paths = isFirst ? yield* RunFolder.prepare(folder, resume) : RunFolder.paths(folder)
  if (isFirst && !resume) yield* fs.writeFileString(paths.recipe, `${JSON.stringify(recipe, null, 2)}\n`)
  // The folder is there, and what an earlier run left half written is gone.
  if (!isFirst) yield* barrier
  const services = Layer.mergeAll(
    Dataset.augmenter(recipe),
    FileCheckpoints.layer({ ...RunFolder.checkpointOptions(paths.checkpoints, recipe), owner: isFirst })
  )
  return yield* Effect.gen(function* () {
    if (isFirst) yield* barrier
    const done = yield* loop(options, paths)
    if (!isFirst) return null
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
