/** `tessera checkpoint`: what a checkpoint holds, whether it is sound, and the same in another number of parts. */
import type { Manifest, StoredTensor } from "@tessera/core/CheckpointManifest"
import * as DType from "@tessera/core/DType"
import * as FileCheckpoints from "@tessera/core/layers/FileCheckpoints"
import type { CheckpointReader, SavedPart, SliceOf, TensorRecord } from "@tessera/core/services/CheckpointStore"
import { CheckpointStore } from "@tessera/core/services/CheckpointStore"
import type { SavedState } from "@tessera/core/Trainer"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import { UsageError } from "../Failure.ts"
import * as RunFolder from "../RunFolder.ts"
import { grouped, note, print, printJson, table } from "../Output.ts"
import { bytesText } from "../explain/Report.ts"

/** Does something with the checkpoint at a path: that one, or the newest complete one of a run or of a folder of checkpoints. */
const withCheckpoint = <A, E, R>(
  path: string,
  use: (store: CheckpointStore["Service"], checkpoint: string) => Effect.Effect<A, E, R>
) =>
  Effect.gen(function* () {
    const { folder, single } = yield* RunFolder.located(path)
    return yield* Effect.gen(function* () {
      const store = yield* CheckpointStore
      const newest = single ?? (yield* store.list).findLast((c) => c.complete)?.path
      if (newest === undefined)
        return yield* new UsageError({
          problem: `there is no complete checkpoint in ${folder}`,
          hint: "train first, or name one step-N"
        })
      return yield* use(store, newest)
    }).pipe(Effect.provide(FileCheckpoints.layer({ folder, owner: false })))
  })

const elements = ({ axes }: StoredTensor): number => axes.reduce((n, a) => n * a.size, 1)
const bytesOf = (t: StoredTensor): number => elements(t) * DType.bytesOf(t.dtype)
const shape = ({ axes }: StoredTensor): string => `[${axes.map((a) => `${a.name}=${a.size}`).join(", ")}]`

const kindsOf = (manifest: Manifest) => {
  const kinds = [...new Set(manifest.tensors.map((t) => t.kind))]
  return kinds.map((kind) => {
    const own = manifest.tensors.filter((t) => t.kind === kind)
    return {
      kind,
      tensors: own.length,
      elements: own.reduce((n, t) => n + elements(t), 0),
      bytes: own.reduce((n, t) => n + bytesOf(t), 0)
    }
  })
}

/** Prints what a checkpoint holds; reads its manifest only. */
export const inspect = Effect.fn("checkpoint.inspect")(function* (input: {
  readonly path: string
  readonly json: boolean
}) {
  const manifest = yield* withCheckpoint(input.path, (store, path) =>
    Effect.map(store.inspect(path), (found) => ({ ...found, path }))
  )
  if (input.json) return yield* printJson(manifest)
  const { position } = manifest.state as unknown as Partial<SavedState>
  const facts: ReadonlyArray<ReadonlyArray<string>> = [
    ["step", grouped(manifest.step)],
    ...(position === undefined ? [] : [["epoch", position.epoch.toFixed(2)]]),
    ...(manifest.metric === undefined ? [] : [[manifest.metric.name, String(manifest.metric.value)]]),
    ["written by", `tessera ${manifest.tessera}`],
    ["files", `${manifest.files.length}, ${bytesText(manifest.files.reduce((n, f) => n + f.bytes, 0))}`]
  ]
  const kinds = kindsOf(manifest).map((k) => [k.kind, `${k.tensors} tensors`, grouped(k.elements), bytesText(k.bytes)])
  const tensors = manifest.tensors.map((t) => [`${t.kind} ${t.name}`, shape(t), t.dtype, `${t.slices.length}`])
  yield* print(
    [
      manifest.path,
      "",
      table(facts),
      "",
      table([["kind", "", "elements", "bytes"], ...kinds]),
      "",
      table([["tensor", "axes", "type", "parts"], ...tensors])
    ].join("\n")
  )
})

