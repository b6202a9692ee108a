/** In which types a program stores and multiplies: a policy, and the pass that inserts casts by each primitive's `precision` class. */
import * as Context from "effect/Context"
import type * as DType from "./DType.ts"
import { kindOf, store } from "./DType.ts"
import type { AnyTensor, Body, Equation } from "./Node.ts"
import { build, input } from "./Node.ts"
import { castP, contractP } from "./primitives/algebra.ts"
import { recomputeP, scanP } from "./primitives/control.ts"
import type { ScanParams } from "./primitives/control.ts"
import { placeP } from "./primitives/emit.ts"
import { lookupP } from "./primitives/index.ts"
import { concatP } from "./primitives/axes.ts"
import { expm1P, expP, logP } from "./primitives/pointwise.ts"
import * as Program from "./Program.ts"
import { uniform } from "./Simplify.ts"

/** Types of floats. Where only f32 stands, kernels and composites compute in f32 whatever is stored. */
export interface Precision {
  readonly name: string
  /** In which type parameters travel to where they are used. Weights of norms and scalars stay f32. */
  readonly parameters: DType.DType
  /** What the optimizer updates. */
  readonly master: "f32"
  /** Operands of contractions and attention. */
  readonly matmul: DType.DType
  readonly accumulate: "f32"
  /** Stored activations: results of contractions, of elementwise operations, the stream between layers. */
  readonly pointwise: DType.DType
  /** Sums and maxima, and what is computed from them until the next contraction. */
  readonly reduction: DType.DType
  readonly norm: "f32"
  readonly softmax: "f32"
  readonly loss: "f32"
  /** In which type gradients of parameters are added up over devices. Over microbatches it is always f32. */
  readonly gradients: DType.DType
  /** What a loss reads, back to the contraction it comes from; null: as other activations. */
  readonly logits: DType.DType | null
  readonly lossScale: LossScale | null
}

export interface LossScale {
  readonly initial: number
  readonly growthInterval: number
  readonly growth: number
  readonly backoff: number
  /** Non-finite steps that are borne before the scale falls. */
  readonly hysteresis: number
  readonly minimum: number
}

/** NeMo's native_amp settings. @source megatron_vit_classification_config.yaml */
export const lossScale: LossScale = {
  initial: 2 ** 32,
  growthInterval: 1000,
  growth: 2,
  backoff: 0.5,
  hysteresis: 2,
  minimum: 1
}

/** Everything in f32. */
export const f32: Precision = {
  name: "f32",
  parameters: "f32",
  master: "f32",
  matmul: "f32",
  accumulate: "f32",
  pointwise: "f32",
  reduction: "f32",
  norm: "f32",
  softmax: "f32",
  loss: "f32",
  gradients: "f32",
  logits: null,
  lossScale: null
}

const level = (name: string, type: "bf16" | "f16", stored: boolean): Precision => ({
  ...f32,
  name,
  matmul: type,
  parameters: stored ? type : "f32",
  pointwise: stored ? type : "f32",
  logits: stored ? "f32" : null,
  lossScale: type === "f16" ? lossScale : null
})

/** Weights and activations bf16, f32 master weights, gradients and norms (Megatron's O2). */
export const bf16 = level("bf16", "bf16", true)
/** Weights and activations f32, operands of contractions bf16 (O1). */
export const bf16O1 = level("bf16-O1", "bf16", false)
/** As bf16, with f16 and a dynamic loss scale. */
export const f16 = level("f16", "f16", true)
export const f16O1 = level("f16-O1", "f16", false)

/** By name, for recipes. */
export const all: Readonly<Record<string, Precision>> = { f32, bf16, "bf16-O1": bf16O1, f16, "f16-O1": f16O1 }

/** The precision in force; f32 unless provided. */
export const Current: Context.Reference<Precision> = Context.Reference<Precision>("@tessera/core/Precision", {
  defaultValue: () => f32
})

