/** When two arrays of one storage type mean the same. */
import * as Axis from "@tessera/core/Axis"
import * as DType from "@tessera/core/DType"
import * as Host from "@tessera/core/HostArray"
import type { Sample } from "../samples/Sample.ts"

/** Relative errors a kernel may make: some roundings of the storage type, some of f32 sums. */
const relative: Readonly<Record<string, number>> = { f32: 5e-5, bf16: 2 ** -6, f16: 2 ** -8 }

/** Where every intermediate is rounded, the sums of the two sides fall on either side of a tie now and then. */
const roundings: Readonly<Record<string, number>> = { bf16: 2 ** -5, f16: 2 ** -8 }

/** Differences of almost equal numbers, divided by their size: rows of two elements lose some digits in f32. */
const cancelling: Readonly<Record<string, number>> = { norm: 5e-4, normBackward: 5e-4 }

/** The relative error that an output of a sample may have. */
export const allowed = (s: Sample, dtype: DType.DType): number => {
  // Inside one kernel 16-bit values are rounded once at the end, by the evaluator after every equation.
  if (s.primitive.meaning.kind === "region" && dtype !== "f32") return 2 ** -4
  const own = dtype === "f32" ? (cancelling[s.primitive.name] ?? 0) : 0
  return Math.max(roundings[s.params.calculation as string] ?? 0, relative[dtype] ?? 0, own)
}

/** What f32 storage makes of an ideal value. */
const held = (dtype: DType.DType, value: number): number =>
  dtype === "f32" && Math.abs(value) > DType.maxOf("f32") ? Math.sign(value) * Infinity : value

/**
 * The first disagreement, or null. Floats agree within the type's relative error of their own size or, where terms cancel, of the largest
 * finite value of the expected array or of the operands; NaN and infinities stand in the same places; integers and booleans are equal.
 */
export const disagreement = (
  expected: Host.HostArray,
  found: Host.HostArray,
  operands: ReadonlyArray<Host.HostArray> = [],
  tolerance = relative[expected.dtype] ?? 0
): string | null => {
  if (expected.dtype !== found.dtype) return `dtype ${found.dtype}, expected ${expected.dtype}`
  if (!Axis.equal(expected.axes, found.axes))
    return `axes ${Axis.print(found.axes)}, expected ${Axis.print(expected.axes)}`
  const other = Host.reorder(found, expected.axes)
  const isFloat = DType.kindOf(expected.dtype) === "float"
  let scale = 1e-3
  for (const v of expected.data) if (Number.isFinite(v) && Math.abs(v) < 1e30) scale = Math.max(scale, Math.abs(v))
  for (const x of operands) {
    if (DType.kindOf(x.dtype) !== "float") continue
    for (const v of x.data) if (Math.abs(v) < 100) scale = Math.max(scale, Math.abs(v))
  }
  for (let i = 0; i < expected.data.length; i++) {
    const [a, b] = [held(expected.dtype, expected.data[i]!), other.data[i]!]
    if (a === b || (Number.isNaN(a) && Number.isNaN(b))) continue
    const within = isFloat && Math.abs(a - b) <= tolerance * Math.max(Math.abs(a), scale)
    if (!within) return `element ${i}: ${b}, expected ${a}`
  }
  return null
}
