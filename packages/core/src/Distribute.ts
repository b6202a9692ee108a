/** A training step spread over ranks: one program that all run, or chunks of layers and a schedule. */
import * as Result from "effect/Result"
import type { PartitionError, ProgramError, RecipeError } from "./Errors.ts"
import type * as Module from "./Module.ts"
import * as Partition from "./Partition.ts"
import * as PipelineStep from "./pipeline/PipelineStep.ts"
import * as Step from "./Step.ts"
import * as Strategy from "./Strategy.ts"

export interface Spread {
  readonly kind: "spread"
  /** The step before it was spread. */
  readonly step: Step.StepProgram
  /** The program of one rank. */
  readonly local: Partition.Partitioned<unknown, unknown>
}

export interface Pipelined {
  readonly kind: "pipelined"
  readonly step: PipelineStep.PipelineStep
}

export type Distributed = Spread | Pipelined

/** The step of a configuration under its strategy. */
export const step = <P extends Module.ParamTree, const B extends Step.BatchTypes>(
  config: Step.Config<P, B>
): Result.Result<Distributed, ProgramError | RecipeError | PartitionError> => {
  const { strategy = Strategy.single } = config
  const { pipeline } = strategy
  if (pipeline !== null)
    return Result.flatMap(Step.checked(config), () =>
      Step.built((): Distributed => ({ kind: "pipelined", step: PipelineStep.build(config, strategy, pipeline) }))
    )
  return Result.flatMap(Step.make(config), (made) =>
    Result.map(Partition.partition(made.program, strategy, { padded: true }), (local): Distributed => ({
      kind: "spread",
      step: made as Step.StepProgram,
      local
    }))
  )
}
