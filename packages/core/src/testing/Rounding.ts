/**
 * What a precision may do to a program: the same program in float64, but rounded wherever the policy allows it, each time on another grid. How far its
 * results scatter says how far the results of a sound implementation may be off. Rounding to the type on a grid that is stretched by a factor between 1
 * and 2 is as coarse as rounding to the type, and as good as independent of it.
 */
import type * as DType from "../DType.ts"
import { kindOf } from "../DType.ts"
import type { AnyTensor, Body, Equation, Tensor } from "../Node.ts"
import { build } from "../Node.ts"
import type { Precision } from "../Precision.ts"
import { cast, scale } from "../primitives/algebra.ts"
import type { ScanParams } from "../primitives/control.ts"
import { scanP } from "../primitives/control.ts"
import * as Program from "../Program.ts"
import * as Dice from "./Dice.ts"

/** In which type a value is: f32 (wide), that of activations (narrow), or that of whatever it meets (parameters and constants). */
type Width = "wide" | "narrow" | "weak"

const isFloat = (x: AnyTensor): boolean => kindOf(x.type.dtype) === "float"

/** Results that span too wide a range for 16 bits. */
const sensitive: ReadonlySet<string> = new Set(["exp", "expm1", "log"])

/** The widths of all floats of a program: the wider operand decides, until the next contraction. */
const widthsOf = (body: Body, { losses, reduction }: Precision): ReadonlyMap<AnyTensor, Width> => {
  const widths = new Map<AnyTensor, Width>()
  const visit = ({ equations, inputs }: Body, given: ReadonlyArray<Width>): void => {
    inputs.forEach((x, i) => widths.set(x, given[i]!))
    for (const e of equations) {
      const { meaning } = e.primitive
      const operands = e.inputs.filter(isFloat).map((x) => ({ x, width: widths.get(x)! }))
      if (meaning.kind === "region") {
        const carried = e.primitive === scanP ? (e.params as ScanParams).carried : 0
        const of = (i: number): Width => (i < carried ? "narrow" : (widths.get(e.inputs[i]!) ?? "weak"))
        for (const inner of meaning.bodies(e.params)) {
          visit(
            inner,
            inner.inputs.map((_, i) => of(i))
          )
          // What adds up does so in f32.
          inner.outputs.forEach((o, i) => widths.set(e.outputs[i]!, i < carried ? "narrow" : (widths.get(o) ?? "weak")))
        }
        continue
      }
      const firm = operands.filter(({ width, x }) => width !== "weak" && x.type.axes.length > 0)
      const widest: Width = firm.some(({ width }) => width === "wide") ? "wide" : firm.length > 0 ? "narrow" : "weak"
      for (const o of e.outputs) widths.set(o, widthOf(e, o, widest))
    }
  }
  const widthOf = (e: Equation, o: AnyTensor, widest: Width): Width => {
    switch (e.primitive.precision) {
      case "matmul":
        return o.type.axes.length === 0 ? "wide" : "narrow"
      case "softmax":
        return "narrow"
      case "reduction":
        return widest === "weak" ? "weak" : reduction === "f32" ? "wide" : "narrow"
      case "loss":
        return losses === "f32" ? "wide" : "narrow"
      case "norm":
        return widest === "weak" ? "wide" : widest
      default:
        return sensitive.has(e.primitive.name) && widest !== "weak" ? "wide" : widest
    }
  }
  visit(
    body,
    body.inputs.map((x) => (x.role === "parameter" ? "weak" : "wide"))
  )
  return widths
}

/** Tensors between a loss and the contraction before it, in bodies of regions too. */
const logitsOf = (body: Body): ReadonlySet<AnyTensor> => {
  const found = new Set<AnyTensor>()
  const visit = ({ equations }: Body): void => {
    for (const e of equations.toReversed()) {
      const { meaning, precision } = e.primitive
      if (meaning.kind === "region") meaning.bodies(e.params).forEach(visit)
      else if (
        precision === "loss" ||
        ((precision === "pointwise" || precision === "exact") && e.outputs.some((o) => found.has(o)))
      )
        for (const x of e.inputs) if (isFloat(x)) found.add(x)
    }
  }
  visit(body)
  return found
}

