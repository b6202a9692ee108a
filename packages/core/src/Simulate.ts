/**
 * A training step on simulated ranks: one process, all ranks in lockstep, in float64. The meaning of every strategy; real ranks are compared with it.
 */
import * as Result from "effect/Result"
import type { PartitionError, ProgramError, RecipeError } from "./Errors.ts"
import * as Evaluate from "./Evaluate.ts"
import type { HostArray } from "./HostArray.ts"
import * as Host from "./HostArray.ts"
import * as Layout from "./Layout.ts"
import type * as Module from "./Module.ts"
import type * as Mesh from "./Mesh.ts"
import type * as Node from "./Node.ts"
import * as Partition from "./Partition.ts"
import * as Lockstep from "./pipeline/Lockstep.ts"
import * as PipelineStep from "./pipeline/PipelineStep.ts"
import * as Step from "./Step.ts"
import * as Storages from "./step/Storage.ts"
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

/** The step of a configuration under its strategy. */
export const step = <P extends Module.ParamTree, const B extends Step.BatchTypes>(
  config: Step.Config<P, B>
): Result.Result<Simulation, ProgramError | RecipeError | PartitionError> => {
  const { strategy = Strategy.single } = config
  const { pipeline } = strategy
  if (pipeline !== null) {
    return Result.flatMap(Step.checked(config), () =>
      Step.built(() => ofStages(PipelineStep.build(config, strategy, pipeline)))
    )
  }
  return Result.flatMap(Step.make(config), (made) =>
    Result.map(Partition.partition(made.program, strategy, { padded: true }), (local) =>
      ofRanks(made as Step.StepProgram, local, strategy.mesh)
    )
  )
}

/** A step of which every rank of the mesh runs the same program. */
export const ofRanks = (made: Step.StepProgram, local: Partition.Lowered, mesh: Mesh.Mesh): Simulation => ({
  how: { kind: "spread", step: made, local },
  run: (inputs) => spread(made, local, mesh, inputs)
})

/** A step that was cut into stages. */
export const ofStages = (made: PipelineStep.PipelineStep): Simulation => ({
  how: { kind: "pipelined", step: made },
  run: (inputs) => {
    const { disagreement, outputs } = Lockstep.run(made, stored(made.storage, inputs))
    return { disagreement, outputs: joined(made.storage, outputs) }
  }
})

/** Inputs as the strategy stores them, from those of the step on one device. */
export const stored = (storage: Storages.Storage, inputs: ReadonlyArray<HostArray>): ReadonlyArray<HostArray> => {
  const [own, rest] = apart(storage, inputs)
  return [...Storages.store(storage, own), ...rest]
}

/** What lives, and the rest. */
const apart = (storage: Storages.Storage, inputs: ReadonlyArray<HostArray>) => {
  const count = storage.logical.length
  return [inputs.slice(0, count), inputs.slice(count)] as const
}

const joined = (storage: Storages.Storage, outputs: ReadonlyArray<HostArray>): ReadonlyArray<HostArray> => {
  const count = storage.physical.length
  return [...Storages.load(storage, outputs.slice(0, count)), ...outputs.slice(count)]
}

const spread = (
  { program, storage }: Step.StepProgram,
  local: Partition.Lowered,
  mesh: Mesh.Mesh,
  inputs: ReadonlyArray<HostArray>
): Outcome => {
  const results = Evaluate.lockstep(local.body, parts({ program, storage }, local, mesh, inputs), mesh)
  const all = results.map((x, i) => Layout.collect(x, local.outputLayouts[i]!, mesh))
  return {
    outputs: joined(
      storage,
      all.map(({ array }) => array)
    ),
    disagreement: all.reduce((worst, x) => Math.max(worst, x.disagreement), 0)
  }
}

/** What each rank holds of whole arrays. */
export const parts = (
  { program, storage }: Pick<Step.StepProgram, "program" | "storage">,
  local: Partition.Lowered,
  mesh: Mesh.Mesh,
  inputs: ReadonlyArray<HostArray>
): ReadonlyArray<Node.Lockstep> =>
  stored(storage, inputs).map((x, i) =>
    Layout.scatter(Host.reorder(x, program.inputs[i]!.type.axes), local.inputLayouts[i]!, mesh)
  )
