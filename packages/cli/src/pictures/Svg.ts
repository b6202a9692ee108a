/** Curves of a run as SVG, light and dark, without dependencies. */
import * as Glyphs from "./Glyphs.ts"
import type { Point } from "./Scale.ts"
import { niceRange, numberText, percentText, quantile, smooth, thin, ticks } from "./Scale.ts"

export interface Series {
  readonly name: string
  readonly color: string
  readonly points: ReadonlyArray<Point>
  /** Draws the points faintly and a moving average over them. Otherwise a line with a dot at each point. */
  readonly smoothed?: boolean
}

export interface Chart {
  readonly title: string
  readonly xLabel: string
  readonly yLabel: string
  readonly series: ReadonlyArray<Series>
  readonly percent?: boolean
  /** Marks the best point of the series without smoothing. */
  readonly best?: "min" | "max"
}

export interface SvgOptions {
  readonly width?: number
  readonly height?: number
  /**
   * `auto` follows the reader's light or dark setting, `light` is fixed. Text is drawn with the built-in letters in
   * `light`, which is meant for rendering to pixels, and with the system's font in `auto`.
   */
  readonly theme?: "auto" | "light"
}

export const colors = { train: "#3b82f6", validation: "#f97316", rate: "#10b981" } as const

const light = { ink: "#1f2937", muted: "#6b7280", grid: "#e5e7eb", paper: "#ffffff" } as const
const dark = { ink: "#e5e7eb", muted: "#9ca3af", grid: "#2d3540", paper: "#12161c" } as const

type Role = keyof typeof light

/** The style of `auto` pictures, under names that do not collide within a page. */
const style = `<style>
.tsr-ink{fill:${light.ink}}.tsr-muted{fill:${light.muted}}.tsr-grid{stroke:${light.grid}}.tsr-paper{fill:${light.paper}}
@media (prefers-color-scheme:dark){.tsr-ink{fill:${dark.ink}}.tsr-muted{fill:${dark.muted}}.tsr-grid{stroke:${dark.grid}}.tsr-paper{fill:${dark.paper}}}
</style>`

const escape = (text: string) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;")

interface Pen {
  readonly text: (content: string, style: Omit<Glyphs.TextStyle, "color"> & { readonly role: Role }) => string
  readonly paint: (role: Role, property: "fill" | "stroke") => string
}

const penOf = (theme: "auto" | "light"): Pen =>
  theme === "light"
    ? {
        text: (content, { role, ...rest }) => Glyphs.text(content, { ...rest, color: light[role] }),
        paint: (role, property) => `${property}="${light[role]}"`
      }
    : {
        text: (content, { role, x, y, size, anchor = "start", bold = false, rotate }) => {
          const turn = rotate === undefined ? "" : ` transform="rotate(${rotate} ${x} ${y})"`
          const weight = bold ? ` font-weight="600"` : ""
          return `<text x="${x}" y="${y}" font-size="${size}" text-anchor="${anchor}" class="tsr-${role}"${weight}${turn}>${escape(content)}</text>`
        },
        paint: (role) => `class="tsr-${role}"`
      }

interface Frame {
  readonly left: number
  readonly top: number
  readonly width: number
  readonly height: number
}

const round = (value: number) => Math.round(value * 10) / 10

const finite = (points: ReadonlyArray<Point>) => points.filter(({ x, y }) => Number.isFinite(x) && Number.isFinite(y))

/** Range of the values: a few wild raw points may leave the picture, averages and plain series may not. */
const rangeOf = (chart: Chart): readonly [number, number] => {
  const values = chart.series.flatMap(({ points, smoothed }) => {
    const all = finite(points)
    if (smoothed !== true) return all.map(({ y }) => y)
    const raw = all.map(({ y }) => y)
    return [...smooth(all, windowOf(all.length)).map(({ y }) => y), quantile(raw, 0.01), quantile(raw, 0.99)]
  })
  if (values.length === 0) return [0, 1]
  const low = values.reduce((a, b) => Math.min(a, b))
  const high = values.reduce((a, b) => Math.max(a, b))
  if (chart.percent === true) return [Math.max(0, low), Math.min(1, Math.max(high, low + 0.01))]
  // Losses are read against zero unless the curve lives far above it.
  return [low > 0 && low < high * 0.5 ? 0 : low, high]
}

const windowOf = (count: number) => Math.min(200, Math.max(1, Math.round(count / 40)))

const lineOf = (points: ReadonlyArray<Point>, x: (v: number) => number, y: (v: number) => number) =>
  points.map((point, i) => `${i === 0 ? "M" : "L"}${round(x(point.x))} ${round(y(point.y))}`).join("")

