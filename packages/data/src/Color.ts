/**
 * Colour operations on 8-bit images, each with Pillow's own rounding, so that a recipe published with torchvision or
 * timm sees the same pixels.
 *
 * @source python-pillow/Pillow src/PIL/ImageEnhance.py, src/PIL/ImageOps.py, src/libImaging/Blend.c, src/libImaging/Convert.c
 */
import * as Image from "./Image.ts"

/** `from + (to - from) * factor`, truncated and clipped: Pillow's blend. Factor 0 gives `from`, 1 gives `to`. */
const blend = (from: number, to: number, factor: number): number => {
  const value = from + factor * (to - from)
  return value <= 0 ? 0 : value >= 255 ? 255 : Math.trunc(value)
}

/** Every byte through a table of 256. */
const throughTable = (image: Image.RawImage, table: Uint8Array): Image.RawImage => {
  const out = new Uint8Array(image.data.length)
  for (let i = 0; i < out.length; i++) out[i] = table[image.data[i]!]!
  return Image.raw(image.height, image.width, image.channels, out)
}

const tableOf = (f: (value: number) => number): Uint8Array => Uint8Array.from({ length: 256 }, (_, value) => f(value))

const lumaAt = (image: Image.RawImage, pixel: number): number => {
  const { channels, data } = image
  return channels === 1 ? data[pixel]! : Image.luma(data[pixel * 3]!, data[pixel * 3 + 1]!, data[pixel * 3 + 2]!)
}

/** Factor 0 is black, 1 the image itself. */
export const brightness = (image: Image.RawImage, factor: number): Image.RawImage =>
  throughTable(
    image,
    tableOf((value) => blend(0, value, factor))
  )

/** Factor 0 is the mean luma everywhere, 1 the image itself. */
export const contrast = (image: Image.RawImage, factor: number): Image.RawImage => {
  const pixels = image.height * image.width
  let sum = 0
  for (let pixel = 0; pixel < pixels; pixel++) sum += lumaAt(image, pixel)
  const mean = Math.trunc(sum / pixels + 0.5)
  return throughTable(
    image,
    tableOf((value) => blend(mean, value, factor))
  )
}

/** Factor 0 is gray, 1 the image itself. */
export const saturation = (image: Image.RawImage, factor: number): Image.RawImage => {
  if (image.channels === 1) return image
  const out = new Uint8Array(image.data.length)
  for (let pixel = 0, at = 0; at < out.length; pixel++) {
    const grey = lumaAt(image, pixel)
    for (let channel = 0; channel < 3; channel++, at++) out[at] = blend(grey, image.data[at]!, factor)
  }
  return Image.raw(image.height, image.width, 3, out)
}

/** Factor 0 is smoothed by a 3x3 kernel (5 in the middle, 1 around), 1 the image itself. The border stays. */
export const sharpness = (image: Image.RawImage, factor: number): Image.RawImage => {
  const { channels, data, height, width } = image
  const out = data.slice()
  const line = width * channels
  for (let row = 1; row < height - 1; row++) {
    for (let at = row * line + channels; at < (row + 1) * line - channels; at++) {
      let sum = 4 * data[at]!
      for (let up = -line; up <= line; up += line)
        sum += data[at + up - channels]! + data[at + up]! + data[at + up + channels]!
      out[at] = blend(Math.trunc(sum / 13 + 0.5), data[at]!, factor)
    }
  }
  return Image.raw(height, width, channels, out)
}

/** Turns the hue by `turn` of a full circle, in `[-0.5, 0.5]`, through Pillow's 8-bit HSV. */
export const hue = (image: Image.RawImage, turn: number): Image.RawImage => {
  if (image.channels === 1) return image
  const out = new Uint8Array(image.data.length)
  const shift = Math.trunc(turn * 255) & 255
  for (let at = 0; at < out.length; at += 3) {
    const red = image.data[at]!
    const green = image.data[at + 1]!
    const blue = image.data[at + 2]!
    const most = Math.max(red, green, blue)
    const range = most - Math.min(red, green, blue)
    if (range === 0) {
      out.fill(most, at, at + 3)
      continue
    }
    const r = (most - red) / range
    const g = (most - green) / range
    const b = (most - blue) / range
    const sector = red === most ? b - g : green === most ? 2 + r - b : 4 + g - r
    const turned = (Math.trunc(((sector / 6 + 1) % 1) * 255) + shift) & 255
    writeHsv(out, at, turned, Math.trunc((range / most) * 255), most)
  }
  return Image.raw(image.height, image.width, 3, out)
}

