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

const isFloat = (v: Plan.View): boolean => v.dtype === "f32" || v.dtype === "bf16" || v.dtype === "f16"

/**
 * A hand-written elementwise kernel over the axes of `to`: `code` holds operations of six words (op, dst, a, b, c, immediate), inputs are registers
 * 0 and up, `result` is stored. `keep` names axes whose coordinate the code reads.
 */
export const kernel = (
  inputs: ReadonlyArray<Plan.View>,
  to: Plan.View,
  code: ReadonlyArray<ReadonlyArray<Word>>,
  result: number,
  emission: Emission,
  options: { readonly inPlace: boolean; readonly keep?: ReadonlySet<string> }
): void => {
  const views = [...inputs, to]
  const nest = nestOf(memoryOrder(to), views, options.keep)
  const words: ReadonlyArray<Word> = [
    nest.sizes.length,
    inputs.length,
    1,
    code.length + 1,
    ...nest.sizes,
    ...views.flatMap((v, i): ReadonlyArray<Word> => [operand(v), ...nest.strides[i]!]),
    ...code.flat(),
    ...[vm.STORE, 0, result, 0, 0, 0]
  ]
  emission.push({ opcode: opcodes.POINTWISE, words }, inputs, [to], options.inPlace)
}

/** Copies by an elementwise kernel without operations. Dtypes convert. */
export const copy = (from: Plan.View, to: Plan.View, emission: Emission): void =>
  kernel([from], to, [], 0, emission, { inPlace: from.dtype === to.dtype })

/** Fills with one value. */
export const fill = (to: Plan.View, value: number, emission: Emission): void =>
  kernel(
    [],
    to,
    [isFloat(to) ? [vm.CONST_F, 0, 0, 0, 0, double(value)] : [vm.CONST_I, 0, 0, 0, 0, value]],
    0,
    emission,
    {
      inPlace: false
    }
  )

/** `to += from`, elementwise. */
export const accumulate = (from: Plan.View, to: Plan.View, emission: Emission): void =>
  kernel([from, to], to, [[isFloat(to) ? vm.ADD : vm.IADD, 2, 0, 1, 0, 0]], 2, emission, { inPlace: false })

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
