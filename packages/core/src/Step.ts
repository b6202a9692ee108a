/** From a model, a loss and an optimizer to the one program that a training step runs; and the programs of evaluation and inference. */
import * as Result from "effect/Result"
import * as Accumulate from "./Accumulate.ts"
import { PartitionError, ProgramError, RecipeError } from "./Errors.ts"
import * as Module from "./Module.ts"
import type { AnyTensor, Tensor, TensorType } from "./Node.ts"
import { input } from "./Node.ts"
import * as Optimizer from "./Optimizer.ts"
import * as Precision from "./Precision.ts"
import * as Program from "./Program.ts"
import * as Recompute from "./Recompute.ts"
import { simplify, simplifyBody } from "./Simplify.ts"
import type { BatchTypes, Config } from "./step/Config.ts"
import { examplesOf, isType } from "./step/Config.ts"
import { divisible } from "./step/Divisible.ts"
import { sums } from "./step/Loss.ts"
import { prepare } from "./step/Prepared.ts"
import type { Storage } from "./step/Storage.ts"
import type { Outputs } from "./step/Update.ts"
import { inOrder, update } from "./step/Update.ts"
import * as Strategy from "./Strategy.ts"
import * as Tree from "./Tree.ts"

export type { BatchTypes, Config, Features, LossFunction, PairwiseLoss } from "./step/Config.ts"
export type { Outputs } from "./step/Update.ts"

/** What changes from step to step. All but the seed f32. */
export interface Scalars {
  readonly learningRate: AnyTensor
  /** Number of this update, from 1. */
  readonly step: AnyTensor
  /** u32, another one every step. */
  readonly seed: AnyTensor
  /** 1 without loss scaling. */
  readonly lossScale: AnyTensor
}

export interface Inputs<P, B> {
  readonly params: P
  readonly optimizer: Optimizer.State
  /** Only when the optimizer averages. */
  readonly ema?: Optimizer.Averages
  readonly batch: Tree.Mapped<B, AnyTensor>
  readonly scalars: Scalars
}

export interface StepProgram<In = unknown, Out = unknown> {
  readonly program: Program.Program<In, Out>
  /** Inputs whose memory the outputs may take over: parameters, state, averages. A frozen parameter is its own output. */
  readonly donated: ReadonlyArray<readonly [inputIndex: number, outputIndex: number]>
  /** What the inputs that live from step to step are. */
  readonly storage: Storage
  readonly digest: string
}

/** Catches what tracing may throw. */
const traced = <A>(f: () => A): Result.Result<A, ProgramError | RecipeError> =>
  Result.try({
    try: f,
    catch: (error) => {
      if (error instanceof ProgramError || error instanceof RecipeError) return error
      throw error
    }
  })

/** Catches what building a step for a mesh may throw. */
export const built = <A>(f: () => A): Result.Result<A, ProgramError | RecipeError | PartitionError> =>
  Result.try({
    try: () => traced(f),
    catch: (error) => {
      if (error instanceof PartitionError) return error
      throw error
    }
  }).pipe(Result.flatMap((result) => result))

/**
 * The step: parameters, state, batch and scalars to parameters, state and metrics. Built by precision -> simplify -> pad -> recompute -> vjp ->
 * accumulate -> optimizer -> simplify. Gradients are of the total; the one division by the weight of the whole batch is part of the optimizer's
 * gradient scale, so that k microbatches equal one batch. Fails with `RecipeError` for a batch that cannot be cut or contradicts itself, with
 * `ProgramError` from the loss, with `PartitionError` for an axis that the strategy cannot split.
 */
export const make = <P extends Module.ParamTree, const B extends BatchTypes>(
  config: Config<P, B>
): Result.Result<
  StepProgram<Inputs<Module.Tensors<P>, B>, Outputs<Module.Tensors<P>>>,
  ProgramError | RecipeError | PartitionError
> => Result.flatMap(checked(config), () => built(() => buildStep(config)))

/** Looks whether batch, strategy, precision and optimizer fit together. */
export const checked = <P extends Module.ParamTree, B extends BatchTypes>(
  config: Config<P, B>
): Result.Result<void, ProgramError | RecipeError | PartitionError> => {
  const { precision = Precision.f32, strategy = Strategy.single } = config
  const [types, shape] = Tree.flatten<TensorType, B>(config.batch, isType)
  return built(() => examplesOf(types, Tree.paths(shape))).pipe(
    Result.flatMap((examples) => Accumulate.size(examples, strategy.microbatches)),
    Result.flatMap(() => {
      const wrong =
        Strategy.problem(strategy) ??
        Recompute.problem(strategy.recompute) ??
        Precision.problem(precision) ??
        Precision.optimizerProblem(config.optimizer, Module.leaves(config.params), precision)
      return wrong === null ? built(() => divisible(config)) : Result.fail(wrong)
    })
  )
}

