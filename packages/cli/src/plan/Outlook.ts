/** What a recipe will need and how fast it will be on a cluster, and what else could be done. */
import type { CompileError, PartitionError, ProgramError, RecipeError } from "@tessera/core/Errors"
import * as Mesh from "@tessera/core/Mesh"
import * as Prediction from "@tessera/core/planner/Prediction"
import type { Backend } from "@tessera/core/services/Backend"
import * as Vit from "@tessera/models/Vit"
import * as VitConfig from "@tessera/models/VitConfig"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Result from "effect/Result"
import * as Dataset from "../Dataset.ts"
import * as Experiment from "../Experiment.ts"
import type { Layer, Raw } from "../Layers.ts"
import { note } from "../Output.ts"
import type { Recipe } from "../Recipe.ts"
import type { Cluster } from "./Cluster.ts"

export interface Outlook {
  /** What was changed of the recipe; empty for the recipe itself. */
  readonly change: string
  readonly recipe: Recipe
  readonly prediction: Prediction.Prediction
  readonly speed: Prediction.Speed
  /** FLOPs a second as Rosetta's tables count them. */
  readonly tabulatedFlops: number
}

/**
 * FLOPs of one sample as Rosetta's tables count them: Megatron's formula, an MLP of four times the width, and sequences padded to a multiple of what NeMo's
 * eight class tokens make. @source fitted to NVIDIA/JAX-Toolbox@23.10-release rosetta/rosetta/projects/vit/README.md
 */
export const tabulatedFlops = (config: VitConfig.VitConfig): number => {
  const { cols, rows } = VitConfig.grid(config)
  const s = rows * cols + 8
  return 72 * config.layers * s * config.hidden ** 2 * (1 + s / (6 * config.hidden))
}

type Failure = ProgramError | RecipeError | PartitionError | CompileError

export const of = (recipe: Recipe, { device }: Cluster, change = ""): Effect.Effect<Outlook, Failure, Backend> =>
  Effect.map(Prediction.of(Experiment.config(recipe, Dataset.isSoft(recipe)), device), (prediction) => {
    const speed = Prediction.speed(prediction, recipe.batchSize, 3 * Vit.forwardFlops(recipe.model))
    return {
      change,
      recipe,
      prediction,
      speed,
      tabulatedFlops: speed.samplesPerSecond * tabulatedFlops(recipe.model)
    }
  })

/** A recipe with further settings on top. */
export type Variant = (layers: ReadonlyArray<Layer>) => Effect.Effect<Recipe, RecipeError, FileSystem.FileSystem>

/** One way to need less, in words and as settings. */
interface Change {
  readonly words: string
  readonly values: Raw
}

/** From the smallest on: first what costs no time, then what computes or sends more, then another mesh. */
const changes = (recipe: Recipe, count: number): ReadonlyArray<Change> => {
  const { mesh } = recipe.strategy
  const more = (factor: number): Change => ({
    words: `${recipe.microbatches * factor} microbatches`,
    values: { microbatches: recipe.microbatches * factor }
  })
  const finer = [2, 4, 8, 16, 32].map(more)
  const spread: ReadonlyArray<Change> = [
    { words: "optimizer state over data (zero 1)", values: { strategy: { zero: 1, fsdp: null } } },
    { words: "optimizer state and gradients over data (zero 2)", values: { strategy: { zero: 2, fsdp: null } } },
    { words: "everything over data (fsdp)", values: { strategy: { zero: 0, fsdp: {} } } }
  ]
  const again: Change = { words: "all layers computed again in the backward pass", values: { recompute: "full" } }
  const both = (a: Change, b: Change): Change => ({
    words: `${a.words}, ${b.words}`,
    values: {
      ...a.values,
      ...b.values,
      strategy: { ...(a.values["strategy"] as Raw | undefined), ...(b.values["strategy"] as Raw | undefined) }
    }
  })
  const fsdp = spread[2]!
  const tensors = [2, 4, 8].flatMap((tensor): ReadonlyArray<Change> => {
    const rest = count / (tensor * mesh.stage * mesh.context)
    if (tensor <= mesh.tensor || !Number.isInteger(rest)) return []
    const values = { strategy: { mesh: { data: rest, tensor }, sequence: true } }
    return [{ words: `layers over ${tensor} devices (data=${rest}, tensor=${tensor})`, values }]
  })
  return [
    ...(mesh.data > 1 ? spread.slice(0, 2) : []),
    ...finer,
    ...(mesh.data > 1 ? [fsdp] : []),
    again,
    ...(mesh.data > 1 ? [both(fsdp, again), ...finer.map((f) => both(both(fsdp, again), f))] : []),
    ...tensors.flatMap((t) => [t, both(t, again), both(both(t, fsdp), again)])
  ]
}

