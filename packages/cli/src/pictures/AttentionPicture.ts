/** Where a vision transformer looks: attention rollout as a heat map over the image. */
import * as Effect from "effect/Effect"
import * as Glyphs from "./Glyphs.ts"
import type { ImageSource, PictureError } from "./Render.ts"
import { dataUri, enlarge, rgbToPng, svgToPng, toRgb } from "./Render.ts"

/** Attention of one image after the softmax: `[layers, heads, query, key]`, row-major; query and key both count `seq`. */
export interface AttentionWeights {
  readonly layers: number
  readonly heads: number
  readonly seq: number
  readonly data: ArrayLike<number>
}

/** A value per patch, row by row. */
export interface PatchMap {
  readonly rows: number
  readonly columns: number
  readonly data: ArrayLike<number>
}

/**
 * How much each output position is made of each input position, `[seq, seq]` with rows that sum to 1: heads are
 * averaged, the identity is added for the residual path, rows are normalised, and the layers are multiplied.
 *
 * @source Abnar and Zuidema 2020, arXiv:2005.00928, section 3
 */
export const rollout = (attention: AttentionWeights): Float64Array => {
  const { layers, heads, seq, data } = attention
  let joined = Float64Array.from({ length: seq * seq }, (_, i) => (i % (seq + 1) === 0 ? 1 : 0))
  for (let layer = 0; layer < layers; layer++) {
    const mixed = new Float64Array(seq * seq)
    for (let query = 0; query < seq; query++) {
      let total = 0
      for (let key = 0; key < seq; key++) {
        let sum = 0
        for (let head = 0; head < heads; head++) sum += data[((layer * heads + head) * seq + query) * seq + key]!
        const value = sum / heads + (query === key ? 1 : 0)
        mixed[query * seq + key] = value
        total += value
      }
      for (let key = 0; key < seq; key++) mixed[query * seq + key]! /= total
    }
    const next = new Float64Array(seq * seq)
    for (let query = 0; query < seq; query++) {
      for (let middle = 0; middle < seq; middle++) {
        const weight = mixed[query * seq + middle]!
        for (let key = 0; key < seq; key++) next[query * seq + key]! += weight * joined[middle * seq + key]!
      }
    }
    joined = next
  }
  return joined
}

/**
 * The part of a rollout that concerns the patches: what the class token (position 0) gathers, or, without one, the mean
 * over all patches. `grid` is the number of patch rows and columns; other leading tokens count as `leading`.
 */
export const patchMap = (
  attention: AttentionWeights,
  grid: { readonly rows: number; readonly columns: number },
  leading = attention.seq - grid.rows * grid.columns
): PatchMap => {
  const { seq } = attention
  const all = rollout(attention)
  const patches = grid.rows * grid.columns
  const data = new Float64Array(patches)
  const queries = leading > 0 ? [0] : Array.from({ length: seq }, (_, i) => i)
  for (const query of queries) {
    for (let patch = 0; patch < patches; patch++) data[patch]! += all[query * seq + leading + patch]! / queries.length
  }
  return { ...grid, data }
}

/** Stops of a dark-to-bright scale whose lightness grows evenly. */
const heatStops = [
  [13, 8, 66],
  [84, 2, 163],
  [156, 23, 158],
  [204, 71, 120],
  [237, 121, 83],
  [253, 179, 47],
  [250, 235, 90]
] as const

const heatColor = (value: number): readonly [number, number, number] => {
  const at = Math.min(1, Math.max(0, value)) * (heatStops.length - 1)
  const low = Math.min(heatStops.length - 2, Math.floor(at))
  const from = heatStops[low]!
  const to = heatStops[low + 1]!
  const mix = (a: number, b: number) => a + (b - a) * (at - low)
  return [mix(from[0], to[0]), mix(from[1], to[1]), mix(from[2], to[2])]
}

