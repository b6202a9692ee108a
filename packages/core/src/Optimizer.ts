/**
 * Optimizers: a rule for one parameter and its state, and around it everything that all rules share: clipping by the global norm, decay masks,
 * learning-rate factors by leaf and by layer, frozen leaves, averaged weights. Per-step numbers are inputs, so nothing recompiles.
 */
import * as Axis from "./Axis.ts"
import type * as DType from "./DType.ts"
import * as Module from "./Module.ts"
import type { AnyTensor, Tensor } from "./Node.ts"
import { input } from "./Node.ts"
import * as Program from "./Program.ts"
import { add, broadcast, cast, constant, contractP, div, mul, mulP, scale, sumOf, shift } from "./primitives/algebra.ts"
import { emit1, place } from "./primitives/emit.ts"
import { iota } from "./primitives/index.ts"
import { and, equal, isFinite, less, minimum, select, sqrt } from "./primitives/pointwise.ts"

type T = Tensor<string>
type Scalar = Tensor<never>

/** One tensor of optimizer state. */
export interface Slot {
  readonly axes: Axis.Axes
  readonly dtype: DType.DType
  readonly init: number
}

export type Slots = Readonly<Record<string, AnyTensor>>

/** What a rule sees of one leaf. All tensors are in the optimizer's layout. */
export interface Update {
  /** f32. */
  readonly parameter: T
  /** Any float type; times `gradientScale` it is the clipped mean gradient. */
  readonly gradient: T
  readonly gradientScale: Scalar
  readonly state: Slots
  /** `[]`, or along the repeated axes when layers learn at different rates. */
  readonly learningRate: T
  /** f32: 1 for the first update. */
  readonly step: Scalar
  /** Decoupled weight decay, 0 for leaves without. */
  readonly decay: number
  /** Axes of stacks: a norm or a factor is taken for each layer by itself. */
  readonly repeated: ReadonlyArray<string>
}

/** A running average: value = decay * value + what is new. Of squares, when it is that of squared gradients. */
export interface Average {
  readonly decay: number
  readonly squares: boolean
}

export interface Rule {
  /** With its numbers, for printing. */
  readonly name: string
  /** New values of an element depend on that element alone, so that several leaves may lie in one flat tensor. */
  readonly elementwise: boolean
  readonly state: (leaf: Module.Leaf) => Readonly<Record<string, Slot>>
  /** What its slots are, by name: decides whether they may be kept in 16 bits. A rule that does not say keeps them as they are. */
  readonly averages?: Readonly<Record<string, Average>>
  readonly update: (x: Update) => { readonly parameter: T; readonly state: Slots }
}

/**
 * megatron: times max / (norm + 1e-6) where that is below 1 (Megatron-LM clip_grads.py, torch clip_grad_norm_).
 * optax: times max / norm where norm is at least max (optax clip_by_global_norm).
 */
export interface Clip {
  readonly maxNorm: number
  readonly formula: "megatron" | "optax"
}

export interface Optimizer {
  readonly rule: Rule
  readonly clip: Clip | null
  readonly decay: number
  readonly decayMask: (leaf: Module.Leaf) => boolean
  /** Factor of the learning rate: one number, or one per layer (along the leaf's first repeated axis). */
  readonly learningRateScale: (leaf: Module.Leaf) => number | ReadonlyArray<number>
  /** Averaged weights: average = decay * average + (1 - decay) * parameter after every update. */
  readonly ema: { readonly decay: number } | null
  /** In which type parameters and averages are kept from step to step. */
  readonly stored: DType.DType
  /** Frozen leaves have neither gradient nor state and come back bit-equal. */
  readonly trainable: (leaf: Module.Leaf) => boolean
}

/** Everything trains in f32; decay where the declaration says so; no clipping, no averaging. */
export const make = (rule: Rule, options: Partial<Omit<Optimizer, "rule">> = {}): Optimizer => ({
  rule,
  clip: null,
  decay: 0,
  decayMask: (leaf) => leaf.param.decay,
  learningRateScale: () => 1,
  ema: null,
  stored: "f32",
  trainable: () => true,
  ...options
})

/** Decay for every leaf, as optax.adamw without a mask. */
export const decayAll = (): boolean => true

/**
 * Layer-wise learning-rate decay: 1 for the head (and for all that is not `within`), decay for the last layer, decay^2 for the one before, and
 * decay^(layers + 1) for what comes before the first. @source open_clip_train/optim.py lr_scales_for_groups; arXiv:2003.10555, section 3.1
 */
