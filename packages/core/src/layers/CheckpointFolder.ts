/** Reading one checkpoint's folder: its manifest, its soundness, its tensors. */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as Safetensors from "../Safetensors.ts"
import * as Slice from "../Slice.ts"
import { CheckpointError, ChecksumMismatch, InvalidCheckpoint, NotFound, Truncated } from "../CheckpointError.ts"
import type { Manifest, StoredFile, StoredTensor } from "../CheckpointManifest.ts"
import * as CheckpointManifest from "../CheckpointManifest.ts"
import { nearest } from "../CheckpointMatch.ts"
import * as DType from "../DType.ts"
import type { CheckpointReader, ReadOptions, SkippedCheckpoint } from "../services/CheckpointStore.ts"
import { hashFile, readFailed, sha256 } from "./DurableFiles.ts"

/** Reads the manifest and checks that it is whole. */
export const readManifest = Effect.fnUntraced(function* (fs: FileSystem.FileSystem, path: string) {
  const bytes = yield* fs
    .readFile(`${path}/${CheckpointManifest.fileName}`)
    .pipe(Effect.mapError(readFailed(path, CheckpointManifest.fileName)))
  const text = yield* Effect.try({
    try: () => new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes),
    catch: () =>
      new CheckpointError({
        path,
        reason: new Truncated({ file: CheckpointManifest.fileName, detail: "it is no UTF-8 text" })
      })
  })
  return yield* Effect.fromResult(CheckpointManifest.decode(text, sha256)).pipe(
    Effect.mapError((reason) => new CheckpointError({ path, reason }))
  )
})

const wrongLength = (path: string, file: StoredFile, bytes: number) =>
  new CheckpointError({
    path,
    reason: new Truncated({ file: file.name, detail: `it has ${bytes} bytes, the manifest says ${file.bytes}` })
  })

/** Reads the manifest and compares the lengths of the files with it; contents are not read. */
export const checkLengths = Effect.fnUntraced(function* (fs: FileSystem.FileSystem, path: string) {
  const manifest = yield* readManifest(fs, path)
  for (const file of manifest.files) {
    const stat = yield* fs.stat(`${path}/${file.name}`).pipe(Effect.mapError(readFailed(path, file.name)))
    if (Number(stat.size) !== file.bytes) return yield* wrongLength(path, file, Number(stat.size))
  }
  return manifest
})

/** Reads everything and compares it with the manifest. */
export const verify = Effect.fnUntraced(function* (fs: FileSystem.FileSystem, path: string) {
  const manifest = yield* checkLengths(fs, path)
  for (const file of manifest.files) {
    const found = yield* hashFile(fs, `${path}/${file.name}`).pipe(Effect.mapError(readFailed(path, file.name)))
    if (found.bytes !== file.bytes) return yield* wrongLength(path, file, found.bytes)
    if (found.sha256 !== file.sha256) {
      const reason = new ChecksumMismatch({ file: file.name, expected: file.sha256, found: found.sha256 })
      return yield* new CheckpointError({ path, reason })
    }
  }
  return manifest
})

const find = (path: string, manifest: Manifest, name: string, kind: ReadOptions["kind"]) => {
  const named = manifest.tensors.filter((tensor) => tensor.name === name)
  const found =
    kind === undefined
      ? (named.find((tensor) => tensor.kind === "parameter") ?? named[0])
      : named.find((tensor) => tensor.kind === kind)
  if (found !== undefined) return Result.succeed(found)
  const near = nearest(
    name,
    manifest.tensors.map((tensor) => tensor.name)
  )
  const wanted = `tensor "${name}"${kind === undefined ? "" : ` of kind ${kind}`}`
  const hint = near === undefined ? "" : `the nearest name is "${near}"`
  return Result.fail(new CheckpointError({ path, reason: new NotFound({ wanted, hint }) }))
}

