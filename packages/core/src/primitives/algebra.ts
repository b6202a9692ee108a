/** The linear heart: add, sub, mul, div, neg, constant, broadcast, sum, contract, cast. Their derivatives need each other, so they share a file. */
import * as Axis from "../Axis.ts"
import * as DType from "../DType.ts"
import { DTypeMismatch, invalid, refuse, UnknownAxis } from "../Errors.ts"
import * as Host from "../HostArray.ts"
import type { AnyTensor, ByName, Primitive, Role, Tensor, TensorType } from "../Node.ts"
import { build } from "../Node.ts"
import { elementwise, emit1, sameDType } from "./emit.ts"

const perElement = (_: unknown, outputs: ReadonlyArray<TensorType>) => ({
  contraction: 0,
  other: Axis.count(outputs[0]!.axes)
})
const free = () => ({ contraction: 0, other: 0 })

const isFloat = (x: AnyTensor): boolean => DType.kindOf(x.type.dtype) === "float"

type NoParams = Record<string, never>

const arithmetic = (
  name: string,
  float: (a: number, b: number) => number,
  int: (a: number, b: number) => number,
  pullback: (c: AnyTensor, x: AnyTensor, y: AnyTensor, out: AnyTensor) => ReadonlyArray<AnyTensor>,
  linear: ByName<NoParams>["linear"] & {}
): Primitive<string, NoParams> => ({
  name,
  type: (types) => [
    {
      axes: Axis.union(
        name,
        types.map((t) => t.axes)
      ),
      dtype: sameDType(name, types)
    }
  ],
  meaning: {
    kind: "core",
    evaluate: elementwise(([a, b], _p, dtype) => (DType.kindOf(dtype) === "float" ? float(a!, b!) : int(a!, b!)))
  },
  vjp: {
    kind: "short",
    pullback: ([c], [x, y], [out]) => (isFloat(x!) ? pullback(c!, x!, y!, out!) : [null, null])
  },
  partition: { kind: "byName", linear },
  flops: perElement,
  precision: "pointwise",
  recompute: "expensive"
})

export const addP = arithmetic(
  "add",
  (a, b) => a + b,
  (a, b) => a + b,
  (c, x, y) => [reduceTo(c, x.type), reduceTo(c, y.type)],
  [[0, 1]]
)
export const subP = arithmetic(
  "sub",
  (a, b) => a - b,
  (a, b) => a - b,
  (c, x, y) => [reduceTo(c, x.type), reduceTo(neg(c as Tensor<string>), y.type)],
  [[0, 1]]
)
export const mulP = arithmetic(
  "mul",
  (a, b) => a * b,
  Math.imul,
  (c, x, y) => [productTo(c, y, x.type), productTo(x, c, y.type)],
  [[0], [1]]
)
/** Integers divide to the floor; anything over zero is zero. */
export const divP = arithmetic(
  "div",
  (a, b) => a / b,
  (a, b) => (b === 0 ? 0 : Math.floor(a / b)),
  (c, x, y, out) => {
    const q = build(divP, [c, y], {}, c.role)[0]!
    return [reduceTo(q, x.type), productTo(neg(q as Tensor<string>), out, y.type)]
  },
  [[0]]
)
export const negP: Primitive<"neg", NoParams> = {
  name: "neg",
  type: ([t]) => [t!],
  meaning: { kind: "core", evaluate: elementwise(([a]) => -a!) },
  vjp: { kind: "short", pullback: ([c], [x]) => [isFloat(x!) ? emit1(negP, [c!], {}) : null] },
  partition: { kind: "byName", linear: [[0]] },
  flops: perElement,
  precision: "pointwise",
  recompute: "expensive"
}

export const constantP: Primitive<"constant", { readonly value: number; readonly dtype: DType.DType }> = {
  name: "constant",
  type: (_, p) => [{ axes: [], dtype: p.dtype }],
  meaning: { kind: "core", evaluate: (_, p) => [Host.scalar(p.value, p.dtype)] },
  vjp: { kind: "none" },
  partition: { kind: "byName" },
  flops: free,
  precision: "exact",
  recompute: "cheap"
}

