/**
 * What the main thread does while a model trains: JavaScript of its own, waiting for data, and how long the step of a large model takes to compile.
 *
 * `node bench/mainThread.ts [--steps 60] [--recipe cifar10-small] [--set data.workers=1]`
 */
import * as Dataset from "@tessera/cli/Dataset"
import * as Experiment from "@tessera/cli/Experiment"
import * as RecipeSource from "@tessera/cli/RecipeSource"
import * as NodeServices from "@effect/platform-node/NodeServices"
import type { StepReport } from "@tessera/core/services/Tracker"
import * as Trainer from "@tessera/core/Trainer"
import { Backend } from "@tessera/core/services/Backend"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"
import { performance } from "node:perf_hooks"
import { parseArgs } from "node:util"
import { stepOf } from "./models.ts"

const { values } = parseArgs({
  options: {
    steps: { type: "string", default: "60" },
    warmup: { type: "string", default: "15" },
    recipe: { type: "string", default: "cifar10-small" },
    set: { type: "string", multiple: true, default: [] }
  }
})
const [steps, warmup] = [Number(values.steps), Number(values.warmup)]
const percent = (share: number) => `${(100 * share).toFixed(2)} %`

/** Trains on batches of a source, or on the first batch again and again, and says where the main thread's time went. */
const share = Effect.fnUntraced(function* (once: boolean) {
  const { recipe } = yield* RecipeSource.load(values.recipe, { set: values.set })
  const source = yield* Dataset.training(recipe)
  const training = yield* Trainer.make(Experiment.config(recipe, Dataset.isSoft(recipe)))
  yield* Trainer.initialise(training, recipe.seed)
  const first: ReadonlyArray<Trainer.DataBatch> = once
    ? yield* Stream.runCollect(Stream.take(source.data.batches(null), 1))
    : []
  const data: Trainer.Data<never> = once
    ? { batches: () => Stream.forever(Stream.fromIterable(first)) }
    : { batches: (from) => Stream.orDie(source.data.batches(from)) }
  let begin = performance.eventLoopUtilization()
  const reports: Array<StepReport> = []
  yield* Trainer.steps(training, {
    run: recipe.name,
    data,
    schedule: Experiment.schedule(recipe, 10_000),
    totalSteps: warmup + steps,
    seed: recipe.seed
  }).pipe(
    Stream.runForEach((report) =>
      Effect.sync(() => {
        if (report.step === warmup) begin = performance.eventLoopUtilization()
        else if (report.step > warmup) reports.push(report)
      })
    )
  )
  const { active, idle } = performance.eventLoopUtilization(begin)
  const seconds = reports.reduce((sum, report) => sum + report.seconds, 0)
  const waited = reports.reduce((sum, report) => sum + report.dataSeconds, 0)
  console.log(
    `${recipe.name}, batch ${recipe.batchSize}, ${once ? "one batch repeated" : "batches of the recipe"}: ${((1000 * seconds) / steps).toFixed(1)} ms a step, main thread busy ${percent(active / (active + idle))} (${(active / steps).toFixed(2)} ms a step), waiting for data ${percent(waited / seconds)}`
  )
}, Effect.scoped)

const compile = Effect.gen(function* () {
  const backend = yield* Backend
  for (let i = 0; i < 2; i++) {
    const began = performance.now()
    const step = Result.getOrThrow(stepOf({ model: "vit_b16", batch: 8, dtype: "fp32" }))
    const traced = performance.now()
    yield* Effect.scoped(backend.compile(step.program, { donated: step.donated }))
    const done = performance.now()
    console.log(
      `ViT-B/16, batch 8, ${i === 0 ? "first time" : "again"}: traced in ${((traced - began) / 1000).toFixed(2)} s, compiled in ${((done - traced) / 1000).toFixed(2)} s, together ${((done - began) / 1000).toFixed(2)} s`
    )
  }
})

const main = Effect.gen(function* () {
  yield* compile
  const { recipe } = yield* RecipeSource.load(values.recipe, { set: values.set })
  const augmenter = Dataset.augmenter(recipe)
  yield* Effect.provide(share(true), augmenter)
  yield* Effect.provide(share(false), augmenter)
})

await Effect.runPromise(Effect.provide(main, [CpuBackend.layerWith({ onProgress: console.log }), NodeServices.layer]))
