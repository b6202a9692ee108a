/** From a model, a loss and an optimizer to the one program that a training step runs; and the programs of evaluation and inference. */
import * as Result from "effect/Result"
import * as Accumulate from "./Accumulate.ts"
import * as Axis from "./Axis.ts"
import { ProgramError, RecipeError } from "./Errors.ts"
import * as Module from "./Module.ts"
import type { AnyTensor, Tensor, TensorType } from "./Node.ts"
import { input } from "./Node.ts"
import * as Optimizer from "./Optimizer.ts"
import * as Padding from "./Padding.ts"
import * as Precision from "./Precision.ts"
import { cast, constant, div } from "./primitives/algebra.ts"
import { place } from "./primitives/emit.ts"
import { equal, select } from "./primitives/pointwise.ts"
import * as Program from "./Program.ts"
import * as Random from "./Random.ts"
import * as Recompute from "./Recompute.ts"
import { simplify, simplifyBody } from "./Simplify.ts"
import * as Strategy from "./Strategy.ts"
import * as Tree from "./Tree.ts"

type Scalar = Tensor<never>

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

export interface StepProgram<In = unknown, Out = unknown> {
  readonly program: Program.Program<In, Out>
  /** Inputs whose memory the outputs may take over: parameters, state, averages. A frozen parameter is its own output. */
  readonly donated: ReadonlyArray<readonly [inputIndex: number, outputIndex: number]>
  /** Declarations of the parameters as they are stored: axes that a strategy pads are longer. */
  readonly params: Module.ParamTree
  readonly digest: string
}

const reserved = ["loss", "weight", "gradientNorm", "finite", "updated"] as const

const isType = (x: unknown): x is TensorType => typeof x === "object" && x !== null && "axes" in x && "dtype" in x

const problem = (key: string, what: string, hint: string): RecipeError => new RecipeError({ key, problem: what, hint })

/** Examples of the batch, after looking whether its leaves agree. */
const examplesOf = (
  types: ReadonlyArray<TensorType>,
  paths: ReadonlyArray<string>
): Result.Result<number, RecipeError> => {
  const at = paths.indexOf("examples")
  const batch = at < 0 ? undefined : Axis.find(types[at]!.axes, "batch")
  if (batch === undefined || types[at]!.dtype !== "u32") {
    return Result.fail(
      problem(
        "batch.examples",
        "the logical index of every example is missing",
        'add examples: u32 with the axis "batch"'
      )
    )
  }
  const odd = types.findIndex((t) => (Axis.find(t.axes, "batch")?.size ?? batch.size) !== batch.size)
  if (odd < 0) return Result.succeed(batch.size)
  const found = Axis.find(types[odd]!.axes, "batch")!.size
  return Result.fail(
    problem(`batch.${paths[odd]!}`, `has ${found} examples, batch.examples has ${batch.size}`, "give all the same")
  )
}

/** Catches what building may throw. */
const built = <A>(f: () => A): Result.Result<A, ProgramError | RecipeError> =>
  Result.try({
    try: f,
    catch: (error) => {
      if (error instanceof ProgramError || error instanceof RecipeError) return error
      throw error
    }
  })

/**
 * The step: parameters, state, batch and scalars to parameters, state and metrics. Built by precision -> simplify -> recompute -> vjp -> accumulate
 * -> optimizer -> simplify. Gradients are of the total; the one division by the weight of the whole batch is part of the optimizer's gradient scale, so that
 * k microbatches equal one batch. Fails with `RecipeError` for a batch that cannot be cut or contradicts itself, with `ProgramError` from the loss.
 */
export const make = <P extends Module.ParamTree, const B extends BatchTypes>(
  config: Config<P, B>
): Result.Result<StepProgram<Inputs<Module.Tensors<P>, B>, Outputs<Module.Tensors<P>>>, ProgramError | RecipeError> => {
  const { strategy = Strategy.single } = config
  const [types, batchShape] = Tree.flatten<TensorType, B>(config.batch, isType)
  return Result.flatMap(examplesOf(types, Tree.paths(batchShape)), (examples) =>
    Result.flatMap(Accumulate.size(examples, strategy.microbatches), () => {
      const wrong = Recompute.problem(strategy.recompute)
      return wrong === null ? built(() => buildStep(config, strategy, types, batchShape)) : Result.fail(wrong)
    })
  )
}

