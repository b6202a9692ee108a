/** `tessera train` and `tessera quickstart`. */
import { duration } from "@tessera/core/layers/ConsoleTracker"
import * as Effect from "effect/Effect"
import { join } from "node:path"
import type * as Backends from "../Backends.ts"
import * as Experiment from "../Experiment.ts"
import type { Layer } from "../Layers.ts"
import { command, percent, print, printJson } from "../Output.ts"
import * as Ranks from "../Ranks.ts"
import * as RecipeSource from "../RecipeSource.ts"
import * as RunFolder from "../RunFolder.ts"
import * as Train from "../Train.ts"

export interface TrainInput extends Backends.BackendOptions {
  readonly recipe: string
  readonly set: ReadonlyArray<string>
  readonly data?: string
  readonly test?: string
  readonly run?: string
  readonly resume: boolean
  readonly json: boolean
}

const dataLayers = ({ data, test }: TrainInput): ReadonlyArray<Layer> => [
  ...(data === undefined ? [] : [{ source: "--data", values: { data: { train: data } } }]),
  ...(test === undefined ? [] : [{ source: "--test", values: { data: { test } } }])
]

/** The recipe for this many ranks: they share the batch where it names no mesh. */
const recipeFor = Effect.fnUntraced(function* (input: TrainInput, place: Ranks.Place | null) {
  const load = (layers: ReadonlyArray<Layer>) =>
    RecipeSource.load(input.recipe, { set: input.set, layers: [...dataLayers(input), ...layers] })
  const { recipe } = yield* load([])
  const [first] = Ranks.meshOf(recipe, place)
  if (first === undefined || Experiment.strategy(recipe).mesh.length > 0) return recipe
  const [meshAxis, count] = first
  return (yield* load([{ source: "--ranks", values: { strategy: { mesh: { [meshAxis]: count } } } }])).recipe
})

type Done = NonNullable<Effect.Success<ReturnType<typeof Train.run>>>

const results = ({ paths, summary }: Done): Effect.Effect<void> => {
  const { validation } = summary
  const { folder } = paths
  const speed = `${Math.round(summary.imagesPerSecond)} images/s`
  return print(
    [
      "",
      `${summary.steps} steps in ${duration(summary.seconds)} (${speed})`,
      ...(validation === undefined
        ? []
        : [
            `${percent(validation.accuracy)} of ${validation.samples} test pictures right, loss ${validation.loss.toFixed(4)}`
          ]),
      `curves, predictions and the report: ${paths.report}`,
      "",
      "Next:",
      `  ${command} evaluate ${folder}`,
      ...(validation === undefined
        ? []
        : [`  ${command} predict ${folder} ${paths.sample} --attention ${join(folder, "attention.png")}`])
    ].join("\n")
  )
}

/** Trains and says what came out. */
export const train = Effect.fn("train")(function* (input: TrainInput) {
  const place = yield* Ranks.place
  const recipe = yield* recipeFor(input, place)
  const folder = input.run ?? join("runs", recipe.name)
  const done = yield* Train.run({ recipe, folder, resume: input.resume, json: input.json }).pipe(
    Effect.provide(Ranks.layer(recipe, place, input))
  )
  // The first rank speaks for all.
  if (done === null) return
  if (input.json) return yield* printJson({ kind: "result", run: folder, ...done.summary })
  yield* results(done)
  yield* print(`  ${command} train ${input.recipe} --set epochs=${recipe.epochs * 2} --run ${folder}-longer\n`)
})

/** Trains the mnist recipe into a new numbered folder. */
export const quickstart = Effect.fn("quickstart")(function* (
  input: Backends.BackendOptions & { readonly set: ReadonlyArray<string>; readonly json: boolean }
) {
  const run = yield* RunFolder.fresh(join("runs", "mnist"))
  if (!input.json) yield* print(`Training a vision transformer on 60,000 handwritten digits, into ${run}\n`)
  yield* train({ ...input, recipe: "mnist", run, resume: false })
})
