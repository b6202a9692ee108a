/** What a rank's memory holds while it trains, by kind, before anything is allocated. Bytes. */
import * as Effect from "effect/Effect"
import type { Distributed, Pipelined, Spread } from "./Distribute.ts"
import type { CompileError } from "./Errors.ts"
import * as Mesh from "./Mesh.ts"
import type { TensorType } from "./Node.ts"
import { bytesOf } from "./Node.ts"
import * as StageNeeds from "./runner/StageNeeds.ts"
import type { Outline } from "./services/Backend.ts"
import { Backend } from "./services/Backend.ts"
import { Collectives, single } from "./services/Collectives.ts"
import type { Held } from "./step/Storage.ts"
import type { Strategy } from "./Strategy.ts"

export interface Footprint {
  readonly parameters: number
  readonly optimizer: number
  /** Averaged parameters. */
  readonly averages: number
  /** Gradients at the worst moment of the step. */
  readonly gradients: number
  /** Parameters gathered from other ranks, at that moment. */
  readonly gathered: number
  /** Everything else that is computed: activations kept for the backward pass, work space, gaps. */
  readonly activations: number
  /** Two batches: one at work, one being filled. */
  readonly batch: number
  readonly total: number
}

const sum = (types: ReadonlyArray<TensorType>): number => types.reduce((n, t) => n + bytesOf(t), 0)

/** Of one rank; in a pipeline of the first rank of a stage, stage 0 unless told otherwise. */
export const of = (
  distributed: Distributed,
  strategy: Strategy,
  stage = 0
): Effect.Effect<Footprint, CompileError, Backend> =>
  (distributed.kind === "spread" ? spread(distributed, strategy) : pipelined(distributed, stage)).pipe(
    // Planned as that rank, though it is not at hand.
    Effect.provideService(Collectives, {
      ...single,
      mesh: strategy.mesh,
      rank: distributed.kind === "spread" ? 0 : stage * Mesh.rankCount(distributed.step.inner)
    })
  )

/** Held tensors by kind, as a rank stores them. */
const heldBytes = (held: ReadonlyArray<Held>, local: ReadonlyArray<TensorType>) => {
  const of = (kind: Held["kind"]) => sum(local.filter((_, i) => held[i]!.kind === kind))
  return { parameters: of("parameter"), optimizer: of("optimizer"), averages: of("ema") }
}

/** Intermediates: the rest of the arena is activations. */
const worked = (outline: Pick<Outline, "arenaBytes" | "peak">) => {
  const { gathered, gradient } = outline.peak.byRole
  return { gradients: gradient, gathered, activations: outline.arenaBytes - gradient - gathered }
}

const total = (parts: Omit<Footprint, "total">): Footprint => ({
  ...parts,
  total: Object.values(parts).reduce((n, bytes) => n + bytes, 0)
})

const spread = Effect.fnUntraced(function* ({ local, step }: Spread, strategy: Strategy) {
  const backend = yield* Backend
  const outline = yield* backend.outline(local.program, {
    donated: step.donated,
    prefetch: strategy.fsdp?.prefetch ?? 0
  })
  const types = local.program.inputs.map((x) => x.type)
  const { physical } = step.storage
  const work = worked(outline)
  return total({
    ...heldBytes(physical, types.slice(0, physical.length)),
    ...work,
    activations: work.activations + outline.outputBytes,
    batch: 2 * sum(types.slice(physical.length, -4)) + sum(types.slice(-4))
  })
})

const pipelined = Effect.fnUntraced(function* ({ step }: Pipelined, stage: number) {
  const backend = yield* Backend
  const { physical } = step.storage
  const needs = StageNeeds.of(step, stage)
  const outlines = yield* Effect.forEach(StageNeeds.jobs(needs), (j) => backend.outline(j.program, j.options))
  // Programs run one after another in one work space: what counts is the largest.
  const work = worked(outlines.reduce((a, b) => (b.arenaBytes > a.arenaBytes ? b : a)))
  const own = outlines.reduce((n, o) => n + o.outputBytes, 0)
  return total({
    ...heldBytes(
      physical,
      step.update.body.inputs.slice(0, physical.length).map((x) => x.type)
    ),
    gradients: work.gradients + sum(needs.totals.gradients),
    gathered: work.gathered,
    activations: work.activations + sum(needs.totals.sums) + sum(StageNeeds.kept(needs)) + own,
    batch: 2 * sum(needs.batch.map((b) => b.local)) + sum(step.inputs.slice(-4))
  })
})
