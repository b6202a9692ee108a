/** Difference quotients in float64. */
import type { HostArray } from "../HostArray.ts"

/** What a derivative along a line is judged by. */
export interface Quotient {
  /** Of fourth order. */
  readonly value: number
  /** Where quotients of two widths disagree there is a kink or a jump nearby, and neither says anything. */
  readonly smooth: boolean
}

const width = 2e-4

/** The derivative of a function of one number at 0. @source Abramowitz and Stegun 1964, table 25.2 (five points, first derivative) */
export const at = (f: (t: number) => number, scale: number, tolerance: number): Quotient => {
  const [near, far] = [1, 2].map((k) => (f(k * width) - f(-k * width)) / (2 * k * width)) as [number, number]
  const value = (4 * near - far) / 3
  return { value, smooth: Number.isFinite(value) && Math.abs(near - far) <= 30 * tolerance * Math.max(scale, 1e-3) }
}

/** An array moved along a direction. */
export const moved = (x: HostArray, direction: HostArray, t: number): HostArray => ({
  ...x,
  data: x.data.map((v, k) => v + t * direction.data[k]!)
})
