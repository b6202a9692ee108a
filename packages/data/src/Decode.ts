/** Image files to pixels: small plain JPEGs here, all else with sharp, on libuv's threads, so that a few decodes overlap. */
import * as Effect from "effect/Effect"
import sharp, { type Sharp } from "sharp"
import { DataError, DecodeFailed, textOf } from "./Errors.ts"
import * as Image from "./Image.ts"
import type { ImageSample } from "./Samples.ts"
import * as SmallJpeg from "./SmallJpeg.ts"

export interface DecodeOptions {
  /** channels of the result: gray pictures are copied to 3, colour becomes luma for 1 */
  readonly channels: 1 | 3
  /** what to do with an EXIF orientation: turn the picture upright (default), or keep the pixels as stored, as Pillow does */
  readonly orientation?: "apply" | "ignore"
  /** what shows through transparent pixels, as red, green, blue 0 to 255; default white */
  readonly background?: readonly [number, number, number]
}

/**
 * The pixels of a sample, `[row, col, channel]`, 8 bits. 16-bit files keep their high byte, palettes are looked up,
 * CMYK becomes RGB by Pillow's formula, alpha is blended over the background. A sample that is raw already is only
 * converted to the wanted channels. Colour profiles are not applied: the stored numbers count, as for Pillow. Fails with `DecodeFailed` for damaged or truncated files.
 */
export const decode = (sample: ImageSample, options: DecodeOptions): Effect.Effect<Image.RawImage, DataError> => {
  const { image } = sample
  if (image._tag === "Raw") return Effect.succeed(Image.toChannels(image, options.channels))
  const small = SmallJpeg.decode(image.bytes)
  if (small !== null) return Effect.succeed(Image.toChannels(small, options.channels))
  return Effect.tryPromise({
    try: () => pixels(image.bytes, options),
    catch: (cause) =>
      new DataError({
        reason: new DecodeFailed({
          file: sample.origin,
          key: sample.key,
          found: `${textOf(cause).trim()} (${image.bytes.length} bytes)`
        })
      })
  })
}

const pixels = async (bytes: Uint8Array, options: DecodeOptions): Promise<Image.RawImage> => {
  const input = { failOn: "truncated", ignoreIcc: true, limitInputPixels: 1 << 28 } as const
  const [red, green, blue] = options.background ?? [255, 255, 255]
  const upright = (picture: Sharp) => (options.orientation === "ignore" ? picture : picture.autoOrient())
  const isCmyk = jpegComponents(bytes) === 4
  const picture = isCmyk
    ? upright(sharp(bytes, input)).pipelineColourspace("cmyk").toColourspace("cmyk")
    : upright(sharp(bytes, input))
        .flatten({ background: { r: red, g: green, b: blue } })
        .toColourspace("srgb")
  const { data, info } = await picture.raw({ depth: "uchar" }).toBuffer({ resolveWithObject: true })
  return Image.toChannels(
    isCmyk ? fromCmyk(info.height, info.width, data) : narrowed(info.height, info.width, info.channels, data),
    options.channels
  )
}

/** Components in a JPEG's frame header (1 gray, 3 colour, 4 CMYK), or 0 for anything else; far cheaper than asking the decoder. */
const jpegComponents = (bytes: Uint8Array): number => {
  if (bytes[0] !== 0xff || bytes[1] !== 0xd8) return 0
  let at = 2
  while (at + 9 < bytes.length && bytes[at] === 0xff) {
    const marker = bytes[at + 1]!
    const isFrame = marker >= 0xc0 && marker <= 0xcf && marker !== 0xc4 && marker !== 0xc8 && marker !== 0xcc
    if (isFrame) return bytes[at + 9]!
    at += marker === 0xff ? 1 : 2 + ((bytes[at + 2]! << 8) | bytes[at + 3]!)
  }
  return 0
}

/** Gray, gray with alpha, RGB or RGBA bytes, any alpha already blended, as 1 or 3 channels. */
const narrowed = (height: number, width: number, found: number, data: Uint8Array): Image.RawImage => {
  if (found === 1 || found === 3) return Image.raw(height, width, found, data)
  const channels = found === 2 ? 1 : 3
  const out = new Uint8Array(height * width * channels)
  for (let pixel = 0; pixel < height * width; pixel++) {
    for (let channel = 0; channel < channels; channel++)
      out[pixel * channels + channel] = data[pixel * found + channel]!
  }
  return Image.raw(height, width, channels, out)
}

/** @source python-pillow/Pillow src/libImaging/Convert.c, cmyk2rgb */
const fromCmyk = (height: number, width: number, data: Uint8Array): Image.RawImage => {
  const out = new Uint8Array(height * width * 3)
  for (let pixel = 0; pixel < height * width; pixel++) {
    const light = 255 - data[pixel * 4 + 3]!
    for (let channel = 0; channel < 3; channel++) {
      const product = data[pixel * 4 + channel]! * light + 128
      out[pixel * 3 + channel] = Math.max(0, light - (((product >> 8) + product) >> 8))
    }
  }
  return Image.raw(height, width, 3, out)
}
