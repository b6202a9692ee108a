/** Writes a source as WebDataset shards, as `makeshards` of the webdataset project does. */
import * as Effect from "effect/Effect"
import { createWriteStream } from "node:fs"
import { mkdir, rename, rm, writeFile } from "node:fs/promises"
import { basename, join } from "node:path"
import { pipeline } from "node:stream/promises"
import sharp from "sharp"
import * as tar from "tar-stream"
import { splitName } from "./DaliIndex.ts"
import { type DataError, reading } from "./Errors.ts"
import * as Order from "./Order.ts"
import type { ImageSample, Source } from "./Samples.ts"

export interface ShardOptions {
  readonly source: Source<ImageSample>
  readonly folder: string
  /** files are called `prefix-000000.tar`, `prefix-000001.tar`, ... */
  readonly prefix: string
  /** a shard is closed once its members hold this many bytes; default 3e8 */
  readonly maxBytes?: number
  /** a shard is closed once it holds this many samples; default 100,000 */
  readonly maxCount?: number
  /** shuffles the samples; null keeps their order; default 0 */
  readonly seed?: number | null
  /** "number" (default): seven digits, the sample's place in the source; "stem": the base name of its key */
  readonly keys?: "number" | "stem"
}

/**
 * Writes every sample once, its members `.cls` (decimal), the image (bytes unchanged; raw pixels become PNG), `.json` and
 * `.txt` where present, sorted by extension, and `classes.txt` when class names are known. Shards appear by a rename
 * when whole. Times and owners are constant: equal sources give equal bytes. Returns the paths of the shards.
 */
export const make = (options: ShardOptions): Effect.Effect<ReadonlyArray<string>, DataError> =>
  Effect.gen(function* () {
    const { folder, prefix, source } = options
    yield* reading(folder, "a folder that can be written", () => mkdir(folder, { recursive: true }))
    const seed = options.seed === undefined ? 0 : options.seed
    const order = seed === null ? Order.sequential(source.count) : Order.shuffled(seed, 0, source.count)
    const written: Array<string> = []
    let position = 0
    while (position < source.count) {
      const file = join(folder, `${prefix}-${String(written.length).padStart(6, "0")}.tar`)
      position = yield* writeShard(file, options, order, position)
      written.push(file)
    }
    if (source.classes !== null) {
      const names = `${source.classes.join("\n")}\n`
      yield* reading(join(folder, "classes.txt"), "a file that can be written", () =>
        writeFile(join(folder, "classes.txt"), names)
      )
    }
    return written
  })

/** One shard from `start` on; gives the position after it. */
const writeShard = (
  file: string,
  options: ShardOptions,
  order: Order.Order,
  start: number
): Effect.Effect<number, DataError> =>
  Effect.scoped(
    Effect.gen(function* () {
      const partial = `${file}.partial`
      const archive = tar.pack()
      const finished = pipeline(archive, createWriteStream(partial))
      finished.catch(() => undefined) // observed below
      yield* Effect.addFinalizer(() =>
        Effect.promise(() => {
          archive.destroy()
          return rm(partial, { force: true })
        })
      )
      let position = start
      let bytes = 0
      while (
        position < order.count &&
        position - start < (options.maxCount ?? 100_000) &&
        bytes < (options.maxBytes ?? 3e8)
      ) {
        const index = order.at(position)
        const sample = yield* options.source.get(index)
        const key = options.keys === "stem" ? basename(splitName(sample.key).base) : String(index).padStart(7, "0")
        for (const [extension, content] of yield* members(sample)) {
          yield* reading(file, "a file that can be written", () =>
            Promise.race([
              finished,
              new Promise<void>((resolve, reject) => {
                const header = { name: `${key}.${extension}`, size: content.length, mode: 0o444, mtime: new Date(0) }
                archive.entry(header, content, (error) => (error ? reject(error) : resolve()))
              })
            ])
          )
          bytes += content.length
        }
        position += 1
      }
      archive.finalize()
      yield* reading(file, "a file that can be written", () => finished)
      yield* reading(file, "a file that can be written", () => rename(partial, file))
      return position
    })
  )

const members = (sample: ImageSample): Effect.Effect<ReadonlyArray<readonly [string, Buffer]>, DataError> =>
  Effect.map(imageFile(sample), (image) => {
    const found: Array<readonly [string, Buffer]> = [image]
    if (sample.label !== null) found.push(["cls", Buffer.from(String(sample.label))])
    if (sample.text !== undefined) found.push(["txt", Buffer.from(sample.text)])
    if (sample.json !== undefined) found.push(["json", Buffer.from(JSON.stringify(sample.json))])
    return found.toSorted(([a], [b]) => (a < b ? -1 : 1))
  })

const imageFile = ({ image, origin }: ImageSample): Effect.Effect<readonly [string, Buffer], DataError> => {
  if (image._tag === "Encoded") {
    const bytes = Buffer.from(image.bytes.buffer, image.bytes.byteOffset, image.bytes.length)
    const kind =
      bytes[0] === 0xff
        ? "jpg"
        : bytes[0] === 0x89
          ? "png"
          : bytes.subarray(8, 12).toString("latin1") === "WEBP"
            ? "webp"
            : "jpg"
    return Effect.succeed([kind, bytes])
  }
  const { channels, height, width } = image
  return Effect.map(
    reading(origin, "pixels that can be encoded", () =>
      sharp(image.data, { raw: { width, height, channels } }).png().toBuffer()
    ),
    (bytes) => ["png", bytes] as const
  )
}
