/** Recipes by name or from a file. */
import { nearest, RecipeError } from "@tessera/core/Errors"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import type { Layer, Raw, Resolved } from "./Layers.ts"
import * as Layers from "./Layers.ts"
import { recipes } from "@tessera/models/recipes/index"

/** Every built-in recipe by its name. */
export const builtIn: Readonly<Record<string, Raw>> = recipes

const isFile = (name: string): boolean => /\.(json|ya?ml)$/.test(name)

const fromFile = Effect.fnUntraced(function* (path: string) {
  const fs = yield* FileSystem.FileSystem
  const text = yield* fs.readFileString(path).pipe(
    Effect.mapError(
      () =>
        new RecipeError({
          key: "",
          problem: `the recipe ${path} cannot be read`,
          hint: "give a built-in name or an existing file"
        })
    )
  )
  const broken = (cause: unknown) =>
    new RecipeError({
      key: "",
      problem: `${path} is no ${path.endsWith(".json") ? "JSON" : "YAML"}: ${cause instanceof Error ? cause.message.split("\n")[0] : String(cause)}`,
      hint: ""
    })
  const values = path.endsWith(".json")
    ? yield* Effect.try({ try: () => JSON.parse(text) as unknown, catch: broken })
    : yield* Effect.tryPromise({ try: async () => (await import("yaml")).parse(text) as unknown, catch: broken })
  if (typeof values !== "object" || values === null || Array.isArray(values))
    return yield* new RecipeError({ key: "", problem: `${path} holds no settings`, hint: "write key: value" })
  return values as Raw
})

/** The layers of a name or file: a file may begin from a built-in recipe with `extends: NAME`. */
const layersOf = Effect.fnUntraced(function* (name: string) {
  if (!isFile(name)) return [yield* named(name)]
  const { extends: base, ...values } = yield* fromFile(name)
  const own: Layer = { source: `file ${name}`, values }
  return base === undefined ? [own] : [yield* named(typeof base === "string" ? base : JSON.stringify(base)), own]
})

const named = (name: string): Effect.Effect<Layer, RecipeError> => {
  const values = builtIn[name]
  if (values !== undefined) return Effect.succeed({ source: `recipe ${name}`, values })
  const names = Object.keys(builtIn)
  const near = nearest(name, names)
  const hint =
    near === null ? `known: ${names.join(", ")}; a file ends in .json, .yaml or .yml` : `did you mean ${near}?`
  return Effect.fail(new RecipeError({ key: "", problem: `unknown recipe "${name}"`, hint }))
}

/** A recipe by name or file with `--set` and further layers on top. */
export const load = Effect.fn("RecipeSource.load")(function* (
  name: string,
  options: { readonly set?: ReadonlyArray<string>; readonly layers?: ReadonlyArray<Layer> } = {}
): Effect.fn.Return<Resolved, RecipeError, FileSystem.FileSystem> {
  const base = yield* layersOf(name)
  const sets: Array<Layer> = []
  for (const text of options.set ?? []) sets.push(yield* Effect.fromResult(Layers.assignment(text)))
  return yield* Effect.fromResult(Layers.resolve([...base, ...(options.layers ?? []), ...sets]))
})
