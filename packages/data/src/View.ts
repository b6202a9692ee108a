/**
 * A picture seen through a window: crops and flips only move the window, so any chain of them costs nothing until the
 * pixels are written, once, into a batch.
 */
import * as Image from "./Image.ts"
import type { Box } from "./Resample.ts"

/** What lies outside the picture: black, or its mirror image (the edge is not repeated). */
export type Outside = "zero" | "reflect"

/** `window` in the coordinates of `image`, possibly reaching outside; `flipped` is left to right, after the window. */
export interface View {
  readonly image: Image.RawImage
  readonly window: Box
  readonly flipped: boolean
  readonly outside: Outside
}

export const of = (image: Image.RawImage): View => ({
  image,
  window: { top: 0, left: 0, height: image.height, width: image.width },
  flipped: false,
  outside: "zero"
})

/** A box of what is seen, which may reach outside it when the view is a whole image. */
export const crop = (view: View, box: Box, outside: Outside = "zero"): View => {
  const { window } = view
  const reaches =
    box.top < 0 || box.left < 0 || box.top + box.height > window.height || box.left + box.width > window.width
  // Outside means outside of what is seen, so a window that already is a part of its image becomes an image first.
  const base = reaches && !isWhole(view) ? of(toImage(view)) : view
  const left = base.flipped ? base.window.width - box.left - box.width : box.left
  return {
    image: base.image,
    window: { top: base.window.top + box.top, left: base.window.left + left, height: box.height, width: box.width },
    flipped: base.flipped,
    outside: reaches ? outside : base.outside
  }
}

/** Left and right exchanged. */
export const flip = (view: View): View => ({ ...view, flipped: !view.flipped })

const isWhole = ({ image, window }: View): boolean =>
  window.top === 0 && window.left === 0 && window.height === image.height && window.width === image.width

const isInside = ({ image, window }: View): boolean =>
  window.top >= 0 &&
  window.left >= 0 &&
  window.top + window.height <= image.height &&
  window.left + window.width <= image.width

/** Source coordinate of `at` in a picture of `size`, or -1 for black. */
const reflected = (at: number, size: number, outside: Outside): number => {
  if (at >= 0 && at < size) return at
  if (outside === "zero") return -1
  if (size === 1) return 0
  const period = 2 * (size - 1)
  const folded = ((at % period) + period) % period
  return folded < size ? folded : period - folded
}

/** The pixels seen, as an image of its own. */
export const toImage = (view: View): Image.RawImage => {
  if (isWhole(view) && !view.flipped) return view.image
  const { channels, data } = view.image
  const { height, left, top, width } = view.window
  const out = new Uint8Array(height * width * channels)
  for (let row = 0; row < height; row++) {
    const sourceRow = reflected(top + row, view.image.height, view.outside)
    if (sourceRow < 0) continue
    for (let col = 0; col < width; col++) {
      const sourceCol = reflected(left + (view.flipped ? width - 1 - col : col), view.image.width, view.outside)
      if (sourceCol < 0) continue
      const from = (sourceRow * view.image.width + sourceCol) * channels
      const to = (row * width + col) * channels
      for (let channel = 0; channel < channels; channel++) out[to + channel] = data[from + channel]!
    }
  }
  return Image.raw(height, width, channels, out)
}

/**
 * Writes the pixels seen into `out` from `at` on, `[row, col, channel]`, each through `table`: `[channel, 256]` floats
 * by grey level. Black outside goes through the table too.
 */
export const write = (view: View, table: Float32Array, out: Float32Array, at: number): void => {
  if (!isInside(view) && view.outside === "reflect") return write(of(toImage(view)), table, out, at)
  const { image, window } = view
  const { channels, data } = image
  const step = view.flipped ? -channels : channels
  // Target columns [firstCol, endCol) see the picture; the window may miss it on either side.
  const missLeft = clamp(-window.left, 0, window.width)
  const missRight = clamp(window.left + window.width - image.width, 0, window.width)
  const firstCol = view.flipped ? missRight : missLeft
  const endCol = window.width - (view.flipped ? missLeft : missRight)
  let to = at
  for (let row = 0; row < window.height; row++) {
    const sourceRow = window.top + row
    if (sourceRow < 0 || sourceRow >= image.height) {
      to = black(table, channels, out, to, window.width)
      continue
    }
    to = black(table, channels, out, to, firstCol)
    const sourceCol = window.left + (view.flipped ? window.width - 1 - firstCol : firstCol)
    let from = (sourceRow * image.width + sourceCol) * channels
    if (channels === 3) {
      for (let col = firstCol; col < endCol; col++, from += step, to += 3) {
        out[to] = table[data[from]!]!
        out[to + 1] = table[256 + data[from + 1]!]!
        out[to + 2] = table[512 + data[from + 2]!]!
      }
    } else {
      for (let col = firstCol; col < endCol; col++, from += step) out[to++] = table[data[from]!]!
    }
    to = black(table, channels, out, to, window.width - Math.max(firstCol, endCol))
  }
}

const clamp = (value: number, least: number, most: number): number => Math.min(most, Math.max(least, value))

const black = (table: Float32Array, channels: number, out: Float32Array, at: number, count: number): number => {
  let to = at
  for (let col = 0; col < count; col++)
    for (let channel = 0; channel < channels; channel++) out[to++] = table[channel * 256]!
  return to
}
