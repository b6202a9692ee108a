/** One legal use of a primitive, and the parts that generators are made of. */
import * as Axis from "@tessera/core/Axis"
import * as DType from "@tessera/core/DType"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Host from "@tessera/core/HostArray"
import type { AnyPrimitive, AnyTensor, Body, TensorType } from "@tessera/core/Node"
import { build, input } from "@tessera/core/Node"
import * as Program from "@tessera/core/Program"
import * as fc from "fast-check"
import * as Dice from "@tessera/core/testing/Dice"

export interface Sample {
  readonly primitive: AnyPrimitive
  readonly types: ReadonlyArray<TensorType>
  readonly params: any
  readonly arrays: ReadonlyArray<Host.HostArray>
}

/** smooth: small, f32, finite and away from kinks and ties, so that differences approximate derivatives. */
export interface Options {
  readonly smooth: boolean
}

/** Body of the sample's one equation, with another record of the primitive if given. */
export const bodyOf = (s: Sample, primitive: AnyPrimitive = s.primitive): Body => {
  const inputs = s.types.map((t) => input(t))
  return Program.body(inputs, build(primitive, inputs, s.params, "compute"))
}

export const evaluate = (s: Sample): ReadonlyArray<Host.HostArray> => Evaluate.runUnsafe(bodyOf(s), s.arrays)

/** For messages: what a counterexample is. */
export const print = (s: Sample): string =>
  `${Program.print(bodyOf(s))}\n${s.arrays.map((a) => `${a.dtype}${Axis.print(a.axes)} = [${Array.from(a.data.subarray(0, 24)).join(", ")}${a.data.length > 24 ? ", ..." : ""}]`).join("\n")}`

/** Numbers a float operand may hold. */
export interface Domain {
  readonly low: number
  readonly high: number
  /** Only multiples of `step`, moved by `offset`: makes ties certain, or impossible between operands of different offsets. */
  readonly step?: number
  readonly offset?: number
  /** What special samples contain besides. */
  readonly special?: ReadonlyArray<number>
}

export const around = (size: number): Domain => ({ low: -size, high: size })
export const withSpecial = (domain: Domain): Domain => ({ ...domain, special: [NaN, Infinity, -Infinity, 0, -0] })

/** What a builder draws from. */
export interface Draw extends Dice.Dice {
  readonly smooth: boolean
  readonly special: boolean
  /** Axes in a random memory order. */
  readonly axes: (sizes: Readonly<Record<string, number>>) => Axis.Axes
  readonly floats: (axes: Axis.Axes, dtype: DType.DType, domain: Domain) => Host.HostArray
  readonly ints: (axes: Axis.Axes, dtype: DType.DType, low: number, high: number) => Host.HostArray
  /** Values that suit the type, whatever it is. */
  readonly values: (axes: Axis.Axes, dtype: DType.DType) => Host.HostArray
}

const draws = (seed: number, special: boolean, smooth: boolean): Draw => {
  const dice = Dice.make(seed)
  const fill = (axes: Axis.Axes, dtype: DType.DType, one: () => number) =>
    Host.make(
      axes,
      dtype,
      Float64Array.from({ length: Axis.count(axes) }, () => {
        const value = one()
        return dtype === "f32" ? Math.fround(value) : value
      })
    )
  const floats: Draw["floats"] = (axes, dtype, { high, low, offset = 0, special: extra = [], step }) =>
    fill(axes, dtype, () => {
      if (special && extra.length > 0 && dice.chance(0.06)) return dice.pick(extra)
      const value = low + dice.next() * (high - low)
      return step === undefined ? value : Math.round(value / step) * step + offset
    })
  const ints: Draw["ints"] = (axes, dtype, low, high) => fill(axes, dtype, () => dice.int(low, high))
  const limits: Readonly<Record<string, readonly [number, number]>> = {
    i32: [-1000, 1000],
    u32: [0, 2 ** 32 - 1],
    u8: [0, 255],
    bool: [0, 1]
  }
  return {
    ...dice,
    smooth,
    special,
    axes: (sizes) => dice.shuffle(Axis.list(sizes)),
    floats,
    ints,
    values: (axes, dtype) => {
      const limit = limits[dtype]
      return limit === undefined ? floats(axes, dtype, withSpecial(around(3))) : ints(axes, dtype, limit[0], limit[1])
    }
  }
}

export interface Case {
  readonly params: unknown
  readonly arrays: ReadonlyArray<Host.HostArray>
}