export const layerDecay =
  (options: {
    readonly decay: number
    readonly layers: number
    readonly head: (leaf: Module.Leaf) => boolean
    readonly within?: (leaf: Module.Leaf) => boolean
  }) =>
  (leaf: Module.Leaf): number | ReadonlyArray<number> => {
    const { decay, head, layers, within = () => true } = options
    if (!within(leaf) || head(leaf)) return 1
    if (leaf.param.repeated.length === 0) return decay ** (layers + 1)
    return Array.from({ length: layers }, (_, i) => decay ** (layers - i))
  }

/** Leaves that train, in declaration order. */
export const trained = (optimizer: Optimizer, params: Module.ParamTree): ReadonlyArray<Module.Leaf> =>
  Module.leaves(params).filter(optimizer.trainable)

/** State by path of the leaf and name of the slot. */
export type State<A = AnyTensor> = Readonly<Record<string, Readonly<Record<string, A>>>>
/** Averaged weights by path of the leaf. */
export type Averages<A = AnyTensor> = Readonly<Record<string, A>>

/** Free inputs for the state of every trained leaf. */
export const inputs = (
  optimizer: Optimizer,
  params: Module.ParamTree
): { readonly optimizer: State; readonly ema: Averages | null } => {
  const leaves = trained(optimizer, params)
  return {
    optimizer: Object.fromEntries(
      leaves.map((leaf) => [
        leaf.path,
        Object.fromEntries(
          Object.entries(optimizer.rule.state(leaf)).map(([name, s]) => [
            name,
            input({ axes: s.axes, dtype: s.dtype }, "optimizer")
          ])
        )
      ])
    ),
    ema:
      optimizer.ema === null
        ? null
        : Object.fromEntries(
            leaves.map((leaf) => [leaf.path, input({ axes: leaf.param.axes, dtype: optimizer.stored }, "optimizer")])
          )
  }
}

/** Program from parameters to the state before the first update: slots at their initial value, averages equal to the parameters. */
export const initial = <P extends Module.ParamTree>(optimizer: Optimizer, params: P) => {
  const tensors = Module.inputs(params, optimizer.stored)
  const byPath = tensorsByPath(params, tensors)
  const leaves = trained(optimizer, params)
  const state: State = Object.fromEntries(
    leaves.map((leaf) => [
      leaf.path,
      Object.fromEntries(
        Object.entries(optimizer.rule.state(leaf)).map(([name, s]) => [
          name,
          place(broadcast(constant(s.init, s.dtype), s.axes), "optimizer")
        ])
      )
    ])
  )
  const ema: Averages = Object.fromEntries(
    leaves.map((leaf) => [leaf.path, place(byPath.get(leaf.path)!, "optimizer")])
  )
  return Program.make({ params: tensors }, optimizer.ema === null ? { optimizer: state } : { optimizer: state, ema })
}

/** Tensors of a parameter tree by path. */
export const tensorsByPath = <P extends Module.ParamTree>(
  params: P,
  tensors: Module.Tensors<P>
): ReadonlyMap<string, AnyTensor> =>
  new Map(
    Module.leaves(params).map((leaf) => {
      const found =
        leaf.path === ""
          ? tensors
          : leaf.path.split("/").reduce<unknown>((at, key) => (at as Record<string, unknown>)[key], tensors)
      return [leaf.path, found as AnyTensor]
    })
  )

export interface Given {
  /** By path, for trained leaves: as they are stored, in the parameter layout. */
  readonly parameters: ReadonlyMap<string, AnyTensor>
  /** By path: derivatives of `total * lossScale`. */
  readonly gradients: ReadonlyMap<string, AnyTensor>
  readonly state: State
  readonly ema: Averages | null
  /** Sums over the whole batch. */
  readonly total: Scalar
  readonly weight: Scalar
  readonly learningRate: Scalar
  readonly step: Scalar
  readonly lossScale: Scalar
}

export interface Updated {
  readonly parameters: ReadonlyMap<string, AnyTensor>
  readonly state: State
  readonly ema: Averages | null
  /** Norm of the mean gradient, before clipping. */
  readonly gradientNorm: Scalar
  /** Loss and norm are finite. */
  readonly finite: Tensor<never, "bool">
  /** Finite, and there was something to learn from: the new values were taken. */
  readonly updated: Tensor<never, "bool">
}