/** The smallest change that makes a plan fit, or null; says what it tries. */
export const smallestChange = Effect.fnUntraced(function* (outlook: Outlook, cluster: Cluster, variant: Variant) {
  for (const { values, words } of changes(outlook.recipe, cluster.count)) {
    const recipe = yield* Effect.result(variant([{ source: "plan", values }]))
    if (Result.isFailure(recipe)) continue
    yield* note(`trying ${words} ...`)
    const found = yield* Effect.result(of(recipe.success, cluster, words))
    if (Result.isSuccess(found) && found.success.prediction.fits) return found.success
  }
  return null
})

/** Powers of two up to a number. */
const powers = (most: number): ReadonlyArray<number> =>
  Array.from({ length: Math.floor(Math.log2(most)) + 1 }, (_, i) => 2 ** i)

/** Meshes and strategies worth trying on so many devices. */
const candidates = (recipe: Recipe, { count, device }: Cluster): ReadonlyArray<Change> => {
  const { heads, layers } = recipe.model
  return powers(Math.min(count, device.perNode)).flatMap((tensor) =>
    powers(Math.min(count / tensor, layers, 8)).flatMap((stage) => {
      const data = count / (tensor * stage)
      if (!Number.isInteger(data) || heads % tensor !== 0 || layers % stage !== 0) return []
      const mesh = { stage, data, tensor, context: 1 }
      const named = Object.entries(mesh)
        .filter(([, n]) => n > 1)
        .map(([name, n]) => `${name}=${n}`)
      const base = { mesh, sequence: tensor > 1, schedule: "1f1b", virtualStages: 1 }
      const ways: ReadonlyArray<readonly [string, Raw]> = [
        ["zero 1", { ...base, zero: data > 1 ? 1 : 0, fsdp: null }],
        ...(data > 1 ? [["fsdp", { ...base, zero: 0, fsdp: {} }] as const] : [])
      ]
      return ways.map(([way, strategy]): Change => ({
        words: `${named.length === 0 ? "one device" : named.join(", ")}${data > 1 ? `, ${way}` : ""}`,
        values: { strategy }
      }))
    })
  )
}

/** More are tried by hand: a batch is rarely cut further, and plans of many parts take long to make. */
const mostCuts = 32

/** Microbatches that leave every rank at least one example. */
const cuts = (recipe: Recipe, change: Change): ReadonlyArray<number> => {
  const { data, stage } = (change.values["strategy"] as { readonly mesh: Recipe["strategy"]["mesh"] }).mesh
  return powers(Math.min(mostCuts, recipe.batchSize / data)).filter((m) => m >= (stage > 1 ? 2 * stage : 1))
}

/** The fastest plan of each mesh and strategy that fits, fastest first; says what it tries. */
export const search = Effect.fnUntraced(function* (recipe: Recipe, cluster: Cluster, variant: Variant) {
  const found: Array<Outlook> = []
  const all = candidates(recipe, cluster)
  for (const [i, change] of all.entries()) {
    for (const recompute of ["none", "full"] as const) {
      yield* note(`${i + 1} of ${all.length}: ${change.words}${recompute === "full" ? ", computed again" : ""} ...`)
      const best = yield* fewestCuts(recipe, cluster, variant, change, recompute)
      if (best === null) continue
      found.push(best)
      break
    }
  }
  return found.toSorted((a, b) => b.speed.samplesPerSecond - a.speed.samplesPerSecond)
})

/** The fewest microbatches that fit; null where none do. */
const fewestCuts = Effect.fnUntraced(function* (
  recipe: Recipe,
  cluster: Cluster,
  variant: Variant,
  change: Change,
  recompute: "none" | "full"
) {
  const possible = cuts(recipe, change)
  const attempt = (microbatches: number): Effect.Effect<Outlook | null, never, Backend | FileSystem.FileSystem> => {
    const cut = `${microbatches} microbatch${microbatches === 1 ? "" : "es"}`
    const words = `${change.words}, ${cut}${recompute === "full" ? ", computed again" : ""}`
    const layer = { source: "plan", values: { ...change.values, microbatches, recompute } }
    // What a mesh cannot follow is no plan.
    return Effect.flatMap(variant([layer]), (r) => of(r, cluster, words)).pipe(
      Effect.map((found) => (found.prediction.fits ? found : null)),
      Effect.orElseSucceed(() => null)
    )
  }
  for (const microbatches of possible) {
    const found = yield* attempt(microbatches)
    if (found !== null) return found
  }
  return null
})

/** `data=8, tensor=4`. */
export const meshText = ({ prediction }: Outlook): string => Mesh.print(prediction.mesh)