const buildStep = <P extends Module.ParamTree, B extends BatchTypes>(
  config: Config<P, B>,
  strategy: Strategy.Strategy,
  types: ReadonlyArray<TensorType>,
  batchShape: Tree.Shape<B>
): StepProgram<Inputs<Module.Tensors<P>, B>, Outputs<Module.Tensors<P>>> => {
  const { optimizer, precision = Precision.f32 } = config
  const params = Padding.parameters(config.params, strategy)
  const leaves = Module.leaves(params)
  const trained = Optimizer.trained(optimizer, params)
  const loss = lossProgram(config, strategy, types, batchShape)
  const summed = Accumulate.valueAndGrad(loss.body, {
    wrt: leaves.flatMap((leaf, i) => (optimizer.trainable(leaf) ? [i] : [])),
    microbatches: loss.whole ? 1 : strategy.microbatches,
    lossScale: loss.body.inputs.length - 1,
    finish: (b) => simplifyBody(Precision.widenGradients(b, precision))
  })

  const parameters = summed.inputs.slice(0, leaves.length)
  const batch = summed.inputs.slice(leaves.length, leaves.length + types.length)
  const [seed, lossScale] = summed.inputs.slice(-2) as [AnyTensor, AnyTensor]
  const [learningRate, step] = [input({ axes: [], dtype: "f32" }), input({ axes: [], dtype: "f32" })]
  const state = Optimizer.inputs(optimizer, params)
  const [total, weight, ...more] = summed.outputs.slice(0, 2 + loss.metrics.length) as ReadonlyArray<AnyTensor>
  const gradients = summed.outputs.slice(2 + loss.metrics.length)
  const next = Optimizer.update(optimizer, trained, {
    parameters: new Map(leaves.map((leaf, i) => [leaf.path, parameters[i]!])),
    gradients: new Map(trained.map((leaf, i) => [leaf.path, gradients[i]!])),
    state: state.optimizer,
    ema: state.ema,
    total: total as Scalar,
    weight: weight as Scalar,
    learningRate: learningRate as Scalar,
    step: step as Scalar,
    lossScale: lossScale as Scalar
  })

  const shape = paramShape(params)
  const metrics: Record<string, AnyTensor> = {
    loss: mean(total as Scalar, weight as Scalar),
    weight: weight!,
    gradientNorm: next.gradientNorm,
    finite: cast(next.finite, "f32"),
    updated: cast(next.updated, "f32"),
    ...Object.fromEntries(loss.metrics.map((name, i) => [name, more[i]!]))
  }
  const given = {
    params: Tree.unflatten(shape, parameters) as Module.Tensors<P>,
    optimizer: state.optimizer,
    ...(state.ema === null ? {} : { ema: state.ema }),
    batch: Tree.unflatten(batchShape, batch) as Tree.Mapped<B, AnyTensor>,
    scalars: { learningRate, step, seed, lossScale }
  }
  const results = {
    params: Tree.unflatten(
      shape,
      leaves.map((leaf, i) => next.parameters.get(leaf.path) ?? parameters[i]!)
    ) as Module.Tensors<P>,
    optimizer: next.state,
    ...(next.ema === null ? {} : { ema: next.ema }),
    metrics: Object.fromEntries(Object.entries(metrics).map(([name, x]) => [name, place(x, "compute")]))
  }
  const program = leafByLeaf(simplify(Program.make(given, results)), leaves, trained, next)
  const kept = program.inputs.length - batch.length - 4
  const donated = Array.from({ length: kept }, (_, i) => [i, i] as const)
  return { program, donated, params, digest: Program.digest(program) }
}

/**
 * The same program with the update of one leaf finished before the next begins: in the order of the outputs all new moments would wait, next to the
 * old ones, until the last parameter is done.
 */
const leafByLeaf = <I, O>(
  program: Program.Program<I, O>,
  leaves: ReadonlyArray<Module.Leaf>,
  trained: ReadonlyArray<Module.Leaf>,
  next: Optimizer.Updated
): Program.Program<I, O> => {
  let slot = leaves.length
  const slots = new Map(trained.map((leaf) => [leaf.path, Object.keys(next.state[leaf.path]!).map(() => slot++)]))
  const averages = new Map(trained.map((leaf) => [leaf.path, next.ema === null ? [] : [slot++]]))
  const order = leaves.flatMap((leaf, i) => [i, ...(slots.get(leaf.path) ?? []), ...(averages.get(leaf.path) ?? [])])
  const outputs = [...order, ...program.outputs.keys().drop(slot)].map((i) => program.outputs[i]!)
  return { ...program, equations: Program.body(program.inputs, outputs).equations }
}

/** total / weight, 0 without weight. */
const mean = (total: Scalar, weight: Scalar): AnyTensor => {
  const none = equal(weight, constant(0))
  return select(none, constant(0), div(total, select(none, constant(1), weight) as Scalar))
}

const paramShape = <P extends Module.ParamTree>(params: P): Tree.Shape =>
  Tree.flatten<Module.Param, ParamRoot>(params, Module.isParam)[1]
type ParamRoot = Module.ParamTree

