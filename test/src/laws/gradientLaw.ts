/** Derivatives agree with differences, transposes with inner products, composites' own backwards with their decompositions. */
import * as Axis from "@tessera/core/Axis"
import * as DType from "@tessera/core/DType"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Gradient from "@tessera/core/Gradient"
import * as Host from "@tessera/core/HostArray"
import type { AnyPrimitive, AnyTensor, Body } from "@tessera/core/Node"
import { build, input } from "@tessera/core/Node"
import { all } from "@tessera/core/primitives/all"
import type { ScanParams } from "@tessera/core/primitives/control"
import * as Program from "@tessera/core/Program"
import * as T from "@tessera/core/Tensor"
import type { Tensor } from "@tessera/core/Tensor"
import type { Example } from "@tessera/core/testing/Programs"
import * as Dice from "@tessera/core/testing/Dice"
import type { Sample } from "../samples/Sample.ts"
import { bodyOf } from "../samples/Sample.ts"
import { difference } from "./counterexample.ts"

const isFloat = (x: { readonly dtype: DType.DType }) => DType.kindOf(x.dtype) === "float"

/** Results that carry a cotangent; of the others (log-sum-exps, statistics) the derivative is refused. */
const onlyFirst: ReadonlySet<string> = new Set(["attention", "norm", "crossEntropy"])
/** Operands that are taken as constants by design: the targets of a loss, and what stopGradient stops. */
const constants: Readonly<Record<string, ReadonlyArray<number>>> = { crossEntropy: [1], stopGradient: [0] }

const noise = (axes: Axis.Axes, seed: number): Host.HostArray => {
  const dice = Dice.make(seed)
  return Host.make(
    axes,
    "f32",
    Float64Array.from({ length: Axis.count(axes) }, () => dice.next() * 2 - 1)
  )
}

const inner = (x: Host.HostArray, y: Host.HostArray, absolute = false): number => {
  const z = Host.reorder(y, x.axes)
  return x.data.reduce((total, v, i) => {
    // Nothing is owed to an impossible score.
    const product = v === 0 || z.data[i] === 0 ? 0 : v * z.data[i]!
    return total + (absolute ? Math.abs(product) : product)
  }, 0)
}

const presence = (s: Sample, body: Body): ReadonlyArray<boolean> =>
  body.outputs.map((o, i) => isFloat(o.type) && (i === 0 || !onlyFirst.has(s.primitive.name)))

/** Cotangents of all operands, null where none comes back, for given cotangents of the present results. */
const pull = (
  body: Body,
  arrays: ReadonlyArray<Host.HostArray>,
  present: ReadonlyArray<boolean>,
  cotangents: ReadonlyArray<Host.HostArray>
): ReadonlyArray<Host.HostArray | null> => {
  const vjp = Gradient.vjp(body, present)
  const found = Evaluate.runUnsafe(vjp.body, [...arrays, ...cotangents])
  const at = new Map(vjp.body.outputs.map((o, i) => [o, found[i]!]))
  return vjp.spread(vjp.body.outputs).map((x) => (x === null ? null : at.get(x)!))
}

/** Derivatives along random directions against central differences of fourth order. */
export const derivativeProblem =
  (primitive?: AnyPrimitive) =>
  (s: Sample): string | null => {
    const body = bodyOf(s, primitive ?? s.primitive)
    const present = presence(s, body)
    const cotangents = body.outputs.flatMap((o, i) => (present[i] ? [noise(o.type.axes, 7 + i)] : []))
    const gradients = pull(body, s.arrays, present, cotangents)
    const moving = s.arrays.map((a, i) => isFloat(a) && !(constants[s.primitive.name] ?? []).includes(i))
    const directions = s.arrays.map((a, i) => noise(a.axes, 100 + i))
    let [expected, scale] = [0, 1e-6]
    for (const [i, g] of gradients.entries()) {
      if (g === null || !moving[i]) continue
      if (!Axis.equal(g.axes, s.arrays[i]!.axes)) {
        return `the cotangent of operand ${i} has ${Axis.print(g.axes)}, the operand ${Axis.print(s.arrays[i]!.axes)}`
      }
      if (g.dtype !== s.arrays[i]!.dtype) return `the cotangent of operand ${i} is ${g.dtype}`
      expected += inner(directions[i]!, g)
      scale += inner(directions[i]!, g, true)
    }
    const along = (t: number): number => {
      const moved = s.arrays.map((a, i) =>
        moving[i] ? { ...a, data: a.data.map((v, k) => v + t * directions[i]!.data[k]!) } : a
      )
      const results = Evaluate.runUnsafe(body, moved).filter((_, i) => present[i])
      return results.reduce((total, r, i) => total + inner(cotangents[i]!, r), 0)
    }
    const h = 2e-4
    const found = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    const allowed = 1e-6 * scale + 1e-9 * Math.abs(along(0))
    return Math.abs(found - expected) <= allowed ? null : `derivative ${expected}, difference quotient ${found}`
  }

/** Groups of operands in which an operation says it is linear. */
const linearGroups = (s: Sample): ReadonlyArray<ReadonlyArray<number>> => {
  const { name, partition } = s.primitive
  if (name === "concat" || (partition.kind === "byName" && partition.linear === "together"))
    return [s.types.map((_, i) => i)]
  if (name === "cast" && isFloat({ dtype: s.params.dtype })) return [[0]]
  return partition.kind === "byName" && partition.linear !== "together" ? (partition.linear ?? []) : []
}

