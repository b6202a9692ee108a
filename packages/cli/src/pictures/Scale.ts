/** Axes: where the ticks go, how numbers are written, how curves are thinned and smoothed. */

export interface Point {
  readonly x: number
  readonly y: number
}

/** Round values (1, 2, 2.5 or 5 times a power of ten) from within the range, about `target` of them. */
export const ticks = (low: number, high: number, target: number): ReadonlyArray<number> => {
  if (!(high > low)) return [low]
  const rough = (high - low) / Math.max(1, target)
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999) ?? 10 * power
  const first = Math.ceil(low / step - 1e-9)
  const last = Math.floor(high / step + 1e-9)
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)))
}

/** A range that begins and ends at ticks. */
export const niceRange = (low: number, high: number, target: number): readonly [number, number] => {
  if (!(high > low)) return [low - 0.5, high + 0.5]
  const marks = ticks(low, high, target)
  const step = marks.length > 1 ? marks[1]! - marks[0]! : high - low
  return [Math.floor(low / step + 1e-9) * step, Math.ceil(high / step - 1e-9) * step]
}

/** `0.25`, `12k`, `1.5M`, `2e-5`. */
export const numberText = (value: number): string => {
  const size = Math.abs(value)
  const trim = (text: string) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text)
  if (size >= 1e6) return `${trim((value / 1e6).toFixed(2))}M`
  if (size >= 1e4) return `${trim((value / 1e3).toFixed(1))}k`
  if (size !== 0 && size < 1e-3) return value.toExponential(1).replace(".0e", "e")
  return trim(value.toFixed(size >= 100 ? 1 : size >= 1 ? 2 : 4))
}

/** `97.2%`. */
export const percentText = (value: number): string => `${(value * 100).toFixed(1).replace(/\.0$/, "")}%`

/**
 * Mean over a window of `window` points around each point, so that the curve does not lag; towards the ends the window
 * shrinks on both sides, to a quarter, and then leans inwards. Gaps (not finite) are left out.
 */
export const smooth = (points: ReadonlyArray<Point>, window: number): ReadonlyArray<Point> => {
  const finite = points.filter(({ y }) => Number.isFinite(y))
  const sums = [0]
  for (const { y } of finite) sums.push(sums.at(-1)! + y)
  const half = Math.floor(window / 2)
  return finite.map(({ x }, i) => {
    const reach = Math.max(Math.min(half, i, finite.length - 1 - i), Math.ceil(half / 4))
    const from = Math.max(0, i - reach)
    const to = Math.min(finite.length, i + reach + 1)
    return { x, y: (sums[to]! - sums[from]!) / (to - from) }
  })
}

/** At most `limit` points (about), each stretch keeping its lowest and highest: peaks do not vanish. */
export const thin = (points: ReadonlyArray<Point>, limit: number): ReadonlyArray<Point> => {
  const finite = points.filter(({ x, y }) => Number.isFinite(x) && Number.isFinite(y))
  if (finite.length <= limit) return finite
  const size = Math.ceil(finite.length / (limit / 2))
  const out: Array<Point> = []
  for (let from = 0; from < finite.length; from += size) {
    const part = finite.slice(from, from + size)
    const low = part.reduce((a, b) => (b.y < a.y ? b : a))
    const high = part.reduce((a, b) => (b.y > a.y ? b : a))
    out.push(...(low.x === high.x ? [low] : low.x < high.x ? [low, high] : [high, low]))
  }
  const last = finite.at(-1)!
  return out.at(-1)!.x === last.x ? out : [...out, last]
}

/** The value below which the given share of the values lies. */
export const quantile = (values: ReadonlyArray<number>, share: number): number => {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(share * (sorted.length - 1))))] ?? 0
}
