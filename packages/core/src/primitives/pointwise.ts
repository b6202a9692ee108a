/** Elementwise functions beyond arithmetic, comparisons, choice and random bits. */
import * as Axis from "../Axis.ts"
import type * as DType from "../DType.ts"
import { kindOf } from "../DType.ts"
import { DTypeMismatch, refuse } from "../Errors.ts"
import type { AnyTensor, Primitive, Tensor, TensorType } from "../Node.ts"
import { constant, div, mul, neg, reduceTo, scale, shift, sub, zeros } from "./algebra.ts"
import { elementwise, emit1, sameDType } from "./emit.ts"
import { threefry } from "./threefry.ts"

type T = Tensor<string>
type NoParams = Record<string, never>
const perElement = (_: unknown, outputs: ReadonlyArray<TensorType>) => ({
  contraction: 0,
  other: Axis.count(outputs[0]!.axes)
})
const isFloat = (x: AnyTensor): boolean => kindOf(x.type.dtype) === "float"

const unary = (
  name: string,
  f: (a: number) => number,
  derivative: ((c: T, x: T, out: T) => AnyTensor) | null,
  options: { readonly ints?: true; readonly cheap?: true } = {}
): Primitive<string, NoParams> => ({
  name,
  type: ([t]) => {
    if (options.ints === undefined && kindOf(t!.dtype) !== "float") {
      refuse(new DTypeMismatch({ operation: name, expected: "a float", found: t!.dtype }))
    }
    return [t!]
  },
  meaning: { kind: "core", evaluate: elementwise(([a]) => f(a!)) },
  vjp:
    derivative === null
      ? { kind: "short", pullback: () => [null] }
      : { kind: "short", pullback: ([c], [x], [out]) => [isFloat(x!) ? derivative(c as T, x as T, out as T) : null] },
  partition: { kind: "byName" },
  flops: perElement,
  precision: "pointwise",
  recompute: options.cheap === undefined ? "expensive" : "cheap"
})

export const expP = unary("exp", Math.exp, (c, _x, out) => mul(c, out))
export const expm1P = unary("expm1", Math.expm1, (c, _x, out) => mul(c, shift(out, 1)))
export const logP = unary("log", Math.log, (c, x) => div(c, x))
export const tanhP = unary("tanh", Math.tanh, (c, _x, out) => sub(c, mul(c, mul(out, out))))
export const sqrtP = unary("sqrt", Math.sqrt, (c, _x, out) => scale(div(c, out), 0.5))
export const erfP = unary(
  "erf",
  (a) => erfOf(a),
  (c, x) => mul(c, scale(exp(neg(mul(x, x))), 2 / Math.sqrt(Math.PI)))
)
export const sigmoidP = unary(
  "sigmoid",
  (a) => 1 / (1 + Math.exp(-a)),
  (c, _x, out) => mul(c, sub(out, mul(out, out)))
)
export const sinP = unary("sin", Math.sin, (c, x) => mul(c, cos(x)), { cheap: true })
export const cosP = unary("cos", Math.cos, (c, x) => neg(mul(c, sin(x))), { cheap: true })
export const absP = unary("abs", Math.abs, (c, x) => mul(c, sign(x)), { ints: true })
export const signP = unary("sign", Math.sign, null, { ints: true })
export const floorP = unary("floor", Math.floor, null)

/** erf to double precision: series for small arguments, continued fraction for large ones. */
const erfOf = (x: number): number => {
  const a = Math.abs(x)
  if (Number.isNaN(x)) return NaN
  if (a > 6) return Math.sign(x)
  if (a < 2.5) {
    let [term, total] = [a, a]
    for (let n = 1; Math.abs(term) > 1e-18 * Math.abs(total); n++) {
      term *= (-a * a) / n
      total += term / (2 * n + 1)
      if (n > 200) break
    }
    return (Math.sign(x) * 2 * total) / Math.sqrt(Math.PI)
  }
  let fraction = 0
  for (let k = 60; k > 0; k--) fraction = k / 2 / (a + fraction)
  return Math.sign(x) * (1 - Math.exp(-a * a) / (Math.sqrt(Math.PI) * (a + fraction)))
}