export interface LossScaleState {
  readonly scale: number
  /** Finite steps since the last change. */
  readonly good: number
  /** Non-finite steps still borne. */
  readonly patience: number
}

/** Before the first step; a scale of 1 that never changes when the policy has none. */
export const initialLossScale = (precision: Precision): LossScaleState => ({
  scale: precision.lossScale?.initial ?? 1,
  good: 0,
  patience: precision.lossScale?.hysteresis ?? 0
})

/** After one step. @source megatron/optimizer/grad_scaler.py DynamicGradScaler.update */
export const nextLossScale = (precision: Precision, state: LossScaleState, finite: boolean): LossScaleState => {
  const p = precision.lossScale
  if (p === null) return state
  if (!finite) {
    const patience = state.patience - 1
    return { scale: patience <= 0 ? Math.max(state.scale * p.backoff, p.minimum) : state.scale, good: 0, patience }
  }
  if (state.good + 1 < p.growthInterval) return { ...state, good: state.good + 1 }
  return { scale: state.scale * p.growth, good: 0, patience: p.hysteresis }
}

/**
 * The program in the policy's types. Takes the forward program, before derivatives; inputs and outputs keep their types, integers are untouched.
 * The wider operand decides: what a reduction or a loss gave in f32 stays f32 until a contraction. Parameters, constants and random numbers never
 * widen what they meet. With the f32 policy nothing changes.
 */
export const apply = <I, O>(program: Program.Program<I, O>, precision: Precision): Program.Program<I, O> => {
  const { matmul, parameters, pointwise, reduction } = precision
  if ([matmul, parameters, pointwise, reduction].every((d) => d === "f32")) return program
  const types = program.outputs.map((o) => o.type.dtype)
  const outputs = rewrite(program, program.inputs, precision, new Set()).map((x, i) =>
    isFloat(x.tensor) ? castTo(x.tensor, types[i]!) : x.tensor
  )
  return Program.withBody(program, Program.body(program.inputs, outputs))
}

/**
 * Gradients before they are added up over devices: `cast` from the type of compute to f32 moves in front of the placement as a gradient, so that
 * the reduction is in f32. With 16-bit gradients nothing changes.
 */
export const widenGradients = (body: Body, precision: Precision): Body => {
  if (precision.gradients !== "f32") return body
  return Program.map(body, (e, inputs) => {
    const from = inputs[0]
    if (e.primitive !== castP || e.params.dtype !== "f32" || from === undefined || from.role !== "gradient") return null
    const inner = from.equation
    if (inner === null || inner.primitive !== placeP) return null
    const wide = build(castP, inner.inputs, e.params, inner.inputs[0]!.role)
    return build(placeP, wide, inner.params, "gradient")
  })
}

/** firm: its type counts where operands differ. parameter, closed: takes the type of what it meets (weights; constants, masks, random numbers). */
type Origin = "firm" | "parameter" | "closed"
interface Value {
  readonly tensor: AnyTensor
  readonly origin: Origin
}

const isFloat = (x: AnyTensor): boolean => kindOf(x.type.dtype) === "float"

const castTo = (x: AnyTensor, dtype: DType.DType): AnyTensor =>
  x.type.dtype === dtype ? x : build(castP, [x], { dtype }, x.role)[0]!

/** Computed in f32 whatever is stored, as torch.autocast's list has them: their results span too wide a range for 16 bits. */
const sensitive: ReadonlySet<unknown> = new Set([expP, expm1P, logP])

/** Tensors between a loss and the contraction before it. */
const logitsOf = (body: Body): ReadonlySet<AnyTensor> => {
  const found = new Set<AnyTensor>()
  for (const e of body.equations.toReversed()) {
    const { precision } = e.primitive
    if (precision === "loss") e.inputs.filter(isFloat).forEach((x) => found.add(x))
    else if (
      (precision === "pointwise" || (precision === "exact" && e.primitive.meaning.kind !== "region")) &&
      e.outputs.some((o) => found.has(o))
    ) {
      e.inputs.filter(isFloat).forEach((x) => found.add(x))
    }
  }
  return found
}

