/** When two arrays of one storage type mean the same. */
import * as Axis from "@tessera/core/Axis"
import * as DType from "@tessera/core/DType"
import * as Host from "@tessera/core/HostArray"
import * as Dice from "@tessera/core/testing/Dice"
import type { Sample } from "../samples/Sample.ts"

/** Relative errors a kernel may make: some roundings of the storage type, some of f32 sums. */
const relative: Readonly<Record<string, number>> = { f32: 5e-5, bf16: 2 ** -6, f16: 2 ** -8 }

/** Where every intermediate is rounded, the sums of the two sides fall on either side of a tie now and then. */
const roundings: Readonly<Record<string, number>> = { bf16: 2 ** -5, f16: 2 ** -8 }

/** The relative error that an output of a sample may have. */
export const allowed = (s: Sample, dtype: DType.DType): number => {
  // Inside one kernel 16-bit values are rounded once at the end, by the evaluator after every equation.
  if (s.primitive.meaning.kind === "region" && dtype !== "f32") return 2 ** -4
  return Math.max(roundings[s.params.calculation as string] ?? 0, relative[dtype] ?? 0)
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

/** The same floats, each one bit of f32 larger or smaller. */
export const oneBitAway = (arrays: ReadonlyArray<Host.HostArray>, seed: number): ReadonlyArray<Host.HostArray> => {
  const dice = Dice.make(seed)
  const nudge = (v: number) => v * (dice.chance(0.5) ? 1 + 2 ** -23 : 1 - 2 ** -23)
  return arrays.map((x) => (DType.kindOf(x.dtype) === "float" ? { ...x, data: x.data.map(nudge) } : x))
}

/** A result may be off by so many times of what the last bits of its operands do to it. */
export const timesOneBit = 8

/** The exact result, on operands that something was done to. */
export type Exact = (nudge: (arrays: ReadonlyArray<Host.HostArray>) => ReadonlyArray<Host.HostArray>) => Host.HostArray

/**
 * Whether an f32 result that is off is ill-conditioned at every element that is: almost equal numbers are subtracted there, and single bits of the
 * operands move the exact result as much. Norms of two elements do that.
 */
export const isIllConditioned = (
  expected: Host.HostArray,
  found: Host.HostArray,
  exact: Exact,
  judge: (within: Host.HostArray) => string | null
): boolean => {
  if (expected.dtype !== "f32") return false
  const moved = [1, 2, 3, 4].map((seed) =>
    Host.reorder(
      exact((arrays) => oneBitAway(arrays, seed)),
      expected.axes
    )
  )
  const other = Host.reorder(found, expected.axes)
  const data = other.data.map((v, i) => {
    const e = expected.data[i]!
    const most = Math.max(...moved.map((m) => Math.abs(m.data[i]! - e)))
    return Math.abs(v - e) <= timesOneBit * most ? e : v
  })
  return judge({ ...other, data }) === null
}
