/**
 * Sequence and vocabulary need not divide over the mesh: their axes are stored a little longer than they are meant, and what is stored beyond is
 * masked wherever it would count. A pass over the forward program, before derivatives; inputs and outputs keep their sizes, but for parameters
 * that are stored split along such an axis.
 */
import * as Axis from "./Axis.ts"
import { NoRule, PartitionError } from "./Errors.ts"
import * as Mesh from "./Mesh.ts"
import * as Module from "./Module.ts"
import type { AnyTensor, Body, Equation, Tensor, TensorType } from "./Node.ts"
import { build, input } from "./Node.ts"
import { broadcastP, constant, contractP } from "./primitives/algebra.ts"
import type { AttentionParams } from "./primitives/attention.ts"
import { attentionP } from "./primitives/attention.ts"
import { padP, sliceP } from "./primitives/axes.ts"
import { recomputeP, scanP } from "./primitives/control.ts"
import { iota, iotaP, lookupP } from "./primitives/index.ts"
import { crossEntropyP } from "./primitives/loss.ts"
import { less, minimum, select } from "./primitives/pointwise.ts"
import { softmaxP } from "./primitives/softmax.ts"
import { waysOf } from "./partition/Ways.ts"
import { axisOf, paddable } from "./Layout.ts"
import * as Program from "./Program.ts"
import type { Strategy } from "./Strategy.ts"

/** By name, what the stored size must be a multiple of. Names that a program renames into each other share it. */
export type Multiples = ReadonlyMap<string, number>

/** What a strategy splits the paddable axes by. */
export const multiples = (strategy: Strategy): Multiples => {
  const counts = new Map<string, Set<string>>()
  for (const rules of [strategy.compute, strategy.parameters, strategy.gradients, strategy.optimizer])
    for (const [axis, meshAxis] of rules)
      if (paddable.has(axis)) counts.set(axis, (counts.get(axis) ?? new Set()).add(meshAxis))
  const product = (name: string) =>
    [...(counts.get(name) ?? [])].reduce((n, m) => n * Mesh.countOf(strategy.mesh, m), 1)
  const [seq, keySeq] = [product("seq"), product("keySeq")]
  const both = lcm(seq, keySeq)
  return new Map([
    ["seq", both],
    ["keySeq", both],
    ["vocab", product("vocab")]
  ])
}

const lcm = (a: number, b: number): number => {
  let [x, y] = [a, b]
  while (y > 0) [x, y] = [y, x % y]
  return (a / x) * b
}

/** The axis as it is stored. */
const stored = (axis: Axis.Axis, by: Multiples): Axis.Axis => {
  const multiple = by.get(axis.name)
  if (multiple === undefined) return axis
  const size = Math.ceil(axis.logical / multiple) * multiple
  return size === axis.size ? axis : Axis.make(axis.name, size, axis.logical)
}

/** Parameters as they are stored. */
export const parameters = <P extends Module.ParamTree>(params: P, strategy: Strategy): P => {
  const by = multiples(strategy)
  return Module.mapParams(params, (p) => ({ ...p, axes: parameterAxes(p.axes, strategy, by) })) as P
}

/** The axes of a parameter as it is stored: longer where its table splits an axis that does not divide. */
const parameterAxes = (axes: Axis.Axes, strategy: Strategy, by: Multiples): Axis.Axes => {
  const split = new Set(
    [strategy.parameters, strategy.gradients, strategy.optimizer].flatMap((rules) => rules.map(([axis]) => axis))
  )
  return axes.map((a) => (split.has(a.name) ? stored(a, by) : a))
}

/** Whether any axis of the program has to be stored longer. */
const needed = (body: Body, by: Multiples): boolean => {
  const longer = (x: AnyTensor) => x.type.axes.some((a) => stored(a, by) !== a)
  return body.equations.some((e) => {
    const { meaning } = e.primitive
    return e.outputs.some(longer) || (meaning.kind === "region" && meaning.bodies(e.params).some((b) => needed(b, by)))
  })
}

/**
 * The program with stored sizes. Inputs keep theirs, except that parameters may come padded. Throws `PartitionError` for an operation that
 * splits or joins such an axis.
 */
export const apply = (body: Body, strategy: Strategy): Body => {
  const by = multiples(strategy)
  if (![...by.values()].some((n) => n > 1) || !(needed(body, by) || body.inputs.some((x) => isLonger(x, by))))
    return body
  const inputs = body.inputs.map((x) =>
    x.role === "parameter" ? input({ axes: parameterAxes(x.type.axes, strategy, by), dtype: x.type.dtype }, x.role) : x
  )
  const pass = new Pass(by)
  const outputs = pass.run(
    body,
    inputs.map((x) => (x.role === "parameter" ? x : pad(x, by)))
  )
  return Program.body(
    inputs,
    outputs.map((x, i) => cutBack(x, body.outputs[i]!.type))
  )
}

const isLonger = (x: AnyTensor, by: Multiples): boolean => x.type.axes.some((a) => stored(a, by) !== a)