/** Reads every byte of a checkpoint and compares it with the manifest. */
export const verify = Effect.fn("checkpoint.verify")(function* (input: {
  readonly path: string
  readonly json: boolean
}) {
  const { files, path, step, tensors } = yield* withCheckpoint(input.path, (store, at) =>
    Effect.map(store.verify(at), (manifest) => ({ ...manifest, path: at }))
  )
  const bytes = files.reduce((n, f) => n + f.bytes, 0)
  if (input.json) return yield* printJson({ path, sound: true, step, files: files.length, bytes })
  yield* print(`${path} is sound: ${tensors.length} tensors, ${files.length} files, ${bytesText(bytes)}`)
})

/** Part `index` of `count` of a tensor, along its longest axis; null where nothing is left. One that has no axes belongs to the first part. */
const sliceOf = ({ axes }: StoredTensor, index: number, count: number): SliceOf | null => {
  const longest = axes.reduce<(typeof axes)[number] | null>((a, b) => (a === null || b.size > a.size ? b : a), null)
  if (longest === null || count === 1) return index === 0 ? {} : null
  const [from, to] = [index, index + 1].map((i) => Math.floor((longest.size * i) / count)) as [number, number]
  return to === from ? null : { offsets: { [longest.name]: from }, sizes: { [longest.name]: to - from } }
}

const recordsOf = (reader: CheckpointReader, index: number, count: number): ReadonlyArray<TensorRecord> =>
  reader.manifest.tensors.flatMap((t): ReadonlyArray<TensorRecord> => {
    const { axes, dtype, frozen, kind, name } = t
    const whole = { name, kind, dtype, axes }
    // A frozen tensor is named, not stored: its bytes are not here.
    if (frozen !== undefined) return index === 0 ? [{ ...whole, data: new Uint8Array(0), frozen }] : []
    const slice = sliceOf(t, index, count)
    return slice === null ? [] : [{ ...whole, data: reader.read(name, { kind, ...slice }), slice }]
  })

/** Into the store at hand. */
const rewritten = Effect.fnUntraced(function* (
  reader: CheckpointReader,
  { json, parts }: { readonly json: boolean; readonly parts: number }
) {
  const store = yield* CheckpointStore
  const { metric, state, step } = reader.manifest
  const written: Array<SavedPart> = []
  for (let i = 0; i < parts; i++) {
    if (parts > 1 && !json) yield* note(`part ${i + 1} of ${parts} ...`)
    const part = parts === 1 ? "" : `part-${i}`
    written.push(yield* store.savePart({ step, token: "reshard", part, tensors: recordsOf(reader, i, parts) }))
  }
  return yield* store.commit({
    step,
    state,
    token: "reshard",
    parts: written,
    ...(metric === undefined ? {} : { metric })
  })
})

/** Writes a checkpoint again, in another number of parts, as so many ranks would; one tensor is in memory at a time. */
export const reshard = Effect.fn("checkpoint.reshard")(function* (input: {
  readonly path: string
  readonly to: string
  readonly parts: number
  readonly json: boolean
}) {
  const { parts, to } = input
  if (parts < 1) return yield* new UsageError({ problem: `--parts ${parts}`, hint: "1 or more" })
  const fs = yield* FileSystem.FileSystem
  const present = yield* fs.readDirectory(to).pipe(Effect.orElseSucceed((): ReadonlyArray<string> => []))
  if (present.length > 0)
    return yield* new UsageError({
      problem: `${to} is not empty`,
      hint: "an empty folder, or one that is not there yet"
    })
  const saved = yield* withCheckpoint(input.path, (source, path) =>
    Effect.scoped(
      Effect.flatMap(source.open({ path }), (reader) => rewritten(reader, input)).pipe(
        Effect.provide(FileCheckpoints.layer({ folder: to }))
      )
    )
  )
  if (input.json) return yield* printJson({ path: saved.path, step: saved.step, parts, bytes: saved.bytes })
  yield* print(`${saved.path}: step ${saved.step} in ${parts} part${parts === 1 ? "" : "s"}, ${bytesText(saved.bytes)}`)
})
