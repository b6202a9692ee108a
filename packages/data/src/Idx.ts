/**
 * The idx files of MNIST and its relatives: pixels and labels in two files, plain or gzipped.
 *
 * @source LeCun, Cortes, Burges, "The MNIST database", file format section: magic 0x00000803 (images), 0x00000801 (labels)
 */
import * as Effect from "effect/Effect"
import { readFile, stat } from "node:fs/promises"
import { join } from "node:path"
import { gunzipSync } from "node:zlib"
import { DataError, fail, IndexInvalid, reading, ShardUnavailable, textOf } from "./Errors.ts"
import * as Image from "./Image.ts"
import { digestOf, type ImageSample, type Source } from "./Samples.ts"

const stems = { train: "train", test: "t10k" } as const

/**
 * The MNIST-like files of a folder: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, or `t10k-...` for "test",
 * each possibly with `.gz` and possibly below `data/`. Held in memory (47 MB for MNIST). Samples are gray,
 * `[row, col, 1]`. Fails with `ShardUnavailable`, or `IndexInvalid` for a wrong magic number, a cut file, or a label
 * count that differs from the image count.
 */
export const open = (folder: string, split: "train" | "test"): Effect.Effect<Source<ImageSample>, DataError> =>
  Effect.gen(function* () {
    const images = yield* load(folder, `${stems[split]}-images-idx3-ubyte`, 0x803, 3)
    const labels = yield* load(folder, `${stems[split]}-labels-idx1-ubyte`, 0x801, 1)
    const [count, height, width] = images.sizes as [number, number, number]
    if (labels.sizes[0] !== count) {
      return yield* fail(
        new IndexInvalid({
          file: labels.file,
          line: null,
          details: `holds ${labels.sizes[0]} labels, but ${images.file} holds ${count} images; both must belong to one set`
        })
      )
    }
    const pixels = height * width
    const largest = labels.data.reduce((most, label) => Math.max(most, label), 0)
    return {
      name: `idx:${folder} (${split})`,
      digest: digestOf(["idx", `${count}x${height}x${width}`, images.data, labels.data]),
      count,
      classes: Array.from({ length: largest + 1 }, (_, label) => String(label)),
      get: (index) =>
        Effect.succeed({
          key: String(index),
          origin: images.file,
          image: Image.raw(height, width, 1, images.data.subarray(index * pixels, (index + 1) * pixels)),
          label: labels.data[index]!
        })
    }
  })

interface IdxFile {
  readonly file: string
  readonly sizes: ReadonlyArray<number>
  readonly data: Uint8Array
}

const load = (folder: string, stem: string, magic: number, rank: number): Effect.Effect<IdxFile, DataError> =>
  Effect.gen(function* () {
    const file = yield* find(folder, stem)
    const invalid = (details: string) => fail(new IndexInvalid({ file, line: null, details }))
    const stored = yield* reading(file, "an idx file", () => readFile(file))
    const bytes =
      stored[0] === 0x1f && stored[1] === 0x8b
        ? yield* Effect.try({
            try: () => gunzipSync(stored),
            catch: (cause) =>
              new DataError({
                reason: new IndexInvalid({ file, line: null, details: `does not unpack as gzip: ${textOf(cause)}` })
              })
          })
        : stored
    const headerBytes = 4 + 4 * rank
    if (bytes.length < headerBytes)
      return yield* invalid(`has ${bytes.length} bytes; expected an idx header of ${headerBytes}`)
    const found = bytes.readUInt32BE(0)
    if (found !== magic)
      return yield* invalid(
        `has magic number ${hexadecimal(found)}; expected ${hexadecimal(magic)} (${rank === 3 ? "unsigned byte images" : "unsigned byte labels"})`
      )
    const sizes = Array.from({ length: rank }, (_, axis) => bytes.readUInt32BE(4 + 4 * axis))
    const expected = sizes.reduce((product, size) => product * size, 1)
    if (bytes.length !== headerBytes + expected) {
      return yield* invalid(
        `declares ${sizes.join(" x ")} = ${expected} bytes of data and holds ${bytes.length - headerBytes}`
      )
    }
    return { file, sizes, data: new Uint8Array(bytes.buffer, bytes.byteOffset + headerBytes, expected) }
  })

const hexadecimal = (value: number): string => `0x${value.toString(16).padStart(8, "0")}`

const find = (folder: string, stem: string): Effect.Effect<string, DataError> =>
  Effect.gen(function* () {
    const dotted = stem.replace("-idx", ".idx")
    for (const name of [stem, `${stem}.gz`, join("data", stem), join("data", `${stem}.gz`), dotted, `${dotted}.gz`]) {
      const file = join(folder, name)
      const exists = yield* Effect.promise(() =>
        stat(file).then(
          (found) => found.isFile(),
          () => false
        )
      )
      if (exists) return file
    }
    return yield* fail(
      new ShardUnavailable({
        file: join(folder, stem),
        expected: `an idx file of this name, plain or with .gz, in ${folder} or its data folder`,
        found: "no such file"
      })
    )
  })
