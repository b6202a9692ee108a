/**
 * The manifest of a checkpoint: which logical tensors it holds, in which slices of which files, and the small state
 * beside them. Tensors are described as a whole, never per rank, so that any mesh can load what any mesh has saved.
 */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { ChecksumMismatch, Truncated, VersionMismatch } from "./CheckpointError.ts"
import * as DType from "./DType.ts"
import type { SafetensorsDType } from "./Safetensors.ts"
import type { Box } from "./Slice.ts"

/** The version of the manifest's form that this code writes, and the only one that it reads. */
export const schemaVersion = 1

/** The manifest's file name inside of a checkpoint's folder. */
export const fileName = "manifest.json"

export const Kind = Schema.Literals(["parameter", "optimizer", "ema", "frozen", "state"])
export type Kind = typeof Kind.Type

const Count = Schema.Int.pipe(Schema.check(Schema.isGreaterThanOrEqualTo(0)))
const Sha256 = Schema.String.pipe(Schema.check(Schema.isPattern(/^[0-9a-f]{64}$/)))
const PlainFileName = Schema.String.pipe(Schema.check(Schema.isPattern(/^[A-Za-z0-9_-][A-Za-z0-9._-]*$/)))
const PerAxis = Schema.Record(Schema.String, Count)

export const AxisSize = Schema.Struct({ name: Schema.String, size: Count })

/** One box of a tensor: where it lies in the whole, and where its bytes are. */
export const StoredSlice = Schema.Struct({
  file: PlainFileName,
  tensor: Schema.String,
  offsets: PerAxis,
  sizes: PerAxis,
  sha256: Sha256
})
export type StoredSlice = typeof StoredSlice.Type

/** Where a frozen tensor comes from that the checkpoint names but does not repeat. */
export const FrozenReference = Schema.Struct({ source: Schema.String, sha256: Sha256 })

/** A logical tensor. Its bytes are little endian, row-major in the order of `axes`. */
export const StoredTensor = Schema.Struct({
  name: Schema.String,
  kind: Kind,
  dtype: Schema.Literals(DType.all),
  axes: Schema.Array(AxisSize),
  slices: Schema.Array(StoredSlice),
  frozen: Schema.optionalKey(FrozenReference)
})
export type StoredTensor = typeof StoredTensor.Type

export const StoredFile = Schema.Struct({ name: PlainFileName, bytes: Count, sha256: Sha256 })
export type StoredFile = typeof StoredFile.Type

/** A number by which checkpoints are compared when the best ones are kept. */
export const Metric = Schema.Struct({ name: Schema.String, value: Schema.Finite })
export type Metric = typeof Metric.Type

export const Manifest = Schema.Struct({
  schemaVersion: Schema.Literal(schemaVersion),
  /** Version of Tessera that wrote it. */
  tessera: Schema.String,
  step: Count,
  tensors: Schema.Array(StoredTensor),
  files: Schema.Array(StoredFile),
  /** Cursor, loss scale, random key, recipe digest, model description: whatever the run needs to go on. */
  state: Schema.Json,
  metric: Schema.optionalKey(Metric)
})
export type Manifest = typeof Manifest.Type

const safetensorsTypes: Readonly<Record<DType.DType, SafetensorsDType>> = {
  f32: "F32",
  bf16: "BF16",
  f16: "F16",
  i32: "I32",
  u32: "U32",
  u8: "U8",
  bool: "BOOL"
}

/** The name of a storage type in safetensors files. */
export const safetensorsType = (dtype: DType.DType): SafetensorsDType => safetensorsTypes[dtype]

/** The stored box of a slice, by position in `axes`. An axis that the slice does not mention is whole. */
export const boxOf = (
  axes: ReadonlyArray<{ readonly name: string; readonly size: number }>,
  slice: { readonly offsets?: Readonly<Record<string, number>>; readonly sizes?: Readonly<Record<string, number>> }
): Box => ({
  start: axes.map(({ name }) => slice.offsets?.[name] ?? 0),
  size: axes.map(({ name, size }) => slice.sizes?.[name] ?? size - (slice.offsets?.[name] ?? 0))
})

/** Bytes of all tensors' data. */
export const tensorBytes = (manifest: Manifest): number => manifest.files.reduce((sum, file) => sum + file.bytes, 0)

/** `f32 [embed 64, heads 4]`. */
export const describe = (tensor: {
  readonly dtype: string
  readonly axes: ReadonlyArray<{ readonly name: string; readonly size: number }>
}): string => `${tensor.dtype} [${tensor.axes.map(({ name, size }) => `${name} ${size}`).join(", ")}]`

const text = (body: unknown, checksum: string): string =>
  `${JSON.stringify({ checksum, ...(body as object) }, null, 1)}\n`

/** The manifest as text, with the checksum of everything else in it. `sha256` gives lower-case hexadecimal. */
export const encode = (manifest: Manifest, sha256: (text: string) => string): string =>
  text(manifest, sha256(JSON.stringify(manifest)))

/**
 * Decodes and checks a manifest. The text must be exactly what `encode` makes of its content, so that every altered
 * byte is noticed, even one that means nothing in JSON.
 */
export const decode = (
  source: string,
  sha256: (text: string) => string
): Result.Result<Manifest, Truncated | ChecksumMismatch | VersionMismatch> =>
  Result.gen(function* () {
    const truncated = (detail: string) => Result.fail(new Truncated({ file: fileName, detail }))
    const json = yield* Result.try({
      try: () => JSON.parse(source) as unknown,
      catch: () => new Truncated({ file: fileName, detail: "it is no JSON text" })
    })
    if (typeof json !== "object" || json === null || !("checksum" in json))
      return yield* truncated("it has no checksum")
    const { checksum, ...body } = json
    const found = sha256(JSON.stringify(body))
    if (checksum !== found || text(body, found) !== source) {
      const expected = String(checksum)
      const shown = found === expected ? sha256(source) : found
      return yield* Result.fail(new ChecksumMismatch({ file: fileName, expected, found: shown }))
    }
    if ("schemaVersion" in body && body.schemaVersion !== schemaVersion) {
      const writtenBy = "tessera" in body ? String(body.tessera) : "?"
      const version = Number(body.schemaVersion)
      return yield* Result.fail(new VersionMismatch({ found: version, supported: schemaVersion, writtenBy }))
    }
    return yield* Schema.decodeUnknownResult(Manifest)(body).pipe(
      Result.mapError((error) => new Truncated({ file: fileName, detail: error.message }))
    )
  })
