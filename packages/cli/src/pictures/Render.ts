/** Pixels and SVG to PNG, by sharp. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import sharp from "sharp"

/** A picture that could not be made. */
export class PictureError extends Schema.TaggedError<PictureError>()("PictureError", {
  picture: Schema.String,
  cause: Schema.Defect()
}) {
  override get message() {
    return `the ${this.picture} could not be drawn: ${this.cause instanceof Error ? this.cause.message : String(this.cause)}`
  }
}

/** An RGB picture, 8 bits a channel, rows from the top. */
export interface RgbImage {
  readonly width: number
  readonly height: number
  /** width x height x 3 bytes. */
  readonly data: Uint8Array
}

/** Pixels, or an encoded file (PNG, JPEG, WebP). */
export type ImageSource = RgbImage | Uint8Array

const attempt = <A>(picture: string, run: () => Promise<A>) =>
  Effect.tryPromise({ try: run, catch: (cause) => new PictureError({ picture, cause }) })

const open = (source: ImageSource) =>
  source instanceof Uint8Array
    ? sharp(source).rotate()
    : sharp(source.data, { raw: { width: source.width, height: source.height, channels: 3 } })

/** Draws an SVG at `scale` pixels per unit. */
export const svgToPng = (picture: string, svg: string, scale = 1): Effect.Effect<Uint8Array, PictureError> =>
  attempt(picture, () =>
    sharp(Buffer.from(svg), { density: 72 * scale })
      .png({ compressionLevel: 9 })
      .toBuffer()
  )

/** Fits an image into a square of so many pixels; small ones are enlarged with visible pixels, not blurred. */
export const squarePng = (
  picture: string,
  source: ImageSource,
  size: number
): Effect.Effect<Uint8Array, PictureError> =>
  attempt(picture, async () => {
    const image = open(source)
    const { height, width } = source instanceof Uint8Array ? await image.metadata() : source
    const kernel = Math.max(width, height) * 2 <= size ? "nearest" : "lanczos3"
    return image
      .resize(size, size, { fit: "contain", kernel, background: { r: 0, g: 0, b: 0, alpha: 0 } })
      .png()
      .toBuffer()
  })

/** The image's pixels, resized so that its longer side has `size`. */
export const toRgb = (picture: string, source: ImageSource, size: number): Effect.Effect<RgbImage, PictureError> =>
  attempt(picture, async () => {
    const image = open(source)
    const { height, width } = source instanceof Uint8Array ? await image.metadata() : source
    const kernel = Math.max(width, height) * 4 <= size ? "nearest" : "lanczos3"
    const { data, info } = await image
      .resize(size, size, { fit: "inside", kernel })
      .flatten({ background: "#ffffff" })
      .toColourspace("srgb")
      .removeAlpha()
      .raw()
      .toBuffer({ resolveWithObject: true })
    const rgb =
      info.channels === 3
        ? data
        : Uint8Array.from({ length: info.width * info.height * 3 }, (_, i) => data[Math.floor(i / 3)]!)
    return { width: info.width, height: info.height, data: new Uint8Array(rgb) }
  })

/** Enlarges one channel of bytes smoothly. */
export const enlarge = (
  picture: string,
  plane: { readonly width: number; readonly height: number; readonly data: Uint8Array },
  width: number,
  height: number
): Effect.Effect<Uint8Array, PictureError> =>
  attempt(picture, async () => {
    const raw = { width: plane.width, height: plane.height, channels: 1 as const }
    const out = await sharp(plane.data, { raw })
      .resize(width, height, { fit: "fill", kernel: "cubic" })
      .extractChannel(0)
      .raw()
      .toBuffer()
    return new Uint8Array(out)
  })

/** PNG of pixels. */
export const rgbToPng = (picture: string, image: RgbImage): Effect.Effect<Uint8Array, PictureError> =>
  attempt(picture, () => open(image).png().toBuffer())

/** Bytes as a data URI. */
export const dataUri = (bytes: Uint8Array, type = "image/png"): string =>
  `data:${type};base64,${Buffer.from(bytes).toString("base64")}`
