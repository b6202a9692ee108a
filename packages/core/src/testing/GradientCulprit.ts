/** Which equation's derivative is wrong: each by itself first, then how they are put together. */
import * as Axis from "../Axis.ts"
import { kindOf } from "../DType.ts"
import * as Evaluate from "../Evaluate.ts"
import type * as Gradient from "../Gradient.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import type { AnyTensor, Body, Equation, Tensor } from "../Node.ts"
import { build, input } from "../Node.ts"
import { add, cast, mul, sum } from "../primitives/algebra.ts"
import * as Program from "../Program.ts"
import * as Dice from "./Dice.ts"
import * as FirstDifference from "./FirstDifference.ts"
import * as Losses from "./Losses.ts"
import * as Quotient from "./Quotient.ts"
import { walk } from "./Walk.ts"

type Differentiate = typeof Gradient.valueAndGrad

/** Operands that count as constants by design. */
const constants: Readonly<Record<string, ReadonlyArray<number>>> = { stopGradient: [0], crossEntropy: [1] }

const isConstant = (e: Equation, operand: number): boolean => constants[e.primitive.name]?.includes(operand) ?? false

/** The loss as a function of the inputs, with all that counts as constant as it is at `base`. */
export const totalOf = (body: Body, base: ReadonlyArray<HostArray>): ((inputs: ReadonlyArray<HostArray>) => number) => {
  if (!stops(body)) return (inputs) => Evaluate.runUnsafe(body, inputs)[0]!.data[0]!
  const kept = new Map<Equation, Array<ReadonlyArray<HostArray>>>()
  const keep = (e: Equation, xs: ReadonlyArray<HostArray>) => {
    if (constants[e.primitive.name] !== undefined) kept.set(e, [...(kept.get(e) ?? []), xs])
  }
  walk(body, base, { after: keep })
  const before = (e: Equation, xs: ReadonlyArray<HostArray>, occurrence: number) =>
    xs.map((x, i) => (isConstant(e, i) ? kept.get(e)![occurrence]![i]! : x))
  return (inputs) => walk(body, inputs, { before })[0]!.data[0]!
}

/** Whether anything counts as constant that depends on floats. */
const stops = (body: Body): boolean =>
  body.equations.some((e) => {
    if (e.primitive.meaning.kind === "region") return e.primitive.meaning.bodies(e.params).some(stops)
    return e.inputs.some((x, i) => isConstant(e, i) && isFloat(x))
  })

const isFloat = (x: AnyTensor): boolean => kindOf(x.type.dtype) === "float"

const noise = (axes: Axis.Axes, seed: number): HostArray => {
  const dice = Dice.make(seed)
  return Host.make(
    axes,
    "f32",
    Float64Array.from({ length: Axis.count(axes) }, () => 2 * dice.next() - 1)
  )
}

/** A scalar program, with where its values are. */
interface Scalar {
  readonly body: Body
  readonly inputs: ReadonlyArray<HostArray>
  /** Inputs to differentiate by. */
  readonly wrt: ReadonlyArray<number>
}

/** A gradient that is wrong. */
interface Wrong {
  readonly input: number
  readonly expected: HostArray
  readonly found: HostArray
  readonly distance: number
}

/** The first input whose gradient is not what difference quotients say; null where all agree, or quotients say nothing. */
const wrongIn = ({ body, inputs, wrt }: Scalar, differentiate: Differentiate, tolerance: number): Wrong | null => {
  const count = body.outputs.length
  const gradients = Evaluate.runUnsafe(differentiate(body, wrt), inputs).slice(count)
  const total = totalOf(body, inputs)
  const value = Math.abs(total(inputs))
  for (const [k, at] of wrt.entries()) {
    const x = inputs[at]!
    const found = Host.reorder(gradients[k]!, x.axes)
    const expected = new Float64Array(x.data.length)
    let [distance, smooth] = [0, true]
    for (let i = 0; i < x.data.length; i++) {
      const move = (t: number) => inputs.map((y, j) => (j === at ? { ...y, data: y.data.with(i, y.data[i]! + t) } : y))
      const quotient = Quotient.at((t) => total(move(t)), Math.abs(found.data[i]!) + value, tolerance)
      expected[i] = quotient.value
      smooth &&= quotient.smooth
      const size = Math.abs(found.data[i]!) + Math.abs(quotient.value) + 1e-2 * value + 1e-3
      distance = Math.max(distance, Math.abs(quotient.value - found.data[i]!) / size)
    }
    if (smooth && distance > tolerance) return { input: at, expected: { ...x, data: expected }, found, distance }
  }
  return null
}

