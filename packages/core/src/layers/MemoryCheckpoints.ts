/** Checkpoints in the memory of the process, all of them kept: for tests, and where none has to outlive it. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { CheckpointError, InvalidCheckpoint, NotFound } from "../CheckpointError.ts"
import type { Manifest, StoredSlice, StoredTensor } from "../CheckpointManifest.ts"
import * as CheckpointManifest from "../CheckpointManifest.ts"
import * as DType from "../DType.ts"
import type { CheckpointRef, SavedPart, TensorRecord } from "../services/CheckpointStore.ts"
import { CheckpointStore } from "../services/CheckpointStore.ts"
import * as Slice from "../Slice.ts"
import * as CheckpointFolder from "./CheckpointFolder.ts"
import * as CheckpointParts from "./CheckpointParts.ts"
import { randomToken, sha256 } from "./DurableFiles.ts"

const folder = "memory"

/** One stored slice with its box. */
interface Kept {
  readonly bytes: Uint8Array
  readonly size: ReadonlyArray<number>
  readonly width: number
}

type Files = ReadonlyMap<string, ReadonlyMap<string, Kept>>

interface Stored {
  readonly manifest: Manifest
  readonly files: Files
}

const pathOf = (step: number) => `${folder}/step-${step}`

const notFound = (wanted: string) => new CheckpointError({ path: folder, reason: new NotFound({ wanted, hint: "" }) })

const invalid = (path: string, what: string, detail: string) =>
  new CheckpointError({ path, reason: new InvalidCheckpoint({ what, detail }) })

const make = Effect.sync(() => {
  const checkpoints = new Map<number, Stored>()
  /** By step and token: what parts have brought. */
  const pending = new Map<string, Map<string, ReadonlyMap<string, Kept>>>()

  const savePart: CheckpointStore["Service"]["savePart"] = Effect.fn("CheckpointStore.savePart")(function* (request) {
    const path = pathOf(request.step)
    const name = request.part === "" ? "tensors" : request.part
    const kept = new Map<string, Kept>()
    const tensors: Array<StoredTensor> = []
    for (const record of request.tensors) {
      const bytes = yield* CheckpointParts.bytesOf(path, record, bytesNeeded(record))
      const entry = CheckpointParts.entryOf(record)
      if (record.frozen !== undefined) {
        const { sha256: known = sha256(bytes), source } = record.frozen
        tensors.push({ ...entry, slices: [], frozen: { source, sha256: known } })
        continue
      }
      const box = CheckpointManifest.boxOf(record.axes, record.slice ?? {})
      const tensor = `${record.kind} ${record.name} ${Slice.show(box)}`
      kept.set(tensor, { bytes: bytes.slice(), size: box.size, width: DType.bytesOf(record.dtype) })
      const slice: StoredSlice = {
        file: name,
        tensor,
        offsets: CheckpointParts.perAxis(record, box.start),
        sizes: CheckpointParts.perAxis(record, box.size),
        sha256: sha256(bytes)
      }
      tensors.push({ ...entry, slices: [slice] })
    }
    const key = `${request.step} ${request.token}`
    pending.set(key, (pending.get(key) ?? new Map<string, ReadonlyMap<string, Kept>>()).set(name, kept))
    const bytes = [...kept.values()].reduce((total, one) => total + one.bytes.byteLength, 0)
    return { tensors, files: [{ name, bytes, sha256: sha256(tensors.map((t) => JSON.stringify(t)).join()) }] }
  })

  const commit: CheckpointStore["Service"]["commit"] = Effect.fn("CheckpointStore.commit")(function* (checkpoint) {
    const { metric, parts, state, step, token } = checkpoint
    const path = pathOf(step)
    const problem = CheckpointParts.jsonProblem(state)
    if (problem !== undefined) return yield* invalid(path, "the state of the checkpoint", problem)
    const { files, tensors } = yield* Effect.fromResult(CheckpointParts.join(path, parts))
    const manifest: Manifest = {
      schemaVersion: CheckpointManifest.schemaVersion,
      tessera: "0.1.0",
      step,
      tensors,
      files,
      // As text, so that nobody who holds the state can change it.
      state: JSON.parse(JSON.stringify(state)) as typeof state,
      ...(metric !== undefined && Number.isFinite(metric.value) ? { metric } : {})
    }
    checkpoints.set(step, { manifest, files: pending.get(`${step} ${token}`) ?? new Map() })
    pending.delete(`${step} ${token}`)
    return { path, step, bytes: CheckpointManifest.tensorBytes(manifest) }
  })

  const find = (ref: CheckpointRef): Effect.Effect<Stored, CheckpointError> => {
    const step =
      ref === "latest"
        ? Math.max(...checkpoints.keys())
        : "step" in ref
          ? ref.step
          : [...checkpoints.keys()].find((n) => pathOf(n) === ref.path)
    const found = step === undefined ? undefined : checkpoints.get(step)
    if (found !== undefined) return Effect.succeed(found)
    return Effect.fail(
      notFound(ref === "latest" ? "a checkpoint" : "step" in ref ? `a checkpoint of step ${ref.step}` : ref.path)
    )
  }
  const inspect = (path: string) => Effect.map(find({ path }), ({ manifest }) => manifest)

  return CheckpointStore.of({
    folder,
    savePart,
    commit,
    save: Effect.fn("CheckpointStore.save")(function* ({ tensors, ...rest }) {
      const token = yield* randomToken
      const part: SavedPart = yield* savePart({ step: rest.step, token, part: "", tensors })
      return yield* commit({ ...rest, token, parts: [part] })
    }),
    open: Effect.fn("CheckpointStore.open")(function* (ref) {
      const { files, manifest } = yield* find(ref)
      const path = pathOf(manifest.step)
      return yield* CheckpointFolder.openReader(path, manifest, (file) => Effect.succeed(reader(files, path, file)), [])
    }),
    list: Effect.sync(() =>
      [...checkpoints]
        .toSorted(([a], [b]) => a - b)
        .map(([step, { manifest }]) => ({
          path: pathOf(step),
          step,
          complete: true,
          bytes: CheckpointManifest.tensorBytes(manifest),
          ...(manifest.metric === undefined ? {} : { metric: manifest.metric })
        }))
    ),
    verify: inspect,
    inspect
  })
})

const bytesNeeded = (record: TensorRecord): number => {
  const box = CheckpointManifest.boxOf(record.axes, record.slice ?? {})
  return Slice.count(box.size) * DType.bytesOf(record.dtype)
}

/** Reads boxes of stored slices. */
const reader = (files: Files, path: string, file: string) => ({
  read: (name: string, slice?: Slice.Box) =>
    Effect.sync(() => {
      const { bytes, size, width } = files.get(file.slice(path.length + 1))!.get(name)!
      const [box, whole] = [slice ?? Slice.whole(size), Slice.whole(size)]
      const out = new Uint8Array(Slice.count(box.size) * width)
      Slice.copy({ bytes, box: whole }, { bytes: out, box }, box, width)
      return out
    })
})

/** A store of its own for every time that the layer is built. */
export const layer: Layer.Layer<CheckpointStore> = Layer.effect(CheckpointStore, make)
