/** Images as they travel from a source to a batch. */

/** Decoded pixels: `data` is `[row, col, channel]`, `height * width * channels` bytes, contiguous. */
export interface RawImage {
  readonly _tag: "Raw"
  readonly height: number
  readonly width: number
  readonly channels: 1 | 3
  readonly data: Uint8Array
}

/** The bytes of an image file (JPEG, PNG, WebP, ...), not looked at yet. */
export interface EncodedImage {
  readonly _tag: "Encoded"
  readonly bytes: Uint8Array
}

export const raw = (height: number, width: number, channels: 1 | 3, data: Uint8Array): RawImage => ({
  _tag: "Raw",
  height,
  width,
  channels,
  data
})

export const encoded = (bytes: Uint8Array): EncodedImage => ({ _tag: "Encoded", bytes })

/** `height x width x channels`, for messages. */
export const shapeText = (image: {
  readonly height: number
  readonly width: number
  readonly channels: number
}): string => `${image.height}x${image.width}x${image.channels}`

/** ITU-R 601-2 luma of one pixel, in Pillow's fixed point. */
export const luma = (red: number, green: number, blue: number): number =>
  (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16

/** The same picture with 1 channel (luma) or 3 (copies). */
export const toChannels = (image: RawImage, channels: 1 | 3): RawImage => {
  if (image.channels === channels) return image
  const pixels = image.height * image.width
  const data = new Uint8Array(pixels * channels)
  if (channels === 3) {
    for (let i = 0; i < pixels; i++) data.fill(image.data[i]!, i * 3, i * 3 + 3)
  } else {
    for (let i = 0; i < pixels; i++) data[i] = luma(image.data[i * 3]!, image.data[i * 3 + 1]!, image.data[i * 3 + 2]!)
  }
  return raw(image.height, image.width, channels, data)
}
