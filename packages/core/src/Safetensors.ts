/**
 * The safetensors file format: eight bytes of header length, a JSON header, then the tensors' bytes back to back.
 * The codec is pure; `openFile` reads single tensors, or slices of them, without loading the file.
 *
 * @source https://github.com/huggingface/safetensors, README, section "Format"
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import type { PlatformError } from "effect/PlatformError"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Slice from "./Slice.ts"

/** Element types of the format that are read and written here. */
export type SafetensorsDType = "F64" | "F32" | "F16" | "BF16" | "I64" | "I32" | "U32" | "U8" | "BOOL"

const elementBytes: Readonly<Record<SafetensorsDType, number>> = {
  F64: 8,
  I64: 8,
  F32: 4,
  I32: 4,
  U32: 4,
  F16: 2,
  BF16: 2,
  U8: 1,
  BOOL: 1
}

/** Bytes of one element. */
export const bytesPerElement = (dtype: SafetensorsDType): number => elementBytes[dtype]

const isDType = (value: unknown): value is SafetensorsDType =>
  typeof value === "string" && Object.hasOwn(elementBytes, value)

/** A file that is not safetensors, or was cut or altered, or a request that does not fit it. */
export class SafetensorsError extends Schema.TaggedError<SafetensorsError>()("SafetensorsError", {
  problem: Schema.Literals([
    "Truncated",
    "BadHeader",
    "UnknownDType",
    "BadOffsets",
    "SizeMismatch",
    "UnknownTensor",
    "BadSlice"
  ]),
  detail: Schema.String,
  file: Schema.optionalKey(Schema.String)
}) {
  override get message(): string {
    return `safetensors${this.file === undefined ? "" : ` file ${this.file}`}: ${this.detail}`
  }
}

const fail = (problem: SafetensorsError["problem"], detail: string) =>
  Result.fail(new SafetensorsError({ problem, detail }))

/** What the header says of one tensor. `begin` and `end` are byte offsets after the header. */
export interface Entry {
  readonly name: string
  readonly dtype: SafetensorsDType
  readonly shape: ReadonlyArray<number>
  readonly begin: number
  readonly end: number
}

export interface Header {
  readonly entries: ReadonlyMap<string, Entry>
  readonly metadata: Readonly<Record<string, string>>
  /** Where the first tensor begins in the file, in bytes. */
  readonly dataOffset: number
}

/** A tensor to write, without its bytes. */
export interface Declaration {
  readonly name: string
  readonly dtype: SafetensorsDType
  readonly shape: ReadonlyArray<number>
}

/** The first bytes of a file to write, where each tensor goes, and how long the file becomes. */
export interface Layout {
  readonly headerBytes: Uint8Array
  readonly header: Header
  /** In the order in which the bytes follow: wide types first, so that every tensor is aligned to its element. */
  readonly entries: ReadonlyArray<Entry>
  readonly fileBytes: number
}

/** Headers above this size are refused, as the reference implementation does. */
export const maxHeaderBytes = 100_000_000

/** Reads the length of the JSON header from the first eight bytes. */
export const headerLength = (bytes: Uint8Array): Result.Result<number, SafetensorsError> => {
  if (bytes.byteLength < 8) return fail("Truncated", `${bytes.byteLength} bytes are no file; the header length needs 8`)
  const length = new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true)
  if (length > BigInt(maxHeaderBytes)) {
    return fail("BadHeader", `the header claims ${length} bytes; at most ${maxHeaderBytes} are accepted`)
  }
  return Result.succeed(Number(length))
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0

const isCounts = (value: unknown): value is ReadonlyArray<number> => Array.isArray(value) && value.every(isCount)

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value)

const decodeEntry = (name: string, value: unknown): Result.Result<Entry, SafetensorsError> => {
  if (!isRecord(value)) return fail("BadHeader", `tensor "${name}" has no description`)
  const { dtype, shape, data_offsets: offsets } = value
  if (!isDType(dtype)) {
    return fail(
      "UnknownDType",
      `tensor "${name}" has type ${JSON.stringify(dtype)}, known are ${Object.keys(elementBytes).join(", ")}`
    )
  }
  if (!isCounts(shape)) return fail("BadHeader", `tensor "${name}" has shape ${JSON.stringify(shape)}`)
  if (!isCounts(offsets) || offsets.length !== 2 || offsets[0]! > offsets[1]!) {
    return fail("BadOffsets", `tensor "${name}" has offsets ${JSON.stringify(offsets)}; [begin, end] is expected`)
  }
  const [begin, end] = offsets as unknown as readonly [number, number]
  const needed = Slice.count(shape) * elementBytes[dtype]
  if (end - begin !== needed) {
    return fail(
      "SizeMismatch",
      `tensor "${name}" of type ${dtype} and shape [${shape.join(", ")}] needs ${needed} bytes, its offsets hold ${end - begin}`
    )
  }
  return Result.succeed({ name, dtype, shape, begin, end })
}

