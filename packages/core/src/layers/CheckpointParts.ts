/** Writing tensors into the files of a checkpoint, and joining what several processes wrote. */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Result from "effect/Result"
import type * as Schema from "effect/Schema"
import { CheckpointError, InvalidCheckpoint } from "../CheckpointError.ts"
import type { Kind, StoredFile, StoredSlice, StoredTensor } from "../CheckpointManifest.ts"
import * as CheckpointManifest from "../CheckpointManifest.ts"
import * as DType from "../DType.ts"
import * as Safetensors from "../Safetensors.ts"
import type { SavedPart, TensorRecord } from "../services/CheckpointStore.ts"
import * as Slice from "../Slice.ts"
import { createFile, sha256, writeFailed } from "./DurableFiles.ts"

const invalid = (path: string, what: string, detail: string) =>
  new CheckpointError({ path, reason: new InvalidCheckpoint({ what, detail }) })

/** A record with its box and its name in the file. */
interface Planned {
  readonly record: TensorRecord
  readonly box: Slice.Box
  readonly tensor: string
  readonly bytes: number
}

interface PlannedFile {
  readonly name: string
  readonly records: ReadonlyArray<Planned>
}

const fileName = (kind: Kind, part: string, index: number) =>
  `${[kind, ...(part === "" ? [] : [part]), ...(index === 0 ? [] : [String(index + 1).padStart(5, "0")])].join("-")}.safetensors`

/** Distributes the records over files, one set per kind, each file at most `maxFileBytes` (or a single tensor). */
const planFiles = (
  path: string,
  part: string,
  records: ReadonlyArray<TensorRecord>,
  maxFileBytes: number
): Result.Result<ReadonlyArray<PlannedFile>, CheckpointError> =>
  Result.gen(function* () {
    const files = new Map<Kind, Array<{ name: string; records: Array<Planned>; bytes: number }>>()
    const seen = new Map<string, number>()
    for (const record of records) {
      const box = CheckpointManifest.boxOf(record.axes, record.slice ?? {})
      const all = Slice.whole(record.axes.map(({ size }) => size))
      if (new Set(record.axes.map(({ name }) => name)).size !== record.axes.length) {
        return yield* Result.fail(invalid(path, `tensor "${record.name}"`, "two of its axes have the same name"))
      }
      if (box.size.some((n) => n < 0) || !Slice.contains(all, box)) {
        const detail = `its slice ${Slice.show(box)} lies outside of ${CheckpointManifest.describe(record)}`
        return yield* Result.fail(invalid(path, `tensor "${record.name}"`, detail))
      }
      const key = `${record.kind}:${record.name}`
      const before = seen.get(key) ?? 0
      seen.set(key, before + 1)
      if (record.frozen !== undefined) continue
      const bytes = Slice.count(box.size) * DType.bytesOf(record.dtype)
      const planned = { record, box, tensor: before === 0 ? record.name : `${record.name}#${before}`, bytes }
      const group = files.get(record.kind) ?? []
      files.set(record.kind, group)
      const last = group.at(-1)
      if (last !== undefined && last.bytes + bytes <= maxFileBytes) {
        last.records.push(planned)
        last.bytes += bytes
      } else {
        group.push({ name: fileName(record.kind, part, group.length), records: [planned], bytes })
      }
    }
    return [...files.values()].flat()
  })

/** The bytes of a record's slice, checked for their length. */
export const bytesOf = Effect.fnUntraced(function* (path: string, record: TensorRecord, needed: number) {
  const data = record.data instanceof Uint8Array ? record.data : yield* record.data
  if (data.byteLength === needed) return data
  const what = `tensor "${record.name}" (${CheckpointManifest.describe(record)})`
  return yield* invalid(path, what, `needs ${needed} bytes, ${data.byteLength} were given`)
})

/** Numbers by axis name. */
export const perAxis = (record: TensorRecord, values: ReadonlyArray<number>) =>
  Object.fromEntries(record.axes.map(({ name }, i) => [name, values[i]!]))

/** What the manifest says of a whole tensor. */
export const entryOf = (record: TensorRecord): Omit<StoredTensor, "slices"> => ({
  name: record.name,
  kind: record.kind,
  dtype: record.dtype,
  axes: record.axes.map(({ name, size }) => ({ name, size }))
})

