/** Images with what the model said of them: a green frame where it was right, a red one where it was not. */
import * as Effect from "effect/Effect"
import * as Glyphs from "./Glyphs.ts"
import type { ImageSource, PictureError } from "./Render.ts"
import { dataUri, squarePng, svgToPng } from "./Render.ts"

export interface Sample {
  readonly image: ImageSource
  /** The true label, where it is known. */
  readonly label?: string
  readonly predicted: string
  /** Probability of the predicted label, 0 to 1. */
  readonly confidence?: number
}

export interface GridOptions {
  readonly title?: string
  readonly columns?: number
  /** Side of one image, in pixels; 128 by default. */
  readonly imageSize?: number
  /** Pixels per unit: 2 is sharp on dense screens. */
  readonly scale?: number
}

const palette = {
  right: "#16a34a",
  wrong: "#dc2626",
  unknown: "#64748b",
  ink: "#1f2937",
  muted: "#6b7280",
  paper: "#ffffff",
  rest: "#eef0f3"
} as const

const gap = 16
const margin = 20
const textHeight = 50

const colorOf = ({ label, predicted }: Sample) =>
  label === undefined ? palette.unknown : label === predicted ? palette.right : palette.wrong

/** A share as a filled bar. */
const bar = (share: number, x: number, y: number, width: number, color: string): string => {
  const filled = Math.round(Math.max(0, Math.min(1, share)) * width)
  const strip = (length: number, fill: string) =>
    `<rect x="${x}" y="${y}" width="${length}" height="4" rx="2" fill="${fill}"/>`
  return strip(width, palette.rest) + strip(filled, color)
}

/** One image with its frame and its lines; [x, y] is the upper left corner. */
const drawCell = (sample: Sample, png: Uint8Array, x: number, y: number, size: number): string => {
  const color = colorOf(sample)
  const percent = sample.confidence === undefined ? "" : `${Math.round(sample.confidence * 100)}%`
  const percentWidth = percent === "" ? 0 : Glyphs.measure(percent, 12) + 8
  const predicted = Glyphs.shorten(sample.predicted, 12.5, size - percentWidth)
  const wrong = sample.label !== undefined && sample.label !== sample.predicted
  const below = wrong ? Glyphs.shorten(`true: ${sample.label}`, 11.5, size) : ""
  return [
    `<rect x="${x - 3}" y="${y - 3}" width="${size + 6}" height="${size + 6}" rx="7" fill="${color}"/>`,
    `<clipPath id="c${x}-${y}"><rect x="${x}" y="${y}" width="${size}" height="${size}" rx="4.5"/></clipPath>`,
    `<g clip-path="url(#c${x}-${y})"><rect x="${x}" y="${y}" width="${size}" height="${size}" fill="${palette.rest}"/>`,
    `<image x="${x}" y="${y}" width="${size}" height="${size}" href="${dataUri(png)}"/></g>`,
    Glyphs.text(predicted, { x, y: y + size + 21, size: 12.5, color, bold: true }),
    percent === ""
      ? ""
      : Glyphs.text(percent, { x: x + size, y: y + size + 21, size: 12, color: palette.ink, anchor: "end" }),
    sample.confidence === undefined ? "" : bar(sample.confidence, x, y + size + 29, size, color),
    below === "" ? "" : Glyphs.text(below, { x, y: y + size + 47, size: 11.5, color: palette.muted })
  ].join("")
}

/** `18 of 20 right`. */
const summary = (samples: ReadonlyArray<Sample>): string => {
  const known = samples.filter(({ label }) => label !== undefined)
  const right = known.filter(({ label, predicted }) => label === predicted).length
  return known.length === 0 ? `${samples.length} samples` : `${right} of ${known.length} right`
}

/** Draws the grid as PNG. */
export const sampleGrid = (
  samples: ReadonlyArray<Sample>,
  options: GridOptions = {}
): Effect.Effect<Uint8Array, PictureError> =>
  Effect.gen(function* () {
    const { imageSize: size = 128, scale = 2, title = "Predictions" } = options
    const columns = Math.max(1, Math.min(options.columns ?? 6, Math.max(samples.length, 2)))
    const rows = Math.max(1, Math.ceil(samples.length / columns))
    const top = margin + 34
    const width = 2 * margin + columns * size + (columns - 1) * gap
    const height = top + rows * (size + textHeight) + (rows - 1) * (gap - 6) + margin - 6
    const pngs = yield* Effect.forEach(samples, ({ image }) => squarePng("sample grid", image, size * scale), {
      concurrency: 2
    })
    const cells = samples.map((sample, i) => {
      const x = margin + (i % columns) * (size + gap)
      const y = top + Math.floor(i / columns) * (size + textHeight + gap - 6)
      return drawCell(sample, pngs[i]!, x, y, size)
    })
    const note = summary(samples)
    const room = width - 2 * margin - Glyphs.measure(note, 12.5) - 16
    const svg = [
      `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">`,
      `<rect width="${width}" height="${height}" fill="${palette.paper}"/>`,
      Glyphs.text(Glyphs.shorten(title, 17, room), {
        x: margin,
        y: margin + 14,
        size: 17,
        color: palette.ink,
        bold: true
      }),
      Glyphs.text(note, { x: width - margin, y: margin + 14, size: 12.5, color: palette.muted, anchor: "end" }),
      ...cells,
      "</svg>"
    ].join("")
    return yield* svgToPng("sample grid", svg, scale)
  })