/** One equation as a program of its own: the inner product of its results with something random. */
const alone = (e: Equation, operands: ReadonlyArray<HostArray>, used: ReadonlySet<AnyTensor>): Scalar | null => {
  const distinct = [...new Set(e.inputs)]
  const fresh = new Map(distinct.map((x) => [x, input(x.type, x.role)]))
  const roles = e.outputs.map((o) => o.role)
  const outputs = build(
    e.primitive,
    e.inputs.map((x) => fresh.get(x)!),
    e.params,
    roles
  )
  const results = outputs.filter((o, i) => isFloat(o) && used.has(e.outputs[i]!))
  const wrt = distinct.flatMap((x, i) =>
    isFloat(x) && !e.inputs.some((y, k) => y === x && isConstant(e, k)) ? [i] : []
  )
  if (results.length === 0 || wrt.length === 0) return null
  const weights = results.map(
    (o, i) => [input({ axes: o.type.axes, dtype: "f32" }, o.role), noise(o.type.axes, 7 + i)] as const
  )
  const total = results
    .map((o, i) => {
      const product = mul(cast(o as Tensor<string>, "f32"), weights[i]![0] as Tensor<string>)
      return (
        o.type.axes.length === 0 ? product : sum(product, ...(Axis.names(o.type.axes) as [string]))
      ) as Tensor<never>
    })
    .reduce((x, y) => add(x, y))
  return {
    body: Program.body([...fresh.values(), ...weights.map(([x]) => x)], [total]),
    inputs: [...distinct.map((x) => operands[e.inputs.indexOf(x)]!), ...weights.map(([, x]) => x)],
    wrt
  }
}

/** Tensors of a program, in bodies of regions too, that something reads. */
const usedIn = (body: Body): ReadonlySet<AnyTensor> => {
  const used = new Set<AnyTensor>()
  const open = [body]
  while (open.length > 0) {
    const { equations, outputs } = open.pop()!
    for (const x of outputs) used.add(x)
    for (const e of equations) {
      for (const x of e.inputs) used.add(x)
      if (e.primitive.meaning.kind === "region") open.push(...e.primitive.meaning.bodies(e.params))
    }
  }
  return used
}

const sides = { expected: "difference quotients", found: "derivative" }

/** The first equation whose own derivative is wrong; else the last value whose cotangent is wrong although its equation is right. */
export const find = (loss: Losses.LossCase, differentiate: Differentiate, tolerance: number): ReadonlyArray<string> => {
  const { body, inputs } = loss
  const used = usedIn(body)
  const names = Losses.names(loss, body)
  let found: ReadonlyArray<string> | null = null
  const after = (e: Equation, operands: ReadonlyArray<HostArray>, occurrence: number) => {
    if (found !== null || occurrence > 2) return
    const scalar = alone(e, operands, used)
    const wrong = scalar === null ? null : wrongIn(scalar, differentiate, tolerance)
    if (wrong === null) return
    const { distance, expected, found: derivative } = wrong
    const difference = { equation: e, output: 0, occurrence, layout: null, distance, expected, found: derivative }
    const operand = e.inputs.indexOf([...new Set(e.inputs)][wrong.input]!)
    found = [
      ...FirstDifference.print(difference, body, sides, names),
      `  its derivative by operand ${operand} is wrong`
    ]
  }
  walk(body, inputs, { after })
  return found ?? apart(loss, differentiate, tolerance)
}

/** From the loss backwards, the first value whose cotangent is wrong. */
const apart = (loss: Losses.LossCase, differentiate: Differentiate, tolerance: number): ReadonlyArray<string> => {
  const { body, inputs } = loss
  const run = FirstDifference.record(loss)
  for (const e of body.equations.toReversed()) {
    for (const [output, x] of e.outputs.entries()) {
      const value = run.of(x)[0]?.[0]
      if (!isFloat(x) || value === undefined || x === body.outputs[0]) continue
      const rest = Program.body([x, ...body.inputs], [body.outputs[0]!])
      if (!rest.equations.some((y) => y.inputs.includes(x))) continue
      const wrong = wrongIn({ body: rest, inputs: [value, ...inputs], wrt: [0] }, differentiate, tolerance)
      if (wrong === null) continue
      const { distance, expected, found } = wrong
      const difference = { equation: e, output, occurrence: 0, layout: null, distance, expected, found }
      return [
        ...FirstDifference.print(difference, body, sides, Losses.names(loss, body)),
        "  equations are right by themselves; what comes back to this value is not"
      ]
    }
  }
  return ["equations are right by themselves, and so is what comes back to each: parameters are put together wrongly"]
}