export const broadcastP: Primitive<"broadcast", { readonly axes: Axis.Axes }> = {
  name: "broadcast",
  type: ([t], p) => {
    for (const axis of t!.axes) {
      if (!Axis.has(p.axes, axis.name)) {
        refuse(
          new UnknownAxis({
            operation: "broadcast",
            axis: axis.name,
            present: Axis.names(p.axes),
            problem: "the target lacks an axis"
          })
        )
      }
    }
    return [{ axes: Axis.inOrder("broadcast", [p.axes, t!.axes]), dtype: t!.dtype }]
  },
  meaning: { kind: "core", evaluate: elementwise(([a]) => a!) },
  vjp: { kind: "short", pullback: ([c], [x]) => [isFloat(x!) ? reduceTo(c!, x!.type) : null] },
  partition: {
    kind: "byName",
    linear: [[0]],
    spreads: true,
    localize: (p, count) => ({ axes: p.axes.map((a) => Axis.make(a.name, a.size / count(a.name))) })
  },
  flops: free,
  precision: "exact",
  recompute: "cheap"
}

export const sumP: Primitive<"sum", { readonly over: ReadonlyArray<string> }> = {
  name: "sum",
  type: ([t], p) => [{ axes: dropped("sum", t!.axes, p.over), dtype: t!.dtype }],
  meaning: {
    kind: "core",
    evaluate: ([x], _p, [type]) => {
      const data = new Float64Array(Axis.count(type!.axes))
      const at = Host.offsets(type!.axes, x!.axes)
      for (let k = 0; k < at.length; k++) data[at[k]!]! += x!.data[k]!
      return [{ axes: type!.axes, dtype: type!.dtype, data }]
    }
  },
  vjp: { kind: "short", pullback: ([c], [x]) => [isFloat(x!) ? broadcast(c as Tensor<string>, x!.type.axes) : null] },
  partition: { kind: "byName", reduces: "sum", linear: [[0]] },
  flops: ([t]) => ({ contraction: 0, other: Axis.count(t!.axes) }),
  precision: "reduction",
  recompute: "expensive"
}

/** Sum over shared axes of a product, accumulated in f32, stored as `dtype`. Other shared axes are batch axes. */
export const contractP: Primitive<"contract", { readonly over: ReadonlyArray<string>; readonly dtype: DType.DType }> = {
  name: "contract",
  type: (types, p) => {
    const dtype = sameDType("contract", types)
    if (DType.kindOf(dtype) !== "float")
      refuse(new DTypeMismatch({ operation: "contract", expected: "a float", found: dtype }))
    return [
      {
        axes: dropped(
          "contract",
          Axis.inOrder(
            "contract",
            types.map((t) => t.axes)
          ),
          p.over
        ),
        dtype: p.dtype
      }
    ]
  },
  meaning: {
    kind: "core",
    evaluate: ([x, y], p, [type]) => {
      const over = Axis.inOrder("contract", [x!.axes, y!.axes]).filter((a) => p.over.includes(a.name))
      const [ox, oy] = [Host.offsets(x!.axes, type!.axes), Host.offsets(y!.axes, type!.axes)]
      const [ix, iy] = [Host.offsets(x!.axes, over), Host.offsets(y!.axes, over)]
      const data = new Float64Array(ox.length)
      for (let k = 0; k < data.length; k++) {
        const [a, b] = [ox[k]!, oy[k]!]
        let total = 0
        for (let j = 0; j < ix.length; j++) total += x!.data[a + ix[j]!]! * y!.data[b + iy[j]!]!
        data[k] = total
      }
      return [{ axes: type!.axes, dtype: type!.dtype, data }]
    }
  },
  vjp: {
    kind: "short",
    // An axis summed over in one operand only comes back by repetition.
    pullback: ([c], [x, y]) => [
      broadcast(productTo(matched(c!, y!), y!, x!.type) as Tensor<string>, x!.type.axes),
      broadcast(productTo(x!, matched(c!, x!), y!.type) as Tensor<string>, y!.type.axes)
    ]
  },
  partition: { kind: "byName", reduces: "sum", linear: [[0], [1]] },
  flops: (types, _out, p) => {
    const all = Axis.inOrder(
      "contract",
      types.map((t) => t.axes)
    )
    return p.over.length === 0
      ? { contraction: 0, other: Axis.count(all) }
      : { contraction: 2 * Axis.count(all), other: 0 }
  },
  precision: "matmul",
  recompute: "expensive"
}

