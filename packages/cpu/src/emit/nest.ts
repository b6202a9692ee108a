/** Loop nests over several views: common order, merged dimensions, contiguous copies. */
import type * as Plan from "@tessera/core/Plan"
import { opcodes, vm } from "../opcodes.ts"
import type { Instruction, Word } from "../Words.ts"
import { double, operand } from "../Words.ts"

export type Emission = Plan.Emission<Instruction>

export interface Dim {
  readonly name: string
  readonly size: number
}

export const strideOf = (v: Plan.View, name: string): number => v.dimensions.find((d) => d.name === name)?.stride ?? 0

/** Dimensions of `v`, widest stride first: memory order. */
export const memoryOrder = (v: Plan.View): ReadonlyArray<Dim> =>
  v.dimensions
    .map((d, i) => ({ d, i }))
    .sort((a, b) => b.d.stride - a.d.stride || a.i - b.i)
    .map(({ d }) => ({ name: d.name, size: d.size }))

export interface Nest {
  readonly sizes: ReadonlyArray<number>
  /** Original names of each merged dimension, outermost first. */
  readonly names: ReadonlyArray<ReadonlyArray<string>>
  /** For each view, one stride a dimension. */
  readonly strides: ReadonlyArray<ReadonlyArray<number>>
}

/** One nest for all views in the order of `dims`; neighbours that every view walks evenly become one dimension. */
export const nestOf = (
  dims: ReadonlyArray<Dim>,
  views: ReadonlyArray<Plan.View>,
  keep: ReadonlySet<string> = new Set()
): Nest => {
  const sizes: Array<number> = []
  const names: Array<Array<string>> = []
  const strides: Array<Array<number>> = views.map(() => [])
  for (const d of dims) {
    if (d.size === 1 && !keep.has(d.name)) continue
    const last = sizes.length - 1
    const own = views.map((v) => strideOf(v, d.name))
    const joins =
      last >= 0 &&
      !keep.has(d.name) &&
      !names[last]!.some((n) => keep.has(n)) &&
      own.every((s, i) => strides[i]![last] === s * d.size)
    if (joins) {
      sizes[last]! *= d.size
      names[last]!.push(d.name)
      own.forEach((s, i) => (strides[i]![last] = s))
    } else {
      sizes.push(d.size)
      names.push([d.name])
      own.forEach((s, i) => strides[i]!.push(s))
    }
  }
  return { sizes, names, strides }
}

/** The stride of `dims` taken as one dimension in this order, or null where the view does not walk them evenly. */
export const flat = (v: Plan.View, dims: ReadonlyArray<Dim>): number | null => {
  const present = dims.filter((d) => d.size !== 1)
  for (let i = 0; i + 1 < present.length; i++) {
    if (strideOf(v, present[i]!.name) !== strideOf(v, present[i + 1]!.name) * present[i + 1]!.size) return null
  }
  return present.length === 0 ? 0 : strideOf(v, present[present.length - 1]!.name)
}

export const sizeOf = (dims: ReadonlyArray<Dim>): number => dims.reduce((n, d) => n * d.size, 1)

/** Copies by an elementwise kernel without operations. Dtypes convert. */
export const copy = (from: Plan.View, to: Plan.View, emission: Emission): void => {
  const nest = nestOf(memoryOrder(to), [from, to])
  const words: ReadonlyArray<Word> = [
    nest.sizes.length,
    1,
    1,
    1,
    ...nest.sizes,
    operand(from),
    ...nest.strides[0]!,
    operand(to),
    ...nest.strides[1]!,
    vm.STORE,
    0,
    0,
    0,
    0,
    0
  ]
  emission.push({ opcode: opcodes.POINTWISE, words }, [from], [to], from.dtype === to.dtype)
}

/** Fills with one value. */
export const fill = (to: Plan.View, value: number, emission: Emission): void => {
  const nest = nestOf(memoryOrder(to), [to])
  const float = to.dtype === "f32" || to.dtype === "bf16" || to.dtype === "f16"
  const words: ReadonlyArray<Word> = [
    nest.sizes.length,
    0,
    1,
    2,
    ...nest.sizes,
    operand(to),
    ...nest.strides[0]!,
    ...(float ? [vm.CONST_F, 0, 0, 0, 0, double(value)] : [vm.CONST_I, 0, 0, 0, 0, value]),
    vm.STORE,
    0,
    0,
    0,
    0,
    0
  ]
  emission.push({ opcode: opcodes.POINTWISE, words }, [], [to])
}

/** `to += from`, elementwise. */
export const accumulate = (from: Plan.View, to: Plan.View, emission: Emission): void => {
  const nest = nestOf(memoryOrder(to), [from, to])
  const float = to.dtype === "f32" || to.dtype === "bf16" || to.dtype === "f16"
  const words: ReadonlyArray<Word> = [
    nest.sizes.length,
    2,
    1,
    2,
    ...nest.sizes,
    operand(from),
    ...nest.strides[0]!,
    operand(to),
    ...nest.strides[1]!,
    operand(to),
    ...nest.strides[1]!,
    float ? vm.ADD : vm.IADD,
    2,
    0,
    1,
    0,
    0,
    vm.STORE,
    0,
    2,
    0,
    0,
    0
  ]
  emission.push({ opcode: opcodes.POINTWISE, words }, [from, to], [to])
}

/** The view itself when its axes walk memory exactly in this order without gaps, else a contiguous copy in this order. */
export const contiguous = (v: Plan.View, dims: ReadonlyArray<Dim>, emission: Emission, dtype = v.dtype): Plan.View => {
  const stride = flat(v, dims)
  const dense = v.dtype === dtype && stride !== null && (stride === 1 || sizeOf(dims) === 1)
  if (dense) return v
  const to = emission.temporary(dims, dtype)
  copy(v, to, emission)
  return to
}

/** Somewhere dense to write: the wanted view, or a temporary that `finish` copies to it. */
export const denseOutput = (
  v: Plan.View,
  dims: ReadonlyArray<Dim>,
  emission: Emission
): { readonly view: Plan.View; readonly finish: () => void } => {
  const stride = flat(v, dims)
  if (stride !== null && (stride === 1 || sizeOf(dims) === 1)) return { view: v, finish: () => {} }
  const view = emission.temporary(dims, v.dtype)
  return { view, finish: () => copy(view, v, emission) }
}