/** Gives `max` or `min`; a NaN wins. At a tie the derivative goes half to each. */
const extremum = (name: "maximum" | "minimum", f: (a: number, b: number) => number): Primitive<string, NoParams> => ({
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
  meaning: { kind: "core", evaluate: elementwise(([a, b]) => f(a!, b!)) },
  vjp: {
    kind: "short",
    pullback: ([c], [x, y]) => {
      if (!isFloat(x!)) return [null, null]
      const [a, b] = name === "maximum" ? [x as T, y as T] : [y as T, x as T]
      const half = scale(c as T, 0.5)
      const none = zeros(c!.type, c!.role) as T
      const share = (on: Tensor<string, "bool">) => select(on, c as T, select(equal(a, b), half, none))
      return [reduceTo(share(less(b, a)), x!.type), reduceTo(share(less(a, b)), y!.type)]
    }
  },
  partition: { kind: "byName" },
  flops: perElement,
  precision: "pointwise",
  recompute: "expensive"
})
export const maximumP = extremum("maximum", (a, b) => (Number.isNaN(a) || Number.isNaN(b) ? NaN : Math.max(a, b)))
export const minimumP = extremum("minimum", (a, b) => (Number.isNaN(a) || Number.isNaN(b) ? NaN : Math.min(a, b)))

const comparison = (name: string, f: (a: number, b: number) => boolean): Primitive<string, NoParams> => ({
  name,
  type: (types) => {
    sameDType(name, types)
    return [
      {
        axes: Axis.union(
          name,
          types.map((t) => t.axes)
        ),
        dtype: "bool"
      }
    ]
  },
  meaning: { kind: "core", evaluate: elementwise(([a, b]) => (f(a!, b!) ? 1 : 0)) },
  vjp: { kind: "short", pullback: () => [null, null] },
  partition: { kind: "byName" },
  flops: perElement,
  precision: "exact",
  recompute: "cheap"
})
export const lessP = comparison("less", (a, b) => a < b)
export const equalP = comparison("equal", (a, b) => a === b)

const logical = (name: string, f: (values: ReadonlyArray<number>) => number): Primitive<string, NoParams> => ({
  name,
  type: (types) => {
    for (const t of types)
      if (t.dtype !== "bool") refuse(new DTypeMismatch({ operation: name, expected: "bool", found: t.dtype }))
    return [
      {
        axes: Axis.union(
          name,
          types.map((t) => t.axes)
        ),
        dtype: "bool"
      }
    ]
  },
  meaning: { kind: "core", evaluate: elementwise(f) },
  vjp: { kind: "short", pullback: (_c, inputs) => inputs.map(() => null) },
  partition: { kind: "byName" },
  flops: perElement,
  precision: "exact",
  recompute: "cheap"
})
export const andP = logical("and", ([a, b]) => a! & b!)
export const orP = logical("or", ([a, b]) => a! | b!)
export const notP = logical("not", ([a]) => 1 - a!)

export const isFiniteP: Primitive<"isFinite", NoParams> = {
  name: "isFinite",
  type: ([t]) => [{ axes: t!.axes, dtype: "bool" }],
  meaning: { kind: "core", evaluate: elementwise(([a]) => (Number.isFinite(a!) ? 1 : 0)) },
  vjp: { kind: "short", pullback: () => [null] },
  partition: { kind: "byName" },
  flops: perElement,
  precision: "exact",
  recompute: "cheap"
}

export const selectP: Primitive<"select", NoParams> = {
  name: "select",
  type: ([on, x, y]) => {
    if (on!.dtype !== "bool") refuse(new DTypeMismatch({ operation: "select", expected: "bool", found: on!.dtype }))
    return [{ axes: Axis.union("select", [on!.axes, x!.axes, y!.axes]), dtype: sameDType("select", [x!, y!]) }]
  },
  meaning: { kind: "core", evaluate: elementwise(([on, a, b]) => (on !== 0 ? a! : b!)) },
  vjp: {
    kind: "short",
    pullback: ([c], [on, x, y]) => {
      if (!isFloat(x!)) return [null, null, null]
      const none = zeros({ axes: [], dtype: c!.type.dtype }) as T
      const choose = on as Tensor<string, "bool">
      return [null, reduceTo(select(choose, c as T, none), x!.type), reduceTo(select(choose, none, c as T), y!.type)]
    }
  },
  partition: { kind: "byName", linear: [[1, 2]] },
  flops: perElement,
  precision: "pointwise",
  recompute: "expensive"
}

/**
 * Random words: `[..] x4 -> [..]`, u32. Threefry-2x32 with 20 rounds of key (a, b) at counter (c, d), first word.
 * @source Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011)
 */
export const randomBitsP: Primitive<"randomBits", NoParams> = {
  name: "randomBits",
  type: (types) => {
    for (const t of types)
      if (t.dtype !== "u32") refuse(new DTypeMismatch({ operation: "randomBits", expected: "u32", found: t.dtype }))
    return [
      {
        axes: Axis.union(
          "randomBits",
          types.map((t) => t.axes)
        ),
        dtype: "u32"
      }
    ]
  },
  meaning: { kind: "core", evaluate: elementwise(([a, b, c, d]) => threefry(a!, b!, c!, d!)[0]) },
  vjp: { kind: "short", pullback: () => [null, null, null, null] },
  partition: { kind: "byName" },
  flops: perElement,
  precision: "exact",
  recompute: "cheap"
}