/** Writes one process's tensors into `folder`, flushed to the device, one tensor in memory at a time. */
export const writePart = Effect.fnUntraced(function* (
  fs: FileSystem.FileSystem,
  folder: string,
  request: {
    readonly path: string
    readonly part: string
    readonly step: number
    readonly tensors: ReadonlyArray<TensorRecord>
    readonly maxFileBytes: number
  }
) {
  const { path, part, step, tensors: records, maxFileBytes } = request
  const planned = yield* Effect.fromResult(planFiles(path, part, records, maxFileBytes))
  const bytesNeeded = planned.flatMap((file) => file.records).reduce((sum, { bytes }) => sum + bytes, 0)
  const failed = writeFailed(path, folder, bytesNeeded)
  const tensors: Array<StoredTensor> = []
  const files: Array<StoredFile> = []
  for (const { name, records: held } of planned) {
    const declarations = held.map(({ record, box, tensor }) => ({
      name: tensor,
      dtype: CheckpointManifest.safetensorsType(record.dtype),
      shape: box.size
    }))
    const layout = yield* Effect.fromResult(
      Safetensors.layout(declarations, { format: "tessera", step: String(step) })
    ).pipe(Effect.mapError((error) => invalid(path, name, error.message)))
    const byTensor = new Map(held.map((one) => [one.tensor, one]))
    const write = Effect.gen(function* () {
      const file = yield* createFile(fs, `${folder}/${name}`).pipe(Effect.mapError(failed))
      yield* file.append(layout.headerBytes).pipe(Effect.mapError(failed))
      for (const entry of layout.entries) {
        const { record, box, bytes } = byTensor.get(entry.name)!
        const data = yield* bytesOf(path, record, bytes)
        yield* file.append(data).pipe(Effect.mapError(failed))
        const slice: StoredSlice = {
          file: name,
          tensor: entry.name,
          offsets: perAxis(record, box.start),
          sizes: perAxis(record, box.size),
          sha256: sha256(data)
        }
        tensors.push({ ...entryOf(record), slices: [slice] })
        yield* Effect.yieldNow
      }
      return yield* file.finish.pipe(Effect.mapError(failed))
    })
    files.push({ name, ...(yield* Effect.scoped(write)) })
  }
  for (const record of records) {
    if (record.frozen === undefined) continue
    const needed = Slice.count(record.axes.map(({ size }) => size)) * DType.bytesOf(record.dtype)
    const hash = record.frozen.sha256 ?? sha256(yield* bytesOf(path, record, needed))
    tensors.push({ ...entryOf(record), slices: [], frozen: { source: record.frozen.source, sha256: hash } })
  }
  return { tensors, files } satisfies SavedPart
})

const sameBox = (a: StoredSlice, b: StoredSlice) =>
  Object.keys(a.offsets).every((axis) => a.offsets[axis] === b.offsets[axis] && a.sizes[axis] === b.sizes[axis])

/**
 * Joins the slices of every logical tensor and checks that they make up the whole. Ranks that hold the same slice must
 * hold the same bytes; it is then listed once.
 */
export const join = (
  path: string,
  parts: ReadonlyArray<SavedPart>
): Result.Result<
  { readonly tensors: ReadonlyArray<StoredTensor>; readonly files: ReadonlyArray<StoredFile> },
  CheckpointError
> =>
  Result.gen(function* () {
    const joined = new Map<string, StoredTensor>()
    for (const tensor of parts.flatMap((part) => part.tensors)) {
      const key = `${tensor.kind}:${tensor.name}`
      const what = `tensor "${tensor.name}"`
      const before = joined.get(key)
      if (before === undefined) {
        joined.set(key, tensor)
        continue
      }
      const forms = [CheckpointManifest.describe(before), CheckpointManifest.describe(tensor)] as const
      if (forms[0] !== forms[1]) {
        return yield* Result.fail(invalid(path, what, `one slice says it is ${forms[0]}, another ${forms[1]}`))
      }
      if (before.frozen?.sha256 !== tensor.frozen?.sha256) {
        return yield* Result.fail(invalid(path, what, "it is frozen, and its content differs between ranks"))
      }
      const slices = [...before.slices]
      for (const slice of tensor.slices) {
        const same = slices.find((other) => sameBox(other, slice))
        if (same === undefined) slices.push(slice)
        else if (same.sha256 !== slice.sha256) {
          const detail = `${same.file} and ${slice.file} hold different values for the same slice: the ranks have diverged`
          return yield* Result.fail(invalid(path, what, detail))
        }
      }
      joined.set(key, { ...before, slices })
    }
    for (const tensor of joined.values()) {
      if (tensor.frozen !== undefined) continue
      const boxes = tensor.slices.map((slice) => CheckpointManifest.boxOf(tensor.axes, slice))
      yield* Slice.tiles(
        boxes,
        tensor.axes.map(({ size }) => size)
      ).pipe(Result.mapError((detail) => invalid(path, `tensor "${tensor.name}"`, detail)))
    }
    return { tensors: [...joined.values()], files: parts.flatMap((part) => part.files) }
  })

/** The path of the first value that JSON cannot hold: not finite, undefined, a function. */
export const jsonProblem = (state: Schema.Json): string | undefined => {
  const pending: Array<readonly [path: string, value: unknown]> = [["state", state]]
  while (pending.length > 0) {
    const [path, value] = pending.pop()!
    if (value === null || typeof value === "string" || typeof value === "boolean") continue
    if (typeof value === "number") {
      if (!Number.isFinite(value)) return `${path} is ${value}, which JSON cannot hold`
    } else if (Array.isArray(value)) {
      for (const [i, item] of value.entries()) pending.push([`${path}[${i}]`, item])
    } else if (typeof value === "object" && [Object.prototype, null].includes(Object.getPrototypeOf(value) as null)) {
      for (const [name, item] of Object.entries(value)) pending.push([`${path}.${name}`, item])
    } else {
      return `${path} is ${typeof value === "object" ? "an object with a class" : `of type ${typeof value}`}, which JSON cannot hold`
    }
  }
  return undefined
}