/** What a builder receives for its fields. */
export type SpecOf<F> = {
  readonly [K in keyof F]: F[K] extends (options: Options) => fc.Arbitrary<infer A> ? A : never
}

type Fields<S> = { readonly [K in keyof S]: (options: Options) => fc.Arbitrary<S[K]> }

/** A generator from independent fields (which shrink) and a builder (which draws values and memory orders from a seed). */
export const define =
  <S extends Record<string, unknown>>(
    primitive: AnyPrimitive,
    fields: Fields<S>,
    make: (spec: S, draw: Draw) => Case
  ) =>
  (options: Options): fc.Arbitrary<Sample> => {
    const own = Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field(options)]))
    const common = {
      seed: fc.nat(2 ** 31 - 1),
      special: options.smooth ? fc.constant(false) : fc.boolean()
    }
    return fc.tuple(fc.record(own), fc.record(common)).map(([spec, { seed, special }]) => {
      const made = make(spec as S, draws(seed, special, options.smooth))
      const types = made.arrays.map((a) => ({ axes: a.axes, dtype: a.dtype }))
      return { primitive, types, params: made.params, arrays: made.arrays }
    })
  }

// Fields.

export const always =
  <A>(arbitrary: fc.Arbitrary<A>) =>
  (): fc.Arbitrary<A> =>
    arbitrary

export const flag = always(fc.boolean())
export const upTo = (most: number, least = 0) => always(fc.integer({ min: least, max: most }))
export const oneOf = <const A>(...xs: ReadonlyArray<A>) => always(fc.constantFrom(...xs))

const size = fc.oneof(
  { arbitrary: fc.integer({ min: 1, max: 5 }), weight: 6 },
  { arbitrary: fc.constantFrom(7, 8, 9, 15, 16, 17, 31, 33), weight: 3 },
  { arbitrary: fc.integer({ min: 34, max: 70 }), weight: 1 },
  { arbitrary: fc.constant(0), weight: 1 }
)
const smallSize = fc.oneof(
  { arbitrary: fc.integer({ min: 1, max: 4 }), weight: 12 },
  { arbitrary: fc.constant(0), weight: 1 }
)

/** Sizes of `count` axes whose product stays within `budget`; the largest are halved until it does. */
export const sizes =
  (count: number, budget = 4000, least = 0) =>
  ({ smooth }: Options): fc.Arbitrary<ReadonlyArray<number>> =>
    fc.array(smooth ? smallSize : size, { minLength: count, maxLength: count }).map((all) => {
      const limited = all.map((n) => Math.max(least, n))
      const most = smooth ? Math.min(budget, 64) : budget
      while (limited.reduce((n, s) => n * Math.max(1, s), 1) > most) {
        const at = limited.indexOf(Math.max(...limited))
        limited[at] = Math.ceil(limited[at]! / 2)
      }
      return limited
    })

export const floatTypes: ReadonlyArray<DType.DType> = ["f32", "bf16", "f16"]

/** Float storage types and the others given; f32 only where smooth. */
export const dtypes =
  (...more: ReadonlyArray<DType.DType>) =>
  ({ smooth }: Options): fc.Arbitrary<DType.DType> =>
    smooth ? fc.constant<DType.DType>("f32") : fc.constantFrom(...floatTypes, ...more)

/** In which type a composite calculates. */
export const calculations = ({ smooth }: Options): fc.Arbitrary<DType.DType> =>
  smooth ? fc.constant<DType.DType>("f32") : fc.constantFrom<Array<DType.DType>>("f32", "f32", "bf16", "f16")

/** As parameters say it. */
export const calculation = (dtype: DType.DType) => (dtype === "f32" ? {} : { calculation: dtype })

export const anyType = dtypes("i32", "u32", "u8", "bool")

const names = ["batch", "seq", "embed", "heads", "mlp", "row"] as const

/** The named sizes whose bit is set in `mask`. */
export const subset = (all: ReadonlyArray<number>, mask: number): Readonly<Record<string, number>> =>
  Object.fromEntries(all.flatMap((n, i) => ((mask >> i) & 1 ? [[names[i]!, n]] : [])))

export const nameOf = (i: number): string => names[i]!

export const scalar = (value: number, dtype: DType.DType): Host.HostArray => Host.scalar(value, dtype)

/** Types of arrays as tensors: to trace a region's body. */
export const typesOf = (arrays: ReadonlyArray<Host.HostArray>): ReadonlyArray<AnyTensor> =>
  arrays.map((a) => input({ axes: a.axes, dtype: a.dtype }))
