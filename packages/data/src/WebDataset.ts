/** WebDataset shards: tar archives in which consecutive files of one base name form a sample. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type FileHandle, mkdir, open as openFile, readFile, stat, writeFile } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import { gunzipSync } from "node:zlib"
import * as DaliIndex from "./DaliIndex.ts"
import {
  DataError,
  DecodeFailed,
  fail,
  LabelOutOfRange,
  MissingComponent,
  reading,
  ShardUnavailable,
  TarCorrupt,
  textOf
} from "./Errors.ts"
import * as Image from "./Image.ts"
import { digestOf, type ImageSample, type Source } from "./Samples.ts"
import * as Shards from "./Shards.ts"
import * as Tar from "./Tar.ts"

/** Where the files of one sample lie. */
export interface Located {
  readonly key: string
  /** number of the shard, in the order of the list */
  readonly shard: number
  readonly components: DaliIndex.SampleEntry
}

/** A sample with the bytes of its files by extension; a gzipped file `x.gz` appears unpacked as `x`. */
export interface WebSample {
  readonly key: string
  /** the shard it was read from */
  readonly origin: string
  readonly components: ReadonlyMap<string, Uint8Array>
}

export interface WebOptions {
  /** where gzipped shards are unpacked; default `Tar.defaultCacheFolder()` */
  readonly cacheFolder?: string
  /** DALI index files, one per shard, in its order: the shards' headers are then not read */
  readonly indexFiles?: ReadonlyArray<string>
  /** extensions of which one must be present, in order of preference; default: none must */
  readonly require?: ReadonlyArray<string>
  /** samples that lack all of `require`: "error" (default, `MissingComponent` when opening) or "skip" (left out) */
  readonly missing?: "error" | "skip"
}

/** Shards opened at once stay below this, however many there are. */
const openFilesCount = 256

/** Extensions taken for images, in order of preference. */
export const imageExtensions: ReadonlyArray<string> = ["jpg", "jpeg", "png", "webp", "ppm", "gif", "tif", "tiff"]

/** The samples of plain or gzipped shards, located but not read: one pass over tar headers per shard, four at a time. */
export const locate = (
  files: ReadonlyArray<string>,
  options: WebOptions = {}
): Effect.Effect<
  {
    /** the plain archives, in the order of `files` */
    readonly archives: ReadonlyArray<string>
    readonly samples: ReadonlyArray<Located>
    /** samples left out since they lack what `require` asks for */
    readonly skippedCount: number
  },
  DataError
> =>
  Effect.gen(function* () {
    yield* Shards.sizes(files)
    const archives = yield* Effect.forEach(files, (file) => Tar.plain(file, options.cacheFolder), { concurrency: 4 })
    yield* DaliIndex.checkCounts(files, options.indexFiles ?? [])
    const located = yield* Effect.forEach(
      archives,
      (archive, shard) => {
        const indexFile = options.indexFiles?.[shard]
        return indexFile === undefined
          ? Effect.mapError(scan(archive, shard), (error) => renamed(error, archive, files[shard]!))
          : fromIndex(indexFile, archive, shard)
      },
      { concurrency: 4 }
    )
    const found = located.flat()
    const wanted = options.require
    const underful = wanted === undefined ? [] : found.filter((sample) => pick(sample.components, wanted) === undefined)
    const first = underful[0]
    if (first !== undefined && options.missing !== "skip") {
      return yield* fail(
        new MissingComponent({
          shard: files[first.shard]!,
          sample: first.key,
          expected: wanted!,
          present: first.components.map((one) => one.extension)
        })
      )
    }
    const lacking = new Set(underful)
    return {
      archives,
      samples: lacking.size === 0 ? found : found.filter((sample) => !lacking.has(sample)),
      skippedCount: lacking.size
    }
  })

const scan = (archive: string, shard: number): Effect.Effect<ReadonlyArray<Located>, DataError> =>
  Effect.map(Tar.index(archive), (members) =>
    DaliIndex.group(members).map((sample): Located => ({ key: sample.base, shard, components: sample.components }))
  )

/** Version 1.1 does not hold names, so its samples are called by their line. */
const fromIndex = (
  indexFile: string,
  archive: string,
  shard: number
): Effect.Effect<ReadonlyArray<Located>, DataError> =>
  Effect.gen(function* () {
    const content = yield* reading(indexFile, "a DALI index file", () => readFile(indexFile, "utf8"))
    const samples = yield* DaliIndex.read(indexFile, content)
    const { size } = yield* reading(archive, "a tar file", () => stat(archive))
    yield* DaliIndex.checkBounds(indexFile, samples, size)
    return samples.map((components, line): Located => {
      const name = components[0]!.name
      return {
        key: name === null ? `${basename(archive)}:${line + 1}` : DaliIndex.splitName(name).base,
        shard,
        components
      }
    })
  })

/**
 * Writes a DALI 1.2 index of every shard, `idx_0.txt`, `idx_1.txt`, ... by position, into `folder`, and returns the
 * paths, in order. The shards must be plain tars, since an index holds offsets into them.
 */