/** Zeros behind what is meant. Parameters are padded where compute uses them. */
const pad = (x: AnyTensor, by: Multiples): AnyTensor =>
  x.type.axes.reduce((now, a) => {
    const { logical, size } = stored(a, by)
    if (size === a.size) return now
    return build(padP, [now], { axis: a.name, to: a.name, start: 0, size, logical }, now.role)[0]!
  }, x)

/** What is meant. */
const cutBack = (x: AnyTensor, type: TensorType): AnyTensor =>
  x.type.axes.reduce((now, a) => {
    const size = Axis.find(type.axes, a.name)?.size ?? a.size
    if (size === a.size) return now
    return build(sliceP, [now], { axis: a.name, to: a.name, start: 0, size }, now.role)[0]!
  }, x)

const isPadded = (a: Axis.Axis): boolean => a.logical !== a.size

/** Elements that are meant, along one padded axis. */
const meant = (axis: Axis.Axis): Tensor<string, "bool"> =>
  less(
    build(iotaP, [], { axis, dtype: "i32", start: 0 }, "compute")[0]! as Tensor<string, "int">,
    constant(axis.logical, "i32") as unknown as Tensor<never, "int">
  )

/** Another value in place of what is not meant. */
const masked = (x: AnyTensor, over: ReadonlyArray<string>, value: number): AnyTensor =>
  x.type.axes
    .filter((a) => isPadded(a) && over.includes(a.name))
    .reduce<AnyTensor>(
      (now, a) => select(meant(a), now as Tensor<string>, constant(value, x.type.dtype) as AnyTensor as Tensor<string>),
      x
    )

class Pass {
  readonly by: Multiples
  constructor(by: Multiples) {
    this.by = by
  }

  run(body: Body, inputs: ReadonlyArray<AnyTensor>): ReadonlyArray<AnyTensor> {
    const env = new Map<AnyTensor, AnyTensor>(body.inputs.map((x, i) => [x, inputs[i]!]))
    for (const e of body.equations) {
      const xs = e.inputs.map((x) => env.get(x)!)
      const results = this.equation(e, xs)
      e.outputs.forEach((o, i) => env.set(o, results[i]!))
    }
    return body.outputs.map((o) => env.get(o)!)
  }

  private equation(e: Equation, xs: ReadonlyArray<AnyTensor>): ReadonlyArray<AnyTensor> {
    const roles = e.outputs.map((o) => o.role)
    const remake = (inputs: ReadonlyArray<AnyTensor>, params: unknown = e.params) =>
      build(e.primitive, inputs, params, roles)
    if (e.primitive === iotaP) {
      const axis = stored(e.params.axis as Axis.Axis, this.by)
      return axis === e.params.axis ? e.outputs : remake([], { ...e.params, axis })
    }
    if (e.primitive === broadcastP) {
      const axes = (e.params.axes as Axis.Axes).map((a) => stored(a, this.by))
      return remake(xs, { axes })
    }
    const same = xs.every((x, i) => x === e.inputs[i])
    if (e.primitive.meaning.kind === "region") return this.region(e, xs)
    // A parameter comes padded or is padded where it arrives in compute.
    if (e.primitive.name === "place") return remake(xs).map((x) => (x.role === "compute" ? pad(x, this.by) : x))
    const touched = new Set(xs.flatMap((x) => x.type.axes.filter(isPadded).map((a) => a.name)))
    if (touched.size === 0) return (same ? e.outputs : remake(xs)).map((x) => pad(x, this.by))
    if (e.primitive === attentionP) return this.attention(e, xs, touched)
    if (e.primitive === lookupP) return this.lookup(e, xs, touched)
    const bad = this.problems(e, touched)
    if (bad.length === 0) return remake(this.mask(e, xs)).map((x) => pad(x, this.by))
    // It reads the axis as a whole: what is meant of it, then padded again.
    const cut = xs.map((x, i) => cutBack(x, onlyThese(e.inputs[i]!.type, x.type, bad)))
    return remake(this.mask(e, cut)).map((x) => pad(x, this.by))
  }

  /** Padded axes that the operation does not treat element by element. */
  private problems(e: Equation, touched: ReadonlySet<string>): ReadonlyArray<string> {
    const rule = e.primitive.partition
    if (rule.kind === "byName") {
      const whole = rule.whole?.(e.params) ?? []
      // Under a name that is never padded it must be what others of that name are.
      const renamed = Object.entries(rule.same?.(e.params) ?? {}).flatMap(([to, from]) =>
        this.by.has(to) ? [] : [from]
      )
      return [...touched].filter((name) => whole.includes(name) || renamed.includes(name))
    }
    // Composites: rows are independent along an axis that a way splits; classes and keys beyond what is meant count nothing by themselves.
    const rows = new Set(
      waysOf(e).flatMap((w) => {
        const axes = w.inputs.map(axisOf).filter((a) => a !== null)
        return w.outputs.every((p) => axisOf(p) !== null) ? axes : []
      })
    )
    const own =
      e.primitive === crossEntropyP
        ? [e.params.classes as string]
        : e.primitive === softmaxP
          ? [e.params.axis as string]
          : []
    return [...touched].filter((name) => !rows.has(name) && !own.includes(name))
  }