const legend = (chart: Chart, pen: Pen, right: number, y: number): string => {
  let x = right
  const parts: Array<string> = []
  for (const { name, color, smoothed } of chart.series.toReversed()) {
    x -= Glyphs.measure(name, 12) + 4
    parts.push(pen.text(name, { x, y, size: 12, role: "muted" }))
    x -= 22
    parts.push(`<path d="M${x} ${y - 4}h16" stroke="${color}" stroke-width="2.5" stroke-linecap="round"/>`)
    if (smoothed !== true) parts.push(`<circle cx="${x + 8}" cy="${y - 4}" r="3" fill="${color}"/>`)
    x -= 14
  }
  return parts.join("")
}

const drawSeries = (series: Series, x: (v: number) => number, y: (v: number) => number, frame: Frame): string => {
  const all = finite(series.points)
  if (all.length === 0) return ""
  const path = (points: ReadonlyArray<Point>, extra: string) =>
    `<path d="${lineOf(points, x, y)}" fill="none" stroke="${series.color}" stroke-linejoin="round" stroke-linecap="round" ${extra}/>`
  if (series.smoothed === true) {
    const raw = thin(all, frame.width * 3)
    const average = thin(smooth(all, windowOf(all.length)), frame.width)
    return path(raw, `stroke-width="1" stroke-opacity="0.25"`) + path(average, `stroke-width="2.2"`)
  }
  const dots =
    all.length > 60
      ? ""
      : all.map((p) => `<circle cx="${round(x(p.x))}" cy="${round(y(p.y))}" r="2.8" fill="${series.color}"/>`).join("")
  return path(thin(all, frame.width), `stroke-width="2.2"`) + dots
}

/** The best value of the first plain series, as a ring with its number beside it. */
const drawBest = (chart: Chart, pen: Pen, x: (v: number) => number, y: (v: number) => number, frame: Frame): string => {
  const series = chart.series.find(({ smoothed }) => smoothed !== true)
  const points = finite(series?.points ?? [])
  if (series === undefined || chart.best === undefined || points.length === 0) return ""
  const better = chart.best === "min" ? (a: number, b: number) => a < b : (a: number, b: number) => a > b
  const best = points.reduce((a, b) => (better(b.y, a.y) ? b : a))
  const text = `best ${chart.percent === true ? percentText(best.y) : numberText(best.y)}`
  const width = Glyphs.measure(text, 12)
  const px = x(best.x)
  const py = y(best.y)
  const leftSide = px + width + 16 > frame.left + frame.width
  const tx = leftSide ? Math.max(frame.left + width + 4, px + 2) : px + 8
  const above = py - frame.top > 26
  const ty = above ? py - 12 : py + 22
  return (
    `<circle cx="${round(px)}" cy="${round(py)}" r="5.5" fill="none" stroke="${series.color}" stroke-width="1.6"/>` +
    pen.text(text, {
      x: round(tx),
      y: round(ty),
      size: 12,
      anchor: leftSide ? "end" : "start",
      role: "ink",
      bold: true
    })
  )
}

const drawChart = (chart: Chart, frame: Frame, pen: Pen, id: string): string => {
  const points = chart.series.flatMap((series) => finite(series.points))
  const xs = points.map((p) => p.x)
  const lowX = xs.reduce((a, b) => Math.min(a, b), xs[0] ?? 0)
  const highX = xs.reduce((a, b) => Math.max(a, b), xs[0] ?? 1)
  const [fromX, toX] = highX > lowX ? [Math.min(lowX, lowX < highX * 0.05 ? 0 : lowX), highX] : [lowX - 0.5, lowX + 0.5]
  const yTarget = Math.max(3, Math.round(frame.height / 48))
  const raw = rangeOf(chart)
  const [fromY, toY] = niceRange(raw[0], raw[1], yTarget)
  const top = chart.percent === true ? Math.min(1, toY) : toY
  const x = (value: number) => frame.left + ((value - fromX) / (toX - fromX)) * frame.width
  const y = (value: number) => frame.top + frame.height - ((value - fromY) / (top - fromY)) * frame.height
  const show = chart.percent === true ? percentText : numberText
  const bottom = frame.top + frame.height
  const rows = ticks(fromY, top, yTarget).map(
    (value) =>
      `<path d="M${frame.left} ${round(y(value))}h${frame.width}" ${pen.paint("grid", "stroke")} stroke-width="1"/>` +
      pen.text(show(value), { x: frame.left - 8, y: round(y(value) + 4), size: 11.5, anchor: "end", role: "muted" })
  )
  const columns = ticks(fromX, toX, Math.max(2, Math.round(frame.width / 90))).map(
    (value) =>
      `<path d="M${round(x(value))} ${bottom}v5" ${pen.paint("grid", "stroke")} stroke-width="1"/>` +
      pen.text(numberText(value), { x: round(x(value)), y: bottom + 19, size: 11.5, anchor: "middle", role: "muted" })
  )
  const middleY = frame.top + frame.height / 2
  return [
    pen.text(chart.title, { x: frame.left, y: frame.top - 18, size: 15, role: "ink", bold: true }),
    legend(chart, pen, frame.left + frame.width, frame.top - 18),
    ...rows,
    ...columns,
    pen.text(chart.xLabel, {
      x: frame.left + frame.width / 2,
      y: bottom + 38,
      size: 12,
      anchor: "middle",
      role: "muted"
    }),
    pen.text(chart.yLabel, { x: frame.left - 50, y: middleY, size: 12, anchor: "middle", role: "muted", rotate: -90 }),
    `<clipPath id="${id}"><rect x="${frame.left - 1}" y="${frame.top - 4}" width="${frame.width + 5}" height="${frame.height + 8}"/></clipPath>`,
    `<g clip-path="url(#${id})">${chart.series.map((series) => drawSeries(series, x, y, frame)).join("")}</g>`,
    drawBest(chart, pen, x, y, frame),
    points.length === 0
      ? pen.text("no data yet", {
          x: frame.left + frame.width / 2,
          y: middleY,
          size: 13,
          anchor: "middle",
          role: "muted"
        })
      : ""
  ].join("")
}

