import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"

/** The largest difference of two arrays in units of the larger one (at least 1); by axis name. */
export const relative = (x: HostArray, y: HostArray): number => {
  let largest = 1
  for (const a of [x, y]) for (const v of a.data) if (Number.isFinite(v)) largest = Math.max(largest, Math.abs(v))
  return Host.distance(x, y) / largest
}

export interface Gap {
  readonly output: number
  readonly distance: number
}

/** The output that differs most. */
export const widest = (xs: ReadonlyArray<HostArray>, ys: ReadonlyArray<HostArray>): Gap => {
  let worst: Gap = { output: 0, distance: 0 }
  xs.forEach((x, output) => {
    const distance = relative(x, ys[output]!)
    if (distance > worst.distance) worst = { output, distance }
  })
  return worst
}