  /** Operands of sums and maxima over a padded axis. */
  private mask(e: Equation, xs: ReadonlyArray<AnyTensor>): ReadonlyArray<AnyTensor> {
    const rule = e.primitive.partition
    if (rule.kind !== "byName" || rule.reduces === undefined) return xs
    const over = (e.params as { readonly over?: ReadonlyArray<string> }).over ?? []
    if (e.primitive === contractP) {
      // Of two factors one is enough.
      const at = xs.findIndex((x) => x.type.axes.some((a) => isPadded(a) && over.includes(a.name)))
      return xs.map((x, i) => (i === at ? masked(x, over, 0) : x))
    }
    return xs.map((x) => masked(x, over, rule.reduces === "max" ? -Infinity : 0))
  }

  /** Keys beyond what is meant are hidden as those beyond a length are. */
  private attention(e: Equation, xs: ReadonlyArray<AnyTensor>, touched: ReadonlySet<string>): ReadonlyArray<AnyTensor> {
    const p = e.params as AttentionParams
    const roles = e.outputs.map((o) => o.role)
    if (touched.has(p.depth)) return this.refuse(e, p.depth)
    const key = Axis.find(xs[1]!.type.axes, p.key)!
    if (!isPadded(key)) return build(attentionP, xs, p, roles)
    const most = constant(key.logical, "i32") as unknown as Tensor<string, "int">
    const at = 3 + (p.segments ? 2 : 0)
    const given = p.lengths ? minimum(xs[at]! as Tensor<string, "int">, most) : most
    const positioned = p.lengths || p.causal || p.dropout > 0
    const positions = positioned
      ? xs.slice(at + (p.lengths ? 1 : 0))
      : [p.query, p.key].map((name, i) => iota(name, Axis.find(xs[i]!.type.axes, name)!.size) as AnyTensor)
    const padded = positions.map((x, i) => (i < 2 && !positioned ? this.coordinates(x, xs[i]!) : x))
    return build(attentionP, [...xs.slice(0, at), given, ...padded], { ...p, lengths: true }, roles)
  }

  /** Positions with the stored axis of an operand. */
  private coordinates(x: AnyTensor, like: AnyTensor): AnyTensor {
    const axis = Axis.find(like.type.axes, x.type.axes[0]!.name)!
    return build(iotaP, [], { axis, dtype: "i32", start: 0 }, "compute")[0]!
  }

  /** Rows beyond what is meant are not there: ids that name one give zeros, as any other id outside does. */
  private lookup(e: Equation, xs: ReadonlyArray<AnyTensor>, touched: ReadonlySet<string>): ReadonlyArray<AnyTensor> {
    const over = e.params.over as string
    const [table, coordinates, ids] = xs as readonly [AnyTensor, AnyTensor, AnyTensor]
    const roles = e.outputs.map((o) => o.role)
    if (!touched.has(over)) return build(lookupP, xs, e.params, roles)
    const word = (n: number) => constant(n, ids.type.dtype) as AnyTensor as Tensor<string, "int">
    const { logical, size } = Axis.find(table.type.axes, over)!
    // The largest number of a type is no row.
    const none =
      ids.type.dtype === "u8" && size > 255 ? this.refuse(e, over) : word(ids.type.dtype === "i32" ? -1 : 2 ** 32 - 1)
    const safe = select(
      less(ids as Tensor<string, "int">, word(logical)),
      ids as Tensor<string, "int">,
      none as Tensor<string, "int">
    )
    return build(lookupP, [table, coordinates, safe], e.params, roles)
  }

  private region(e: Equation, xs: ReadonlyArray<AnyTensor>): ReadonlyArray<AnyTensor> {
    if (e.primitive !== scanP && e.primitive !== recomputeP) return this.refuse(e, "seq")
    const { body } = e.params as { readonly body: Body }
    const inside = xs.map((x, i) => {
      const own = body.inputs[i]!
      const axes = own.type.axes.map((a) => Axis.find(x.type.axes, a.name) ?? a)
      return input({ axes, dtype: own.type.dtype }, own.role)
    })
    const results = this.run(body, inside)
    return build(
      e.primitive,
      xs,
      { ...e.params, body: Program.body(inside, results) },
      e.outputs.map((o) => o.role)
    )
  }

  private refuse(e: Equation, axis: string): never {
    throw new PartitionError({
      reason: new NoRule({
        operation: e.primitive.name,
        problem: `axis "${axis}" does not divide over the mesh and cannot be padded here`,
        hint: `give "${axis}" a size that is a multiple of ${this.by.get(axis) ?? 1}`
      })
    })
  }
}

/** The type `after` with the axes named in `names` as they are in `before`. */
const onlyThese = (before: TensorType, after: TensorType, names: ReadonlyArray<string>): TensorType => ({
  dtype: after.dtype,
  axes: after.axes.map((a) => (names.includes(a.name) ? (Axis.find(before.axes, a.name) ?? a) : a))
})
