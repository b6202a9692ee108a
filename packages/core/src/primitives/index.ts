/** Coordinates, gathers and their transposes. Coordinates are inputs, so that a split table stays an ordinary contraction. */
import * as Axis from "../Axis.ts"
import type * as DType from "../DType.ts"
import { kindOf } from "../DType.ts"
import { AxisMismatch, DTypeMismatch, invalid, refuse, UnknownAxis } from "../Errors.ts"
import * as Host from "../HostArray.ts"
import type { Primitive, Tensor, TensorType } from "../Node.ts"
import { build } from "../Node.ts"
import { constant, sizeOf } from "./algebra.ts"
import { emit1 } from "./emit.ts"
import { equal, select } from "./pointwise.ts"

const free = () => ({ contraction: 0, other: 0 })

/** 0, 1, 2 ... along a new axis, as i32 (or u32 for counters). */
export const iotaP: Primitive<
  "iota",
  { readonly axis: Axis.Axis; readonly dtype: DType.DType; readonly start: number }
> = {
  name: "iota",
  type: (_, p) => [{ axes: [p.axis], dtype: p.dtype }],
  meaning: {
    kind: "core",
    evaluate: (_, p) => [
      { axes: [p.axis], dtype: p.dtype, data: Float64Array.from({ length: p.axis.size }, (_v, i) => i + p.start) }
    ]
  },
  vjp: { kind: "none" },
  // Always whole: what a rank needs of it is its own slice, which costs nothing.
  partition: { kind: "byName", localize: (p) => ({ ...p, axis: Axis.make(p.axis.name, p.axis.size) }) },
  flops: free,
  precision: "exact",
  recompute: "cheap"
}

const ids = (operation: string, type: TensorType): void => {
  if (kindOf(type.dtype) !== "int") refuse(new DTypeMismatch({ operation, expected: "an integer", found: type.dtype }))
}

/** Coordinates are one list along the axis, as long as the table's own. */
const along = (operation: string, coordinates: TensorType, over: string, size: number | undefined): void => {
  const axis = Axis.find(coordinates.axes, over)
  if (axis === undefined || coordinates.axes.length !== 1) {
    refuse(
      new UnknownAxis({
        operation,
        axis: over,
        present: Axis.names(coordinates.axes),
        problem: "coordinates have just the axis"
      })
    )
  } else if (size !== undefined && axis.size !== size) {
    refuse(new AxisMismatch({ operation, axis: over, left: size, right: axis.size }))
  }
}

/** Every one of `axes` is among those of an operand, in the same size. */
const within = (operation: string, axes: Axis.Axes, operand: Axis.Axes, problem: string): void => {
  for (const axis of axes) {
    const found = Axis.find(operand, axis.name)
    if (found === undefined) {
      refuse(new UnknownAxis({ operation, axis: axis.name, present: Axis.names(operand), problem }))
    } else if (found.size !== axis.size) {
      refuse(new AxisMismatch({ operation, axis: axis.name, left: found.size, right: axis.size }))
    }
  }
}

/**
 * `[.., over] x [over] x [..ids] -> [..]`: rows of the table whose coordinate equals an id; zero when absent. Axes that table and ids share are
 * batch axes. Coordinates are consecutive integers.
 */
