/** What a step will need and how long it will take on a cluster, from its programs alone. */
import * as Effect from "effect/Effect"
import type { Distributed } from "../Distribute.ts"
import * as Distribute from "../Distribute.ts"
import type { CompileError, PartitionError, ProgramError, RecipeError } from "../Errors.ts"
import * as Footprint from "../Footprint.ts"
import * as Mesh from "../Mesh.ts"
import type * as Module from "../Module.ts"
import type { Timeline } from "../pipeline/Ticks.ts"
import { timeline } from "../pipeline/Ticks.ts"
import type { Backend } from "../services/Backend.ts"
import type * as Step from "../Step.ts"
import * as Strategy from "../Strategy.ts"
import type { Device } from "./Devices.ts"
import * as Timing from "./Timing.ts"
import * as Work from "./Work.ts"

export interface Stage {
  readonly memory: Footprint.Footprint
  readonly work: Work.Work
  /** Of its own work; a pipeline adds its bubbles. */
  readonly timing: Timing.Timing
}

export interface Prediction {
  readonly device: Device
  readonly mesh: Mesh.Mesh
  /** One for a step that all ranks run alike. */
  readonly stages: ReadonlyArray<Stage>
  /** Ticks of a pipeline. */
  readonly timeline: Timeline | null
  /** Time without work over time with work. */
  readonly bubble: number
  /** Of one step. */
  readonly seconds: number
  /** Of the rank that holds most. */
  readonly memory: Footprint.Footprint
  readonly fits: boolean
}

/** Bytes that the runtime and communication libraries keep for themselves on an accelerator. */
export const reserved = 2 * 2 ** 30

export const usable = (device: Device): number => device.memory - reserved

/** Fails as a training of this configuration would, before anything is allocated. */
export const of = <P extends Module.ParamTree, const B extends Step.BatchTypes>(
  config: Step.Config<P, B>,
  device: Device,
  shares: Timing.Shares = Timing.published
): Effect.Effect<Prediction, ProgramError | RecipeError | PartitionError | CompileError, Backend> =>
  Effect.gen(function* () {
    const { strategy = Strategy.single } = config
    const distributed = yield* Effect.fromResult(Distribute.step(config))
    const stages: Array<Stage> = []
    for (let stage = 0; stage < stageCount(distributed); stage++) {
      const work = Work.of(distributed, stage)
      stages.push({
        memory: yield* Footprint.of(distributed, strategy, stage),
        work,
        timing: Timing.of(work, strategy.mesh, device, shares)
      })
    }
    const clock = distributed.kind === "pipelined" ? timeline(distributed.step.ticks, distributed.step.pipeline) : null
    const bubble = clock?.bubble ?? 0
    const slowest = Math.max(...stages.map((s) => s.timing.total))
    const memory = stages.reduce((most, s) => (s.memory.total > most.total ? s.memory : most), stages[0]!.memory)
    return {
      device,
      mesh: strategy.mesh,
      stages,
      timeline: clock,
      bubble,
      seconds: slowest * (1 + bubble),
      memory,
      fits: memory.total <= usable(device)
    }
  })

const stageCount = (distributed: Distributed): number =>
  distributed.kind === "pipelined" ? distributed.step.stages : 1

/** How fast a prediction is. */
export interface Speed {
  readonly samplesPerSecond: number
  /** FLOPs a second of all devices, by the model's own count. */
  readonly flopsPerSecond: number
  /** Share of the peak of all devices that the model's own FLOPs are. */
  readonly utilisation: number
}

/** `modelFlops`: of one sample, forward and backward, nothing computed twice. */
export const speed = (prediction: Prediction, batchSize: number, modelFlops: number): Speed => {
  const samplesPerSecond = batchSize / prediction.seconds
  const flopsPerSecond = samplesPerSecond * modelFlops
  const peak = prediction.device.peak.bf16 * Mesh.rankCount(prediction.mesh)
  return { samplesPerSecond, flopsPerSecond, utilisation: flopsPerSecond / peak }
}