export const writeIndexes = (
  files: ReadonlyArray<string>,
  folder: string
): Effect.Effect<ReadonlyArray<string>, DataError> =>
  Effect.gen(function* () {
    yield* Shards.sizes(files)
    yield* reading(folder, "a folder that can be written", () => mkdir(folder, { recursive: true }))
    return yield* Effect.forEach(
      files,
      (file, position) =>
        Effect.gen(function* () {
          const content = yield* DaliIndex.write(file, yield* Tar.index(file))
          const target = join(folder, `idx_${position}.txt`)
          yield* reading(target, "a file that can be written", () => writeFile(target, content))
          return target
        }),
      { concurrency: 4 }
    )
  })

/** Errors about an unpacked copy name the file the user gave. */
const renamed = (error: DataError, archive: string, file: string): DataError =>
  error.reason._tag === "TarCorrupt" && archive !== file
    ? new DataError({
        reason: new TarCorrupt({
          offset: error.reason.offset,
          expected: error.reason.expected,
          found: error.reason.found,
          file: `${file} (unpacked)`
        })
      })
    : error

const pick = (
  components: DaliIndex.SampleEntry,
  extensions: ReadonlyArray<string>
): DaliIndex.Component | undefined => {
  for (const extension of extensions) {
    const found = components.find((one) => plainExtension(one.extension) === extension)
    if (found !== undefined) return found
  }
  return undefined
}

/** Lower case, without the `.gz` of a gzipped file, and only the last part: `left.JPG` is a `jpg`. */
const plainExtension = (extension: string): string => {
  const lower = extension.toLowerCase().replace(/\.gz$/, "")
  return lower.slice(lower.lastIndexOf(".") + 1)
}

/** All files of every sample. Shards stay open until the scope closes. */
export const open = (
  files: ReadonlyArray<string>,
  options: WebOptions = {}
): Effect.Effect<Source<WebSample>, DataError, Scope.Scope> =>
  Effect.gen(function* () {
    const { archives, samples } = yield* locate(files, options)
    const read = yield* archiveReader(archives)
    return {
      name: nameOf(files),
      digest: digestOf(
        (function* () {
          yield "webdataset"
          for (const sample of samples) {
            for (const one of sample.components)
              yield `${basename(files[sample.shard]!)}:${one.name}:${one.offset}:${one.size}`
          }
        })()
      ),
      count: samples.length,
      classes: yield* classNames(files),
      get: (index) => {
        const sample = samples[index]!
        return readSample(read, files[sample.shard]!, sample)
      }
    }
  })

/**
 * Samples with an image, and the label of `.cls`, the text of `.txt` and the value of `.json` where present. Fails when
 * opening with `MissingComponent` for a sample without an image (unless `missing` is "skip"), and when reading a
 * sample with `LabelOutOfRange` for a `.cls` that is no whole number or beyond `classes.txt`.
 */
export const openImages = (
  files: ReadonlyArray<string>,
  options: WebOptions = {}
): Effect.Effect<Source<ImageSample>, DataError, Scope.Scope> =>
  Effect.map(open(files, { require: imageExtensions, ...options }), (source) => ({
    ...source,
    get: (index) => Effect.flatMap(source.get(index), (sample) => toImageSample(sample, source.classes))
  }))

const toImageSample = (
  sample: WebSample,
  classes: ReadonlyArray<string> | null
): Effect.Effect<ImageSample, DataError> => {
  const byExtension = (extension: string) => {
    for (const [name, bytes] of sample.components) if (plainExtension(name) === extension) return bytes
    return undefined
  }
  const text = (extension: string) => {
    const bytes = byExtension(extension)
    return bytes === undefined ? undefined : Buffer.from(bytes).toString("utf8")
  }
  const label = text("cls")
  const labelNumber = label === undefined ? null : /^\s*\d+\s*$/.test(label) ? Number(label) : -1
  if (labelNumber !== null && (labelNumber < 0 || (classes !== null && labelNumber >= classes.length))) {
    return fail(
      new LabelOutOfRange({ file: sample.origin, key: sample.key, label: label!, classes: classes?.length ?? null })
    )
  }
  const image = imageExtensions.map(byExtension).find((bytes) => bytes !== undefined)
  const caption = text("txt")
  const json = text("json")
  const base = {
    key: sample.key,
    origin: sample.origin,
    image: Image.encoded(image ?? new Uint8Array(0)),
    label: labelNumber,
    ...(caption === undefined ? {} : { text: caption })
  }
  return json === undefined
    ? Effect.succeed(base)
    : Effect.try({
        try: () => ({ ...base, json: JSON.parse(json) as unknown }),
        catch: (cause) =>
          new DataError({
            reason: new DecodeFailed({ file: sample.origin, key: `${sample.key}.json`, found: textOf(cause) })
          })
      })
}

/** Archives that take no more than this together are read whole: a shuffled pass then costs one read a shard instead of one a sample. */
const wholeBytes = 256 * 1024 * 1024

