/** Where tensors stand: strided windows of buffers. Operations that only rename or cut axes are other windows of the same memory. */
import type * as DType from "../DType.ts"
import type { Equation } from "../Node.ts"
import type { PackParams } from "../primitives/pack.ts"

/** One axis of a view; strides count elements. */
export interface Dimension {
  readonly name: string
  readonly size: number
  readonly stride: number
}

/** Where a tensor stands: a strided window of a buffer. */
export interface View {
  readonly buffer: number
  /** Elements from the beginning of the buffer. */
  readonly offset: number
  readonly dtype: DType.DType
  readonly dimensions: ReadonlyArray<Dimension>
}

export const dimensions = (
  axes: ReadonlyArray<{ readonly name: string; readonly size: number }>
): ReadonlyArray<Dimension> => {
  let stride = 1
  const all: Array<Dimension> = []
  for (let i = axes.length - 1; i >= 0; i--) {
    all.unshift({ name: axes[i]!.name, size: axes[i]!.size, stride })
    stride *= axes[i]!.size
  }
  return all
}

/** Same window of the same buffer. */
export const same = (a: View, b: View): boolean =>
  a.buffer === b.buffer &&
  a.offset === b.offset &&
  a.dimensions.length === b.dimensions.length &&
  a.dimensions.every((d) =>
    b.dimensions.some((o) => o.name === d.name && o.size === d.size && (o.stride === d.stride || d.size === 1))
  )

export const elements = (v: View): number => v.dimensions.reduce((n, d) => n * d.size, 1)

/** Drops `name` by fixing its index. */
export const pick = (v: View, name: string, index: number): View => {
  const axis = v.dimensions.find((d) => d.name === name)!
  return { ...v, offset: v.offset + index * axis.stride, dimensions: v.dimensions.filter((d) => d !== axis) }
}

/** Whether an equation gives its operand as it is. */
export const isIdentity = ({ primitive: { name } }: Equation): boolean =>
  name === "place" || name === "named" || name === "stopGradient"

/** Views of operations that move nothing, or null where a copy is needed. */
export const viewOf = (e: Equation, x: View): View | null => {
  const p = e.params
  switch (e.primitive.name) {
    case "place":
    case "named":
    case "stopGradient":
      return x
    case "rename":
      return { ...x, dimensions: x.dimensions.map((d) => (d.name === p.from ? { ...d, name: p.to } : d)) }
    case "split":
      return {
        ...x,
        dimensions: x.dimensions.flatMap((d) =>
          d.name === p.axis
            ? [
                { name: p.outer, size: d.size / p.size, stride: d.stride * p.size },
                { name: p.inner, size: p.size, stride: d.stride }
              ]
            : [d]
        )
      }
    case "merge": {
      const [outer, inner] = [
        x.dimensions.find((d) => d.name === p.outer)!,
        x.dimensions.find((d) => d.name === p.inner)!
      ]
      const joins = outer.size === 1 || inner.size === 1 || outer.stride === inner.stride * inner.size
      if (!joins) return null
      const stride = inner.size === 1 ? outer.stride : inner.stride
      const merged = { name: p.axis as string, size: outer.size * inner.size, stride }
      return { ...x, dimensions: x.dimensions.filter((d) => d !== inner).map((d) => (d === outer ? merged : d)) }
    }
    case "slice": {
      const axis = x.dimensions.find((d) => d.name === p.axis)!
      return {
        ...x,
        offset: x.offset + p.start * axis.stride,
        dimensions: x.dimensions.map((d) => (d === axis ? { name: p.to, size: p.size, stride: d.stride } : d))
      }
    }
    case "broadcast": {
      const out = e.outputs[0]!.type.axes
      return {
        ...x,
        dimensions: out.map(
          (a) => x.dimensions.find((d) => d.name === a.name) ?? { name: a.name, size: a.size, stride: 0 }
        )
      }
    }
    default:
      return null
  }
}

/** Members of a flat axis are windows of it. */
export const unpackedViews = (e: Equation, x: View): ReadonlyArray<View> => {
  const p = e.params as PackParams
  const flat = x.dimensions.find((d) => d.name === p.axis)!
  return p.members.map(({ axes, start }) => ({
    ...x,
    offset: x.offset + start * flat.stride,
    dimensions: [
      ...x.dimensions.filter((d) => d !== flat),
      ...dimensions(axes).map((d) => ({ ...d, stride: d.stride * flat.stride }))
    ]
  }))
}