interface LossProgram {
  /** parameters, batch, seed, lossScale to total, weight, metrics: all f32 scalars, for one microbatch or for all. */
  readonly body: Program.Body
  /** The body takes the whole batch, and cuts it into microbatches itself. */
  readonly whole: boolean
  readonly metrics: ReadonlyArray<string>
}

const lossProgram = <P extends Module.ParamTree, B extends BatchTypes>(
  config: Config<P, B>,
  strategy: Strategy.Strategy,
  types: ReadonlyArray<TensorType>,
  batchShape: Tree.Shape<B>
): LossProgram => {
  const { params, precision = Precision.f32 } = config
  const pairwise = typeof config.loss === "function" ? null : config.loss
  const whole = pairwise !== null && pairwise.negatives === "global"
  const parts = whole ? 1 : strategy.microbatches
  const names = Tree.paths(batchShape)
  const shape = paramShape(params)
  const asParams = (leaves: ReadonlyArray<AnyTensor>) => Tree.unflatten(shape, leaves) as Module.Tensors<P>
  const asBatch = (leaves: ReadonlyArray<AnyTensor>) => Tree.unflatten(batchShape, leaves) as Tree.Mapped<B, AnyTensor>
  const callOf = (batch: ReadonlyArray<AnyTensor>, seed: AnyTensor) =>
    Module.training(Random.make(seed as Tensor<never, "int">, batch[names.indexOf("examples")]!))
  let metrics: ReadonlyArray<string> = []
  const program = Program.traceUnsafe(
    {
      params: Module.inputs(params) as unknown,
      batch: types.map((t) => Accumulate.resized(t, (n) => n / parts)),
      seed: { axes: [], dtype: "u32" as const },
      lossScale: { axes: [], dtype: "f32" as const }
    },
    (given) => {
      const batch = given.batch as unknown as ReadonlyArray<AnyTensor>
      const seed = given.seed as AnyTensor
      const [parameters] = Tree.flatten<AnyTensor, unknown>(given.params, Tree.isTensorLeaf)
      const call = callOf(batch, seed)
      const result =
        typeof config.loss === "function"
          ? config.loss(asParams(parameters), asBatch(batch), call)
          : comparing(config.loss)
      metrics = Object.keys(result.metrics ?? {})
      return sums({ total: result.total, weight: result.weight, ...result.metrics })

      function comparing(loss: PairwiseLoss<P, B>): Accumulate.Loss {
        let keys: ReadonlyArray<string> = []
        const features = Accumulate.cached(
          { parameters, batch, seed, microbatches: whole ? strategy.microbatches : 1 },
          (p, b, s) => {
            const made = loss.features(asParams(p), asBatch(b), callOf(b, s))
            keys = Object.keys(made)
            return Object.values(made)
          }
        )
        const named = Object.fromEntries(keys.map((key, i) => [key, features[i]!]))
        return loss.loss(named, asParams(parameters), asBatch(batch), call)
      }
    }
  )
  const clash = metrics.find((name) => (reserved as ReadonlyArray<string>).includes(name))
  if (clash !== undefined)
    throw problem(`metrics.${clash}`, "the step reports this name itself", "give the metric another name")
  const typed = Padding.apply(simplify(Precision.apply(program, precision)), strategy)
  return { body: Recompute.apply(typed, strategy.recompute), whole, metrics }
}

/** The metrics that add up, as f32 scalars. */
const sums = (metrics: Readonly<Record<string, AnyTensor>>): ReadonlyArray<AnyTensor> =>
  Object.entries(metrics).map(([name, x]) => {
    if (x.type.axes.length > 0)
      throw problem(
        `metrics.${name}`,
        `has the axes ${Axis.print(x.type.axes)}`,
        "sum over them: metrics are scalars that add up"
      )
    return cast(x as Scalar, "f32")
  })

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

/** Any function of parameters and a batch, without training. Outputs keep the types they were written in. */
export const forward = <P extends Module.ParamTree, const B, Out>(config: {
  readonly params: P
  readonly batch: B
  readonly apply: (params: Module.Tensors<P>, batch: Tree.Mapped<B, AnyTensor>, call: Module.Call) => Out
  readonly precision?: Precision.Precision
}): Result.Result<
  Program.Program<{ readonly params: Module.Tensors<P>; readonly batch: Tree.Mapped<B, AnyTensor> }, Out>,
  ProgramError | RecipeError
> =>
  built(() => {
    const { apply, batch, params, precision = Precision.f32 } = config
    const [types, shape] = Tree.flatten<TensorType, B>(batch, isType)
    const tensors = Module.inputs(params)
    const given = Tree.unflatten(
      shape,
      types.map((t) => input({ axes: t.axes, dtype: t.dtype }))
    ) as Tree.Mapped<B, AnyTensor>
    const program = Program.make({ params: tensors, batch: given }, apply(tensors, given, Module.evaluation))
    return simplify(Precision.apply(program, precision))
  })
