/** Samples of operations on whole axes: reductions, contractions, renaming, cutting, joining, gathering. */
import * as Axis from "@tessera/core/Axis"
import type { AnyPrimitive } from "@tessera/core/Node"
import * as Host from "@tessera/core/HostArray"
import { all } from "@tessera/core/primitives/all"
import type { PackParams } from "@tessera/core/primitives/pack"
import * as fc from "fast-check"
import type { Options } from "./Sample.ts"
import {
  always,
  anyType,
  around,
  define,
  dtypes,
  floatTypes,
  flag,
  nameOf,
  oneOf,
  scalar,
  sizes,
  subset,
  upTo
} from "./Sample.ts"

const bit = (mask: number, i: number) => ((mask >> i) & 1) === 1
/** At least one axis: which one is always there. */
const some = { sizes: sizes(4), mask: upTo(15), at: upTo(3) }
const someFilled = { ...some, sizes: sizes(4, 4000, 1) }

/** Halves sizes until no subset has more elements than `most`. */
const within = (given: ReadonlyArray<number>, masks: ReadonlyArray<number>, most: number): ReadonlyArray<number> => {
  const all = [...given]
  for (;;) {
    const large = masks.find((mask) => all.reduce((n, size, i) => (bit(mask, i) ? n * Math.max(1, size) : n), 1) > most)
    if (large === undefined) return all
    const at = all.reduce((best, size, i) => (bit(large, i) && (best < 0 || size > all[best]!) ? i : best), -1)
    all[at] = Math.ceil(all[at]! / 2)
  }
}

const identity = (primitive: AnyPrimitive, params: unknown) =>
  define(primitive, { sizes: sizes(4), mask: upTo(15), dtype: anyType }, (s, d) => ({
    params,
    arrays: [d.values(d.axes(subset(s.sizes, s.mask)), s.dtype)]
  }))

/** Starts and lengths within an axis, as fractions. */
const fraction = always(fc.integer({ min: 0, max: 1000 }))
const part = (whole: number, thousandths: number) => Math.floor((whole * thousandths) / 1000)

const reduction = (primitive: AnyPrimitive) =>
  define(primitive, { sizes: sizes(4), mask: upTo(15), over: upTo(15), dtype: dtypes("i32", "u32") }, (s, d) => {
    const axes = d.axes(subset(s.sizes, s.mask))
    const over = d.shuffle(Axis.names(axes).filter((_, i) => bit(s.over, i)))
    return { params: { over }, arrays: [d.values(axes, s.dtype)] }
  })

const along = (primitive: AnyPrimitive, fields: typeof some) =>
  define(primitive, { ...fields, dtype: dtypes("i32"), ties: flag }, (s, d) => {
    const axes = d.axes(subset(s.sizes, s.mask | (1 << s.at)))
    const values = s.ties && s.dtype === "i32" ? d.ints(axes, "i32", -2, 2) : d.values(axes, s.dtype)
    return { params: { over: nameOf(s.at) }, arrays: [values] }
  })

/** One to four members of up to two axes, with an axis around all of them or none. */
const packFields = {
  sizes: sizes(4, 60, 1),
  shapes: always(fc.array(upTo(8)(), { minLength: 1, maxLength: 4 })),
  around: upTo(3),
  more: upTo(5),
  dtype: anyType
}
const memberAxes = (shape: number, given: ReadonlyArray<number>) =>
  Axis.list(
    Object.fromEntries([0, 1].flatMap((i) => (bit(shape, i) ? [[nameOf(i), given[(shape >> 2) + i] ?? 2]] : [])))
  )

const packParams = (shapes: ReadonlyArray<number>, given: ReadonlyArray<number>, more: number): PackParams => {
  let start = 0
  const members = shapes.map((shape) => {
    const axes = memberAxes(shape, given)
    const member = { start, axes }
    start += Axis.count(axes)
    return member
  })
  return { axis: "flat", size: start + more, logical: start, members }
}
const outside = (size: number): Readonly<Record<string, number>> => (size === 0 ? {} : { layers: size })

