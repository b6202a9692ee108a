/** The end of a step: from sums and gradients of the whole batch to new parameters, state and metrics. */
import * as Module from "../Module.ts"
import type { AnyTensor, Tensor } from "../Node.ts"
import * as Optimizer from "../Optimizer.ts"
import * as Precision from "../Precision.ts"
import { cast, constant, div } from "../primitives/algebra.ts"
import { place } from "../primitives/emit.ts"
import { equal, select } from "../primitives/pointwise.ts"
import * as Program from "../Program.ts"
import * as Tree from "../Tree.ts"

type Scalar = Tensor<never>

export interface Outputs<P> {
  readonly params: P
  readonly optimizer: Optimizer.State
  readonly ema?: Optimizer.Averages
  /**
   * f32 scalars. loss: total / weight over the whole batch (0 without weight). weight. gradientNorm: of the mean gradient, before clipping. finite:
   * 1 when loss and norm are. updated: 1 when the new values were taken, 0 when all kept the old (not finite, or no weight). Then the loss
   * function's own metrics, as sums.
   */
  readonly metrics: Readonly<Record<string, AnyTensor>>
}

export interface Given {
  readonly optimizer: Optimizer.Optimizer
  readonly precision: Precision.Precision
  readonly params: Module.ParamTree
  /** In declaration order. */
  readonly parameters: ReadonlyArray<AnyTensor>
  /** Of the trained leaves. */
  readonly gradients: ReadonlyArray<AnyTensor>
  readonly state: ReturnType<typeof Optimizer.inputs>
  /** total, weight, then the loss function's own metrics, in the order of their names. */
  readonly sums: ReadonlyArray<AnyTensor>
  readonly metrics: ReadonlyArray<string>
  readonly learningRate: AnyTensor
  readonly step: AnyTensor
  readonly lossScale: AnyTensor
}

/** Results of a step, and the order of its outputs in which the update of one leaf is finished before the next begins. */
export const update = <P>(
  given: Given
): { readonly results: Outputs<P>; readonly leafByLeaf: ReadonlyArray<number> } => {
  const { lossScale, optimizer, parameters, params, precision, state, step } = given
  const leaves = Module.leaves(params)
  const trained = Optimizer.trained(optimizer, params)
  const [total, weight, ...more] = given.sums as readonly [Scalar, Scalar, ...Array<AnyTensor>]
  const next = Optimizer.update(optimizer, trained, {
    parameters: new Map(leaves.map((leaf, i) => [leaf.path, parameters[i]!])),
    gradients: new Map(trained.map((leaf, i) => [leaf.path, Precision.reduceGradient(given.gradients[i]!, precision)])),
    state: state.optimizer,
    ema: state.ema,
    total,
    weight,
    learningRate: given.learningRate as Scalar,
    step: step as Scalar,
    lossScale: lossScale as Scalar
  })
  const metrics: Record<string, AnyTensor> = {
    loss: mean(total, weight),
    weight,
    gradientNorm: next.gradientNorm,
    finite: cast(next.finite, "f32"),
    updated: cast(next.updated, "f32"),
    ...Object.fromEntries(given.metrics.map((name, i) => [name, more[i]!]))
  }
  const [, shape] = Tree.flatten<Module.Param, Module.ParamTree>(params, Module.isParam)
  const results = {
    params: Tree.unflatten(
      shape,
      leaves.map((leaf, i) => next.parameters.get(leaf.path) ?? parameters[i]!)
    ) as P,
    optimizer: next.state,
    ...(next.ema === null ? {} : { ema: next.ema }),
    metrics: Object.fromEntries(Object.entries(metrics).map(([name, x]) => [name, place(x, "compute")]))
  }
  return { results, leafByLeaf: orderOf(leaves, trained, next) }
}

/** In the order of the outputs all new moments would wait, next to the old ones, until the last parameter is done. */
const orderOf = (
  leaves: ReadonlyArray<Module.Leaf>,
  trained: ReadonlyArray<Module.Leaf>,
  next: Optimizer.Updated
): ReadonlyArray<number> => {
  let slot = leaves.length
  const slots = new Map(trained.map((leaf) => [leaf.path, Object.keys(next.state[leaf.path]!).map(() => slot++)]))
  const averages = new Map(trained.map((leaf) => [leaf.path, next.ema === null ? [] : [slot++]]))
  return leaves.flatMap((leaf, i) => [i, ...(slots.get(leaf.path) ?? []), ...(averages.get(leaf.path) ?? [])])
}

/** The same program with its equations in the order in which these outputs need them; all other outputs come after. */
export const inOrder = <I, O>(program: Program.Program<I, O>, first: ReadonlyArray<number>): Program.Program<I, O> => {
  const outputs = [...first, ...program.outputs.keys().drop(first.length)].map((i) => program.outputs[i]!)
  return { ...program, equations: Program.body(program.inputs, outputs).equations }
}

/** total / weight, 0 without weight. */
const mean = (total: Scalar, weight: Scalar): AnyTensor => {
  const none = equal(weight, constant(0))
  return select(none, constant(0), div(total, select(none, constant(1), weight) as Scalar))
}