export const castP: Primitive<"cast", { readonly dtype: DType.DType }> = {
  name: "cast",
  type: ([t], p) => [{ axes: t!.axes, dtype: p.dtype }],
  meaning: {
    kind: "core",
    // Integers to integers wrap (as storing does); floats to integers truncate and saturate.
    evaluate: (xs, p, types) =>
      elementwise(([a], q: { readonly dtype: DType.DType }) => {
        if (DType.kindOf(q.dtype) !== "int" || DType.kindOf(xs[0]!.dtype) !== "float") return a!
        if (q.dtype === "u8") return Number.isNaN(a!) ? 0 : Math.trunc(Math.min(255, Math.max(0, a!)))
        const [low, high] = q.dtype === "u32" ? [0, 2 ** 32 - 1] : [-(2 ** 31), 2 ** 31 - 1]
        return Number.isNaN(a!) ? 0 : Math.trunc(Math.min(high, Math.max(low, a!)))
      })(xs, p, types)
  },
  vjp: {
    kind: "short",
    pullback: ([c], [x], [out]) => [isFloat(x!) && isFloat(out!) ? cast(c as Tensor<string>, x!.type.dtype) : null]
  },
  // Of floats the parts of a sum may be cast instead: 16-bit parts are rounded before they are added, as in any 16-bit reduction.
  partition: { kind: "byName", linear: [[0]] },
  flops: free,
  precision: "exact",
  recompute: "expensive"
}

const dropped = (operation: string, axes: Axis.Axes, over: ReadonlyArray<string>): Axis.Axes => {
  for (const name of over) {
    if (!Axis.has(axes, name))
      refuse(new UnknownAxis({ operation, axis: name, present: Axis.names(axes), problem: "no such axis to sum over" }))
  }
  return Axis.without(axes, over)
}

/** A cotangent in the storage type of the operand it meets. */
const matched = (c: AnyTensor, other: AnyTensor): AnyTensor => cast(c as Tensor<string>, other.type.dtype)

/** Sums away the axes that a broadcast operand did not have. */
export const reduceTo = (x: AnyTensor, type: TensorType): AnyTensor => {
  const over = Axis.names(x.type.axes).filter((n) => !Axis.has(type.axes, n))
  return over.length > 0 ? emit1(sumP, [x], { over }) : x
}

/** `x * y`, summed down to the axes of `type`: one contraction. */
const productTo = (x: AnyTensor, y: AnyTensor, type: TensorType): AnyTensor => {
  const over = Axis.names(Axis.inOrder("mul", [x.type.axes, y.type.axes])).filter((n) => !Axis.has(type.axes, n))
  return over.length > 0 ? emit1(contractP, [x, y], { over, dtype: type.dtype }) : emit1(mulP, [x, y], {})
}

/** Elementwise sum, broadcasting by name. `[a..] + [b..] -> [a.. | b..]` */
export const add = <A extends string, B extends string, K extends DType.Kind>(
  x: Tensor<A, K>,
  y: Tensor<B, K>
): Tensor<A | B, K> => emit1(addP, [x, y], {})
export const sub = <A extends string, B extends string, K extends DType.Kind>(
  x: Tensor<A, K>,
  y: Tensor<B, K>
): Tensor<A | B, K> => emit1(subP, [x, y], {})
export const mul = <A extends string, B extends string, K extends DType.Kind>(
  x: Tensor<A, K>,
  y: Tensor<B, K>
): Tensor<A | B, K> => emit1(mulP, [x, y], {})
export const div = <A extends string, B extends string, K extends DType.Kind>(
  x: Tensor<A, K>,
  y: Tensor<B, K>
): Tensor<A | B, K> => emit1(divP, [x, y], {})
export const neg = <A extends string, K extends DType.Kind>(x: Tensor<A, K>): Tensor<A, K> => emit1(negP, [x], {})