const writeHsv = (out: Uint8Array, at: number, hueByte: number, saturationByte: number, value: number): void => {
  const position = (hueByte * 6) / 255
  const sector = Math.floor(position)
  const rest = position - sector
  const strength = saturationByte / 255
  const p = Math.round(value * (1 - strength))
  const q = Math.round(value * (1 - strength * rest))
  const t = Math.round(value * (1 - strength * (1 - rest)))
  const which = sector % 6
  out[at] = which === 0 || which === 5 ? value : which === 1 ? q : which === 4 ? t : p
  out[at + 1] = which === 1 || which === 2 ? value : which === 0 ? t : which === 3 ? q : p
  out[at + 2] = which === 3 || which === 4 ? value : which === 2 ? t : which === 5 ? q : p
}

/** The negative. */
export const invert = (image: Image.RawImage): Image.RawImage =>
  throughTable(
    image,
    tableOf((value) => 255 - value)
  )

/** Keeps the highest `bits` bits, 0 to 8. */
export const posterize = (image: Image.RawImage, bits: number): Image.RawImage => {
  const mask = ~(2 ** (8 - bits) - 1) & 255
  return throughTable(
    image,
    tableOf((value) => value & mask)
  )
}

/** Inverts levels from `threshold` on. */
export const solarize = (image: Image.RawImage, threshold: number): Image.RawImage =>
  throughTable(
    image,
    tableOf((value) => (value < threshold ? value : 255 - value))
  )

/** One table per channel, made from the channel's histogram. */
const byHistogram = (image: Image.RawImage, make: (histogram: Uint32Array) => Uint8Array | null): Image.RawImage => {
  const { channels, data } = image
  const out = data.slice()
  for (let channel = 0; channel < channels; channel++) {
    const histogram = new Uint32Array(256)
    for (let at = channel; at < data.length; at += channels) histogram[data[at]!]! += 1
    const table = make(histogram)
    if (table !== null) for (let at = channel; at < data.length; at += channels) out[at] = table[data[at]!]!
  }
  return Image.raw(image.height, image.width, channels, out)
}

/** Stretches every channel to 0 .. 255. */
export const autoContrast = (image: Image.RawImage): Image.RawImage =>
  byHistogram(image, (histogram) => {
    const lowest = histogram.findIndex((count) => count > 0)
    const highest = histogram.findLastIndex((count) => count > 0)
    if (highest <= lowest) return null
    const scale = 255 / (highest - lowest)
    const offset = -lowest * scale
    return tableOf((value) => Math.max(0, Math.min(255, Math.trunc(value * scale + offset))))
  })

/** Flattens every channel's histogram. */
export const equalize = (image: Image.RawImage): Image.RawImage =>
  byHistogram(image, (histogram) => {
    const present = histogram.filter((count) => count > 0)
    if (present.length <= 1) return null
    const step = Math.floor((present.reduce((sum, count) => sum + count, 0) - present.at(-1)!) / 255)
    if (step === 0) return null
    let sum = Math.floor(step / 2)
    return tableOf((value) => {
      const level = Math.min(255, Math.floor(sum / step))
      sum += histogram[value]!
      return level
    })
  })

/**
 * Every target pixel `(x, y)` takes the source pixel below `(a x + b y + c, d x + e y + f)`, nearest, black outside:
 * Pillow's affine transform. `matrix` is `[a, b, c, d, e, f]`; coordinates are of pixel centres.
 */
export const affine = (
  image: Image.RawImage,
  matrix: readonly [number, number, number, number, number, number]
): Image.RawImage => {
  const [a, b, c, d, e, f] = matrix
  const { channels, data, height, width } = image
  const out = new Uint8Array(data.length)
  for (let row = 0, to = 0; row < height; row++) {
    for (let col = 0; col < width; col++, to += channels) {
      const x = Math.floor(a * (col + 0.5) + b * (row + 0.5) + c)
      const y = Math.floor(d * (col + 0.5) + e * (row + 0.5) + f)
      if (x < 0 || x >= width || y < 0 || y >= height) continue
      const from = (y * width + x) * channels
      for (let channel = 0; channel < channels; channel++) out[to + channel] = data[from + channel]!
    }
  }
  return Image.raw(height, width, channels, out)
}

/** Turns the picture counter-clockwise about its centre. */
export const rotate = (image: Image.RawImage, degrees: number): Image.RawImage => {
  const angle = (-degrees * Math.PI) / 180
  const cos = Math.cos(angle)
  const sin = Math.sin(angle)
  const x = image.width / 2
  const y = image.height / 2
  return affine(image, [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y])
}
