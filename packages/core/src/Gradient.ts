/** Reverse-mode derivatives of programs. Gradients are defined on the single-device program and partitioned with it. */
import * as DType from "./DType.ts"
import { kindOf } from "./DType.ts"
import { NotDifferentiable, refuse } from "./Errors.ts"
import type { AnyTensor, Body, Pullback } from "./Node.ts"
import { build, input } from "./Node.ts"
import { add, broadcast, constant, zeros } from "./primitives/algebra.ts"
import * as Program from "./Program.ts"

interface Step {
  readonly inputs: ReadonlyArray<AnyTensor>
  readonly outputs: ReadonlyArray<AnyTensor>
  readonly pullback: Pullback
}

/** Runs the forward rules; gives the outputs and the map from output cotangents to input cotangents. */
export const linearize = (body: Body): { readonly outputs: ReadonlyArray<AnyTensor>; readonly pullback: Pullback } => {
  const env = new Map<AnyTensor, AnyTensor>(body.inputs.map((x) => [x, x]))
  const tape: Array<Step> = []
  for (const e of body.equations) {
    const inputs = e.inputs.map((x) => env.get(x)!)
    const step = forward(e.primitive, inputs, e.inputs, e.outputs, e.params)
    e.outputs.forEach((o, i) => env.set(o, step.outputs[i]!))
    if (inputs.length > 0) tape.push({ inputs, ...step })
  }
  const outputs = body.outputs.map((o) => env.get(o)!)
  const pullback: Pullback = (cotangents) => {
    const owed = new Map<AnyTensor, AnyTensor>()
    const give = (x: AnyTensor, c: AnyTensor | null) => {
      // Integers and booleans owe nothing, whatever a rule says.
      if (c === null || kindOf(x.type.dtype) !== "float") return
      const known = owed.get(x)
      owed.set(x, known === undefined ? c : add(known, c))
    }
    outputs.forEach((o, i) => give(o, cotangents[i] ?? null))
    for (let k = tape.length - 1; k >= 0; k--) {
      const step = tape[k]!
      // A decomposition may hand an input on, or one tensor twice: what is owed to it is taken once.
      const given = step.outputs.map((o, i) => (step.outputs.indexOf(o) === i ? (owed.get(o) ?? null) : null))
      for (const o of step.outputs) owed.delete(o)
      if (given.some((c) => c !== null)) step.pullback(given).forEach((c, i) => give(step.inputs[i]!, c))
    }
    return body.inputs.map((x) => owed.get(x) ?? null)
  }
  return { outputs, pullback }
}

const forward = (
  primitive: Body["equations"][number]["primitive"],
  inputs: ReadonlyArray<AnyTensor>,
  before: ReadonlyArray<AnyTensor>,
  known: ReadonlyArray<AnyTensor>,
  params: unknown
): { readonly outputs: ReadonlyArray<AnyTensor>; readonly pullback: Pullback } => {
  const { vjp } = primitive
  if (vjp.kind === "long") return vjp.differentiate(inputs, params)
  const outputs = inputs.every((x, i) => x === before[i])
    ? known
    : build(
        primitive,
        inputs,
        params,
        known.map((o) => o.role)
      )
  if (vjp.kind === "short") {
    return {
      outputs,
      pullback: (cotangents) =>
        vjp.pullback(
          cotangents.map((c, i) => c ?? zeros(outputs[i]!.type, outputs[i]!.role)),
          inputs,
          outputs,
          params
        )
    }
  }
  if (vjp.kind === "decompose" && primitive.meaning.kind === "composite") {
    const inner = Program.body(inputs, primitive.meaning.decompose(inputs, params))
    return linearize(inner)
  }
  return { outputs, pullback: () => refuse(new NotDifferentiable({ operation: primitive.name })) }
}

export interface VjpProgram {
  /** Inputs, then cotangents of the outputs that have one; gives the cotangents of the inputs that have one. */
  readonly body: Body
  /** Puts nulls back where an input has no cotangent. */
  readonly spread: (xs: ReadonlyArray<AnyTensor>) => ReadonlyArray<AnyTensor | null>
}

