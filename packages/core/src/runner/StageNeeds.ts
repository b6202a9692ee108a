/** What one stage of a pipeline runs and keeps, before anything is allocated. */
import * as Axis from "../Axis.ts"
import type { Layout } from "../Layout.ts"
import * as Layouts from "../Layout.ts"
import type { AnyTensor, TensorType } from "../Node.ts"
import { build, input } from "../Node.ts"
import type { PipelineStep } from "../pipeline/PipelineStep.ts"
import * as StageProgram from "../pipeline/StageProgram.ts"
import type { Tick } from "../pipeline/Ticks.ts"
import { mergeP, sliceP, splitP } from "../primitives/axes.ts"
import * as Program from "../Program.ts"
import type { CompileOptions } from "../services/Backend.ts"
import type { Part } from "./StepRunner.ts"

/** A program and how it is compiled. */
export interface Job {
  readonly program: Program.Program
  readonly options: CompileOptions
}

export interface ChunkNeeds {
  readonly programs: StageProgram.ChunkPrograms
  readonly forward: Job
  readonly backward: Job
  /** What the chunk keeps of one microbatch between its passes, besides what it received. */
  readonly residuals: ReadonlyArray<TensorType>
  /** Microbatches that it keeps at one time. */
  readonly alive: number
}

export interface StageNeeds {
  readonly chunks: ReadonlyArray<ChunkNeeds>
  readonly update: Job
  readonly deal: Job
  /** Which leaves of a batch the program that deals out microbatches takes. */
  readonly dealt: ReadonlyArray<boolean>
  readonly batch: ReadonlyArray<Part>
  readonly totals: StageProgram.Totals
}

export const of = (step: PipelineStep, stage: number): StageNeeds => {
  const batch = batchParts(step)
  const { prefetch } = step
  const dealt = batch.map(({ local }) => step.microbatches > 1 && Axis.has(local.axes, "batch"))
  const cut = batch.flatMap(({ local }, i) => (dealt[i] ? [input(local)] : []))
  const parts = cut.flatMap((x) =>
    Array.from({ length: step.microbatches }, (_, m) => microbatch(x, m, step.microbatches))
  )
  return {
    chunks: StageProgram.programsOf(step, stage).map((programs, i): ChunkNeeds => {
      const { outputs, program } = programs.forward
      const residuals = outputs.flatMap((s, k) => (s.kind === "residual" ? [k] : []))
      return {
        programs,
        forward: { program, options: { donated: accumulated(programs.forward), bound: residuals, prefetch } },
        backward: {
          program: programs.backward.program,
          options: { donated: accumulated(programs.backward), prefetch }
        },
        residuals: residuals.map((k) => program.outputs[k]!.type),
        alive: mostAlive(step.ticks[stage]!, i)
      }
    }),
    update: {
      program: Program.withBody(step.updateProgram, step.update.body),
      options: { donated: step.storage.physical.map((_, i) => [i, i] as const), prefetch }
    },
    deal: { program: Program.make(cut, parts) as Program.Program, options: {} },
    dealt,
    batch,
    totals: StageProgram.totalsOf(step)
  }
}

/** All programs of a stage. */
export const jobs = ({ chunks, deal, update }: StageNeeds): ReadonlyArray<Job> => [
  ...chunks.flatMap(({ backward, forward }) => [forward, backward]),
  update,
  deal
]

/** What lies between programs: what chunks received, kept and get back. */
export const kept = ({ chunks }: StageNeeds): ReadonlyArray<TensorType> =>
  chunks.flatMap(({ alive, programs, residuals }) => [
    ...Array.from({ length: alive }, () => [...programs.received, ...residuals]).flat(),
    ...programs.returned
  ])

/** Sums that are added up where they stand. */
const accumulated = ({ inputs, outputs }: StageProgram.StageProgram): ReadonlyArray<readonly [number, number]> =>
  outputs.flatMap((slot, output) => {
    if (slot.kind !== "sum" && slot.kind !== "gradient") return []
    const from = inputs.findIndex((s) => StageProgram.nameOf(s) === StageProgram.nameOf(slot))
    return [[from, output] as const]
  })

/** Microbatches of a chunk that are between their two passes at one time. */
const mostAlive = (own: ReadonlyArray<Tick>, chunk: number): number => {
  let [now, most] = [0, 0]
  for (const t of own) {
    if (t.chunk !== chunk) continue
    now += t.pass === "forward" ? 1 : -1
    most = Math.max(most, now)
  }
  return most
}

/** How the leaves of a batch lie on the ranks: as the chunks that read them say. */
const batchParts = (step: PipelineStep): ReadonlyArray<Part> => {
  const { held, parameters } = step.counts
  const none = Layouts.whole(step.mesh)
  return step.batch.map((name, i) => {
    const type = step.inputs[held + i]!
    const inner = step.chunks.flatMap(({ chunk, forward }) => {
      const at = chunk.given.findIndex((g) => g.index === parameters + i)
      return at < 0 ? [] : [forward.inputLayouts[chunk.boundary + at]!]
    })[0]
    const layout: Layout = inner === undefined ? none : new Map([...none, ...inner])
    return { name, type, layout, local: Layouts.localType(type, layout, step.mesh, `batch.${name}`) }
  })
}

const microbatch = (x: AnyTensor, index: number, count: number): AnyTensor => {
  const apart = build(splitP, [x], { axis: "batch", outer: "batch", inner: "micro", size: count }, "compute")
  const one = build(sliceP, apart, { axis: "micro", to: "micro", start: index, size: 1 }, "compute")
  return build(mergeP, one, { axis: "batch", outer: "batch", inner: "micro" }, "compute")[0]!
}