const rewrite = (
  body: Body,
  inputs: ReadonlyArray<AnyTensor>,
  policy: Precision,
  closed: ReadonlySet<number>
): ReadonlyArray<Value> => {
  const env = new Map<AnyTensor, Value>(
    body.inputs.map((x, i) => [
      x,
      { tensor: inputs[i]!, origin: x.role === "parameter" ? "parameter" : closed.has(i) ? "closed" : "firm" }
    ])
  )
  const logits = policy.logits === null ? null : { set: logitsOf(body), dtype: policy.logits }
  const casts = new Map<AnyTensor, Map<DType.DType, AnyTensor>>()
  const as = (v: Value, dtype: DType.DType): AnyTensor => {
    if (!isFloat(v.tensor) || v.tensor.type.dtype === dtype) return v.tensor
    const known = casts.get(v.tensor) ?? new Map<DType.DType, AnyTensor>()
    const found = known.get(dtype) ?? convert(v.tensor, dtype, policy)
    casts.set(v.tensor, known.set(dtype, found))
    return found
  }
  for (const e of body.equations) {
    const xs = e.inputs.map((x) => env.get(x)!)
    const stored = logits !== null && e.outputs.some((o) => logits.set.has(o)) ? logits.dtype : policy.pointwise
    const { dtypes, narrow, origin, params } = decide(e, xs, policy, stored)
    const { meaning } = e.primitive
    if (meaning.kind === "region") {
      region(e, xs, as, policy).forEach((v, i) => env.set(e.outputs[i]!, v))
      continue
    }
    const operands = xs.map((v, i) =>
      dtypes === null ? v.tensor : as(v, typeof dtypes === "string" ? dtypes : dtypes[i]!)
    )
    const same = params === e.params && operands.every((x, i) => x === e.inputs[i])
    const outputs = same
      ? e.outputs
      : build(
          e.primitive,
          operands,
          params,
          e.outputs.map((o) => o.role)
        )
    e.outputs.forEach((o, i) =>
      env.set(o, { tensor: narrow === undefined ? outputs[i]! : castTo(outputs[i]!, narrow), origin })
    )
  }
  return body.outputs.map((o) => env.get(o)!)
}

/** Another type. A placed parameter is converted before it travels, when the policy says that parameters travel in that type. */
const convert = (x: AnyTensor, dtype: DType.DType, policy: Precision): AnyTensor => {
  const e = x.equation
  if (dtype !== policy.parameters || e === null || e.primitive !== placeP || e.inputs[0]!.role !== "parameter")
    return castTo(x, dtype)
  return build(placeP, [castTo(e.inputs[0]!, dtype)], e.params, x.role)[0]!
}

interface Decision {
  /** Type of all float operands, or of each; null: as they are. */
  readonly dtypes: DType.DType | ReadonlyArray<DType.DType> | null
  readonly origin: Origin
  readonly params: any
  /** Type in which the result is stored, where it is computed in a wider one. */
  readonly narrow?: DType.DType
}