export const exp = <A extends string>(x: Tensor<A>): Tensor<A> => emit1(expP, [x], {})
/** exp(x) - 1 without cancellation near zero. */
export const expm1 = <A extends string>(x: Tensor<A>): Tensor<A> => emit1(expm1P, [x], {})
export const log = <A extends string>(x: Tensor<A>): Tensor<A> => emit1(logP, [x], {})
export const tanh = <A extends string>(x: Tensor<A>): Tensor<A> => emit1(tanhP, [x], {})
export const sqrt = <A extends string>(x: Tensor<A>): Tensor<A> => emit1(sqrtP, [x], {})
export const erf = <A extends string>(x: Tensor<A>): Tensor<A> => emit1(erfP, [x], {})
export const sigmoid = <A extends string>(x: Tensor<A>): Tensor<A> => emit1(sigmoidP, [x], {})
export const sin = <A extends string>(x: Tensor<A>): Tensor<A> => emit1(sinP, [x], {})
export const cos = <A extends string>(x: Tensor<A>): Tensor<A> => emit1(cosP, [x], {})
export const floor = <A extends string>(x: Tensor<A>): Tensor<A> => emit1(floorP, [x], {})
export const abs = <A extends string, K extends DType.Kind>(x: Tensor<A, K>): Tensor<A, K> => emit1(absP, [x], {})
export const sign = <A extends string, K extends DType.Kind>(x: Tensor<A, K>): Tensor<A, K> => emit1(signP, [x], {})
export const maximum = <A extends string, B extends string, K extends DType.Kind>(
  x: Tensor<A, K>,
  y: Tensor<B, K>
): Tensor<A | B, K> => emit1(maximumP, [x, y], {})
export const minimum = <A extends string, B extends string, K extends DType.Kind>(
  x: Tensor<A, K>,
  y: Tensor<B, K>
): Tensor<A | B, K> => emit1(minimumP, [x, y], {})
export const less = <A extends string, B extends string, K extends DType.Kind>(
  x: Tensor<A, K>,
  y: Tensor<B, K>
): Tensor<A | B, "bool"> => emit1(lessP, [x, y], {})
export const equal = <A extends string, B extends string, K extends DType.Kind>(
  x: Tensor<A, K>,
  y: Tensor<B, K>
): Tensor<A | B, "bool"> => emit1(equalP, [x, y], {})
export const and = <A extends string, B extends string>(
  x: Tensor<A, "bool">,
  y: Tensor<B, "bool">
): Tensor<A | B, "bool"> => emit1(andP, [x, y], {})
export const or = <A extends string, B extends string>(
  x: Tensor<A, "bool">,
  y: Tensor<B, "bool">
): Tensor<A | B, "bool"> => emit1(orP, [x, y], {})
export const not = <A extends string>(x: Tensor<A, "bool">): Tensor<A, "bool"> => emit1(notP, [x], {})
export const isFinite = <A extends string>(x: Tensor<A>): Tensor<A, "bool"> => emit1(isFiniteP, [x], {})
/** `on ? x : y`, elementwise. */
export const select = <C extends string, A extends string, B extends string, K extends DType.Kind>(
  on: Tensor<C, "bool">,
  x: Tensor<A, K>,
  y: Tensor<B, K>
): Tensor<A | B | C, K> => emit1(selectP, [on, x, y], {})
/** max(x, 0) */
export const relu = <A extends string>(x: Tensor<A>): Tensor<A> =>
  maximum(x, zeros({ axes: [], dtype: x.type.dtype }) as Tensor<never>)
/** x * sigmoid(x) */
export const silu = <A extends string>(x: Tensor<A>): Tensor<A> => mul(x, sigmoid(x))
/** The upper 24 bits of u32 words. */
export const div256 = <A extends string>(x: Tensor<A, "int">): Tensor<A, "int"> =>
  div(x, constant(256, "u32") as unknown as Tensor<never, "int">)
/** u32 words of key (a, b) at counter (c, d); operands broadcast. */
export const randomBits = <A extends string, B extends string, C extends string, D extends string>(
  a: Tensor<A, "int">,
  b: Tensor<B, "int">,
  c: Tensor<C, "int">,
  d: Tensor<D, "int">
): Tensor<A | B | C | D, "int"> => emit1(randomBitsP, [a, b, c, d], {})
