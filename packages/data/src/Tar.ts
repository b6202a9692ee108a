/** Tar archives: read as a stream of entries, or indexed once for random access. */
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { createHash, randomUUID } from "node:crypto"
import { createReadStream, createWriteStream } from "node:fs"
import { type FileHandle, mkdir, open as openFile, rename, rm, stat } from "node:fs/promises"
import { tmpdir } from "node:os"
import { basename, join } from "node:path"
import { pipeline } from "node:stream/promises"
import { createGunzip } from "node:zlib"
import * as tar from "tar-stream"
import { DataError, fail, reading, TarCorrupt, textOf } from "./Errors.ts"

/** One regular file of an archive: its data lies in bytes `[offset, offset + size)` of the (unpacked) archive. */
export interface Member {
  readonly name: string
  readonly offset: number
  readonly size: number
}

/** One regular file of an archive with its bytes. */
export interface Entry {
  readonly name: string
  readonly bytes: Uint8Array
}

const blockBytes = 512
const windowBytes = 1 << 20

const corrupt = (file: string, offset: number, expected: string, found: string) =>
  new DataError({ reason: new TarCorrupt({ file, offset, expected, found }) })

/** Whether a file starts with gzip's magic bytes, whatever its name says. */
export const isGzip = (file: string): Effect.Effect<boolean, DataError> =>
  reading(file, "a tar file", async () => {
    const handle = await openFile(file)
    const { buffer, bytesRead } = await handle.read(new Uint8Array(2), 0, 2, 0).finally(() => handle.close())
    return bytesRead === 2 && buffer[0] === 0x1f && buffer[1] === 0x8b
  })

/** The regular files of a tar or gzipped tar, in order, whole. Fails with `TarCorrupt` when it is damaged or cut off. */
export const entries = (file: string): Stream.Stream<Entry, DataError> =>
  Stream.unwrap(
    Effect.map(isGzip(file), (gzipped) => {
      let consumed = 0
      const read = async function* (): AsyncGenerator<Entry> {
        const extract = tar.extract()
        const input = createReadStream(file)
        const found = extract[Symbol.asyncIterator]() // attached before piping, or an early entry is lost
        const piped = (gzipped ? pipeline(input, createGunzip(), extract) : pipeline(input, extract)).catch((cause) =>
          extract.destroy(cause)
        )
        for await (const entry of { [Symbol.asyncIterator]: () => found }) {
          const parts: Array<Uint8Array> = []
          for await (const part of entry) parts.push(part as Uint8Array)
          const bytes = new Uint8Array(Buffer.concat(parts))
          consumed += blockBytes + Math.ceil(bytes.length / blockBytes) * blockBytes
          if (bytes.length !== (entry.header.size ?? 0))
            throw new Error(`${bytes.length} of ${entry.header.size} bytes of ${entry.header.name}`)
          if (entry.header.type === "file" || entry.header.type === "contiguous-file")
            yield { name: entry.header.name, bytes }
        }
        input.destroy()
        await piped
      }
      return Stream.fromAsyncIterable(read(), (cause) =>
        corrupt(file, consumed, gzipped ? "a whole gzipped tar archive" : "a whole tar archive", textOf(cause))
      )
    })
  )

/**
 * The regular files of a plain tar, by its headers alone: the data between them is skipped, so a shard of large
 * images is indexed in a few reads. Understands ustar, GNU long names and base-256 sizes, and pax `path` and `size`.
 * Fails with `TarCorrupt` for a bad header checksum, data beyond the end, or a missing end marker.
 */
export const index = (file: string): Effect.Effect<ReadonlyArray<Member>, DataError> =>
  Effect.scoped(
    Effect.gen(function* () {
      const handle = yield* Effect.acquireRelease(
        reading(file, "a tar file", () => openFile(file)),
        (opened) => Effect.promise(() => opened.close())
      )
      const { size } = yield* reading(file, "a tar file", () => handle.stat())
      const read = windowedReader(file, handle, size)
      const members: Array<Member> = []
      let offset = 0
      let longName: string | null = null
      let longSize: number | null = null
      for (;;) {
        if (offset + blockBytes > size) {
          return yield* Effect.fail(
            corrupt(
              file,
              offset,
              "another header or the end marker of two zero blocks",
              `the end of the file (${size} bytes): it is cut off`
            )
          )
        }
        const header = yield* read(offset, blockBytes)
        if (header.every((byte) => byte === 0)) return members
        const problem = headerProblem(header)
        if (problem !== null) return yield* Effect.fail(corrupt(file, offset, problem.expected, problem.found))
        const kind = String.fromCharCode(header[156]!)
        const length: number = longSize ?? number(header, 124, 12)
        const data = offset + blockBytes
        if (data + length > size) {
          return yield* Effect.fail(
            corrupt(
              file,
              data,
              `${length} bytes of ${longName ?? nameOf(header)}`,
              `${size - data} bytes before the end of the file: it is cut off`
            )
          )
        }
        if (kind === "L") longName = text(yield* read(data, length))
        else if (kind === "x") {
          const records = paxRecords(yield* read(data, length))
          longName = records.get("path") ?? longName
          longSize = records.has("size") ? Number(records.get("size")) : null
        } else {
          if (kind === "0" || kind === "\0" || kind === "7")
            members.push({ name: longName ?? nameOf(header), offset: data, size: length })
          if (kind !== "g") {
            longName = null
            longSize = null
          }
        }
        offset = data + Math.ceil(length / blockBytes) * blockBytes
      }
    })
  )

type Reader = (offset: number, length: number) => Effect.Effect<Uint8Array, DataError>

