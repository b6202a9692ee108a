/** Results have the type that the rule promised, and the rule follows from names; illegal operands are refused with a reason. */
import * as Axis from "@tessera/core/Axis"
import * as DType from "@tessera/core/DType"
import { ProgramError } from "@tessera/core/Errors"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Host from "@tessera/core/HostArray"
import type { AnyPrimitive, TensorType } from "@tessera/core/Node"
import { build, input } from "@tessera/core/Node"
import * as Program from "@tessera/core/Program"
import * as Dice from "@tessera/core/testing/Dice"
import type { Sample } from "../samples/Sample.ts"
import { bodyOf } from "../samples/Sample.ts"
import { difference } from "./counterexample.ts"

const print = (t: TensorType) => `${t.dtype}${Axis.print(t.axes)}`

/** Axis names that the parameters mention anywhere. */
const mentioned = (params: unknown): ReadonlySet<string> => {
  const found = new Set<string>()
  const stack: Array<unknown> = [params]
  while (stack.length > 0) {
    const x = stack.pop()
    if (typeof x === "string") found.add(x)
    else if (typeof x === "object" && x !== null) stack.push(...Object.values(x))
  }
  return found
}

/** Operations whose summed axis is in the result too: a running sum, and the transpose of a gather. */
const keepsSummed: ReadonlySet<string> = new Set(["cumsum", "scatterAdd"])

/** Axes come and go only where parameters name them. For core operations with one result. */
const byNames = (s: Sample, promised: TensorType): string | null => {
  const named = mentioned(s.params)
  const over = [s.params.over ?? []].flat() as ReadonlyArray<string>
  if (!keepsSummed.has(s.primitive.name)) {
    const kept = over.find((name) => Axis.has(promised.axes, name))
    if (kept !== undefined) return `the axis "${kept}" is summed over and still in the result ${print(promised)}`
  }
  for (const axis of s.types.flatMap((t) => t.axes)) {
    if (!named.has(axis.name) && Axis.find(promised.axes, axis.name)?.size !== axis.size) {
      return `the axis "${axis.name}" of size ${axis.size} is lost or resized in ${print(promised)}`
    }
  }
  for (const axis of promised.axes) {
    if (!named.has(axis.name) && !s.types.some((t) => Axis.has(t.axes, axis.name))) {
      return `the axis "${axis.name}" of ${print(promised)} comes from nowhere`
    }
  }
  return null
}

/** What is evaluated has the promised axes and storage type, and nothing that the type cannot hold. */
export const typeProblem =
  (primitive?: AnyPrimitive) =>
  (s: Sample): string | null => {
    const body = bodyOf(s, primitive ?? s.primitive)
    const promised = body.outputs.map((o) => o.type)
    const results = Evaluate.runUnsafe(body, s.arrays)
    if (promised.length !== results.length) return `${promised.length} results promised, ${results.length} found`
    for (let i = 0; i < results.length; i++) {
      const [type, found] = [promised[i]!, results[i]!]
      if (!Axis.equal(type.axes, found.axes) || type.dtype !== found.dtype) {
        return `result ${i} is promised as ${print(type)}, found ${print(found)}`
      }
      if (found.data.length !== Axis.count(type.axes)) return `result ${i} has ${found.data.length} elements`
      const wrong = found.data.findIndex((v) => !Object.is(DType.store(type.dtype, v), v))
      if (wrong >= 0) return `result ${i} holds ${found.data[wrong]}, which ${type.dtype} cannot`
    }
    if (s.primitive.meaning.kind === "core" && promised.length === 1)
      return byNames(s, promised[0]!) ?? Program.check(body)
    return Program.check(body)
  }

/** The same operands in another memory order mean the same. Sums may round in another order. */
export const orderProblem =
  (primitive?: AnyPrimitive) =>
  (s: Sample): string | null => {
    const dice = Dice.make(1 + s.arrays.reduce((n, a) => n + a.data.length, 0))
    const moved = s.arrays.map((a) => Host.reorder(a, dice.shuffle(a.axes)))
    const types = moved.map((a) => ({ axes: a.axes, dtype: a.dtype }))
    const [before, after] = [s, { ...s, types, arrays: moved }].map((c) =>
      Evaluate.runUnsafe(bodyOf(c, primitive ?? s.primitive), c.arrays)
    )
    const narrow = before!.some((a) => DType.kindOf(a.dtype) === "float" && a.dtype !== "f32")
    return difference(before!, after!, narrow ? 0.02 : 1e-11, "result")
  }

/** The error that building gives: its message and tag; null where it is accepted. */
export const refusal = (make: () => unknown): { readonly tag: string; readonly message: string } | null => {
  try {
    make()
    return null
  } catch (error) {
    if (error instanceof ProgramError) return { tag: error.reason._tag, message: error.message }
    return { tag: "NotAProgramError", message: String(error) }
  }
}