type ArchiveReader = (shard: number, member: Tar.Member) => Effect.Effect<Uint8Array, DataError>

/** Members of archives, from memory where all of them fit, else by one read each. */
const archiveReader = (archives: ReadonlyArray<string>): Effect.Effect<ArchiveReader, never, Scope.Scope> =>
  Effect.flatMap(
    Effect.promise(() =>
      Promise.all(
        archives.map((file) =>
          stat(file).then(
            (s) => s.size,
            () => Infinity
          )
        )
      )
    ),
    (sizes) =>
      sizes.reduce((sum, n) => sum + n, 0) <= wholeBytes
        ? Effect.succeed(wholeReader(archives))
        : memberReader(archives)
  )

const wholeReader = (archives: ReadonlyArray<string>): ArchiveReader => {
  const held = new Map<number, Promise<Uint8Array>>()
  return (shard, member) =>
    Effect.flatMap(
      Effect.tryPromise({
        try: () => {
          const known = held.get(shard) ?? readFile(archives[shard]!)
          held.set(shard, known)
          return known
        },
        catch: (cause) =>
          new DataError({
            reason: new ShardUnavailable({ file: archives[shard]!, expected: "a tar file", found: textOf(cause) })
          })
      }),
      (bytes) => {
        const part = bytes.subarray(member.offset, member.offset + member.size)
        return part.byteLength === member.size
          ? Effect.succeed(part)
          : Effect.fail(
              new DataError({
                reason: new TarCorrupt({
                  file: archives[shard]!,
                  offset: member.offset,
                  expected: `${member.size} bytes of ${member.name}`,
                  found: `${part.byteLength}`
                })
              })
            )
      }
    )
}

/** Opens archives as they are needed and closes the least recently opened beyond `openFilesCount`. */
const memberReader = (archives: ReadonlyArray<string>): Effect.Effect<ArchiveReader, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => new Map<number, Promise<FileHandle>>()),
      (handles) =>
        Effect.promise(() =>
          Promise.allSettled([...handles.values()].map((handle) => handle.then((open) => open.close())))
        )
    ),
    (handles): ArchiveReader =>
      (shard, member) =>
        Effect.suspend(() => {
          const file = archives[shard]!
          const known = handles.get(shard)
          if (known !== undefined) return Tar.readMember(file, known, member)
          const opened = openFile(file)
          handles.set(shard, opened)
          const oldest = handles.size > openFilesCount ? handles.entries().next().value : undefined
          if (oldest !== undefined) {
            handles.delete(oldest[0])
            void oldest[1].then(
              (open) => open.close(),
              () => undefined
            )
          }
          return Tar.readMember(file, opened, member)
        })
  )

/** All files of a sample, in one read where they are neighbours, as in any archive they are. Of equal names the first counts. */
const readSample = (read: ArchiveReader, file: string, sample: Located): Effect.Effect<WebSample, DataError> => {
  const { components, key, shard } = sample
  const start = components.reduce((least, one) => Math.min(least, one.offset), Infinity)
  const end = components.reduce((most, one) => Math.max(most, one.offset + one.size), 0)
  const wanted = components.reduce((sum, one) => sum + one.size, 0)
  const together = end - start <= wanted + components.length * headerBytes
  const parts = together
    ? Effect.map(read(shard, { name: key, offset: start, size: end - start }), (bytes) =>
        components.map((one) => bytes.subarray(one.offset - start, one.offset - start + one.size))
      )
    : Effect.forEach(components, (one) => read(shard, { name: one.name ?? key, offset: one.offset, size: one.size }))
  return Effect.flatMap(parts, (found) =>
    Effect.map(
      Effect.forEach(components, (component, at) => unpacked(file, key, component, found[at]!)),
      (named) => ({ key, origin: file, components: new Map(named.toReversed()) })
    )
  )
}

/** More than the headers and the filling between two files of an archive, long names included. */
const headerBytes = 4096

const unpacked = (
  file: string,
  key: string,
  { extension, name }: DaliIndex.Component,
  bytes: Uint8Array
): Effect.Effect<readonly [string, Uint8Array], DataError> =>
  extension.endsWith(".gz")
    ? Effect.try({
        try: () => [extension.slice(0, -3), new Uint8Array(gunzipSync(bytes))] as const,
        catch: (cause) => new DataError({ reason: new DecodeFailed({ file, key: name ?? key, found: textOf(cause) }) })
      })
    : Effect.succeed([extension, bytes] as const)

const nameOf = (files: ReadonlyArray<string>): string =>
  files.length === 1 ? files[0]! : `${files[0]} ... ${basename(files.at(-1)!)} (${files.length} shards)`

/** The lines of `classes.txt` beside the first shard, or null when there is none. */
const classNames = (files: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<string> | null> => {
  const file = join(dirname(files[0]!), "classes.txt")
  return Effect.promise(() =>
    readFile(file, "utf8").then(
      (content) =>
        content
          .split("\n")
          .map((line) => line.trim())
          .filter((line) => line !== ""),
      () => null
    )
  )
}
