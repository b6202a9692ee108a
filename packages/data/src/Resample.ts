/**
 * Pillow's antialiased resize, bit for bit: separable, 8-bit between the passes, weights in 22-bit fixed point.
 * sharp and Pillow differ by several grey levels, and published CLIP and ViT numbers are Pillow's.
 *
 * @source python-pillow/Pillow src/libImaging/Resample.c
 */
import * as Image from "./Image.ts"

/** The kernel: `bicubic` has a = -0.5. */
export type Interpolation = "bilinear" | "bicubic"

/** A rectangle of whole pixels inside an image. */
export interface Box {
  readonly top: number
  readonly left: number
  readonly height: number
  readonly width: number
}

const fractionBits = 22
const half = 1 << (fractionBits - 1)

const triangle = (x: number): number => Math.max(0, 1 - Math.abs(x))

const cubic = (x: number): number => {
  const a = -0.5
  const d = Math.abs(x)
  if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1
  if (d < 2) return (((d - 5) * d + 8) * d - 4) * a
  return 0
}

interface Weights {
  /** weights a target pixel uses at most */
  readonly width: number
  /** first source pixel of every target pixel */
  readonly first: Int32Array
  /** weights in use of every target pixel */
  readonly used: Int32Array
  /** `[target, width]` in fixed point */
  readonly fixed: Int32Array
}

const weights = (source: number, target: number, interpolation: Interpolation): Weights => {
  const kernel = interpolation === "bilinear" ? triangle : cubic
  const scale = source / target
  const stretch = Math.max(1, scale)
  const support = (interpolation === "bilinear" ? 1 : 2) * stretch
  const width = Math.ceil(support) * 2 + 1
  const first = new Int32Array(target)
  const used = new Int32Array(target)
  const fixed = new Int32Array(target * width)
  const row = new Float64Array(width)
  for (let at = 0; at < target; at++) {
    const center = (at + 0.5) * scale
    const start = Math.max(0, Math.trunc(center - support + 0.5))
    const count = Math.min(source, Math.trunc(center + support + 0.5)) - start
    let sum = 0
    for (let i = 0; i < count; i++) {
      row[i] = kernel((i + start - center + 0.5) / stretch)
      sum += row[i]!
    }
    for (let i = 0; i < count; i++) {
      const weight = sum === 0 ? row[i]! : row[i]! / sum
      fixed[at * width + i] = Math.trunc((weight < 0 ? -0.5 : 0.5) + weight * (1 << fractionBits))
    }
    first[at] = start
    used[at] = count
  }
  return { width, first, used, fixed }
}

/**
 * The `box` of an image (default: all of it) at another size. `[row, col, channel]` to `[height, width, channel]`,
 * grey levels 0 to 255. Pixels outside the box are never looked at.
 */
export const resize = (
  image: Image.RawImage,
  size: { readonly height: number; readonly width: number },
  interpolation: Interpolation,
  box: Box = { top: 0, left: 0, height: image.height, width: image.width }
): Image.RawImage => {
  const wide =
    size.width === box.width
      ? cut(image, box)
      : horizontal(image, box, weights(box.width, size.width, interpolation), size.width)
  return size.height === box.height
    ? wide
    : vertical(wide, weights(box.height, size.height, interpolation), size.height)
}

/** The pixels of a box as an image of its own. */
export const cut = (image: Image.RawImage, box: Box): Image.RawImage => {
  const { channels, data, height, width } = image
  if (box.height === height && box.width === width) return image
  const out = new Uint8Array(box.height * box.width * channels)
  for (let row = 0; row < box.height; row++) {
    const from = ((box.top + row) * width + box.left) * channels
    out.set(data.subarray(from, from + box.width * channels), row * box.width * channels)
  }
  return Image.raw(box.height, box.width, channels, out)
}

const clip = (sum: number): number => {
  const value = sum >> fractionBits
  return value < 0 ? 0 : value > 255 ? 255 : value
}

const horizontal = (image: Image.RawImage, box: Box, table: Weights, width: number): Image.RawImage => {
  const { channels, data } = image
  const { first, fixed, used } = table
  const out = new Uint8Array(box.height * width * channels)
  let to = 0
  for (let row = 0; row < box.height; row++) {
    const line = ((box.top + row) * image.width + box.left) * channels
    for (let col = 0; col < width; col++) {
      const count = used[col]!
      const weight = col * table.width
      let from = line + first[col]! * channels
      if (channels === 3) {
        let red = half
        let green = half
        let blue = half
        for (let i = 0; i < count; i++, from += 3) {
          const w = fixed[weight + i]!
          red += data[from]! * w
          green += data[from + 1]! * w
          blue += data[from + 2]! * w
        }
        out[to++] = clip(red)
        out[to++] = clip(green)
        out[to++] = clip(blue)
      } else {
        let grey = half
        for (let i = 0; i < count; i++) grey += data[from + i]! * fixed[weight + i]!
        out[to++] = clip(grey)
      }
    }
  }
  return Image.raw(box.height, width, channels, out)
}

const vertical = (image: Image.RawImage, table: Weights, height: number): Image.RawImage => {
  const { channels, data } = image
  const { first, fixed, used } = table
  const line = image.width * channels
  const out = new Uint8Array(height * line)
  const sums = new Int32Array(line)
  for (let row = 0; row < height; row++) {
    sums.fill(half)
    for (let i = 0; i < used[row]!; i++) {
      const w = fixed[row * table.width + i]!
      const from = (first[row]! + i) * line
      for (let at = 0; at < line; at++) sums[at] = sums[at]! + data[from + at]! * w
    }
    const to = row * line
    for (let at = 0; at < line; at++) out[to + at] = clip(sums[at]!)
  }
  return Image.raw(height, image.width, channels, out)
}