const buildStep = <P extends Module.ParamTree, B extends BatchTypes>(
  config: Config<P, B>
): StepProgram<Inputs<Module.Tensors<P>, B>, Outputs<Module.Tensors<P>>> => {
  const { precision = Precision.f32, strategy = Strategy.single } = config
  const [types, batchShape] = Tree.flatten<TensorType, B>(config.batch, isType)
  const { optimizer, params, storage, ...loss } = prepare(config)
  const leaves = Module.leaves(params)
  const summed = Accumulate.valueAndGrad(Recompute.apply(loss.body, strategy.recompute), {
    wrt: leaves.flatMap((leaf, i) => (optimizer.trainable(leaf) ? [i] : [])),
    microbatches: loss.whole ? 1 : strategy.microbatches,
    lossScale: loss.body.inputs.length - 1,
    accumulation: precision.accumulation,
    finish: (b) => simplifyBody(Precision.placeGradients(b, precision))
  })
  const parameters = summed.inputs.slice(0, leaves.length)
  const batch = summed.inputs.slice(leaves.length, leaves.length + types.length)
  const [seed, lossScale] = summed.inputs.slice(-2) as [AnyTensor, AnyTensor]
  const [learningRate, step] = [input({ axes: [], dtype: "f32" }), input({ axes: [], dtype: "f32" })]
  const state = Optimizer.inputs(optimizer, params)
  const count = 2 + loss.metrics.length
  const { leafByLeaf, results } = update<Module.Tensors<P>>({
    optimizer,
    precision,
    params,
    parameters,
    gradients: summed.outputs.slice(count),
    state,
    sums: summed.outputs.slice(0, count),
    metrics: loss.metrics,
    learningRate,
    step,
    lossScale
  })
  const [, shape] = Tree.flatten<Module.Param, Module.ParamTree>(params, Module.isParam)
  const given = {
    params: Tree.unflatten(shape, parameters) as Module.Tensors<P>,
    optimizer: state.optimizer,
    ...(state.ema === null ? {} : { ema: state.ema }),
    batch: Tree.unflatten(batchShape, batch) as Tree.Mapped<B, AnyTensor>,
    scalars: { learningRate, step, seed, lossScale }
  }
  const program = inOrder(simplify(Program.make(given, results)), leafByLeaf)
  const kept = program.inputs.length - batch.length - 4
  const donated = Array.from({ length: kept }, (_, i) => [i, i] as const)
  return { program, donated, storage, digest: Program.digest(program) }
}

/** Metrics of one batch without training, as sums: parameters and batch to scalars, f32. */
export const evaluation = <P extends Module.ParamTree, const B>(config: {
  readonly params: P
  readonly batch: B
  readonly metrics: (
    params: Module.Tensors<P>,
    batch: Tree.Mapped<B, AnyTensor>,
    call: Module.Call
  ) => Readonly<Record<string, Tensor<never>>>
  readonly precision?: Precision.Precision
}): Result.Result<
  Program.Program<
    { readonly params: Module.Tensors<P>; readonly batch: Tree.Mapped<B, AnyTensor> },
    Readonly<Record<string, AnyTensor>>
  >,
  ProgramError | RecipeError
> =>
  forward({
    ...config,
    apply: (params, batch, call) => {
      const found = config.metrics(params, batch, call)
      const all = sums(found)
      return Object.fromEntries(Object.keys(found).map((name, i) => [name, all[i]!]))
    }
  })

/** Any function of parameters and a batch, without training. Outputs keep the types they were written in; parameters come as the precision stores them. */
export const forward = <P extends Module.ParamTree, const B, Out>(config: {
  readonly params: P
  readonly batch: B
  readonly apply: (params: Module.Tensors<P>, batch: Tree.Mapped<B, AnyTensor>, call: Module.Call) => Out
  readonly precision?: Precision.Precision
}): Result.Result<
  Program.Program<{ readonly params: Module.Tensors<P>; readonly batch: Tree.Mapped<B, AnyTensor> }, Out>,
  ProgramError | RecipeError
> =>
  traced(() => {
    const { apply, batch, params, precision = Precision.f32 } = config
    const wrong = Precision.problem(precision)
    if (wrong !== null) throw wrong
    const [types, shape] = Tree.flatten<TensorType, B>(batch, isType)
    const tensors = Module.inputs(params)
    const given = Tree.unflatten(
      shape,
      types.map((t) => input({ axes: t.axes, dtype: t.dtype }))
    ) as Tree.Mapped<B, AnyTensor>
    const program = Program.make({ params: tensors, batch: given }, apply(tensors, given, Module.evaluation))
    return simplify(Precision.apply(program, precision))
  })