/** `<f(x), y> = <x, transpose f(y)>` in every group of operands, the others being fixed. */
export const transposeProblem =
  (primitive?: AnyPrimitive) =>
  (s: Sample): string | null => {
    const body = bodyOf(s, primitive ?? s.primitive)
    if (!isFloat(body.outputs[0]!.type) || constants[s.primitive.name] !== undefined) return null
    const cotangents = body.outputs.map((o, i) => noise(o.type.axes, 7 + i))
    const results = Evaluate.runUnsafe(body, s.arrays)
    const gradients = pull(
      body,
      s.arrays,
      body.outputs.map(() => true),
      cotangents
    )
    for (const group of linearGroups(s)) {
      const left = results.reduce((total, r, i) => total + inner(r, cotangents[i]!), 0)
      const right = group.reduce((total, i) => {
        const g = gradients[i]
        return g === null || g === undefined ? total : total + inner(s.arrays[i]!, g)
      }, 0)
      const scale = results.reduce((total, r, i) => total + inner(r, cotangents[i]!, true), 1)
      if (Math.abs(left - right) > 1e-11 * scale) return `operands ${group.join()}: ${left} is not ${right}`
    }
    return null
  }

/** The operation's own backward against the derivative of its decomposition. */
export const decompositionProblem =
  (primitive?: AnyPrimitive) =>
  (s: Sample): string | null => {
    const used = primitive ?? s.primitive
    if (used.meaning.kind !== "composite") return "not a composite"
    const inside = s.types.map((t) => input(t))
    const opened = Program.body(inside, used.meaning.decompose(inside, s.params))
    const present = presence(s, opened)
    const cotangents = opened.outputs.flatMap((o, i) => (present[i] ? [noise(o.type.axes, 7 + i)] : []))
    const own = pull(bodyOf(s, used), s.arrays, present, cotangents)
    const expected = pull(opened, s.arrays, present, cotangents)
    for (const [i, g] of own.entries()) {
      if ((constants[s.primitive.name] ?? []).includes(i) || !isFloat(s.arrays[i]!)) continue
      if (g === null || expected[i] === null) return `operand ${i} has no cotangent`
      const problem = difference([expected[i]!], [g], 1e-10, "cotangent")
      if (problem !== null) return `operand ${i}: ${problem}`
    }
    return null
  }

type F = Tensor<string>
const sumOver = T.sum as unknown as (x: F, axis: string) => F

/** A scan written out: one copy of the body after another. */
const unrolled = (inputs: ReadonlyArray<AnyTensor>, p: ScanParams): ReadonlyArray<AnyTensor> => {
  const each = inputs.slice(p.carried, p.carried + p.each) as ReadonlyArray<F>
  let carry = inputs.slice(0, p.carried)
  const stacks: Array<Array<AnyTensor>> = Array.from({ length: p.stacked }, () => [])
  const last = p.carried + p.stacked
  let sums: ReadonlyArray<AnyTensor> = p.body.outputs
    .slice(last)
    .map((o) => T.broadcast(T.constant(0, o.type.dtype), o.type.axes))
  for (let k = 0; k < p.size; k++) {
    const i = p.reverse ? p.size - 1 - k : k
    const parts = each.map((x) => sumOver(T.slice(x, p.axis, { to: "one", start: i, size: 1 }), "one"))
    const out = Program.inline(p.body, [...carry, ...parts, ...inputs.slice(p.carried + p.each)])
    carry = out.slice(0, p.carried)
    stacks.forEach((stack, j) => {
      stack[i] = T.broadcast(out[p.carried + j]! as F, [Axis.make("part", 1), ...out[p.carried + j]!.type.axes])
    })
    const before = sums
    sums = out.slice(last).map((x, j) => T.add(before[j]! as F, x as F))
  }
  const stacked = stacks.map((stack, j) => {
    const { axes, dtype } = p.body.outputs[p.carried + j]!.type
    const none = T.broadcast(T.constant(0, dtype), [Axis.make(p.axis, 0), ...axes])
    return stack.length === 0
      ? none
      : T.concat(
          stack.map((x) => [x as F, "part"] as const),
          p.axis
        )
  })
  return [...carry, ...stacked, ...sums]
}

/** A scan and its written-out form: the same values and cotangents. */
export const scanProblem =
  (primitive: AnyPrimitive = all.scan) =>
  (s: Sample): string | null => {
    const scanned = bodyOf(s, primitive)
    const inputs = s.types.map((t) => input(t))
    const written = Program.body(inputs, unrolled(inputs, s.params as ScanParams))
    const values = difference(
      Evaluate.runUnsafe(written, s.arrays),
      Evaluate.runUnsafe(scanned, s.arrays),
      1e-12,
      "result"
    )
    if (values !== null) return values
    const present = scanned.outputs.map((o) => isFloat(o.type))
    const cotangents = scanned.outputs.flatMap((o, i) => (present[i] ? [noise(o.type.axes, 7 + i)] : []))
    const zero = (a: Host.HostArray) => ({ ...a, data: new Float64Array(a.data.length) })
    const [found, expected] = [scanned, written].map((b) =>
      pull(b, s.arrays, present, cotangents).flatMap((g, i) => (isFloat(s.arrays[i]!) ? [g ?? zero(s.arrays[i]!)] : []))
    )
    return difference(expected!, found!, 1e-10, "cotangent")
  }

/** A whole program inside a recompute region: the same loss and gradients, bit for bit. */
export const recomputeProblem =
  (primitive: AnyPrimitive = all.recompute) =>
  ({ arrays, body }: Example): string | null => {
    const wrt = body.inputs.flatMap((x, i) => (isFloat(x.type) ? [i] : []))
    const inputs = body.inputs.map((x) => input(x.type, x.role))
    const forgetful = Program.body(inputs, build(primitive, inputs, { body }, "compute"))
    const [plain, again] = [body, forgetful].map((b) => Evaluate.runUnsafe(Gradient.valueAndGrad(b, wrt), arrays))
    return difference(plain!, again!, 0, "value")
  }
