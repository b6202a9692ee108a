/** Many tensors in one flat axis, and the way back: how parameters travel together. Each is the transpose of the other. */
import * as Axis from "../Axis.ts"
import { DTypeMismatch, invalid, refuse } from "../Errors.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import type { AnyTensor, Primitive, TensorType } from "../Node.ts"
import { zeros } from "./algebra.ts"
import { emit, emit1 } from "./emit.ts"

/** A member: its elements, row by row in the order of its axes, begin at `start`. */
export interface Member {
  readonly start: number
  readonly axes: Axis.Axes
}

export interface PackParams {
  /** The flat axis. */
  readonly axis: string
  readonly size: number
  /** Elements that members fill; what lies beyond is zero. */
  readonly logical: number
  readonly members: ReadonlyArray<Member>
}

const free = () => ({ contraction: 0, other: 0 })

/** Members fit one after another into the flat axis. */
const checked = (operation: string, p: PackParams): void => {
  let end = 0
  for (const { axes, start } of p.members) {
    if (start !== end)
      invalid(operation, `a member of ${Axis.print(axes)} begins at ${start}, the one before ends at ${end}`)
    if (Axis.has(axes, p.axis))
      invalid(operation, `a member of ${Axis.print(axes)} has the flat axis "${p.axis}" itself`)
    end += Axis.count(axes)
  }
  if (end !== p.logical || end > p.size)
    invalid(operation, `members fill ${end} elements, the axis "${p.axis}" means ${p.logical} of ${p.size}`)
}

/** `[.., flat] -> [.., axes of member i]`. Moves nothing. */
export const unpackP: Primitive<"unpack", PackParams> = {
  name: "unpack",
  type: ([t], p) => {
    checked("unpack", p)
    const flat = Axis.find(t!.axes, p.axis)
    if (flat?.size !== p.size)
      invalid("unpack", `the operand is ${Axis.print(t!.axes)}, the members need "${p.axis}" of size ${p.size}`)
    const rest = Axis.without(t!.axes, [p.axis])
    return p.members.map(({ axes }) => ({ axes: joined("unpack", rest, axes), dtype: t!.dtype }))
  },
  meaning: {
    kind: "core",
    evaluate: ([x], p, types) =>
      types.map((type, i) => {
        const { axes, start } = p.members[i]!
        const rest = Axis.without(x!.axes, [p.axis])
        const own = Host.slice(x!, p.axis, start, Axis.count(axes))
        const flat = Host.reorder(own, [...rest, Axis.make(p.axis, Axis.count(axes))])
        return Host.reorder({ axes: [...rest, ...axes], dtype: type.dtype, data: flat.data }, type.axes)
      })
  },
  vjp: { kind: "short", pullback: (cotangents, [x], _o, p) => [pack(cotangents, p, x!.type)] },
  partition: { kind: "byName", linear: [[0]], whole: inside },
  flops: free,
  precision: "exact",
  recompute: "cheap"
}

/** `[.., axes of member i] -> [.., flat]`: the members one after another, then zeros. */
export const packP: Primitive<"pack", PackParams> = {
  name: "pack",
  type: (types, p) => {
    checked("pack", p)
    if (types.length !== p.members.length || types.length === 0)
      invalid("pack", `${types.length} operands for ${p.members.length} members`)
    const rest = restOf(types[0]!, p.members[0]!)
    types.forEach((t, i) => {
      const expected = joined("pack", rest, p.members[i]!.axes)
      if (!sameSizes(t.axes, expected))
        invalid("pack", `operand ${i} is ${Axis.print(t.axes)}, its member is ${Axis.print(expected)}`)
      if (t.dtype !== types[0]!.dtype)
        refuse(new DTypeMismatch({ operation: "pack", expected: types[0]!.dtype, found: t.dtype }))
    })
    return [{ axes: [...rest, Axis.make(p.axis, p.size)], dtype: types[0]!.dtype }]
  },
  meaning: {
    kind: "core",
    evaluate: (xs, p, [type]) => {
      const rest = Axis.without(type!.axes, [p.axis])
      const data = new Float64Array(Axis.count(type!.axes))
      const rows = Axis.count(rest)
      xs.forEach((x: HostArray, i) => {
        const { axes, start } = p.members[i]!
        const own = Host.reorder(x, [...rest, ...axes]).data
        const count = Axis.count(axes)
        for (let row = 0; row < rows; row++)
          data.set(own.subarray(row * count, (row + 1) * count), row * p.size + start)
      })
      return [{ axes: type!.axes, dtype: type!.dtype, data }]
    }
  },
  vjp: { kind: "short", pullback: ([c], _x, _o, p) => emit(unpackP, [c!], p) },
  partition: { kind: "byName", linear: "together", whole: inside },
  flops: free,
  precision: "exact",
  recompute: "cheap"
}

/** Inside of the flat axis order is memory: nothing may be split. */
function inside(p: PackParams): ReadonlyArray<string> {
  return [p.axis, ...p.members.flatMap((m) => Axis.names(m.axes))]
}

const joined = (operation: string, rest: Axis.Axes, own: Axis.Axes): Axis.Axes => {
  const clash = own.find((a) => Axis.has(rest, a.name))
  if (clash !== undefined) invalid(operation, `axis "${clash.name}" is both inside and outside of the flat axis`)
  return [...rest, ...own]
}

const restOf = (type: TensorType, member: Member): Axis.Axes => Axis.without(type.axes, Axis.names(member.axes))

const sameSizes = (a: Axis.Axes, b: Axis.Axes): boolean =>
  a.length === b.length && a.every((x) => Axis.find(b, x.name)?.size === x.size)

/** Cotangents of members as that of the whole. */
const pack = (parts: ReadonlyArray<AnyTensor>, p: PackParams, like: TensorType): AnyTensor =>
  parts.length === 0 ? zeros(like) : emit1(packP, parts, p)

/** Tensors of one type, one after another along a new axis of `size` elements. */
export const packed = (xs: ReadonlyArray<AnyTensor>, params: PackParams): AnyTensor => emit1(packP, xs, params)

/** The members of a flat tensor. */
export const unpacked = (x: AnyTensor, params: PackParams): ReadonlyArray<AnyTensor> => emit(unpackP, [x], params)