/** Reads through a moving window, so that many small members cost few system calls and large ones are skipped. */
const windowedReader = (file: string, handle: FileHandle, size: number): Reader => {
  let window = new Uint8Array(0)
  let windowStart = 0
  let gap = 0
  return (offset, length) => {
    if (offset >= windowStart && offset + length <= windowStart + window.length) {
      return Effect.succeed(window.subarray(offset - windowStart, offset - windowStart + length))
    }
    // After a jump over a large member a header is all that is needed; after a short one the neighbours are too.
    gap = offset - (windowStart + window.length)
    const wanted = Math.min(size - offset, Math.max(length, gap > windowBytes ? 4096 : windowBytes))
    return Effect.map(
      reading(file, "a tar file", () => handle.read(new Uint8Array(wanted), 0, wanted, offset)),
      ({ buffer, bytesRead }) => {
        window = buffer.subarray(0, bytesRead)
        windowStart = offset
        return window.subarray(0, length)
      }
    )
  }
}

const headerProblem = (header: Uint8Array): { readonly expected: string; readonly found: string } | null => {
  let sum = 8 * 32
  for (let i = 0; i < blockBytes; i++) if (i < 148 || i >= 156) sum += header[i]!
  const stored = number(header, 148, 8)
  return stored === sum
    ? null
    : {
        expected: "a tar header",
        found: Number.isNaN(stored)
          ? "bytes that are none (no checksum)"
          : `checksum ${stored} where the bytes sum to ${sum}`
      }
}

const text = (bytes: Uint8Array): string => {
  const end = bytes.indexOf(0)
  return Buffer.from(end < 0 ? bytes : bytes.subarray(0, end)).toString("utf8")
}

const nameOf = (header: Uint8Array): string => {
  const name = text(header.subarray(0, 100))
  const prefix = text(header.subarray(257, 263)) === "ustar" ? text(header.subarray(345, 500)) : ""
  return prefix === "" ? name : `${prefix}/${name}`
}

/** An octal number, or a base-256 one (first bit set) for sizes from 8 GiB on. */
const number = (header: Uint8Array, start: number, length: number): number => {
  if ((header[start]! & 0x80) !== 0) {
    let value = header[start]! & 0x7f
    for (let i = 1; i < length; i++) value = value * 256 + header[start + i]!
    return value
  }
  const digits = text(header.subarray(start, start + length)).trim()
  return digits === "" ? (start === 148 ? Number.NaN : 0) : /^[0-7]+$/.test(digits) ? parseInt(digits, 8) : Number.NaN
}

const paxRecords = (bytes: Uint8Array): ReadonlyMap<string, string> => {
  const records = new Map<string, string>()
  let at = 0
  while (at < bytes.length) {
    const space = bytes.indexOf(0x20, at)
    const length = space < 0 ? 0 : Number(Buffer.from(bytes.subarray(at, space)).toString("latin1"))
    if (!(length > 0)) break
    const record = Buffer.from(bytes.subarray(space + 1, at + length - 1)).toString("utf8")
    records.set(record.slice(0, record.indexOf("=")), record.slice(record.indexOf("=") + 1))
    at += length
  }
  return records
}

/** Where gzipped shards are unpacked unless told otherwise. */
export const defaultCacheFolder = (): string => join(tmpdir(), "tessera-shards")

/**
 * The path of a plain tar with the content of `file`: `file` itself, or, when it is gzipped, a copy unpacked once into
 * `cacheFolder`, keyed by path, size and modification time. The copy appears by a rename, so it is never half written
 * and several processes may unpack at once. Fails with `TarCorrupt` when the gzip stream is damaged or cut off.
 */
export const plain = (file: string, cacheFolder: string = defaultCacheFolder()): Effect.Effect<string, DataError> =>
  Effect.gen(function* () {
    if (!(yield* isGzip(file))) return file
    const found = yield* reading(file, "a tar file", () => stat(file))
    const key = createHash("sha256").update(`${file}\0${found.size}\0${found.mtimeMs}`).digest("hex").slice(0, 16)
    const target = join(cacheFolder, `${basename(file).replace(/\.(tar\.gz|tgz|gz)$/, "")}-${key}.tar`)
    const exists = yield* Effect.promise(() =>
      stat(target).then(
        () => true,
        () => false
      )
    )
    if (exists) return target
    yield* reading(cacheFolder, "a folder to unpack shards into", () => mkdir(cacheFolder, { recursive: true }))
    const partial = `${target}.${randomUUID()}.partial`
    const unpacker = createGunzip()
    yield* Effect.tryPromise({
      try: () => pipeline(createReadStream(file), unpacker, createWriteStream(partial)),
      catch: (cause) => corrupt(file, unpacker.bytesWritten, "a whole gzip stream", textOf(cause))
    }).pipe(Effect.onError(() => Effect.promise(() => rm(partial, { force: true }))))
    yield* reading(target, "an unpacked shard", () => rename(partial, target))
    return target
  })

/** Reads bytes of an archive that is being opened. Fails with `TarCorrupt` when fewer are there. */
export const readMember = (
  file: string,
  handle: Promise<FileHandle>,
  member: Member
): Effect.Effect<Uint8Array, DataError> =>
  member.size === 0
    ? Effect.succeed(new Uint8Array(0))
    : Effect.flatMap(
        // The read is issued in the same turn as the look-up of the handle, so closing it meanwhile waits for the read.
        reading(file, "a tar file", () =>
          handle.then((open) => open.read(new Uint8Array(member.size), 0, member.size, member.offset))
        ),
        ({ buffer, bytesRead }) =>
          bytesRead === member.size
            ? Effect.succeed(buffer)
            : fail(
                new TarCorrupt({
                  file,
                  offset: member.offset,
                  expected: `${member.size} bytes of ${member.name}`,
                  found: `${bytesRead}`
                })
              )
      )