/** The requested box, and the requested order of axes as positions. */
const request = (path: string, tensor: StoredTensor, options: ReadOptions) => {
  const invalid = (detail: string) =>
    Result.fail(
      new CheckpointError({ path, reason: new InvalidCheckpoint({ what: `reading "${tensor.name}"`, detail }) })
    )
  const names = tensor.axes.map(({ name }) => name)
  const has = CheckpointManifest.describe(tensor)
  const unknown = [...Object.keys(options.offsets ?? {}), ...Object.keys(options.sizes ?? {})].find(
    (n) => !names.includes(n)
  )
  if (unknown !== undefined) return invalid(`it has no axis "${unknown}"; it is ${has}`)
  const box = CheckpointManifest.boxOf(tensor.axes, options)
  if (box.size.some((n) => n < 0) || !Slice.contains(Slice.whole(tensor.axes.map(({ size }) => size)), box)) {
    return invalid(`the slice ${Slice.show(box)} lies outside of ${has}`)
  }
  const wanted = options.order ?? names
  const order = wanted.map((name) => names.indexOf(name))
  if (new Set(order).size !== names.length || order.length !== names.length || order.includes(-1)) {
    return invalid(`the order [${wanted.join(", ")}] does not name each axis of ${has} once`)
  }
  return Result.succeed({ box, order })
}

/** Opens the files of a checkpoint that has been verified. */
export const openReader = (
  path: string,
  manifest: Manifest,
  openFile: (path: string) => Effect.Effect<Pick<Safetensors.Reader, "read">, CheckpointError, Scope.Scope>,
  skipped: ReadonlyArray<SkippedCheckpoint>
): Effect.Effect<CheckpointReader, CheckpointError, Scope.Scope> =>
  Effect.gen(function* () {
    const files = new Map<string, Pick<Safetensors.Reader, "read">>()
    for (const { name } of manifest.files) files.set(name, yield* openFile(`${path}/${name}`))

    const readSlice = (tensor: StoredTensor, index: number, region: Slice.Box) => {
      const slice = tensor.slices[index]!
      const stored = CheckpointManifest.boxOf(tensor.axes, slice)
      const local = { start: region.start.map((s, i) => s - stored.start[i]!), size: region.size }
      return files
        .get(slice.file)!
        .read(slice.tensor, local)
        .pipe(
          Effect.mapError((error) =>
            error._tag === "PlatformError"
              ? readFailed(path, slice.file)(error)
              : new CheckpointError({ path, reason: new Truncated({ file: slice.file, detail: error.message }) })
          )
        )
    }

    const read = Effect.fnUntraced(function* (name: string, options: ReadOptions = {}) {
      const tensor = yield* Effect.fromResult(find(path, manifest, name, options.kind))
      if (tensor.frozen !== undefined) {
        const hint = `it is frozen and not stored here; load it from ${tensor.frozen.source}`
        return yield* new CheckpointError({ path, reason: new NotFound({ wanted: `the content of "${name}"`, hint }) })
      }
      const { box, order } = yield* Effect.fromResult(request(path, tensor, options))
      const width = DType.bytesOf(tensor.dtype)
      const common = tensor.slices.map((slice) => Slice.intersect(CheckpointManifest.boxOf(tensor.axes, slice), box))
      const only = common.findIndex((part) => part !== undefined && Slice.count(part.size) === Slice.count(box.size))
      if (only >= 0) {
        return Slice.permute(yield* readSlice(tensor, only, common[only]!), box.size, order, width)
      }
      const out = new Uint8Array(Slice.count(box.size) * width)
      for (const [index, region] of common.entries()) {
        if (region === undefined) continue
        const bytes = yield* readSlice(tensor, index, region)
        Slice.copy({ bytes, box: region }, { bytes: out, box }, region, width)
      }
      return Slice.permute(out, box.size, order, width)
    })

    const checkFrozen = Effect.fnUntraced(function* (name: string, bytes: Uint8Array) {
      const tensor = yield* Effect.fromResult(find(path, manifest, name, "frozen"))
      const found = sha256(bytes)
      if (tensor.frozen === undefined || tensor.frozen.sha256 === found) return
      const file = `frozen tensor "${name}" from ${tensor.frozen.source}`
      const reason = new ChecksumMismatch({ file, expected: tensor.frozen.sha256, found })
      return yield* new CheckpointError({ path, reason })
    })
    return { path, manifest, skipped, read, checkFrozen }
  })
