/** Samples of operations that work element by element, with broadcasting by name. */
import type * as DType from "@tessera/core/DType"
import type { AnyPrimitive } from "@tessera/core/Node"
import { all } from "@tessera/core/primitives/all"
import * as fc from "fast-check"
import type { Domain, Draw } from "./Sample.ts"
import { always, anyType, around, define, dtypes, oneOf, sizes, subset, upTo, withSpecial } from "./Sample.ts"

const isFloat = (dtype: DType.DType) => dtype === "f32" || dtype === "bf16" || dtype === "f16"

const unary = (
  primitive: AnyPrimitive,
  domain: Domain,
  options: { readonly smooth?: Domain; readonly ints?: ReadonlyArray<DType.DType> } = {}
) =>
  define(primitive, { sizes: sizes(4), mask: upTo(15), dtype: dtypes(...(options.ints ?? [])) }, (s, d) => {
    const axes = d.axes(subset(s.sizes, s.mask))
    const values = isFloat(s.dtype)
      ? d.floats(axes, s.dtype, d.smooth ? (options.smooth ?? domain) : withSpecial(domain))
      : d.values(axes, s.dtype)
    return { params: {}, arrays: [values] }
  })

/** Two operands over random subsets of the same axes. */
const binary = (
  primitive: AnyPrimitive,
  ints: ReadonlyArray<DType.DType>,
  domains: (d: Draw) => readonly [Domain, Domain]
) =>
  define(
    primitive,
    { sizes: sizes(4), left: upTo(15), right: upTo(15), dtype: dtypes(...ints), narrow: upTo(1) },
    (s, d) => ({
      params: {},
      arrays: [s.left, s.right].map((mask, i) => {
        const axes = d.axes(subset(s.sizes, mask))
        if (isFloat(s.dtype)) return d.floats(axes, s.dtype, domains(d)[i]!)
        // Small numbers make equal elements and zero divisors likely.
        return s.narrow === 1 ? d.ints(axes, s.dtype, 0, 1) : d.values(axes, s.dtype)
      })
    })
  )

const anything = () => [withSpecial(around(3)), withSpecial(around(3))] as const
/** Ties where they have a meaning, none where derivatives are taken. */
const tied = (d: Draw) =>
  d.smooth
    ? ([
        { low: -3, high: 3, step: 0.125 },
        { low: -3, high: 3, step: 0.125, offset: 0.0625 }
      ] as const)
    : ([withSpecial({ low: -2, high: 2, step: 0.5 }), withSpecial({ low: -2, high: 2, step: 0.5 })] as const)

const logical = (primitive: AnyPrimitive, count: number) =>
  define(primitive, { sizes: sizes(4), left: upTo(15), right: upTo(15) }, (s, d) => ({
    params: {},
    arrays: [s.left, s.right].slice(0, count).map((mask) => d.values(d.axes(subset(s.sizes, mask)), "bool"))
  }))

const awayFromWhole: Domain = { low: -3, high: 3, step: 0.5, offset: 0.25 }

export const elementwise = {
  add: binary(all.add, ["i32", "u32"], anything),
  sub: binary(all.sub, ["i32", "u32"], anything),
  mul: binary(all.mul, ["i32", "u32"], anything),
  div: binary(all.div, ["i32", "u32"], (d) =>
    d.smooth ? [around(3), { low: 0.5, high: 3 }] : [withSpecial(around(3)), withSpecial({ low: 0.25, high: 4 })]
  ),
  neg: unary(all.neg, around(3), { ints: ["i32"] }),
  exp: unary(all.exp, around(4)),
  expm1: unary(all.expm1, around(2)),
  log: unary(all.log, { low: 0.001, high: 50 }, { smooth: { low: 0.3, high: 4 } }),
  tanh: unary(all.tanh, around(4)),
  sqrt: unary(all.sqrt, { low: 0, high: 50 }, { smooth: { low: 0.3, high: 4 } }),
  erf: unary(all.erf, around(4)),
  sigmoid: unary(all.sigmoid, around(8)),
  sin: unary(all.sin, around(10)),
  cos: unary(all.cos, around(10)),
  abs: unary(all.abs, around(3), { smooth: awayFromWhole, ints: ["i32"] }),
  sign: unary(all.sign, around(3), { smooth: awayFromWhole, ints: ["i32"] }),
  floor: unary(all.floor, around(9), { smooth: awayFromWhole }),
  maximum: binary(all.maximum, ["i32", "u32"], tied),
  minimum: binary(all.minimum, ["i32", "u32"], tied),
  less: binary(all.less, ["i32", "u32"], tied),
  equal: binary(all.equal, ["i32", "u32", "u8", "bool"], tied),
  and: logical(all.and, 2),
  or: logical(all.or, 2),
  not: logical(all.not, 1),
  isFinite: unary(all.isFinite, around(3)),
  select: define(
    all.select,
    { sizes: sizes(4), on: upTo(15), left: upTo(15), right: upTo(15), dtype: anyType },
    (s, d) => ({
      params: {},
      arrays: [
        d.values(d.axes(subset(s.sizes, s.on)), "bool"),
        d.values(d.axes(subset(s.sizes, s.left)), s.dtype),
        d.values(d.axes(subset(s.sizes, s.right)), s.dtype)
      ]
    })
  ),
  randomBits: define(
    all.randomBits,
    { sizes: sizes(4), masks: always(fc.array(fc.integer({ min: 0, max: 15 }), { minLength: 4, maxLength: 4 })) },
    (s, d) => ({
      params: {},
      arrays: s.masks.map((mask) => d.values(d.axes(subset(s.sizes, mask)), "u32"))
    })
  ),
  cast: define(
    all.cast,
    {
      sizes: sizes(4),
      mask: upTo(15),
      from: anyType,
      to: anyType,
      wide: oneOf(3, 300, 100_000, 5e9)
    },
    (s, d) => {
      const axes = d.axes(subset(s.sizes, s.mask))
      const values = isFloat(s.from) ? d.floats(axes, s.from, withSpecial(around(s.wide))) : d.values(axes, s.from)
      return { params: { dtype: s.to }, arrays: [values] }
    }
  )
}