/** Sum of squares of all elements, in f32. */
const squares = (x: AnyTensor): AnyTensor =>
  x.type.axes.length === 0
    ? emit1(mulP, [cast(x as T, "f32"), cast(x as T, "f32")], {})
    : emit1(contractP, [x, x], { over: Axis.names(x.type.axes), dtype: "f32" })

const zero = () => constant(0)

/** One number per layer, as a tensor along `axis`. */
const vector = (values: ReadonlyArray<number>, axis: string): T => {
  const at = iota(axis, values.length, "i32")
  const equalTo = (i: number) => equal(at, constant(i, "i32") as unknown as Tensor<never, "int">)
  return values
    .slice(1)
    .reduce<T>(
      (rest, value, i) => select(equalTo(i + 1), constant(value) as AnyTensor as T, rest),
      broadcast(constant(values[0]!), at.type.axes)
    )
}

const learningRateOf = (optimizer: Optimizer, leaf: Module.Leaf, rate: Scalar): T => {
  const factor = optimizer.learningRateScale(leaf)
  if (typeof factor === "number") return (factor === 1 ? rate : scale(rate, factor)) as AnyTensor as T
  const axis = leaf.param.repeated[0] ?? ""
  return place(mul(vector(factor, axis), rate), "optimizer") as T
}

/**
 * One update of all leaves. The gradient of the mean loss is gradient / (weight * lossScale); that division, the clipping factor and nothing else
 * make up the one scale that rules apply. When loss or norm are not finite, or nothing had weight, everything keeps its old value.
 */
export const update = (optimizer: Optimizer, leaves: ReadonlyArray<Module.Leaf>, given: Given): Updated => {
  const { learningRate, lossScale, step, total, weight } = given
  const gradients = leaves.map((leaf) => place(given.gradients.get(leaf.path)!, "optimizer"))
  const empty = equal(weight, zero())
  const whole = mul(select(empty, constant(1), weight) as Scalar, lossScale)
  const norm = (
    leaves.length === 0 ? zero() : div(sqrt(sumOf(gradients.map((g) => squares(g) as Scalar))), whole)
  ) as Scalar
  const finite = and(isFinite(norm), isFinite(total))
  const updated = and(finite, less(zero(), weight)) as Tensor<never, "bool">
  const gradientScale = div(clipFactor(optimizer.clip, norm), whole) as Scalar
  const keep = (fresh: AnyTensor, old: AnyTensor): AnyTensor =>
    select(updated, cast(fresh as T, old.type.dtype), old as T)

  const parameters = new Map<string, AnyTensor>()
  const state: Record<string, Slots> = {}
  const ema: Record<string, AnyTensor> = {}
  leaves.forEach((leaf, i) => {
    const old = given.state[leaf.path]!
    const parameter = place(given.parameters.get(leaf.path)!, "optimizer") as T
    const next = optimizer.rule.update({
      parameter: cast(parameter, "f32") as T,
      gradient: gradients[i] as T,
      gradientScale,
      state: old,
      learningRate: learningRateOf(optimizer, leaf, learningRate),
      step,
      decay: optimizer.decayMask(leaf) ? optimizer.decay : 0,
      repeated: leaf.param.repeated
    })
    const fresh = cast(next.parameter, optimizer.stored) as T
    const kept = keep(fresh, parameter)
    parameters.set(leaf.path, place(kept, "parameter"))
    state[leaf.path] = Object.fromEntries(Object.entries(old).map(([name, x]) => [name, keep(next.state[name]!, x)]))
    if (optimizer.ema !== null) {
      const average = given.ema![leaf.path]! as T
      const { decay } = optimizer.ema
      const [old, now] = [cast(average, "f32"), cast(fresh, "f32")] as readonly [T, T]
      ema[leaf.path] = keep(add(scale(old, decay), scale(now, 1 - decay)), average)
    }
  })
  return { parameters, state, ema: optimizer.ema === null ? null : ema, gradientNorm: norm, finite, updated }
}

const clipFactor = (clip: Clip | null, norm: Scalar): Scalar => {
  if (clip === null) return constant(1)
  const most = constant(clip.maxNorm)
  if (clip.formula === "megatron") return minimum(constant(1), div(most, shift(norm, 1e-6)))
  return select(less(norm, most), constant(1), div(most, norm))
}
