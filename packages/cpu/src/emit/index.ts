/** Gathers, scatters, writes into slices, concatenation and padding. */
import type { Equation } from "@tessera/core/Node"
import type * as Plan from "@tessera/core/Plan"
import * as PlanViews from "@tessera/core/Plan"
import type { PackParams } from "@tessera/core/primitives/pack"
import { opcodes, vm } from "../opcodes.ts"
import type { Word } from "../Words.ts"
import { operand } from "../Words.ts"
import * as Nest from "./nest.ts"

/** Members into their windows of the flat axis; zeros behind. */
export const emitPack = (
  e: Equation,
  inputs: ReadonlyArray<Plan.View>,
  [out]: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): void => {
  const p = e.params as PackParams
  const flat = out!.dimensions.find((d) => d.name === p.axis)!
  const rest = out!.dimensions.filter((d) => d !== flat)
  const window = (start: number, own: ReadonlyArray<Plan.Dimension>): Plan.View => ({
    ...out!,
    offset: out!.offset + start * flat.stride,
    dimensions: [...rest, ...own.map((d) => ({ ...d, stride: d.stride * flat.stride }))]
  })
  p.members.forEach(({ axes, start }, i) => Nest.copy(inputs[i]!, window(start, PlanViews.dimensions(axes)), emission))
  if (p.logical < p.size) {
    const behind = PlanViews.dimensions([{ name: p.axis, size: p.size - p.logical }])
    Nest.fill(window(p.logical, behind), 0, emission)
  }
}

/** Ids as i32 relative to the first coordinate; coordinates are consecutive. */
const relativeIds = (
  e: Equation,
  coordinates: Plan.View,
  id: Plan.View,
  emission: Nest.Emission
): { readonly ids: Plan.View; readonly first: number } => {
  const ids = asInt32(id, emission)
  const first = firstOf(e)
  if (first !== null) return { ids, first }
  if (coordinates.dimensions[0]!.size === 0) return { ids, first: 0 }
  const begin = asInt32({ ...coordinates, dimensions: [] }, emission)
  const to = emission.temporary(Nest.memoryOrder(ids), "i32")
  Nest.kernel([ids, begin], to, [[vm.ISUB, 2, 0, 1, 0, 0]], 2, emission, { inPlace: true })
  return { ids: to, first: 0 }
}

/** Operations that keep every value; whole numbers that change their storage do too. */
const keeps = ({ inputs, outputs, primitive }: Equation): boolean =>
  ["rename", "place", "named", "stopGradient"].includes(primitive.name) ||
  (primitive.name === "cast" && [inputs[0]!, outputs[0]!].every((x) => ["i32", "u32"].includes(x.type.dtype)))

/** First coordinate of a table where it is known when the plan is made. */
const firstOf = (e: Equation): number | null => {
  let source = e.inputs[1]!.equation
  while (source !== null && keeps(source)) source = source.inputs[0]!.equation
  return source === null || source.primitive.name !== "iota" ? null : source.params.start
}

const asInt32 = (v: Plan.View, emission: Nest.Emission): Plan.View => {
  if (v.dtype === "i32" || v.dtype === "u32") return v
  const to = emission.temporary(v.dimensions, "i32")
  Nest.copy(v, to, emission)
  return to
}

/** Rows (contiguous along `width` in both) and the loop around them. */
const rowsOf = (table: Plan.View, row: Plan.View, over: string, ids: Plan.View) => {
  const inner = row.dimensions.find(
    (d) =>
      d.stride === 1 &&
      d.name !== over &&
      d.size > 1 &&
      Nest.strideOf(table, d.name) === 1 &&
      !ids.dimensions.some((i) => i.name === d.name)
  )
  const loops = Nest.memoryOrder(row).filter((d) => d.name !== inner?.name)
  return { width: inner?.size ?? 1, loops }
}

export const emitLookup = (
  e: Equation,
  [table, coordinates, id]: ReadonlyArray<Plan.View>,
  [out]: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): void => {
  const over = e.params.over as string
  const { first, ids } = relativeIds(e, coordinates!, id!, emission)
  const { loops, width } = rowsOf(table!, out!, over, ids)
  const rows = table!.dimensions.find((d) => d.name === over)!
  const strides = (v: Plan.View): ReadonlyArray<number> => loops.map((d) => Nest.strideOf(v, d.name))
  const words: ReadonlyArray<Word> = [
    loops.length,
    ...loops.map((d) => d.size),
    width,
    operand(table!),
    ...strides(table!),
    rows.stride,
    operand(ids),
    ...strides(ids),
    first,
    rows.size,
    operand(out!),
    ...strides(out!)
  ]
  emission.push({ opcode: opcodes.GATHER, words }, [table!, ids], [out!])
}

export const emitScatterAdd = (
  e: Equation,
  [x, coordinates, id]: ReadonlyArray<Plan.View>,
  [out]: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): void => {
  const over = e.params.over as string
  const { first, ids } = relativeIds(e, coordinates!, id!, emission)
  // The kernel zeroes and adds in f32; a 16-bit result is converted once at the end.
  const order = Nest.memoryOrder(out!)
  const dense =
    out!.dtype === "f32" &&
    Nest.flat(out!, order) !== null &&
    Nest.sizeOf(order) > 0 &&
    (Nest.flat(out!, order) === 1 || Nest.sizeOf(order) === 1)
  const target = dense ? out! : emission.temporary(order, "f32")
  const { loops, width } = rowsOf(target, x!, over, ids)
  const rows = target.dimensions.find((d) => d.name === over)!
  const strides = (v: Plan.View): ReadonlyArray<number> => loops.map((d) => Nest.strideOf(v, d.name))
  const words: ReadonlyArray<Word> = [
    loops.length,
    ...loops.map((d) => d.size),
    width,
    operand(x!),
    ...strides(x!),
    operand(ids),
    ...strides(ids),
    first,
    rows.size,
    operand(target),
    ...strides(target),
    rows.stride,
    Nest.sizeOf(order)
  ]
  emission.push({ opcode: opcodes.SCATTER_ADD, words }, [x!, ids], [target])
  if (!dense) Nest.copy(target, out!, emission)
}