export const axes = {
  pack: define(all.pack, packFields, (s, d) => {
    const params = packParams(s.shapes, s.sizes, s.more)
    return {
      params,
      arrays: params.members.map((m) => d.values(d.shuffle([...Axis.list(outside(s.around)), ...m.axes]), s.dtype))
    }
  }),
  unpack: define(all.unpack, packFields, (s, d) => {
    const params = packParams(s.shapes, s.sizes, s.more)
    return { params, arrays: [d.values(d.axes({ ...outside(s.around), flat: params.size }), s.dtype)] }
  }),
  place: identity(all.place, { role: "compute" }),
  stopGradient: identity(all.stopGradient, {}),
  named: identity(all.named, { as: "here" }),
  constant: define(
    all.constant,
    { value: oneOf(0, 1, -1, 0.1, 3, 7.25, Infinity, -Infinity, NaN), dtype: anyType },
    (s) => ({
      params: { value: floatTypes.includes(s.dtype) || Number.isFinite(s.value) ? s.value : 2, dtype: s.dtype },
      arrays: []
    })
  ),
  iota: define(all.iota, { size: sizes(1), start: upTo(9), dtype: oneOf("i32", "u32") }, (s) => ({
    params: { axis: Axis.make("seq", s.size[0]!), dtype: s.dtype, start: s.start },
    arrays: []
  })),
  broadcast: define(all.broadcast, { sizes: sizes(4), mask: upTo(15), more: upTo(15), dtype: anyType }, (s, d) => ({
    params: { axes: d.axes(subset(s.sizes, s.mask | s.more)) },
    arrays: [d.values(d.axes(subset(s.sizes, s.mask)), s.dtype)]
  })),
  sum: reduction(all.sum),
  max: reduction(all.max),
  argmax: along(all.argmax, someFilled),
  cumsum: along(all.cumsum, some),
  contract: define(
    all.contract,
    {
      sizes: sizes(5, 300_000),
      // Of every axis: 0 neither, 1 left, 2 right, 3 both; 4..6 the same and summed over.
      where: always(fc.array(fc.integer({ min: 0, max: 6 }), { minLength: 5, maxLength: 5 })),
      dtype: dtypes(),
      wide: flag
    },
    (s, d) => {
      const members = (side: number) =>
        s.where.reduce((mask, w, i) => (((w > 3 ? w - 3 : w) & side) !== 0 ? mask | (1 << i) : mask), 0)
      const [left, right] = [members(1), members(2)]
      const out = s.where.reduce((mask, w, i) => (w > 0 && w < 4 ? mask | (1 << i) : mask), 0)
      const limited = within(s.sizes, [left, right, out], 4000)
      const over = d.shuffle(s.where.flatMap((w, i) => (w > 3 ? [nameOf(i)] : [])))
      return {
        params: { over, dtype: s.wide ? "f32" : s.dtype },
        arrays: [left, right].map((mask) => d.floats(d.axes(subset(limited, mask)), s.dtype, around(2)))
      }
    }
  ),
  rename: define(all.rename, { ...some, same: upTo(9), dtype: anyType }, (s, d) => ({
    params: { from: nameOf(s.at), to: s.same === 9 ? nameOf(s.at) : "otherName" },
    arrays: [d.values(d.axes(subset(s.sizes, s.mask | (1 << s.at))), s.dtype)]
  })),
  split: define(
    all.split,
    { ...some, sizes: sizes(4, 900), inner: upTo(9, 1), keep: upTo(2), dtype: anyType },
    (s, d) => {
      const name = nameOf(s.at)
      const given = { ...subset(s.sizes, s.mask), [name]: part(s.sizes[s.at]!, 500) * s.inner }
      return {
        params: {
          axis: name,
          outer: s.keep === 1 ? name : "outerPart",
          inner: s.keep === 2 ? name : "innerPart",
          size: s.inner
        },
        arrays: [d.values(d.axes(given), s.dtype)]
      }
    }
  ),
  merge: define(all.merge, { ...some, keep: upTo(2), dtype: anyType }, (s, d) => {
    const [outer, inner] = [nameOf(s.at), nameOf((s.at + 1) % 4)]
    const mask = s.mask | (1 << s.at) | (1 << ((s.at + 1) % 4))
    return {
      params: { axis: [`merged`, outer, inner][s.keep], outer, inner },
      arrays: [d.values(d.axes(subset(s.sizes, mask)), s.dtype)]
    }
  }),
  slice: define(all.slice, { ...some, start: fraction, length: fraction, same: flag, dtype: anyType }, (s, d) => {
    const whole = s.sizes[s.at]!
    const start = part(whole, s.start)
    return {
      params: {
        axis: nameOf(s.at),
        to: s.same ? nameOf(s.at) : "cut",
        start,
        size: part(whole - start, s.length)
      },
      arrays: [d.values(d.axes(subset(s.sizes, s.mask | (1 << s.at))), s.dtype)]
    }
  }),
  pad: define(all.pad, { ...some, before: upTo(5), after: upTo(5), same: flag, dtype: anyType }, (s, d) => ({
    params: {
      axis: nameOf(s.at),
      to: s.same ? nameOf(s.at) : "padded",
      start: s.before,
      size: s.before + s.sizes[s.at]! + s.after
    },
    arrays: [d.values(d.axes(subset(s.sizes, s.mask | (1 << s.at))), s.dtype)]
  })),
  concat: define(
    all.concat,
    {
      sizes: sizes(3, 100),
      parts: (o: Options) =>
        fc.array(fc.tuple(o.smooth ? upTo(3)() : upTo(17)(), upTo(7)()), { minLength: 1, maxLength: 4 }),
      sameName: flag,
      dtype: anyType
    },
    (s, d) => {
      const own = s.parts.map((_, i) => (s.sameName ? "part" : `part${i}`))
      return {
        params: { axes: own, axis: s.sameName && s.sizes[0]! % 2 === 0 ? "part" : "joined" },
        arrays: s.parts.map(([length, mask], i) =>
          d.values(d.axes({ ...subset(s.sizes, mask), [own[i]!]: length }), s.dtype)
        )
      }
    }
  ),
  lookup: define(
    all.lookup,
    {
      sizes: sizes(4, 250),
      table: upTo(15),
      ids: upTo(15),
      rows: sizes(1, 70),
      first: upTo(3),
      dtype: dtypes("i32"),
      idType: oneOf("i32", "u32")
    },
    (s, d) => {
      const rows = s.rows[0]!
      return {
        params: { over: "vocab" },
        arrays: [
          d.values(d.axes({ ...subset(s.sizes, s.table), vocab: Math.min(rows, 16) }), s.dtype),
          coordinates(Math.min(rows, 16), s.first, s.idType),
          d.ints(
            d.axes(subset(s.sizes, s.ids)),
            s.idType,
            s.idType === "u32" ? 0 : -2,
            Math.min(rows, 16) + s.first + 1
          )
        ]
      }
    }
  ),
  scatterAdd: define(
    all.scatterAdd,
    {
      sizes: sizes(4, 250),
      x: upTo(15),
      ids: upTo(15),
      reduced: upTo(15),
      rows: sizes(1, 70),
      first: upTo(3),
      dtype: dtypes(),
      idType: oneOf("i32", "u32")
    },
    (s, d) => {
      const rows = Math.min(16, s.rows[0]!)
      return {
        params: { over: "vocab", reduced: d.shuffle(Object.keys(subset(s.sizes, s.ids & s.reduced))) },
        arrays: [
          d.floats(d.axes(subset(s.sizes, s.x | s.ids)), s.dtype, around(2)),
          coordinates(rows, s.first, s.idType),
          d.ints(d.axes(subset(s.sizes, s.ids)), s.idType, s.idType === "u32" ? 0 : -2, rows + s.first + 1)
        ]
      }
    }
  ),
  updateSlice: define(
    all.updateSlice,
    { ...some, length: fraction, start: upTo(75, -3), dtype: anyType, sameName: flag },
    (s, d) => {
      const rest = subset(s.sizes, s.mask & ~(1 << s.at))
      const own = s.sameName ? nameOf(s.at) : "part"
      return {
        params: { axis: nameOf(s.at), part: own },
        arrays: [
          d.values(d.axes({ ...rest, [nameOf(s.at)]: s.sizes[s.at]! }), s.dtype),
          d.values(d.axes({ ...rest, [own]: part(s.sizes[s.at]!, s.length) }), s.dtype),
          scalar(s.start, "i32")
        ]
      }
    }
  )
}

const coordinates = (count: number, first: number, dtype: "i32" | "u32"): Host.HostArray =>
  Host.make(
    [Axis.make("vocab", count)],
    dtype,
    Float64Array.from({ length: count }, (_, i) => i + first)
  )
