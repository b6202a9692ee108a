/** How a step is spread over devices and memory. A value that only describes; passes read it once, when the step is built. */
import * as Context from "effect/Context"
import type { RecomputePolicy } from "./Module.ts"

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
  readonly mesh: ReadonlyArray<readonly [meshAxis: string, count: number]>
  /** Parts that a batch is cut into; gradients add up over them before the one update. */
  readonly microbatches: number
  readonly recompute: RecomputePolicy
  /** One table per role of tensors. */
  readonly compute: Rules
  readonly parameters: Rules
  readonly gradients: Rules
  readonly optimizer: Rules
  readonly pipeline: Pipeline | null
  readonly fsdp: Fsdp | null
  /** Gradients are reduced in groups of about this many bytes. */
  readonly bucketBytes: number
}

/** One device, one microbatch, everything kept. */
export const single: Strategy = {
  mesh: [],
  microbatches: 1,
  recompute: { kind: "none" },
  compute: [],
  parameters: [],
  gradients: [],
  optimizer: [],
  pipeline: null,
  fsdp: null,
  bucketBytes: 125_000_000
}

/** Number of devices of the mesh. */
export const deviceCount = (strategy: Strategy): number => strategy.mesh.reduce((n, [, count]) => n * count, 1)

/** The strategy in force; a single device unless provided. */
export const Current: Context.Reference<Strategy> = Context.Reference<Strategy>("@tessera/core/Strategy", {
  defaultValue: () => single
})