export const emitConcat = (
  e: Equation,
  inputs: ReadonlyArray<Plan.View>,
  [out]: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): void => {
  const { axes, axis } = e.params as { readonly axes: ReadonlyArray<string>; readonly axis: string }
  const joined = out!.dimensions.find((d) => d.name === axis)!
  let start = 0
  inputs.forEach((x, i) => {
    const own = x.dimensions.find((d) => d.name === axes[i])!
    const slot = cut(out!, axis, start, own.size)
    start += own.size
    Nest.copy(
      { ...x, dimensions: x.dimensions.map((d) => (d === own ? { ...d, name: joined.name } : d)) },
      slot,
      emission
    )
  })
}

const cut = (v: Plan.View, axis: string, start: number, size: number): Plan.View => {
  const d = v.dimensions.find((o) => o.name === axis)!
  return {
    ...v,
    offset: v.offset + start * d.stride,
    dimensions: v.dimensions.map((o) => (o === d ? { ...d, size } : o))
  }
}

export const emitPad = (
  e: Equation,
  [x]: ReadonlyArray<Plan.View>,
  [out]: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): void => {
  const { axis, start, to } = e.params as { readonly axis: string; readonly to: string; readonly start: number }
  const own = x!.dimensions.find((d) => d.name === axis)!
  const whole = out!.dimensions.find((d) => d.name === to)!
  if (start > 0) Nest.fill(cut(out!, to, 0, start), 0, emission)
  const end = start + own.size
  if (end < whole.size) Nest.fill(cut(out!, to, end, whole.size - end), 0, emission)
  Nest.copy(
    { ...x!, dimensions: x!.dimensions.map((d) => (d === own ? { ...d, name: to } : d)) },
    cut(out!, to, start, own.size),
    emission
  )
}

/**
 * The part is looked up by `coordinate - start` (rows outside give zeros) and chosen where the coordinate lies inside: no address depends on
 * data, and with the first operand donated the choice happens in place.
 */
export const emitUpdateSlice = (
  e: Equation,
  [x, part, start]: ReadonlyArray<Plan.View>,
  [out]: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): void => {
  const { axis, part: own } = e.params as { readonly axis: string; readonly part: string }
  const whole = x!.dimensions.find((d) => d.name === axis)!
  const size = part!.dimensions.find((d) => d.name === own)!
  const ids = emission.temporary([{ name: axis, size: whole.size }], "i32")
  const begin = asInt32(start!, emission)
  // ids[i] = i - clamp(start)
  const shifted = [
    [vm.CONST_I, 1, 0, 0, 0, whole.size - size.size],
    [begin.dtype === "u32" ? vm.UMIN : vm.IMIN, 2, 0, 1, 0, 0],
    [vm.CONST_I, 3, 0, 0, 0, 0],
    [vm.IMAX, 4, 2, 3, 0, 0],
    [vm.IOTA, 5, 0, 0, 0, 2 ** 32],
    [vm.ISUB, 6, 5, 4, 0, 0]
  ]
  Nest.kernel([begin], ids, shifted, 6, emission, { inPlace: false, keep: new Set([axis]) })
  const looked = emission.temporary(Nest.memoryOrder(out!), x!.dtype)
  const { loops, width } = rowsOf({ ...part!, dimensions: part!.dimensions }, looked, axis, ids)
  const strides = (v: Plan.View): ReadonlyArray<number> => loops.map((d) => Nest.strideOf(v, d.name))
  emission.push(
    {
      opcode: opcodes.GATHER,
      words: [
        loops.length,
        ...loops.map((d) => d.size),
        width,
        operand(part!),
        ...strides({ ...part!, dimensions: part!.dimensions.filter((d) => d.name !== own) }),
        size.stride,
        operand(ids),
        ...strides(ids),
        0,
        size.size,
        operand(looked),
        ...strides(looked)
      ]
    },
    [part!, ids],
    [looked]
  )
  const choose = [
    [vm.CONST_I, 3, 0, 0, 0, size.size],
    [vm.LESS_I, 4, 2, 3, 0, 0],
    [vm.CONST_I, 5, 0, 0, 0, -1],
    [vm.LESS_I, 6, 5, 2, 0, 0],
    [vm.AND, 7, 4, 6, 0, 0],
    [vm.SELECT, 8, 7, 1, 0, 0]
  ]
  Nest.kernel([x!, looked, ids], out!, choose, 8, emission, { inPlace: true })
}

export const emitCumsum = (
  e: Equation,
  [x]: ReadonlyArray<Plan.View>,
  [out]: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): void => {
  const dims = Nest.memoryOrder(x!)
  const words: ReadonlyArray<Word> = [
    dims.length,
    ...dims.map((d) => d.size),
    dims.findIndex((d) => d.name === e.params.over),
    operand(x!),
    ...dims.map((d) => Nest.strideOf(x!, d.name)),
    operand(out!),
    ...dims.map((d) => Nest.strideOf(out!, d.name))
  ]
  emission.push({ opcode: opcodes.CUMSUM, words }, [x!], [out!])
}
