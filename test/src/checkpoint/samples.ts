import * as CheckpointManifest from "@tessera/core/CheckpointManifest"
import type { Checkpoint, CheckpointReader, TensorRecord } from "@tessera/core/services/CheckpointStore"
import * as Effect from "effect/Effect"

/** Bytes that depend on the step and the tensor, so that no two checkpoints are alike. */
export const bytesFor = (step: number, salt: number, length: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 31 + step * 17 + salt * 101 + (i >> 3)) & 255)

/** A little model with its optimizer: several kinds, types, shapes, an empty tensor and a scalar. */
export const tensorsOf = (step: number): ReadonlyArray<TensorRecord> => [
  {
    name: "blocks/query",
    kind: "parameter",
    dtype: "f32",
    axes: axes({ embed: 6, heads: 2 }),
    data: bytesFor(step, 1, 48)
  },
  { name: "scale", kind: "parameter", dtype: "f32", axes: [], data: bytesFor(step, 2, 4) },
  { name: "empty", kind: "parameter", dtype: "bf16", axes: axes({ embed: 0, mlp: 3 }), data: new Uint8Array(0) },
  {
    name: "first/blocks/query",
    kind: "optimizer",
    dtype: "bf16",
    axes: axes({ embed: 6, heads: 2 }),
    data: Effect.sync(() => bytesFor(step, 3, 24))
  },
  { name: "mask", kind: "state", dtype: "bool", axes: axes({ seq: 5 }), data: bytesFor(step, 4, 5).map((b) => b & 1) }
]

export const axes = (sizes: Readonly<Record<string, number>>) =>
  Object.entries(sizes).map(([name, size]) => ({ name, size }))

export const checkpointOf = (step: number, metric?: number): Checkpoint => ({
  step,
  tensors: tensorsOf(step),
  state: { cursor: { shard: step, sample: 7 }, lossScale: 65536, recipe: "tiny" },
  ...(metric === undefined ? {} : { metric: { name: "validation/loss", value: metric } })
})

/** The step of the checkpoint, after checking that every tensor holds exactly that step's bytes. */
export const stepOf = Effect.fnUntraced(function* (reader: CheckpointReader) {
  const { step, tensors } = reader.manifest
  for (const record of tensorsOf(step)) {
    const expected = record.data instanceof Uint8Array ? record.data : yield* record.data
    const found = yield* reader.read(record.name, { kind: record.kind })
    if (Buffer.compare(found, expected) !== 0) return yield* Effect.die(`step ${step}: ${record.name} differs`)
  }
  if (tensors.length !== tensorsOf(step).length) return yield* Effect.die(`step ${step}: ${tensors.length} tensors`)
  return step
})

export const manifestFile = CheckpointManifest.fileName
