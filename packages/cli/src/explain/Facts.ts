/** What a step of a recipe needs and does, measured on its program: nothing is allocated, nothing runs. */
import * as Alignment from "@tessera/core/Alignment"
import * as Distribute from "@tessera/core/Distribute"
import * as DTypeMap from "@tessera/core/DTypeMap"
import * as Footprint from "@tessera/core/Footprint"
import * as Mesh from "@tessera/core/Mesh"
import type { Cost } from "@tessera/core/Node"
import { timeline } from "@tessera/core/pipeline/Ticks"
import * as Program from "@tessera/core/Program"
import { Backend } from "@tessera/core/services/Backend"
import { Collectives, single } from "@tessera/core/services/Collectives"
import * as Step from "@tessera/core/Step"
import type { Strategy } from "@tessera/core/Strategy"
import * as Traffic from "@tessera/core/Traffic"
import * as Vit from "@tessera/models/Vit"
import * as Effect from "effect/Effect"
import * as Dataset from "../Dataset.ts"
import * as Experiment from "../Experiment.ts"
import type { Recipe } from "../Recipe.ts"

/** One stage of a pipeline; a step that all ranks run alike has one. */
export interface Stage {
  /** FLOPs of contractions, of one rank in one step. */
  readonly flops: number
  /** Bytes of one rank's memory by kind. */
  readonly memory: Footprint.Footprint
  /** What one rank does together with others in one step. */
  readonly traffic: ReadonlyArray<Traffic.Traffic>
  /** The most microbatches whose intermediates it keeps at one time. */
  readonly alive: number | null
}

export interface Facts {
  readonly name: string
  readonly parameters: number
  readonly forwardFlopsPerImage: number
  readonly stepFlops: number
  readonly ranks: number
  readonly mesh: string
  readonly stages: ReadonlyArray<Stage>
  /** Time without work over time with work; null without a pipeline. */
  readonly bubble: number | null
  /** Kernels and collectives that a rank launches in a step; null in a pipeline. */
  readonly launches: number | null
  readonly equations: number
  readonly types: ReadonlyArray<DTypeMap.Row>
  readonly precision: string
  /** Dimensions of products that are no multiples of 8, on one rank. */
  readonly misaligned: ReadonlyArray<Alignment.Misaligned>
  readonly schedule: ReturnType<typeof rates>
  readonly digest: string
}

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

export interface Measured {
  readonly facts: Facts
  /** Programs that can be printed: the step of one device, that of one rank, or those of the chunks of a pipeline. */
  readonly programs: ReadonlyArray<readonly [title: string, program: Program.Body]>
}

export const measure = Effect.fn("explain.measure")(function* (recipe: Recipe) {
  const config = Experiment.config(recipe, Dataset.isSoft(recipe))
  const { strategy } = config
  const step = yield* Effect.fromResult(Step.make(config))
  const distributed = yield* Effect.fromResult(Distribute.step(config))
  const clock = distributed.kind === "pipelined" ? timeline(distributed.step.ticks, distributed.step.pipeline) : null
  const count = distributed.kind === "pipelined" ? distributed.step.stages : 1
  const stages: Array<Stage> = []
  for (let stage = 0; stage < count; stage++)
    stages.push({
      flops: costOf(distributed, stage).contractionFlops,
      memory: yield* Footprint.of(distributed, strategy, stage),
      traffic: Traffic.of(distributed, stage),
      alive: clock === null ? null : clock.alive[stage]!
    })
  const facts: Facts = {
    name: recipe.name,
    parameters: Vit.parameterCount(recipe.model),
    forwardFlopsPerImage: Vit.forwardFlops(recipe.model),
    stepFlops: Program.cost(step.program).contractionFlops,
    ranks: Mesh.rankCount(strategy.mesh),
    mesh: Mesh.print(strategy.mesh),
    stages,
    bubble: clock === null ? null : clock.bubble,
    launches: yield* launchesOf(distributed, strategy),
    equations: step.program.equations.length,
    types: DTypeMap.of(step.program),
    precision: Experiment.precision(recipe).name,
    misaligned: misalignedOf(distributed),
    schedule: rates(recipe),
    digest: step.digest
  }
  const measured: Measured = { facts, programs: programsOf(step.program, distributed) }
  return measured
})

const launchesOf = Effect.fnUntraced(function* (distributed: Distribute.Distributed, strategy: Strategy) {
  if (distributed.kind === "pipelined") return null
  const backend = yield* Backend
  const { local, step } = distributed
  const { launches } = yield* backend
    .outline(local.program, { donated: step.donated })
    .pipe(Effect.provideService(Collectives, { ...single, mesh: strategy.mesh }))
  return launches
})

const misalignedOf = (distributed: Distribute.Distributed): Facts["misaligned"] => {
  if (distributed.kind === "spread") return Alignment.misaligned(distributed.local.program)
  const all = distributed.step.chunks.flatMap((c) => Alignment.misaligned(c.forward.body))
  return all.filter((m, i) => all.findIndex((o) => Alignment.print(o) === Alignment.print(m)) === i)
}

/** Of one rank in one step. */
const costOf = (distributed: Distribute.Distributed, stage: number): Cost => {
  if (distributed.kind === "spread") return Program.cost(distributed.local.program)
  const { chunks, microbatches, stages, update } = distributed.step
  return chunks.reduce((all, c, i) => {
    if (i % stages !== stage) return all
    const both = Program.plus(Program.cost(c.forward.body), Program.cost(c.backward.body))
    return Program.plus(all, both, microbatches)
  }, Program.cost(update.body))
}

const programsOf = (whole: Program.Body, distributed: Distribute.Distributed): Measured["programs"] => {
  if (distributed.kind === "pipelined") {
    const { chunks, update } = distributed.step
    return [
      ...chunks.flatMap(({ backward, forward }, i): Measured["programs"] => [
        [`chunk ${i}, forward`, forward.body],
        [`chunk ${i}, backward`, backward.body]
      ]),
      ["update", update.body]
    ]
  }
  const { program } = distributed.local
  return Program.print(program) === Program.print(whole) ? [["step", whole]] : [["step of one rank", program]]
}