const checkOffsets = (entries: ReadonlyArray<Entry>, dataBytes: number | undefined) => {
  let position = 0
  let before = ""
  for (const entry of entries.toSorted((a, b) => a.begin - b.begin || a.end - b.end)) {
    if (entry.begin < position) {
      return fail(
        "BadOffsets",
        `tensor "${entry.name}" begins at ${entry.begin}, inside of "${before}" that ends at ${position}`
      )
    }
    if (entry.begin > position) {
      return fail("BadOffsets", `${entry.begin - position} bytes before tensor "${entry.name}" belong to no tensor`)
    }
    position = entry.end
    before = entry.name
  }
  if (dataBytes !== undefined && dataBytes < position) {
    return fail("Truncated", `the tensors need ${position} bytes, the file holds ${dataBytes} after its header`)
  }
  if (dataBytes !== undefined && dataBytes > position) {
    return fail("SizeMismatch", `${dataBytes - position} bytes after the last tensor belong to no tensor`)
  }
  return Result.void
}

/**
 * Decodes the header from the beginning of a file. With `fileBytes`, the length of the whole file, it also checks that
 * the file holds exactly the tensors that the header promises.
 */
export const decodeHeader = (bytes: Uint8Array, fileBytes?: number): Result.Result<Header, SafetensorsError> =>
  Result.gen(function* () {
    const length = yield* headerLength(bytes)
    if (bytes.byteLength < 8 + length) {
      return yield* fail("Truncated", `the header needs ${8 + length} bytes, the file holds ${bytes.byteLength}`)
    }
    const json = yield* Result.try({
      try: () => JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, 8 + length))) as unknown,
      catch: () => new SafetensorsError({ problem: "BadHeader", detail: "the header is no JSON text" })
    })
    if (!isRecord(json)) return yield* fail("BadHeader", "the header is no JSON object")
    const entries: Array<Entry> = []
    const metadata: Record<string, string> = {}
    for (const [name, value] of Object.entries(json)) {
      if (name !== "__metadata__") {
        entries.push(yield* decodeEntry(name, value))
        continue
      }
      if (!isRecord(value)) return yield* fail("BadHeader", "__metadata__ is no object of strings")
      for (const [key, text] of Object.entries(value)) {
        if (typeof text !== "string") return yield* fail("BadHeader", `__metadata__.${key} is no string`)
        metadata[key] = text
      }
    }
    const dataOffset = 8 + length
    yield* checkOffsets(entries, fileBytes === undefined ? undefined : fileBytes - dataOffset)
    return { entries: new Map(entries.map((entry) => [entry.name, entry])), metadata, dataOffset }
  })

/** Lays out a file: the header's bytes (padded to a multiple of eight) and the place of every tensor. */
export const layout = (
  tensors: ReadonlyArray<Declaration>,
  metadata: Readonly<Record<string, string>> = {}
): Result.Result<Layout, SafetensorsError> =>
  Result.gen(function* () {
    const json: Array<readonly [string, unknown]> =
      Object.keys(metadata).length === 0 ? [] : [["__metadata__", metadata]]
    const entries = new Map<string, Entry>()
    let position = 0
    for (const { name, dtype, shape } of tensors.toSorted((a, b) => elementBytes[b.dtype] - elementBytes[a.dtype])) {
      if (name === "__metadata__" || entries.has(name)) {
        return yield* fail(
          "BadHeader",
          name === "__metadata__" ? "__metadata__ is reserved" : `tensor "${name}" occurs twice`
        )
      }
      if (!isCounts(shape)) return yield* fail("BadHeader", `tensor "${name}" has shape [${String(shape)}]`)
      const end = position + Slice.count(shape) * elementBytes[dtype]
      entries.set(name, { name, dtype, shape, begin: position, end })
      json.push([name, { dtype, shape, data_offsets: [position, end] }])
      position = end
    }
    const text = new TextEncoder().encode(JSON.stringify(Object.fromEntries(json)))
    const length = Math.ceil(text.byteLength / 8) * 8
    const headerBytes = new Uint8Array(8 + length).fill(0x20)
    new DataView(headerBytes.buffer).setBigUint64(0, BigInt(length), true)
    headerBytes.set(text, 8)
    const header: Header = { entries, metadata: { ...metadata }, dataOffset: 8 + length }
    return { headerBytes, header, entries: [...entries.values()], fileBytes: 8 + length + position }
  })

/** A tensor to write; its bytes may come from an Effect that runs when their turn comes. */
export interface Source<E = never, R = never> extends Declaration {
  readonly data: Uint8Array | Effect.Effect<Uint8Array, E, R>
}