export const lookupP: Primitive<"lookup", { readonly over: string }> = {
  name: "lookup",
  type: ([table, coordinates, id], p) => {
    ids("lookup", coordinates!)
    ids("lookup", id!)
    if (!Axis.has(table!.axes, p.over)) {
      refuse(
        new UnknownAxis({
          operation: "lookup",
          axis: p.over,
          present: Axis.names(table!.axes),
          problem: "the table lacks the axis"
        })
      )
    }
    along("lookup", coordinates!, p.over, Axis.find(table!.axes, p.over)!.size)
    if (Axis.has(id!.axes, p.over)) invalid("lookup", `ids must not have the axis "${p.over}"; rename it`)
    // Ids first: a lookup's rows stay contiguous in memory.
    return [{ axes: Axis.inOrder("lookup", [id!.axes, Axis.without(table!.axes, [p.over])]), dtype: table!.dtype }]
  },
  meaning: {
    kind: "core",
    evaluate: ([table, coordinates, id], p, [type]) => {
      const at = new Map(Array.from(coordinates!.data, (row, i) => [row, i]))
      const stride = Host.strideOf(table!.axes, p.over)
      const from = Host.offsets(Axis.without(table!.axes, []), type!.axes)
      const which = Host.offsets(id!.axes, type!.axes)
      const data = Float64Array.from(from, (o, k) => {
        const row = at.get(id!.data[which[k]!]!)
        return row === undefined ? 0 : table!.data[o + row * stride]!
      })
      return [{ axes: type!.axes, dtype: table!.dtype, data }]
    }
  },
  vjp: {
    kind: "short",
    pullback: ([c], [table, coordinates, id], _o, p) => {
      const reduced = Axis.names(id!.type.axes).filter((n) => !Axis.has(table!.type.axes, n))
      return [
        kindOf(table!.type.dtype) === "float"
          ? emit1(scatterAddP, [c!, coordinates!, id!], { over: p.over, reduced })
          : null,
        null,
        null
      ]
    }
  },
  partition: { kind: "byName", reduces: "sum", linear: [[0]] },
  flops: free,
  precision: "exact",
  recompute: "expensive"
}

/** The transpose of lookup: adds rows where their ids say. */
export const scatterAddP: Primitive<"scatterAdd", { readonly over: string; readonly reduced: ReadonlyArray<string> }> =
  {
    name: "scatterAdd",
    type: ([x, coordinates, id], p) => {
      ids("scatterAdd", coordinates!)
      ids("scatterAdd", id!)
      along("scatterAdd", coordinates!, p.over, undefined)
      within("scatterAdd", id!.axes, x!.axes, "the rows lack an axis of the ids")
      for (const name of p.reduced) {
        if (Axis.has(id!.axes, name)) continue
        const present = Axis.names(id!.axes)
        refuse(
          new UnknownAxis({ operation: "scatterAdd", axis: name, present, problem: "only axes of ids are summed" })
        )
      }
      if (Axis.has(x!.axes, p.over)) invalid("scatterAdd", `rows must not have the axis "${p.over}"; rename it`)
      const rest = Axis.without(x!.axes, p.reduced)
      const shared = rest.filter((a) => Axis.has(id!.axes, a.name))
      const own = rest.filter((a) => !Axis.has(id!.axes, a.name))
      return [{ axes: Axis.inOrder("scatterAdd", [shared, coordinates!.axes, own]), dtype: x!.dtype }]
    },
    meaning: {
      kind: "core",
      evaluate: ([x, coordinates, id], p, [type]) => {
        const at = new Map(Array.from(coordinates!.data, (row, i) => [row, i]))
        const stride = Host.strideOf(type!.axes, p.over)
        const to = Host.offsets(type!.axes, x!.axes)
        const which = Host.offsets(id!.axes, x!.axes)
        const data = new Float64Array(Axis.count(type!.axes))
        for (let k = 0; k < to.length; k++) {
          const row = at.get(id!.data[which[k]!]!)
          if (row !== undefined) data[to[k]! + row * stride]! += x!.data[k]!
        }
        return [{ axes: type!.axes, dtype: x!.dtype, data }]
      }
    },
    vjp: {
      kind: "short",
      pullback: ([c], [, coordinates, id], _o, p) => [
        emit1(lookupP, [c!, coordinates!, id!], { over: p.over }),
        null,
        null
      ]
    },
    partition: { kind: "byName", reduces: "sum", linear: [[0]] },
    flops: ([x]) => ({ contraction: 0, other: Axis.count(x!.axes) }),
    precision: "reduction",
    recompute: "expensive"
  }