/** The map as bytes from 0 (lowest) to 255 (highest). A map without differences is all low. */
const levels = ({ data }: PatchMap): Uint8Array => {
  const values = Array.from(data)
  const low = values.reduce((a, b) => Math.min(a, b), Infinity)
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity)
  return Uint8Array.from(values, (value) => (high > low ? Math.round(((value - low) / (high - low)) * 255) : 0))
}

export interface AttentionOptions {
  readonly title?: string
  /** Longer side of the image, in pixels; 280 by default. */
  readonly imageSize?: number
  readonly scale?: number
}

const margin = 20
const gap = 18

/** Draws the image and, beside it, the image under the heat map, as PNG. */
export const attentionPicture = (
  source: ImageSource,
  map: PatchMap,
  options: AttentionOptions = {}
): Effect.Effect<Uint8Array, PictureError> =>
  Effect.gen(function* () {
    const { imageSize = 280, scale = 2, title = "Attention rollout" } = options
    const image = yield* toRgb("attention picture", source, imageSize * scale)
    const plane = { width: map.columns, height: map.rows, data: levels(map) }
    const heat = yield* enlarge("attention picture", plane, image.width, image.height)
    const overlay = new Uint8Array(image.data.length)
    for (let i = 0; i < heat.length; i++) {
      const value = heat[i]! / 255
      const color = heatColor(value)
      const alpha = 0.35 + 0.4 * value
      const [r, g, b] = [image.data[3 * i]!, image.data[3 * i + 1]!, image.data[3 * i + 2]!]
      const gray = 0.299 * r + 0.587 * g + 0.114 * b
      for (let c = 0; c < 3; c++) overlay[3 * i + c] = Math.round(gray * (1 - alpha) + color[c as 0 | 1 | 2] * alpha)
    }
    const left = dataUri(yield* rgbToPng("attention picture", image))
    const right = dataUri(yield* rgbToPng("attention picture", { ...image, data: overlay }))
    const width = image.width / scale
    const height = image.height / scale
    const top = margin + 32
    const total = { width: 2 * margin + 2 * width + gap, height: top + height + 34 + margin - 6 }
    const second = margin + width + gap
    const bottom = top + height
    const barWidth = Math.min(90, width / 3)
    const bar = { x: second + width - barWidth - Glyphs.measure("high", 11) - 6, y: bottom + 14, width: barWidth }
    const stops = heatStops.map(
      (c, i) => `<stop offset="${i / (heatStops.length - 1)}" stop-color="rgb(${c.join(",")})"/>`
    )
    const photo = (x: number, href: string, id: string) =>
      `<clipPath id="${id}"><rect x="${x}" y="${top}" width="${width}" height="${height}" rx="6"/></clipPath><image clip-path="url(#${id})" x="${x}" y="${top}" width="${width}" height="${height}" href="${href}"/>`
    const muted = "#6b7280"
    const svg = [
      `<svg xmlns="http://www.w3.org/2000/svg" width="${total.width}" height="${total.height}" viewBox="0 0 ${total.width} ${total.height}">`,
      `<defs><linearGradient id="heat">${stops.join("")}</linearGradient></defs>`,
      `<rect width="100%" height="100%" fill="#ffffff"/>`,
      Glyphs.text(Glyphs.shorten(title, 16, total.width - 2 * margin), {
        x: margin,
        y: margin + 14,
        size: 16,
        color: "#1f2937",
        bold: true
      }),
      photo(margin, left, "a"),
      photo(second, right, "b"),
      Glyphs.text("image", { x: margin, y: bottom + 23, size: 12, color: muted }),
      Glyphs.text("attention", { x: second, y: bottom + 23, size: 12, color: muted }),
      Glyphs.text("low", { x: bar.x - 6, y: bottom + 22, size: 11, color: muted, anchor: "end" }),
      `<rect x="${bar.x}" y="${bar.y}" width="${bar.width}" height="8" rx="4" fill="url(#heat)"/>`,
      Glyphs.text("high", { x: second + width, y: bottom + 22, size: 11, color: muted, anchor: "end" }),
      "</svg>"
    ].join("")
    return yield* svgToPng("attention picture", svg, scale)
  })
