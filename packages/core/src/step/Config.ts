/** What a training step is built from. */
import * as Axis from "../Axis.ts"
import type * as Accumulate from "../Accumulate.ts"
import { RecipeError } from "../Errors.ts"
import type * as Module from "../Module.ts"
import type { AnyTensor, TensorType } from "../Node.ts"
import type * as Optimizer from "../Optimizer.ts"
import type * as Precision from "../Precision.ts"
import type * as Strategy from "../Strategy.ts"
import type * as Tree from "../Tree.ts"

/**
 * Types of one whole batch. Every leaf whose examples differ has the axis "batch". `examples` (u32, `[batch]`) holds the logical index of every
 * example, from which random bits are drawn; `weights` (f32, `[batch]`), by custom, what each counts in the loss (0 for padding).
 */
export interface BatchTypes {
  readonly examples: TensorType
  readonly [name: string]: unknown
}

/** Called once, on one microbatch. Sums, not means: see `Accumulate.Loss`. */
export type LossFunction<P, B> = (
  params: Module.Tensors<P>,
  batch: Tree.Mapped<B, AnyTensor>,
  call: Module.Call
) => Accumulate.Loss

/** Tensors by name, each with the axis "batch". */
export type Features = Readonly<Record<string, AnyTensor>>

/** A loss that compares examples with each other, such as the contrastive one: features of each, then one loss over all. */
export interface PairwiseLoss<P, B> {
  /** Called once, on one microbatch. */
  readonly features: (params: Module.Tensors<P>, batch: Tree.Mapped<B, AnyTensor>, call: Module.Call) => Features
  /** Called once, on features of all examples that are compared. */
  readonly loss: (
    features: Features,
    params: Module.Tensors<P>,
    batch: Tree.Mapped<B, AnyTensor>,
    call: Module.Call
  ) => Accumulate.Loss
  /**
   * global: all examples of the batch are compared, whatever the number of microbatches; every microbatch runs forward twice. microbatch: only
   * those of one microbatch, another loss for every number of them.
   */
  readonly negatives: "global" | "microbatch"
}

export interface Config<P extends Module.ParamTree, B extends BatchTypes> {
  readonly params: P
  readonly loss: LossFunction<P, B> | PairwiseLoss<P, B>
  readonly batch: B
  readonly optimizer: Optimizer.Optimizer
  readonly precision?: Precision.Precision
  readonly strategy?: Strategy.Strategy
}

export const isType = (x: unknown): x is TensorType =>
  typeof x === "object" && x !== null && "axes" in x && "dtype" in x

/** Examples of the batch; throws `RecipeError` when its leaves contradict each other. */
export const examplesOf = (types: ReadonlyArray<TensorType>, paths: ReadonlyArray<string>): number => {
  const at = paths.indexOf("examples")
  const batch = at < 0 ? undefined : Axis.find(types[at]!.axes, "batch")
  if (batch === undefined || types[at]!.dtype !== "u32") {
    throw new RecipeError({
      key: "batch.examples",
      problem: "the logical index of every example is missing",
      hint: 'add examples: u32 with the axis "batch"'
    })
  }
  const odd = types.findIndex((t) => (Axis.find(t.axes, "batch")?.size ?? batch.size) !== batch.size)
  if (odd < 0) return batch.size
  const found = Axis.find(types[odd]!.axes, "batch")!.size
  throw new RecipeError({
    key: `batch.${paths[odd]!}`,
    problem: `has ${found} examples, batch.examples has ${batch.size}`,
    hint: "give all the same"
  })
}