/**
 * `[.., axis] x [.., part] x [] -> [.., axis]`: replaces elements start .. start+size along `axis` by the part, whose own axis is `part`. With the first
 * operand donated this is a write in place (key-value caches). Starts outside the legal range are clamped.
 */
export const updateSliceP: Primitive<"updateSlice", { readonly axis: string; readonly part: string }> = {
  name: "updateSlice",
  type: ([x, part, start], p) => {
    ids("updateSlice", start!)
    if (start!.axes.length > 0) invalid("updateSlice", "the start is one scalar")
    const [whole, own] = [Axis.find(x!.axes, p.axis), Axis.find(part!.axes, p.part)]
    if (whole === undefined || own === undefined || own.size > whole.size) {
      invalid(
        "updateSlice",
        `cannot put ${Axis.print(part!.axes)} along "${p.part}" into "${p.axis}" of ${Axis.print(x!.axes)}`
      )
    }
    const [rest, partRest] = [Axis.without(x!.axes, [p.axis]), Axis.without(part!.axes, [p.part])]
    within("updateSlice", partRest, rest, "the target lacks an axis of the part")
    within("updateSlice", rest, partRest, "the part lacks an axis of the target")
    if (part!.dtype !== x!.dtype)
      refuse(new DTypeMismatch({ operation: "updateSlice", expected: x!.dtype, found: part!.dtype }))
    return [x!]
  },
  meaning: {
    kind: "core",
    evaluate: ([x, part, start], p) => {
      const own = Axis.find(part!.axes, p.part)!
      const whole = Axis.find(x!.axes, p.axis)!
      const first = Math.min(Math.max(0, start!.data[0]!), whole.size - own.size)
      const cut = x!.axes.map((a) => (a.name === p.axis ? { ...own, name: p.axis } : a))
      const to = Host.offsets(x!.axes, cut)
      const from = Host.offsets(
        part!.axes.map((a) => (a.name === p.part ? { ...a, name: p.axis } : a)),
        cut
      )
      const data = Float64Array.from(x!.data)
      const base = first * Host.strideOf(x!.axes, p.axis)
      for (let k = 0; k < to.length; k++) data[to[k]! + base] = part!.data[from[k]!]!
      return [{ axes: x!.axes, dtype: x!.dtype, data }]
    }
  },
  vjp: { kind: "none" },
  partition: { kind: "byName", whole: (p) => [p.axis, p.part] },
  flops: free,
  precision: "exact",
  recompute: "expensive"
}

/** Coordinates of an axis. `-> [axis]` */
export const iota = <N extends string>(name: N, size: number, dtype: DType.DType = "i32"): Tensor<N, "int"> =>
  build(iotaP, [], { axis: Axis.make(name, size), dtype, start: 0 }, "compute")[0]!

/** Rows of `table` along `over` by id; ids outside give zeros. */
export const lookup = <A extends string, O extends A, B extends string>(
  table: Tensor<A>,
  over: O,
  id: Tensor<B, "int">
): Tensor<Exclude<A, O> | B> => emit1(lookupP, [table, iota(over, sizeOf(table, over)), id], { over })

/** `[..] -> [.., axis]`: 1 where the coordinate equals the id. */
export const oneHot = <A extends string, N extends string>(
  id: Tensor<A, "int">,
  axis: N,
  size: number
): Tensor<A | N> => select(equal(id, iota(axis, size, id.type.dtype)), constant(1), constant(0))

export const updateSlice = <A extends string, K extends DType.Kind>(
  x: Tensor<A, K>,
  part: Tensor<any, K>,
  at: { readonly axis: A; readonly part: string; readonly start: Tensor<never, "int"> }
): Tensor<A, K> => emit1(updateSliceP, [x, part, at.start], { axis: at.axis, part: at.part })
