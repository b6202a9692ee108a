/** How a step is spread over devices and memory. A value that only describes; passes read it once, when the step is built. */
import * as Context from "effect/Context"
import { MeshMismatch, PartitionError, RecipeError } from "./Errors.ts"
import type * as Mesh from "./Mesh.ts"
import * as Meshes from "./Mesh.ts"
import * as Recompute from "./Recompute.ts"

/**
 * Ordered rules: an axis of that name is split over that mesh axis, unless an earlier rule gave the mesh axis to another axis of the tensor.
 * Axes without a rule are whole on every device.
 */
export type Rules = ReadonlyArray<readonly [axis: string, meshAxis: string]>

export interface Pipeline {
  readonly meshAxis: string
  readonly schedule: "gpipe" | "1f1b" | "interleaved"
  /** Chunks of layers that each stage holds; above 1 only when interleaved. */
  readonly virtualStages: number
}

export interface Fsdp {
  /** What is gathered at once: all parameters, or those of one layer. */
  readonly unit: "model" | "block"
  /** Gathered parameters are dropped after the forward pass and gathered again in the backward. */
  readonly reshardAfterForward: boolean
  /** Units gathered ahead of their use. */
  readonly prefetch: number
}

export interface Strategy {
  /** Mesh axes with their device counts, outermost first; empty for a single device. */
  readonly mesh: Mesh.Mesh
  /** Parts that a batch is cut into; gradients add up over them before the one update. */
  readonly microbatches: number
  readonly recompute: Recompute.Policy
  /** One table per role of tensors. */
  readonly compute: Rules
  readonly parameters: Rules
  readonly gradients: Rules
  readonly optimizer: Rules
  readonly pipeline: Pipeline | null
  readonly fsdp: Fsdp | null
  /** Mesh axes around which attention passes keys and values, instead of gathering them. */
  readonly ring: ReadonlyArray<string>
  /** Gradients are reduced in groups of about this many bytes. */
  readonly bucketBytes: number
}

/** One device, one microbatch, everything kept. */
export const single: Strategy = {
  mesh: [],
  microbatches: 1,
  recompute: Recompute.none,
  compute: [],
  parameters: [],
  gradients: [],
  optimizer: [],
  pipeline: null,
  fsdp: null,
  ring: [],
  bucketBytes: 125_000_000
}

export interface Choices {
  /** Mesh axes with their counts, outermost first: `stage`, `data`, `context`, `tensor`, as far as there are any. */
  readonly mesh: Mesh.Mesh
  /** What is split over `data` besides the batch: optimizer state (1), gradients (2), parameters (3). */
  readonly zero?: 0 | 1 | 2 | 3
  /** Parameters in flat tensors, gathered unit by unit over `data`; everything of them is split there, as with zero 3. */
  readonly fsdp?: Partial<Fsdp>
  /** Norms and residuals are split along the sequence over `tensor`. */
  readonly sequence?: boolean
  /** How attention sees keys of other ranks of `context`. */
  readonly context?: "gather" | "ring"
  /** How the stages of `stage` take turns; one forward, one backward unless given. */
  readonly schedule?: Pipeline["schedule"]
  /** Chunks of layers of each stage, when interleaved. */
  readonly virtualStages?: number
  readonly microbatches?: number
  readonly recompute?: Recompute.Policy
}

/**
 * Rule tables from the names of mesh axes. Data parallel: batch over `data`. ZeRO: the embed axis of state, gradients, parameters over `data` as
 * well; what has none (a few biases) stays whole. Tensor parallel: heads, mlp and vocab over `tensor`. Sequence parallel: seq over `tensor`, after these. Context parallel: seq and keySeq over `context`. Pipeline: layers
 * over `stage`. @source arXiv:1909.08053 (tensor), arXiv:1910.02054 (ZeRO), arXiv:2205.05198 (sequence)
 */
export const make = (choices: Choices): Strategy => {
  const {
    context = "gather",
    fsdp,
    mesh,
    microbatches = 1,
    recompute = single.recompute,
    schedule = "1f1b",
    sequence = false,
    virtualStages = 1,
    zero = 0
  } = choices
  const on = (meshAxis: string, ...axes: ReadonlyArray<string>): Rules =>
    Meshes.has(mesh, meshAxis) ? axes.map((axis) => [axis, meshAxis] as const) : []
  const tensor = on("tensor", "heads", "mlp", "vocab", "part")
  const stored = (level: number): Rules => [
    ...tensor,
    ...on("stage", "layers"),
    ...(fsdp === undefined ? (zero >= level ? on("data", "embed") : []) : on("data", "flat"))
  ]
  return {
    ...single,
    mesh,
    microbatches,
    recompute,
    compute: [
      ...on("data", "batch"),
      ...on("context", "seq", "keySeq"),
      ...tensor,
      ...(sequence ? on("tensor", "seq") : [])
    ],
    parameters: stored(3),
    gradients: stored(2),
    optimizer: stored(1),
    pipeline: Meshes.has(mesh, "stage") ? { meshAxis: "stage", schedule, virtualStages } : null,
    fsdp:
      fsdp === undefined ? null : { unit: "block", reshardAfterForward: fsdp.unit !== "model", prefetch: 1, ...fsdp },
    ring: context === "ring" && Meshes.has(mesh, "context") ? ["context"] : []
  }
}

/** What is wrong with a strategy whatever the model, or null. */
export const problem = ({ fsdp, mesh }: Strategy): PartitionError | RecipeError | null => {
  const names = mesh.map(([name]) => name)
  const twice = names.find((name, i) => names.indexOf(name) !== i)
  const odd = mesh.find(([, count]) => !Number.isInteger(count) || count < 1)
  if (twice !== undefined || odd !== undefined) {
    const what =
      twice === undefined ? `mesh axis "${odd![0]}" has ${odd![1]} ranks` : `mesh axis "${twice}" is there twice`
    const hint = twice === undefined ? "a count is a whole number of at least 1" : "give each mesh axis once"
    return new PartitionError({ reason: new MeshMismatch({ problem: what, hint }) })
  }
  if (fsdp?.unit === "model" && fsdp.reshardAfterForward)
    return new RecipeError({
      key: "strategy.fsdp.reshardAfterForward",
      problem:
        "nothing runs between the forward and the backward pass of the whole model, so that dropping it in between saves nothing",
      hint: 'use unit "block", or reshardAfterForward false'
    })
  return null
}

/** Number of devices of the mesh. */
export const deviceCount = (strategy: Strategy): number => Meshes.rankCount(strategy.mesh)

/** The strategy in force; a single device unless provided. */
export const Current: Context.Reference<Strategy> = Context.Reference<Strategy>("@tessera/core/Strategy", {
  defaultValue: () => single
})