export interface Sample {
  readonly body: Body
  /** What every tensor of the program has become, in every place where it stands. */
  readonly now: ReadonlyMap<AnyTensor, ReadonlyArray<AnyTensor>>
}

/** One sample of what rounding may do; another for every seed. */
export const sample = (body: Body, precision: Precision, seed: number): Sample => {
  const dice = Dice.make(seed)
  const widths = widthsOf(body, precision)
  const logits = logitsOf(body)
  const now = new Map<AnyTensor, ReadonlyArray<AnyTensor>>()

  const round = (x: AnyTensor, type: DType.DType): AnyTensor => {
    if (type === "f32" || !isFloat(x)) return x
    const factor = 1 + dice.next()
    const stretched = cast(cast(scale(x as Tensor<string>, factor), type), "f32")
    return scale(stretched, 1 / factor)
  }
  /** A composite that calculates in 16 bits: every intermediate is rounded. */
  const opened = (e: Equation, inputs: ReadonlyArray<AnyTensor>, type: DType.DType): ReadonlyArray<AnyTensor> => {
    const { meaning } = e.primitive
    if (meaning.kind !== "composite") return made(e, inputs).map((x) => round(x, type))
    const inside = Program.body(inputs, meaning.decompose(inputs, e.params))
    return Program.inline(inside, inputs, (inner, xs) => opened(inner, xs, type))
  }
  const made = (e: Equation, inputs: ReadonlyArray<AnyTensor>): ReadonlyArray<AnyTensor> =>
    build(
      e.primitive,
      inputs,
      e.params,
      e.outputs.map((o) => o.role)
    )
  const stored = (x: AnyTensor): DType.DType =>
    widths.get(x) !== "narrow"
      ? "f32"
      : logits.has(x) && precision.logits !== null
        ? precision.logits
        : precision.pointwise

  const rewritten = (e: Equation, inputs: ReadonlyArray<AnyTensor>): ReadonlyArray<AnyTensor> => {
    const { name, precision: kind } = e.primitive
    const activations = (xs: ReadonlyArray<AnyTensor>) => xs.map((x, i) => round(x, stored(e.outputs[i]!)))
    switch (kind) {
      case "matmul":
      case "softmax": {
        const operands = inputs.map((x) => round(x, precision.matmul))
        const open = kind === "softmax" && precision.softmax !== "f32"
        return activations(open ? opened(e, operands, precision.softmax) : made(e, operands))
      }
      case "norm":
        return activations(precision.norms === "f32" ? made(e, inputs) : opened(e, inputs, precision.norms))
      case "loss":
        return precision.losses === "f32" ? made(e, inputs) : opened(e, inputs, precision.losses)
      case "reduction":
        return made(e, inputs).map((x) => round(x, precision.reduction))
      default: {
        if (name !== "place") return activations(made(e, inputs))
        const [from, to] = [inputs[0]!.role, e.outputs[0]!.role]
        const travels = from === "parameter" ? precision.parameters : to === "gradient" ? precision.gradients : "f32"
        return made(e, inputs).map((x) => round(x, travels))
      }
    }
  }
  const map = (from: Body): Body =>
    Program.body(
      from.inputs,
      Program.inline(from, from.inputs, (e, inputs) => {
        const { meaning } = e.primitive
        const outputs =
          meaning.kind === "region"
            ? made({ ...e, params: meaning.withBodies(e.params, meaning.bodies(e.params).map(map)) }, inputs)
            : rewritten(e, inputs)
        e.outputs.forEach((o, i) => now.set(o, [...(now.get(o) ?? []), outputs[i]!]))
        return outputs
      })
    )
  return { body: map(body), now }
}