const decide = (e: Equation, xs: ReadonlyArray<Value>, policy: Precision, stored: DType.DType): Decision => {
  const { primitive, params } = e
  const floats = xs.filter((v) => isFloat(v.tensor))
  const firm = floats.filter((v) => v.origin === "firm" && v.tensor.type.axes.length > 0)
  const weak: Origin = floats.some((v) => v.origin !== "closed") ? "parameter" : "closed"
  switch (primitive.precision) {
    case "matmul":
      // A product that leaves one number is a sum.
      if (e.outputs[0]!.type.axes.length === 0)
        return {
          dtypes: policy.reduction,
          origin: "firm",
          params: primitive === contractP ? { ...params, dtype: policy.reduction } : params
        }
      return {
        dtypes: policy.matmul,
        origin: "firm",
        params: primitive === contractP ? { ...params, dtype: stored } : params
      }
    case "softmax":
      return { dtypes: policy.matmul, origin: "firm", params }
    case "reduction":
      return { dtypes: policy.reduction, origin: firm.length > 0 ? "firm" : weak, params }
    case "norm": {
      const x = firm.length > 0 ? xs[0]!.tensor.type.dtype : "f32"
      return { dtypes: xs.map((_, i) => (i === 0 ? x : policy.norm)), origin: "firm", params }
    }
    case "loss":
      return { dtypes: null, origin: "firm", params }
    case "exact":
    case "pointwise": {
      if (primitive === castP)
        return { dtypes: null, origin: isFloat(xs[0]!.tensor) ? xs[0]!.origin : "closed", params }
      if (sensitive.has(primitive)) return { dtypes: "f32", origin: firm.length > 0 ? "firm" : weak, params }
      if (firm.length > 0) {
        const dtype = widest(firm)
        const exact = floats.every((v) => firm.includes(v) || keeps(v, dtype))
        return exact || primitive.precision === "exact"
          ? { dtypes: dtype, origin: "firm", params }
          : { dtypes: "f32", narrow: dtype, origin: "firm", params }
      }
      // Rows of a table become activations.
      if ((primitive === lookupP || primitive === concatP) && weak === "parameter")
        return { dtypes: stored, origin: "firm", params }
      return {
        dtypes: floats.length > 1 ? widest(floats) : null,
        origin: floats.length === 0 ? "closed" : weak,
        params
      }
    }
  }
}

/** Whether an operand may take a narrower type: weights may, by policy; a factor such as 1 / (1 - rate) would be wrong in every element alike. */
const keeps = (v: Value, dtype: DType.DType): boolean => {
  if (dtype === "f32" || (v.origin === "parameter" && v.tensor.type.axes.length > 0)) return true
  const value = uniform(v.tensor)
  return value !== null && store(dtype, value) === value
}

const widest = (values: ReadonlyArray<Value>): DType.DType => {
  const types = values.map((v) => v.tensor.type.dtype)
  return types.every((d) => d === types[0]) ? types[0]! : "f32"
}

/** Carried values take the type of stored activations (scalars stay f32), sums add up in f32, the rest follows from the operands. */
const region = (
  e: Equation,
  xs: ReadonlyArray<Value>,
  as: (v: Value, dtype: DType.DType) => AnyTensor,
  policy: Precision
): ReadonlyArray<Value> => {
  const { body } = e.params as { readonly body: Body }
  const scan = e.primitive === scanP ? (e.params as ScanParams) : null
  if (scan === null && e.primitive !== recomputeP) return e.outputs.map((tensor) => ({ tensor, origin: "firm" }))
  const carry = (x: AnyTensor): DType.DType => (x.type.axes.length === 0 ? "f32" : policy.pointwise)
  const operands = xs.map((v, i) => (scan !== null && i < scan.carried ? as(v, carry(body.inputs[i]!)) : v.tensor))
  const inside = body.inputs.map((x, i) => input({ axes: x.type.axes, dtype: operands[i]!.type.dtype }, x.role))
  const closed = new Set(
    xs.flatMap((v, i) => (v.origin === "closed" && !(scan !== null && i < scan.carried) ? [i] : []))
  )
  const placed = new Set(
    xs.flatMap((v, i) => (v.origin === "parameter" && body.inputs[i]!.role !== "parameter" ? [i] : []))
  )
  const results = rewrite(body, inside, policy, new Set([...closed, ...placed])).map((v, i) => {
    if (!isFloat(v.tensor)) return v.tensor
    if (scan !== null && i < scan.carried) return castTo(v.tensor, carry(body.inputs[i]!))
    return scan !== null && i >= scan.carried + scan.stacked ? castTo(v.tensor, "f32") : v.tensor
  })
  const outputs = build(
    e.primitive,
    operands,
    { ...e.params, body: Program.body(inside, results) },
    e.outputs.map((o) => o.role)
  )
  return outputs.map((tensor) => ({ tensor, origin: "firm" }))
}
