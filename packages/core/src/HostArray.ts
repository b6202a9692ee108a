import * as Axis from "./Axis.ts"
import * as DType from "./DType.ts"

/** An array of the reference evaluator: every element a double, whatever the storage type. Axes in memory order. */
export interface HostArray {
  readonly axes: Axis.Axes
  readonly dtype: DType.DType
  readonly data: Float64Array
}

export const make = (axes: Axis.Axes, dtype: DType.DType, data: ArrayLike<number>): HostArray => {
  if (data.length !== Axis.count(axes)) {
    throw new RangeError(`array of ${Axis.print(axes)} needs ${Axis.count(axes)} elements, found ${data.length}`)
  }
  return { axes, dtype, data: Float64Array.from(data, (v) => DType.store(dtype, v)) }
}

export const scalar = (value: number, dtype: DType.DType = "f32"): HostArray => make([], dtype, [value])

/** For every element of `within` (row-major), its offset in an array with axes `axes`; stride 0 along axes it lacks. */
export const offsets = (axes: Axis.Axes, within: Axis.Axes): Int32Array => {
  let table = Int32Array.of(0)
  for (const axis of within) {
    const stride = strideOf(axes, axis.name)
    const next = new Int32Array(table.length * axis.size)
    for (let k = 0, i = 0; i < table.length; i++) {
      for (let j = 0; j < axis.size; j++) next[k++] = table[i]! + j * stride
    }
    table = next
  }
  return table
}

/** Elements between neighbours along `name`; 0 when the axis is absent. */
export const strideOf = (axes: Axis.Axes, name: string): number => {
  const at = axes.findIndex((a) => a.name === name)
  return at < 0 ? 0 : Axis.count(axes.slice(at + 1))
}

/** The same array with its axes in another memory order. */
export const reorder = (x: HostArray, axes: Axis.Axes): HostArray => {
  if (axes.every((a, i) => x.axes[i]!.name === a.name)) return x
  const at = offsets(x.axes, axes)
  return { axes, dtype: x.dtype, data: Float64Array.from(at, (o) => x.data[o]!) }
}

/** Elements start .. start+size along one axis; the axis keeps its name. */
export const slice = (x: HostArray, name: string, start: number, size: number): HostArray => {
  const axes = x.axes.map((a) => (a.name === name ? Axis.make(name, size) : a))
  const base = start * strideOf(x.axes, name)
  return { axes, dtype: x.dtype, data: Float64Array.from(offsets(x.axes, axes), (o) => x.data[o + base]!) }
}

/** Drops `name` by taking element `index`. */
export const at = (x: HostArray, name: string, index: number): HostArray => {
  const axes = Axis.without(x.axes, [name])
  const base = index * strideOf(x.axes, name)
  return { axes, dtype: x.dtype, data: Float64Array.from(offsets(x.axes, axes), (o) => x.data[o + base]!) }
}

/** Arrays of one type along a new first axis. */
export const stack = (
  xs: ReadonlyArray<HostArray>,
  axis: Axis.Axis,
  like: { readonly axes: Axis.Axes; readonly dtype: DType.DType }
): HostArray => {
  const data = new Float64Array(axis.size * Axis.count(like.axes))
  xs.forEach((x, i) => data.set(reorder(x, like.axes).data, i * x.data.length))
  return { axes: [axis, ...like.axes], dtype: like.dtype, data }
}

/** Largest difference of two arrays, by axis name; NaN equals NaN, equal infinities are equal. */
export const distance = (x: HostArray, y: HostArray): number => {
  if (!Axis.equal(x.axes, y.axes)) return Infinity
  const z = reorder(y, x.axes)
  let worst = 0
  for (let i = 0; i < x.data.length; i++) {
    const [a, b] = [x.data[i]!, z.data[i]!]
    if (Object.is(a, b) || a === b || (Number.isNaN(a) && Number.isNaN(b))) continue
    const d = Math.abs(a - b)
    worst = Math.max(worst, Number.isNaN(d) ? Infinity : d)
  }
  return worst
}

/** Typed array of storage for `count` elements (16-bit floats as their bits). */
export type Storage = Float32Array | Uint16Array | Int32Array | Uint32Array | Uint8Array

export const storageOf = (dtype: DType.DType, buffer: ArrayBufferLike, byteOffset: number, count: number): Storage => {
  switch (dtype) {
    case "f32":
      return new Float32Array(buffer, byteOffset, count)
    case "bf16":
    case "f16":
      return new Uint16Array(buffer, byteOffset, count)
    case "i32":
      return new Int32Array(buffer, byteOffset, count)
    case "u32":
      return new Uint32Array(buffer, byteOffset, count)
    default:
      return new Uint8Array(buffer, byteOffset, count)
  }
}

/** Elements as stored bytes, in the array's memory order. */
export const toBytes = (x: HostArray): Uint8Array => {
  const bytes = new Uint8Array(x.data.length * DType.bytesOf(x.dtype))
  const storage = storageOf(x.dtype, bytes.buffer, 0, x.data.length)
  const convert = x.dtype === "bf16" ? DType.toBf16Bits : x.dtype === "f16" ? DType.toF16Bits : (v: number) => v
  for (let i = 0; i < x.data.length; i++) storage[i] = convert(x.data[i]!)
  return bytes
}

export const fromBytes = (axes: Axis.Axes, dtype: DType.DType, bytes: Uint8Array): HostArray => {
  const count = Axis.count(axes)
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice()
  const storage = storageOf(dtype, aligned.buffer, aligned.byteOffset, count)
  const convert = dtype === "bf16" ? DType.fromBf16Bits : dtype === "f16" ? DType.fromF16Bits : (v: number) => v
  return { axes, dtype, data: Float64Array.from(storage, convert) }
}
