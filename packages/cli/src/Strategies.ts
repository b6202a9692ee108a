/** Strategies by short names, and meshes as text: what flags say, as settings of a recipe. */
import { nearest, RecipeError } from "@tessera/core/Errors"
import * as Result from "effect/Result"
import type { Layer, Raw } from "./Layers.ts"

/** Settings of `strategy` (and of what goes with it) by name, with what it does. */
export const named: Readonly<Record<string, { readonly about: string; readonly values: Raw }>> = {
  data: { about: "the batch over data, everything else whole", values: { strategy: { zero: 0, fsdp: null } } },
  zero1: { about: "optimizer state over data, too", values: { strategy: { zero: 1, fsdp: null } } },
  zero2: { about: "and gradients", values: { strategy: { zero: 2, fsdp: null } } },
  zero3: { about: "and parameters", values: { strategy: { zero: 3, fsdp: null } } },
  fsdp: { about: "flat parameters, gathered layer by layer, forward and backward", values: { strategy: { fsdp: {} } } },
  "fsdp-kept": {
    about: "flat parameters, kept from the forward to the backward pass",
    values: { strategy: { fsdp: { reshardAfterForward: false } } }
  },
  "fsdp-model": {
    about: "flat parameters, the whole model gathered at once",
    values: { strategy: { fsdp: { unit: "model" } } }
  },
  sequence: { about: "norms and residuals along the sequence over tensor", values: { strategy: { sequence: true } } },
  ring: { about: "keys and values around the ring of context", values: { strategy: { context: "ring" } } },
  gpipe: { about: "all forward passes, then all backward passes", values: { strategy: { schedule: "gpipe" } } },
  "1f1b": { about: "one forward, one backward pass", values: { strategy: { schedule: "1f1b" } } },
  interleaved: {
    about: "two chunks of layers on every stage",
    values: { strategy: { schedule: "interleaved", virtualStages: 2 } }
  },
  recompute: { about: "intermediates of all layers again in the backward pass", values: { recompute: "full" } }
}

const fail = (key: string, problem: string, hint: string) => Result.fail(new RecipeError({ key, problem, hint }))

const meant = (name: string, known: ReadonlyArray<string>): string => {
  const near = nearest(name, known)
  return near === null ? `known: ${known.join(", ")}` : `did you mean ${near}?`
}

/** `fsdp,recompute` as layers. */
export const strategies = (text: string): Result.Result<ReadonlyArray<Layer>, RecipeError> =>
  Result.all(
    text.split(",").map((part) => {
      const name = part.trim()
      const found = named[name]
      return found === undefined
        ? fail("--strategy", `unknown strategy "${name}"`, meant(name, Object.keys(named)))
        : Result.succeed({ source: "--strategy", values: found.values })
    })
  )

const axes = ["stage", "data", "context", "tensor"]

/** `data=8,tensor=4` as a layer; axes that are not named have one rank. */
export const mesh = (text: string): Result.Result<Layer, RecipeError> => {
  const counts: Record<string, number> = Object.fromEntries(axes.map((name) => [name, 1]))
  for (const part of text.split(",").filter((p) => p.trim() !== "")) {
    const [name = "", count = ""] = part.split("=").map((p) => p.trim())
    if (!axes.includes(name)) return fail("--mesh", `unknown mesh axis "${name}"`, meant(name, axes))
    if (!/^[1-9]\d*$/.test(count))
      return fail("--mesh", `"${part.trim()}" gives no number of ranks`, `write ${name}=N, such as data=8,tensor=4`)
    counts[name] = Number(count)
  }
  return Result.succeed({ source: "--mesh", values: { strategy: { mesh: counts } } })
}

/** `mesh=…` and `strategy=…` among settings; everything else is `key=value`. */
export const setting = (
  text: string,
  assignment: (text: string) => Result.Result<Layer, RecipeError>
): Result.Result<ReadonlyArray<Layer>, RecipeError> => {
  if (text.startsWith("mesh=")) return Result.map(mesh(text.slice("mesh=".length)), (layer) => [layer])
  if (text.startsWith("strategy=")) return strategies(text.slice("strategy=".length))
  return Result.map(assignment(text), (layer) => [layer])
}

export interface Flags {
  readonly mesh?: string
  readonly strategy?: string
  readonly set: ReadonlyArray<string>
}

/** `--mesh`, `--strategy` and `--set` as layers; what is set wins. */
export const layers = (
  { mesh: given, set, strategy }: Flags,
  assignment: (text: string) => Result.Result<Layer, RecipeError>
): Result.Result<ReadonlyArray<Layer>, RecipeError> => {
  const flags = [
    ...(given === undefined ? [] : [`mesh=${given}`]),
    ...(strategy === undefined ? [] : [`strategy=${strategy}`])
  ]
  return Result.map(Result.all([...flags, ...set].map((text) => setting(text, assignment))), (found) => found.flat())
}