const use = (primitive: AnyPrimitive, types: ReadonlyArray<TensorType>, params: unknown) => () =>
  build(
    primitive,
    types.map((t) => input(t)),
    params,
    "compute"
  )

/** Parts are joined along axes of their own, which need not agree. */
const ownAxes = (s: Sample): ReadonlySet<string> =>
  new Set(
    s.primitive.name === "concat"
      ? (s.params.axes as ReadonlyArray<string>)
      : s.primitive.name === "updateSlice"
        ? [s.params.axis, s.params.part]
        : []
  )

/** One operand stores a shared axis in another size: refused, and the message names the axis and both sizes. */
export const sizeProblem =
  (primitive?: AnyPrimitive) =>
  (s: Sample): string | null => {
    const own = ownAxes(s)
    for (const [i, type] of s.types.entries()) {
      for (const axis of type.axes) {
        if (own.has(axis.name)) continue
        if (!s.types.some((t, j) => j !== i && Axis.has(t.axes, axis.name))) continue
        const larger = Axis.make(axis.name, axis.size + 1)
        const types = s.types.map((t, j) =>
          j === i ? { ...t, axes: t.axes.map((a) => (a.name === axis.name ? larger : a)) } : t
        )
        const error = refusal(use(primitive ?? s.primitive, types, s.params))
        if (error === null)
          return `operand ${i} with "${axis.name}" of ${larger.size} instead of ${axis.size} is accepted`
        if (error.tag === "NotAProgramError") return error.message
        for (const part of [axis.name, String(axis.size), String(larger.size)]) {
          if (!error.message.includes(part)) return `the message does not say ${part}: ${error.message}`
        }
      }
    }
    return null
  }

const axisParams = ["over", "axis", "from", "inner", "outer", "query", "key", "depth", "classes", "part"] as const

/** A parameter that names an axis nobody has: refused, and the message names it. New axes may have any name. */
export const nameProblem =
  (primitive?: AnyPrimitive) =>
  (s: Sample): string | null => {
    const creates = ["split", "merge", "iota", "scan", "concat", "pack"].includes(s.primitive.name)
    for (const key of axisParams) {
      const value = s.params[key]
      const names =
        typeof value === "string" ? "nowhere" : Array.isArray(value) && value.length > 0 ? ["nowhere"] : null
      if (names === null) continue
      if (
        creates &&
        !(s.primitive.name === "split" && key === "axis") &&
        !(s.primitive.name === "merge" && key !== "axis")
      )
        continue
      const error = refusal(use(primitive ?? s.primitive, s.types, { ...s.params, [key]: names }))
      if (error === null) return `${key} "nowhere" is accepted`
      if (error.tag === "NotAProgramError" || !error.message.includes("nowhere")) return error.message
    }
    return null
  }

/** Operands that must have one storage type, and those that must be of one kind. */
const sameTypes: Readonly<Record<string, ReadonlyArray<number>>> = {
  add: [0, 1],
  sub: [0, 1],
  mul: [0, 1],
  div: [0, 1],
  maximum: [0, 1],
  minimum: [0, 1],
  less: [0, 1],
  equal: [0, 1],
  contract: [0, 1],
  select: [1, 2],
  updateSlice: [0, 1]
}
const kinds: Readonly<Record<string, ReadonlyArray<DType.DType | null>>> = {
  and: ["bool", "bool"],
  or: ["bool", "bool"],
  not: ["bool"],
  select: ["bool", null, null],
  randomBits: ["u32", "u32", "u32", "u32"],
  lookup: [null, "i32", "i32"],
  scatterAdd: [null, "i32", "i32"],
  updateSlice: [null, null, "i32"]
}
const floatsOnly: ReadonlySet<string> = new Set([
  "exp",
  "expm1",
  "log",
  "tanh",
  "sqrt",
  "erf",
  "sigmoid",
  "sin",
  "cos",
  "floor",
  "contract"
])

/** An operand of the wrong storage type: refused as such. */
export const dtypeProblem =
  (primitive?: AnyPrimitive) =>
  (s: Sample): string | null => {
    const { name } = s.primitive
    const swaps: Array<readonly [operand: number, dtype: DType.DType]> = []
    for (const i of sameTypes[name] ?? []) swaps.push([i, s.types[i]!.dtype === "f16" ? "bf16" : "f16"])
    kinds[name]?.forEach((dtype, i) => dtype !== null && swaps.push([i, "f32"]))
    if (floatsOnly.has(name)) s.types.forEach((_, i) => swaps.push([i, "i32"]))
    for (const [i, dtype] of swaps) {
      const types = s.types.map((t, j) => (j === i ? { ...t, dtype } : t))
      const error = refusal(use(primitive ?? s.primitive, types, s.params))
      if (error === null) return `operand ${i} of ${dtype} instead of ${s.types[i]!.dtype} is accepted`
      if (error.tag !== "DTypeMismatch" || !error.message.includes(dtype)) return error.message
    }
    return null
  }