/** Charts side by side (or below each other in a narrow picture) as one SVG. */
export const charts = (all: ReadonlyArray<Chart>, options: SvgOptions = {}): string => {
  const { width = 480 * all.length, height: panelHeight = 320, theme = "auto" } = options
  const perRow = Math.max(1, Math.min(all.length, Math.floor(width / 400)))
  const rows = Math.ceil(all.length / perRow)
  const panelWidth = width / perRow
  const height = panelHeight * rows
  const pen = penOf(theme)
  const margin = { left: 70, right: 22, top: 50, bottom: 50 }
  const body = all.map((chart, i) =>
    drawChart(
      chart,
      {
        left: (i % perRow) * panelWidth + margin.left,
        top: Math.floor(i / perRow) * panelHeight + margin.top,
        width: panelWidth - margin.left - margin.right,
        height: panelHeight - margin.top - margin.bottom
      },
      pen,
      `tsr-clip-${i}`
    )
  )
  const label = escape(all.map(({ title }) => title).join(", "))
  const font = `font-family="system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"`
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${label}" ${font}>${theme === "auto" ? style : ""}<rect width="${width}" height="${height}" ${pen.paint("paper", "fill")}/>${body.join("")}</svg>\n`
}

/** What the curves of a run are drawn from; `metrics.jsonl` holds it. */
export interface History {
  readonly steps: ReadonlyArray<{
    readonly step: number
    readonly loss: number
    readonly accuracy?: number
    readonly learningRate?: number
  }>
  readonly evaluations: ReadonlyArray<{ readonly step: number; readonly loss?: number; readonly accuracy?: number }>
}

const pointsOf = <A extends { readonly step: number }>(all: ReadonlyArray<A>, value: (one: A) => number | undefined) =>
  all.flatMap((one) => {
    const y = value(one)
    return y === undefined ? [] : [{ x: one.step, y }]
  })

/** The charts of a run: loss, accuracy where there is any, learning rate on request. */
export const runCharts = (
  history: History,
  options: { readonly learningRate?: boolean } = {}
): ReadonlyArray<Chart> => {
  const pair = (train: ReadonlyArray<Point>, validation: ReadonlyArray<Point>): ReadonlyArray<Series> => [
    ...(train.length === 0 ? [] : [{ name: "train", color: colors.train, points: train, smoothed: true }]),
    ...(validation.length === 0 ? [] : [{ name: "validation", color: colors.validation, points: validation }])
  ]
  const loss = pair(
    pointsOf(history.steps, (s) => s.loss),
    pointsOf(history.evaluations, (e) => e.loss)
  )
  const accuracy = pair(
    pointsOf(history.steps, (s) => s.accuracy),
    pointsOf(history.evaluations, (e) => e.accuracy)
  )
  const rate = pointsOf(history.steps, (s) => s.learningRate)
  return [
    { title: "Loss", xLabel: "step", yLabel: "loss (nats)", series: loss, best: "min" },
    ...(accuracy.length === 0
      ? []
      : [
          {
            title: "Accuracy",
            xLabel: "step",
            yLabel: "top-1 accuracy",
            series: accuracy,
            percent: true,
            best: "max" as const
          }
        ]),
    ...(options.learningRate === true && rate.length > 0
      ? [
          {
            title: "Learning rate",
            xLabel: "step",
            yLabel: "learning rate",
            series: [{ name: "learning rate", color: colors.rate, points: thin(rate, 600) }]
          }
        ]
      : [])
  ]
}

/** Loss and accuracy of a run as one SVG. */
export const runCurves = (history: History, options: SvgOptions = {}): string => charts(runCharts(history), options)