/** A scalar. `-> []` */
export const constant = (value: number, dtype: DType.DType = "f32"): Tensor<never> =>
  build(constantP, [], { value, dtype }, "compute")[0]!

/** `x * factor` with a fixed factor. */
export const scale = <A extends string, K extends DType.Kind>(x: Tensor<A, K>, factor: number): Tensor<A, K> =>
  emit1(mulP, [x, constant(factor, x.type.dtype)], {})
/** `x + amount` with a fixed amount. */
export const shift = <A extends string, K extends DType.Kind>(x: Tensor<A, K>, amount: number): Tensor<A, K> =>
  emit1(addP, [x, constant(amount, x.type.dtype)], {})

/** Repeats along the axes it lacks, in the memory order of `axes`. */
export const broadcast = <A extends string, B extends string, K extends DType.Kind>(
  x: Tensor<A, K>,
  axes: ReadonlyArray<Axis.Axis<B>>
): Tensor<A | B, K> =>
  x.type.axes.length === axes.length && Axis.equal(x.type.axes, axes)
    ? (x as Tensor<any, K>)
    : emit1(broadcastP, [x], { axes })

/** Sum over the named axes. */
export const sum = <A extends string, O extends A, K extends DType.Kind>(
  x: Tensor<A, K>,
  ...over: ReadonlyArray<O>
): Tensor<Exclude<A, O>, K> => (over.length === 0 ? (x as Tensor<any, K>) : emit1(sumP, [x], { over }))

/** Mean over the named axes. */
export const mean = <A extends string, O extends A>(x: Tensor<A>, ...over: ReadonlyArray<O>): Tensor<Exclude<A, O>> =>
  scale(sum(x, ...over), 1 / over.reduce((n, a) => n * sizeOf(x, a), 1))

/**
 * Named contraction: `[batch, seq, embed] x [embed, mlp]` over `embed` gives `[batch, seq, mlp]`. Shared axes not summed over are batch axes.
 * Accumulates in f32; the result has the dtype of the operands.
 */
export const contract = <A extends string, B extends string, O extends A & B>(
  x: Tensor<A>,
  y: Tensor<B>,
  ...over: ReadonlyArray<O>
): Tensor<Exclude<A | B, O>> => {
  for (const name of over) {
    for (const t of [x, y]) {
      if (!Axis.has(t.type.axes, name)) {
        refuse(
          new UnknownAxis({
            operation: "contract",
            axis: name,
            present: Axis.names(t.type.axes),
            problem: "both operands need the contracted axis"
          })
        )
      }
    }
  }
  return emit1(contractP, [x, y], { over, dtype: x.type.dtype })
}

/** Another storage type. Floats to integers truncate and saturate. */
export const cast = <A extends string, K extends DType.Kind>(x: Tensor<A, K>, dtype: DType.DType): Tensor<A, any> =>
  x.type.dtype === dtype ? x : emit1(castP, [x], { dtype })

/** Zeros of a type, in a role. */
export const zeros = (type: TensorType, role: Role = "compute"): AnyTensor =>
  type.axes.length === 0 && role === "compute"
    ? constant(0, type.dtype)
    : build(broadcastP, [constant(0, type.dtype)], { axes: type.axes }, role)[0]!

/** A named axis; throws `ProgramError` when the tensor lacks it. */
export const axisOf = (x: AnyTensor, name: string): Axis.Axis =>
  Axis.find(x.type.axes, name) ??
  refuse(new UnknownAxis({ operation: "axis", axis: name, present: Axis.names(x.type.axes), problem: "no such axis" }))

/** Size of a named axis; throws `ProgramError` when the tensor lacks it. */
export const sizeOf = (x: AnyTensor, name: string): number => axisOf(x, name).size

/** Any operation on several tensors that needs at least one. */
export const sumOf = <A extends string>(xs: ReadonlyArray<Tensor<A>>): Tensor<A> =>
  xs.length === 0
    ? invalid("sumOf", "needs at least one tensor")
    : xs.slice(1).reduce<Tensor<A>>((a, b) => add(a, b), xs[0]!)
