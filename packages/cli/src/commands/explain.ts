/** `tessera explain`. */
import * as Program from "@tessera/core/Program"
import * as Effect from "effect/Effect"
import * as Backends from "../Backends.ts"
import * as Facts from "../explain/Facts.ts"
import * as Report from "../explain/Report.ts"
import type { Resolved } from "../Layers.ts"
import * as Layers from "../Layers.ts"
import { note, print, printJson, table } from "../Output.ts"
import { factsOf } from "../pictures/Report.ts"
import * as RecipeSource from "../RecipeSource.ts"
import * as Strategies from "../Strategies.ts"

export interface ExplainInput extends Backends.BackendOptions {
  readonly recipe: string
  readonly set: ReadonlyArray<string>
  readonly mesh?: string
  readonly strategy?: string
  /** Settings of the configuration to compare with. */
  readonly diff: ReadonlyArray<string>
  readonly config: boolean
  readonly program: boolean
  readonly json: boolean
}

/** Every value with the layer it came from. */
const configuration = ({ provenance, recipe }: Resolved) =>
  factsOf(recipe).map(([key, value]) => ({ key, value, source: provenance.get(key) ?? "default" }))

/** What a recipe means: settings and their origin, sizes, costs, memory, collectives, types, learning rates; the programs; or two configurations. */
export const explain = Effect.fn("explain")(function* (input: ExplainInput) {
  const own = yield* Effect.fromResult(Strategies.layers(input, Layers.assignment))
  const resolved = yield* RecipeSource.load(input.recipe, { layers: own })
  if (input.config) {
    const all = configuration(resolved)
    return yield* input.json
      ? printJson(all)
      : print(table(all.map(({ key, source, value }) => [`${key} = ${value}`, source])))
  }
  const { recipe } = resolved
  const other =
    input.diff.length === 0
      ? null
      : yield* RecipeSource.load(input.recipe, {
          layers: [...own, ...(yield* Effect.fromResult(Strategies.layers({ set: input.diff }, Layers.assignment)))]
        })
  yield* note(`planning the step of ${recipe.name} ...`)
  yield* Effect.gen(function* () {
    const { facts, programs } = yield* Facts.measure(recipe)
    if (other !== null) {
      const { facts: changed } = yield* Facts.measure(other.recipe)
      if (input.json) return yield* printJson({ before: facts, after: changed })
      return yield* print(`${recipe.name}: ${Report.difference(facts, changed, input.diff)}`)
    }
    if (input.program) {
      const [first, ...more] = programs
      if (more.length === 0) return yield* print(Program.print(first![1]))
      return yield* print(programs.map(([title, program]) => `${title}\n${Program.print(program)}`).join("\n\n"))
    }
    if (input.json) return yield* printJson(facts)
    yield* print(`${recipe.name}: ${recipe.description}\n\n${Report.one(facts)}`)
  }).pipe(Effect.scoped, Effect.provide(Backends.layer(input)))
})