/** The whole file as a stream, one tensor in memory at a time: the header, then the tensors. */
export const stream = <E = never, R = never>(
  tensors: ReadonlyArray<Source<E, R>>,
  metadata?: Readonly<Record<string, string>>
): Stream.Stream<Uint8Array, E | SafetensorsError, R> =>
  Stream.unwrap(
    Effect.gen(function* () {
      const { headerBytes, entries } = yield* Effect.fromResult(layout(tensors, metadata))
      const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]))
      const payload = Effect.fnUntraced(function* (entry: Entry) {
        const { data } = byName.get(entry.name)!
        const bytes = data instanceof Uint8Array ? data : yield* data
        const needed = entry.end - entry.begin
        if (bytes.byteLength === needed) return bytes
        const detail = `tensor "${entry.name}" needs ${needed} bytes, ${bytes.byteLength} were given`
        return yield* new SafetensorsError({ problem: "SizeMismatch", detail })
      })
      return Stream.concat(Stream.make(headerBytes), Stream.fromIterable(entries).pipe(Stream.mapEffect(payload)))
    })
  )

/** The whole file in memory, for small things. */
export const encode = (
  tensors: ReadonlyArray<Declaration & { readonly data: Uint8Array }>,
  metadata?: Readonly<Record<string, string>>
): Result.Result<Uint8Array, SafetensorsError> =>
  Result.gen(function* () {
    const { headerBytes, entries, fileBytes, header } = yield* layout(tensors, metadata)
    const byName = new Map(tensors.map((tensor) => [tensor.name, tensor.data]))
    const out = new Uint8Array(fileBytes)
    out.set(headerBytes)
    for (const { name, begin, end } of entries) {
      const data = byName.get(name)!
      if (data.byteLength !== end - begin) {
        return yield* fail("SizeMismatch", `tensor "${name}" needs ${end - begin} bytes, ${data.byteLength} were given`)
      }
      out.set(data, header.dataOffset + begin)
    }
    return out
  })

/** An open file: its header, and its tensors on request. */
export interface Reader {
  readonly header: Header
  /** The bytes of a tensor, or of the box `slice` of it, row-major. */
  readonly read: (name: string, slice?: Slice.Box) => Effect.Effect<Uint8Array, SafetensorsError | PlatformError>
}

const readChunkBytes = 8 << 20

/** Fills `target` from the file at `position`; a file that ends earlier is an error. */
const readFully = Effect.fnUntraced(function* (
  file: FileSystem.File,
  position: number,
  target: Uint8Array,
  path: string
) {
  let done = 0
  while (done < target.byteLength) {
    const size = yield* file.read(target.subarray(done), { position: BigInt(position + done) })
    if (size === 0) {
      const detail = `the file ended at byte ${position + done}, ${target.byteLength - done} more were expected`
      return yield* new SafetensorsError({ problem: "Truncated", detail, file: path })
    }
    done += size
  }
})

const inFile = (path: string) => (error: SafetensorsError) =>
  new SafetensorsError({ problem: error.problem, detail: error.detail, file: path })

/** Opens a file and checks its header against its length. The file stays open until the scope closes. */
export const openFile = (
  path: string
): Effect.Effect<Reader, SafetensorsError | PlatformError, FileSystem.FileSystem | Scope.Scope> =>
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    const file = yield* fs.open(path, { flag: "r" })
    const fileBytes = Number((yield* file.stat).size)
    const first = new Uint8Array(Math.min(8, fileBytes))
    yield* readFully(file, 0, first, path)
    const length = yield* Effect.fromResult(headerLength(first)).pipe(Effect.mapError(inFile(path)))
    const head = new Uint8Array(Math.min(8 + length, fileBytes))
    yield* readFully(file, 0, head, path)
    const header = yield* Effect.fromResult(decodeHeader(head, fileBytes)).pipe(Effect.mapError(inFile(path)))

    const read = Effect.fnUntraced(function* (name: string, slice?: Slice.Box) {
      const entry = header.entries.get(name)
      if (entry === undefined) {
        return yield* new SafetensorsError({
          problem: "UnknownTensor",
          detail: `there is no tensor "${name}"`,
          file: path
        })
      }
      const box = Slice.whole(entry.shape)
      const region = slice ?? box
      if (!Slice.contains(box, region)) {
        const detail = `slice ${Slice.show(region)} of "${name}" lies outside of its shape [${entry.shape.join(", ")}]`
        return yield* new SafetensorsError({ problem: "BadSlice", detail, file: path })
      }
      const width = elementBytes[entry.dtype]
      const out = new Uint8Array(Slice.count(region.size) * width)
      const start = header.dataOffset + entry.begin
      if (out.byteLength === entry.end - entry.begin) {
        yield* readFully(file, start, out, path)
        return out
      }
      for (const part of Slice.reads(box, region, readChunkBytes / width)) {
        const window = new Uint8Array(part.span * width)
        yield* readFully(file, start + part.offset * width, window, path)
        Slice.copy({ bytes: window, box, skip: part.offset }, { bytes: out, box: region }, part.region, width)
      }
      return out
    })
    return { header, read }
  })
