/** `tessera evaluate`. */
import * as Tasks from "@tessera/core/Tasks"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Backends from "../Backends.ts"
import * as Dataset from "../Dataset.ts"
import * as Experiment from "../Experiment.ts"
import { UsageError } from "../Failure.ts"
import * as LoadedModel from "../LoadedModel.ts"
import { percent, print, printJson } from "../Output.ts"

export interface ModelInput extends Backends.BackendOptions {
  /** Run folder or checkpoint. */
  readonly run?: string
  /** A safetensors file of another library, instead of a run. */
  readonly weights?: string
  readonly layout: LoadedModel.LayoutName
}

/** The model that the command line names. */
export const load = Effect.fnUntraced(function* ({ layout, run, weights }: ModelInput) {
  if (weights !== undefined) return yield* LoadedModel.fromWeights(weights, layout)
  if (run !== undefined) return yield* LoadedModel.fromRun(run)
  return yield* new UsageError({
    problem: "no model was named",
    hint: "give a run folder, a checkpoint, or --weights FILE"
  })
})

/** Pictures at once. */
const batchSize = 250

/** Accuracy, loss and count on the test data. */
export const evaluate = (input: ModelInput & { readonly data?: string; readonly json: boolean }) =>
  Effect.gen(function* () {
    const model = yield* load(input)
    const { recipe } = model
    const spec = input.data ?? recipe.data.test ?? undefined
    const test = yield* Dataset.evaluation(recipe, { batchSize, ...(spec === undefined ? {} : { spec }) })
    const evaluator = yield* Tasks.evaluator(Experiment.task(recipe, batchSize, false), {
      precision: Experiment.precision(recipe)
    })
    const began = yield* Clock.currentTimeMillis
    const { accuracy, loss, samples } = Tasks.summary(yield* evaluator.run(model.parameters, test.batches))
    const seconds = ((yield* Clock.currentTimeMillis) - began) / 1000
    const correct = Math.round(accuracy * samples)
    if (input.json)
      return yield* printJson({
        model: model.origin,
        step: model.step,
        data: test.name,
        accuracy,
        loss,
        correct,
        count: samples,
        seconds
      })
    yield* print(`${model.origin} on ${test.name}`)
    yield* print(
      `${percent(accuracy)} right (${correct} of ${samples}), loss ${loss.toFixed(4)}, ${seconds.toFixed(1)} s`
    )
  }).pipe(Effect.scoped, Effect.provide([Dataset.onThisThread, Backends.layer(input)]))
