/** The pass that inserts casts by each primitive's `precision` class. */
import type * as DType from "../DType.ts"
import { kindOf, store } from "../DType.ts"
import type { AnyTensor, Body, Equation } from "../Node.ts"
import { build, input } from "../Node.ts"
import { castP, contractP } from "../primitives/algebra.ts"
import { concatP } from "../primitives/axes.ts"
import { recomputeP, scanP } from "../primitives/control.ts"
import type { ScanParams } from "../primitives/control.ts"
import { placeP } from "../primitives/emit.ts"
import { lookupP } from "../primitives/index.ts"
import { logitScaleName, namedP } from "../primitives/mark.ts"
import { expm1P, expP, logP } from "../primitives/pointwise.ts"
import { softmaxP } from "../primitives/softmax.ts"
import * as Program from "../Program.ts"
import { uniform } from "../Simplify.ts"
import { calculating } from "./Calculation.ts"
import type { Precision } from "./Policy.ts"

/**
 * The program in the policy's types. Takes the forward program, before derivatives; inputs and outputs keep their types, but for parameters, which
 * come in the type that they are kept in; integers are untouched. The wider operand decides: what a reduction or a loss gave in f32 stays f32 until
 * a contraction. Parameters, constants and random numbers never widen what they meet. With the f32 policy nothing changes. Throws `RecipeError`
 * for an operation that cannot calculate in the type asked for.
 */
export const apply = <I, O>(program: Program.Program<I, O>, precision: Precision): Program.Program<I, O> => {
  const { losses, logitScale, master, matmul, norms, parameters, pointwise, reduction, softmax } = precision
  const asked = [losses, logitScale, master, matmul, norms, parameters, pointwise, reduction, softmax]
  if (asked.every((d) => d === "f32")) return program
  const types = program.outputs.map((o) => o.type.dtype)
  const kept = (x: AnyTensor): AnyTensor =>
    x.role === "parameter" && isFloat(x) ? input({ axes: x.type.axes, dtype: master }, x.role) : x
  const inputs = master === "f32" ? program.inputs : program.inputs.map(kept)
  const outputs = rewrite(program, inputs, precision, new Set()).map((x, i) =>
    isFloat(x.tensor) ? castTo(x.tensor, types[i]!) : x.tensor
  )
  return Program.withBody(program, Program.body(inputs, outputs))
}

/**
 * firm: its type counts where operands differ. parameter, closed: takes the type of what it meets (weights; constants, masks, random numbers).
 * scale: a logit scale, which multiplies in a type of its own.
 */
type Origin = "firm" | "parameter" | "closed" | "scale"
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
  const scaled = floats.some((v) => v.origin === "scale")
  const weak: Origin = scaled ? "scale" : floats.some((v) => v.origin !== "closed") ? "parameter" : "closed"
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
    case "softmax": {
      const dtypes = primitive === softmaxP ? policy.softmax : policy.matmul
      return { dtypes, origin: "firm", params: calculating(e, "softmax", policy) }
    }
    case "reduction":
      return { dtypes: policy.reduction, origin: firm.length > 0 ? "firm" : weak, params }
    case "norm": {
      const x = firm.length > 0 ? xs[0]!.tensor.type.dtype : "f32"
      const weights = policy.norms
      return {
        dtypes: xs.map((_, i) => (i === 0 ? x : weights)),
        origin: "firm",
        params: calculating(e, "norms", policy)
      }
    }
    case "loss":
      return { dtypes: null, origin: "firm", params: calculating(e, "losses", policy) }
    case "exact":
    case "pointwise": {
      if (primitive === castP)
        return { dtypes: null, origin: isFloat(xs[0]!.tensor) ? xs[0]!.origin : "closed", params }
      if (primitive === namedP && params.as === logitScaleName) return { dtypes: null, origin: "scale", params }
      if (sensitive.has(primitive)) return { dtypes: "f32", origin: firm.length > 0 ? "firm" : weak, params }
      if (firm.length > 0) {
        const dtype = widest(firm)
        if (scaled && policy.logitScale !== "f32")
          return { dtypes: policy.logitScale, narrow: dtype, origin: "firm", params }
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
