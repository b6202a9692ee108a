/** `tessera explain`. */
import { bytesOf } from "@tessera/core/Node"
import * as Program from "@tessera/core/Program"
import { Backend } from "@tessera/core/services/Backend"
import * as Step from "@tessera/core/Step"
import * as Vit from "@tessera/models/Vit"
import * as Effect from "effect/Effect"
import * as Backends from "../Backends.ts"
import * as Dataset from "../Dataset.ts"
import * as Experiment from "../Experiment.ts"
import type { Resolved } from "../Layers.ts"
import { grouped, note, print, printJson, table } from "../Output.ts"
import { factsOf } from "../pictures/Report.ts"
import type { Recipe } from "../Recipe.ts"
import * as RecipeSource from "../RecipeSource.ts"

export interface ExplainInput extends Backends.BackendOptions {
  readonly recipe: string
  readonly set: ReadonlyArray<string>
  readonly config: boolean
  readonly program: boolean
  readonly json: boolean
}

/** Every value with the layer it came from. */
const configuration = ({ provenance, recipe }: Resolved) =>
  factsOf(recipe).map(([key, value]) => ({ key, value, source: provenance.get(key) ?? "default" }))

const bytesText = (bytes: number): string =>
  bytes >= 2 ** 30
    ? `${(bytes / 2 ** 30).toFixed(2)} GiB`
    : bytes >= 2 ** 20
      ? `${(bytes / 2 ** 20).toFixed(1)} MiB`
      : `${(bytes / 1024).toFixed(1)} KiB`

const sum = (numbers: ReadonlyArray<number>) => numbers.reduce((a, b) => a + b, 0)

/** Steps at which the learning rate is shown, where the recipe alone says how many there are. */
const rates = (recipe: Recipe) => {
  const total = recipe.steps
  if (total === null) return null
  const schedule = Experiment.schedule(recipe, total)
  const warmup = "warmup" in recipe.schedule ? recipe.schedule.warmup : 0
  const at = [0, warmup, Math.round(total / 4), Math.round(total / 2), Math.round((3 * total) / 4), total - 1]
  const points = [...new Set(at)].filter((s) => s >= 0 && s < total).toSorted((a, b) => a - b)
  return { total, schedule: schedule.name, points: points.map((step) => ({ step, learningRate: schedule.at(step) })) }
}

const measure = Effect.fnUntraced(function* (recipe: Recipe) {
  const backend = yield* Backend
  const step = yield* Effect.fromResult(Step.make(Experiment.config(recipe, Dataset.isSoft(recipe))))
  const { program } = step
  const held = program.inputs.slice(0, step.donated.length)
  const role = (wanted: string) => sum(held.filter((t) => t.role === wanted).map((t) => bytesOf(t.type)))
  const executable = yield* backend.compile(program, { donated: step.donated })
  const dtypes: Record<string, number> = {}
  for (const equation of program.equations)
    for (const output of equation.outputs)
      dtypes[output.type.dtype] = (dtypes[output.type.dtype] ?? 0) + bytesOf(output.type)
  const cost = Program.cost(program)
  return {
    name: recipe.name,
    parameters: Vit.parameterCount(recipe.model),
    forwardFlopsPerImage: Vit.forwardFlops(recipe.model),
    stepFlops: cost.contractionFlops,
    memory: {
      parameters: role("parameter"),
      optimizer: role("optimizer"),
      gradients: role("parameter"),
      arena: executable.arenaBytes,
      outputs: executable.outputBytes
    },
    kernels: executable.launches,
    equations: program.equations.length,
    valueBytesByType: dtypes,
    precision: Experiment.precision(recipe),
    schedule: rates(recipe),
    digest: step.digest,
    program
  }
})

/** What a recipe means: settings and their origin, sizes, costs, memory, learning rates; or the whole program. */
export const explain = Effect.fn("explain")(function* (input: ExplainInput) {
  const resolved = yield* RecipeSource.load(input.recipe, { set: input.set })
  if (input.config) {
    const all = configuration(resolved)
    return yield* input.json
      ? printJson(all)
      : print(table(all.map(({ key, source, value }) => [`${key} = ${value}`, source])))
  }
  const { recipe } = resolved
  yield* note(`planning the step of ${recipe.name} ...`)
  const { program, ...facts } = yield* measure(recipe).pipe(Effect.scoped, Effect.provide(Backends.layer(input)))
  if (input.program) return yield* print(Program.print(program))
  if (input.json) return yield* printJson(facts)
  const { memory } = facts
  const rows = [
    ["parameters", grouped(facts.parameters)],
    ["forward FLOPs of one picture (contractions)", grouped(facts.forwardFlopsPerImage)],
    [`FLOPs of one step of ${recipe.batchSize} pictures`, grouped(facts.stepFlops)],
    ["memory: parameters", bytesText(memory.parameters)],
    ["memory: optimizer", bytesText(memory.optimizer)],
    ["memory: activations and gradients (planned arena)", bytesText(memory.arena)],
    ["kernels in a step", String(facts.kernels)],
    ["precision", facts.precision.name]
  ]
  yield* print(`${recipe.name}: ${recipe.description}\n\n${table(rows)}`)
  const types = Object.entries(facts.valueBytesByType).map(([dtype, bytes]) => [`  ${dtype}`, bytesText(bytes)])
  yield* print(`\nvalues computed outside of loops, by type\n${table(types)}`)
  if (facts.schedule !== null)
    yield* print(
      `\nlearning rate: ${facts.schedule.schedule}\n${table(facts.schedule.points.map((p) => [`  step ${p.step}`, p.learningRate.toExponential(3)]))}`
    )
})