export const vjp = (body: Body, present: ReadonlyArray<boolean>): VjpProgram => {
  const { outputs, pullback } = linearize(body)
  const cotangents = outputs.map((o, i) => (present[i] ? input(o.type, o.role) : null))
  const back = pullback(cotangents)
  return {
    body: Program.body(
      [...body.inputs, ...cotangents.filter((c) => c !== null)],
      back.filter((c) => c !== null)
    ),
    spread: (xs) => {
      let k = 0
      return back.map((c) => (c === null ? null : xs[k++]!))
    }
  }
}

export interface SplitVjp {
  readonly outputs: ReadonlyArray<AnyTensor>
  /** Free inputs standing for the cotangents of the outputs that have one. */
  readonly cotangents: ReadonlyArray<AnyTensor>
  readonly inputCotangents: ReadonlyArray<AnyTensor | null>
  /** What the backward reads of the forward and cannot rebuild cheaply. */
  readonly residuals: ReadonlyArray<AnyTensor>
  /** Inputs of the body that the backward reads. */
  readonly used: ReadonlySet<AnyTensor>
}

/** Forward and backward as two programs that share residuals. `present` says which outputs have a cotangent: all, unless given. */
export const split = (body: Body, present?: ReadonlyArray<boolean>): SplitVjp => {
  const { outputs, pullback } = linearize(body)
  const given = outputs.map((o, i) => (present === undefined || present[i] ? input(o.type, o.role) : null))
  const cotangents = given.filter((c) => c !== null)
  const inputCotangents = pullback(given)
  const free = new Set<AnyTensor>([...body.inputs, ...cotangents])
  const targets = inputCotangents.filter((c) => c !== null)
  const equations = Program.body([...free], targets).equations
  const fromCotangent = new Set<AnyTensor>(cotangents)
  for (const e of equations) {
    if (e.inputs.some((x) => fromCotangent.has(x))) for (const o of e.outputs) fromCotangent.add(o)
  }
  // Coordinates, masks and the like depend on no input: rebuilt, never saved.
  const closed = new Set<AnyTensor>()
  for (const e of equations) {
    if (e.inputs.every((x) => closed.has(x))) for (const o of e.outputs) closed.add(o)
  }
  // Random bits, masks and what is made of nothing else: cheaper to draw again than to keep.
  const discrete = new Set<AnyTensor>()
  for (const e of body.equations) {
    if (e.primitive.precision !== "exact" && e.primitive.precision !== "pointwise") continue
    if (e.inputs.every((x) => DType.kindOf(x.type.dtype) !== "float" || discrete.has(x) || x.type.axes.length === 0)) {
      for (const o of e.outputs) discrete.add(o)
    }
  }
  const residuals = new Set<AnyTensor>()
  const used = new Set<AnyTensor>()
  const seen = new Set<AnyTensor>()
  const stack: Array<AnyTensor> = [...targets]
  while (stack.length > 0) {
    const x = stack.pop()!
    if (seen.has(x)) continue
    seen.add(x)
    if (free.has(x)) used.add(x)
    else if (fromCotangent.has(x) || closed.has(x) || discrete.has(x) || rebuilt(x, free))
      stack.push(...x.equation!.inputs)
    else residuals.add(x)
  }
  return { outputs, cotangents, inputCotangents, residuals: [...residuals], used }
}

/** Cheap operations are rebuilt; so is the cast of a parameter, which would otherwise be saved in every layer. */
const rebuilt = (x: AnyTensor, free: ReadonlySet<AnyTensor>): boolean => {
  const { inputs, params, primitive } = x.equation!
  if (params.keep === true) return false
  if (primitive.recompute === "cheap") return true
  if (primitive.name !== "cast") return false
  let source = inputs[0]!
  while (source.equation !== null && source.equation.primitive.name === "place") source = source.equation.inputs[0]!
  return free.has(source)
}

/** Appends the gradients of output 0 (a scalar) with respect to the chosen inputs. */
export const valueAndGrad = (body: Body, wrt: ReadonlyArray<number>): Body => {
  const { outputs, pullback } = linearize(body)
  const loss = outputs[0]!
  const back = pullback(outputs.map((o, i) => (i === 0 ? broadcast(constant(1, o.type.dtype), o.type.axes) : null)))
  return Program.body(body.inputs, [
    ...outputs,
    ...wrt.map(
      (i) => back[i] ?? zeros(body.inputs[i]!.type, body.inputs[i]!.role === "parameter" ? "gradient" : loss.role)
    )
  ])
}
