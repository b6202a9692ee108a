/**
 * A training step on simulated ranks: one process, all ranks in lockstep, in float64. The meaning of every strategy; real ranks are compared with it.
 */
import * as Result from "effect/Result"
import * as Axis from "./Axis.ts"
import type { PartitionError, ProgramError, RecipeError } from "./Errors.ts"
import * as Evaluate from "./Evaluate.ts"
import type { HostArray } from "./HostArray.ts"
import * as Host from "./HostArray.ts"
import * as Layout from "./Layout.ts"
import type * as Module from "./Module.ts"
import type { TensorType } from "./Node.ts"
import * as Partition from "./Partition.ts"
import * as Lockstep from "./pipeline/Lockstep.ts"
import * as PipelineStep from "./pipeline/PipelineStep.ts"
import type * as Program from "./Program.ts"
import * as Step from "./Step.ts"
import * as Strategy from "./Strategy.ts"

/** Whole arrays in, whole arrays out, in the order and the sizes of the step on one device. */
export interface Simulation {
  readonly run: (inputs: ReadonlyArray<HostArray>) => Outcome
  /** One program that all ranks run, or chunks and a schedule. */
  readonly how: Spread | Pipelined
}

export interface Spread {
  readonly kind: "spread"
  /** The step before it was spread. */
  readonly step: Step.StepProgram
  /** The program of one rank. */
  readonly local: Partition.Lowered
}

export interface Pipelined {
  readonly kind: "pipelined"
  readonly step: PipelineStep.PipelineStep
}

export interface Outcome {
  readonly outputs: ReadonlyArray<HostArray>
  /** The largest difference between ranks that should hold the same. */
  readonly disagreement: number
}

/** Zeros behind what is meant, where a tensor is stored longer. */
export const stored = (x: HostArray, type: TensorType): HostArray => {
  const own = Host.reorder(x, type.axes)
  if (type.axes.every((a, i) => a.size === own.axes[i]!.size)) return own
  const data = new Float64Array(Axis.count(type.axes))
  const to = Host.offsets(type.axes, own.axes)
  for (let k = 0; k < to.length; k++) data[to[k]!] = own.data[k]!
  return { axes: type.axes, dtype: x.dtype, data }
}

/** What is meant of an array. */
export const meant = (x: HostArray, type: TensorType): HostArray => {
  const axes = x.axes.map((a) => {
    const { logical } = Axis.find(type.axes, a.name)!
    return Axis.make(a.name, logical)
  })
  if (axes.every((a, i) => a.size === x.axes[i]!.size)) return x
  return { axes, dtype: x.dtype, data: Float64Array.from(Host.offsets(x.axes, axes), (o) => x.data[o]!) }
}

/** The step of a configuration under its strategy. */
export const step = <P extends Module.ParamTree, const B extends Step.BatchTypes>(
  config: Step.Config<P, B>
): Result.Result<Simulation, ProgramError | RecipeError | PartitionError> => {
  const { strategy = Strategy.single } = config
  const { pipeline } = strategy
  if (pipeline !== null) {
    return Result.flatMap(Step.checked(config), () =>
      Step.built(() => {
        const made = PipelineStep.build(config, strategy, pipeline)
        return { how: { kind: "pipelined", step: made }, run: (inputs) => pipelined(made, inputs) }
      })
    )
  }
  return Result.flatMap(Step.make(config), (made) =>
    Result.map(Partition.partition(made.program, strategy, { padded: true }), (local) => ({
      how: { kind: "spread", step: made as Step.StepProgram, local },
      run: (inputs) => spread(made.program, local, strategy, inputs)
    }))
  )
}

const pipelined = (made: PipelineStep.PipelineStep, inputs: ReadonlyArray<HostArray>): Outcome => {
  const { disagreement, outputs } = Lockstep.run(
    made,
    made.inputs.map((type, i) => stored(inputs[i]!, type))
  )
  return { disagreement, outputs: outputs.map((x, i) => (i < made.counts.held ? meant(x, made.inputs[i]!) : x)) }
}

const spread = (
  program: Program.Body,
  local: Partition.Lowered,
  { mesh }: Strategy.Strategy,
  inputs: ReadonlyArray<HostArray>
): Outcome => {
  const parts = program.inputs.map((x, i) =>
    Layout.scatter(stored(inputs[i]!, x.type), local.inputLayouts[i]!, mesh)
  )
  const results = Evaluate.lockstep(local.body, parts, mesh)
  const all = results.map((x, i) => Layout.collect(x, local.outputLayouts[i]!, mesh))
  return {
    outputs: all.map(({ array }, i) => meant(array, program.outputs[i]!.type)),
    disagreement: all.reduce((worst, x) => Math.max(worst, x.disagreement), 0)
  }
}
