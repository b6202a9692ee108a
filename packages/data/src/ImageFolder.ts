/** A folder with one subfolder of images per class. */
import * as Effect from "effect/Effect"
import { readdir, readFile } from "node:fs/promises"
import { join } from "node:path"
import { BadRequest, type DataError, EmptySource, fail, reading } from "./Errors.ts"
import * as Image from "./Image.ts"
import { digestOf, type ImageSample, type Source } from "./Samples.ts"

export interface FolderOptions {
  /** use the first `ceil(fraction * classes)` classes, in `(0, 1]`; default 1 */
  readonly classesFraction?: number
  /** use the first `ceil(fraction * images)` images of each class, in `(0, 1]`; default 1 */
  readonly perClassFraction?: number
}

const imageName = /\.(jpe?g|png|webp|gif|tiff?|avif)$/i

/**
 * Class `i` is the `i`-th subfolder by name (code unit order, so every machine agrees); files are sorted the same way
 * and may lie deeper. Hidden files and files that are no images are left out. Fails with `EmptySource` when no class
 * or no image is there, `ShardUnavailable` when the folder cannot be read, `BadRequest` for a fraction outside `(0, 1]`.
 */
export const open = (folder: string, options: FolderOptions = {}): Effect.Effect<Source<ImageSample>, DataError> =>
  Effect.gen(function* () {
    for (const what of ["classesFraction", "perClassFraction"] as const) {
      const fraction = options[what] ?? 1
      if (!(fraction > 0 && fraction <= 1))
        return yield* fail(
          new BadRequest({ what, found: String(fraction), expected: "a number above 0 and at most 1" })
        )
    }
    const found = yield* reading(folder, "a folder with one subfolder per class", () =>
      readdir(folder, { withFileTypes: true })
    )
    const all = sorted(found.filter((one) => one.isDirectory() && !one.name.startsWith(".")).map((one) => one.name))
    const classes = firstPart(all, options.classesFraction ?? 1)
    const perClass = yield* Effect.forEach(
      classes,
      (name, label) =>
        Effect.map(
          reading(join(folder, name), "a folder of images", () => readdir(join(folder, name), { recursive: true })),
          (files) =>
            firstPart(sorted(files.filter((file) => imageName.test(file))), options.perClassFraction ?? 1).map(
              (file) => ({ key: join(name, file), label })
            )
        ),
      { concurrency: 8 }
    )
    const samples = perClass.flat()
    if (samples.length === 0) {
      return yield* fail(
        new EmptySource({
          source: `folder:${folder}`,
          expected: `one subfolder of images per class (${all.length} subfolders found)`
        })
      )
    }
    return {
      name: `folder:${folder}`,
      digest: digestOf(["folder", ...classes, ...samples.map((sample) => sample.key)]),
      count: samples.length,
      classes,
      get: (index) => {
        const { key, label } = samples[index]!
        const file = join(folder, key)
        return Effect.map(
          reading(file, "an image", () => readFile(file)),
          (bytes) => ({ key, origin: file, image: Image.encoded(bytes), label })
        )
      }
    }
  })

const sorted = (names: ReadonlyArray<string>): ReadonlyArray<string> =>
  names.toSorted((a, b) => (a < b ? -1 : a > b ? 1 : 0))
const firstPart = <A>(list: ReadonlyArray<A>, fraction: number): ReadonlyArray<A> =>
  list.slice(0, Math.ceil(list.length * fraction))
