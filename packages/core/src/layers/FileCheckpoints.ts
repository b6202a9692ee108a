/**
 * Checkpoints in a folder of the file system.
 *
 * A checkpoint is written under the name `.step-N.partial-TOKEN`: tensor files first, each flushed to the device, the
 * manifest last; then the folder is renamed to `step-N`, which is atomic. Deleting begins with a rename as well. So at
 * every moment a folder named `step-N` is whole, whenever the process or the machine stops. What a stopped process left
 * behind is removed when the store is opened again.
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import type { PlatformError } from "effect/PlatformError"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Safetensors from "../Safetensors.ts"
import { CheckpointError, InvalidCheckpoint, NotFound, Truncated } from "../CheckpointError.ts"
import { tesseraVersion } from "../version.ts"
import * as CheckpointManifest from "../CheckpointManifest.ts"
import type { RetentionPolicy } from "../CheckpointRetention.ts"
import { expired } from "../CheckpointRetention.ts"
import type {
  Checkpoint,
  CheckpointReader,
  CheckpointRef,
  CheckpointState,
  ListedCheckpoint,
  SavedPart,
  SkippedCheckpoint
} from "../services/CheckpointStore.ts"
import { CheckpointStore } from "../services/CheckpointStore.ts"
import * as CheckpointFolder from "./CheckpointFolder.ts"
import * as CheckpointParts from "./CheckpointParts.ts"
import { createFile, randomToken, readFailed, sha256, syncFolder, writeFailed } from "./DurableFiles.ts"

export interface FileCheckpointsOptions extends Partial<RetentionPolicy> {
  readonly folder: string
  /** Larger sets of tensors are split over several files; 4 GiB by default. */
  readonly maxFileBytes?: number
  /**
   * Whether this process looks after the folder: removes leftovers when it opens, and old checkpoints after a save.
   * True by default. Of several processes on one folder exactly one may; readers and other ranks pass false.
   */
  readonly owner?: boolean
}

const folderName = (step: number) => `step-${String(step).padStart(8, "0")}`
const folderPattern = /^step-(\d{8,})$/
const leftoverPattern = /^\.(step-\d{8,})\.(partial|replaced|trash)-/

const invalid = (path: string, what: string, detail: string) =>
  new CheckpointError({ path, reason: new InvalidCheckpoint({ what, detail }) })

/** Names become file names and steps folder names: what would not be found again is refused. */
const checkNames = (path: string, step: number, names: ReadonlyArray<string>): Effect.Effect<void, CheckpointError> => {
  if (!Number.isSafeInteger(step) || step < 0) {
    return Effect.fail(invalid(path, "the step", `${step} is not a whole number from 0`))
  }
  const bad = names.find((name) => !/^[A-Za-z0-9_-]*$/.test(name))
  return bad === undefined
    ? Effect.void
    : Effect.fail(invalid(path, `the name "${bad}"`, "only letters, digits, - and _ are allowed"))
}

const make = Effect.fnUntraced(function* (options: FileCheckpointsOptions) {
  const fs = yield* FileSystem.FileSystem
  const { folder, owner = true, maxFileBytes = 4 * 2 ** 30 } = options
  const policy: RetentionPolicy = {
    keepLast: options.keepLast ?? 2,
    ...(options.keepBest === undefined ? {} : { keepBest: options.keepBest })
  }
  const turn = yield* Semaphore.make(1)
  const failedAt = (path: string) => Effect.mapError<PlatformError, CheckpointError>(writeFailed(path, folder))
  const remove = (name: string) => fs.remove(`${folder}/${name}`, { recursive: true, force: true })
  const partialOf = (step: number, token: string) => `.${folderName(step)}.partial-${token}`

  const steps = Effect.gen(function* () {
    const names = yield* fs.readDirectory(folder)
    return names
      .flatMap((name) => folderPattern.exec(name)?.[1] ?? [])
      .map(Number)
      .toSorted((a, b) => a - b)
  }).pipe(Effect.mapError(readFailed(folder, folder)))

  /** Removes what stopped processes left; a replaced checkpoint whose successor never appeared comes back. */
  const cleanUp = Effect.gen(function* () {
    const names = yield* fs.readDirectory(folder)
    for (const name of names) {
      const [, original, kind] = leftoverPattern.exec(name) ?? []
      if (original === undefined) continue
      if (kind === "replaced" && !names.includes(original))
        yield* fs.rename(`${folder}/${name}`, `${folder}/${original}`)
      else yield* remove(name)
    }
  }).pipe(failedAt(folder))

  const listed = Effect.fnUntraced(function* (step: number) {
    const path = `${folder}/${folderName(step)}`
    const checked = yield* Effect.result(CheckpointFolder.checkLengths(fs, path))
    if (checked._tag === "Failure") return { path, step, complete: false, bytes: 0 } satisfies ListedCheckpoint
    const { metric } = checked.success
    const bytes = CheckpointManifest.tensorBytes(checked.success)
    return { path, step, complete: true, bytes, ...(metric === undefined ? {} : { metric }) } satisfies ListedCheckpoint
  })

  const list: Effect.Effect<ReadonlyArray<ListedCheckpoint>, CheckpointError> = Effect.flatMap(steps, (all) =>
    Effect.forEach(all, listed)
  )

  /** Deletes what the policy does not keep. The new checkpoint is safe already, so a failure here is only a warning. */
  const retain = Effect.fnUntraced(
    function* (saved: number) {
      for (const { step } of expired(yield* list, policy, saved)) {
        const trash = `.${folderName(step)}.trash-${yield* randomToken}`
        yield* fs.rename(`${folder}/${folderName(step)}`, `${folder}/${trash}`)
        yield* remove(trash)
      }
    },
    Effect.catch((error) => Effect.logWarning(`old checkpoints in ${folder} could not be removed: ${error.message}`))
  )

  const savePart: CheckpointStore["Service"]["savePart"] = Effect.fn("CheckpointStore.savePart")(function* (request) {
    const path = `${folder}/${folderName(request.step)}`
    const partial = `${folder}/${partialOf(request.step, request.token)}`
    yield* checkNames(path, request.step, [request.token, request.part])
    yield* fs.makeDirectory(partial, { recursive: true }).pipe(failedAt(path))
    return yield* CheckpointParts.writePart(fs, partial, { ...request, path, maxFileBytes })
  })

  const writeManifest = Effect.fnUntraced(function* (
    partial: string,
    path: string,
    checkpoint: CheckpointState & { readonly parts: ReadonlyArray<SavedPart> }
  ) {
    const { step, state, metric } = checkpoint
    const problem = CheckpointParts.jsonProblem(state)
    if (problem !== undefined) return yield* invalid(path, "the state of the checkpoint", problem)
    const usable = metric !== undefined && Number.isFinite(metric.value)
    if (metric !== undefined && !usable) {
      yield* Effect.logWarning(
        `checkpoint of step ${step}: ${metric.name} is ${metric.value}; it does not count as best`
      )
    }
    const { tensors, files } = yield* Effect.fromResult(CheckpointParts.join(path, checkpoint.parts))
    const manifest: CheckpointManifest.Manifest = {
      schemaVersion: CheckpointManifest.schemaVersion,
      tessera: tesseraVersion,
      step,
      tensors,
      files,
      state,
      ...(usable ? { metric: { name: metric.name, value: metric.value } } : {})
    }
    const text = CheckpointManifest.encode(manifest, sha256)
    // What cannot be read back must not take a checkpoint's name.
    yield* Effect.fromResult(CheckpointManifest.decode(text, sha256)).pipe(
      Effect.mapError((error) => invalid(path, "the manifest", String(error)))
    )
    yield* Effect.gen(function* () {
      const file = yield* createFile(fs, `${partial}/${CheckpointManifest.fileName}`)
      yield* file.append(new TextEncoder().encode(text))
      yield* file.finish
      yield* syncFolder(fs, partial)
    }).pipe(Effect.scoped, failedAt(path))
    return manifest
  })

  /** Gives the finished folder its name. An older checkpoint of the same step steps aside first. */
  const publish = Effect.fnUntraced(function* (partial: string, step: number) {
    const path = `${folder}/${folderName(step)}`
    const replaced = `.${folderName(step)}.replaced-${yield* randomToken}`
    const again = yield* fs.exists(path)
    if (again) yield* fs.rename(path, `${folder}/${replaced}`)
    yield* fs.rename(partial, path)
    yield* syncFolder(fs, folder)
    if (again) yield* remove(replaced)
  })

  const commit: CheckpointStore["Service"]["commit"] = Effect.fn("CheckpointStore.commit")(function* (checkpoint) {
    const { step, token } = checkpoint
    const path = `${folder}/${folderName(step)}`
    const partial = `${folder}/${partialOf(step, token)}`
    yield* checkNames(path, step, [token])
    yield* fs.makeDirectory(partial, { recursive: true }).pipe(failedAt(path))
    const manifest = yield* writeManifest(partial, path, checkpoint)
    yield* Effect.uninterruptible(publish(partial, step)).pipe(failedAt(path))
    if (owner) yield* retain(step)
    return { path, step, bytes: CheckpointManifest.tensorBytes(manifest) }
  }, turn.withPermit)

  const save: CheckpointStore["Service"]["save"] = Effect.fn("CheckpointStore.save")(function* (
    checkpoint: Checkpoint
  ) {
    const { tensors, ...rest } = checkpoint
    const token = yield* randomToken
    return yield* savePart({ step: rest.step, token, part: "", tensors }).pipe(
      Effect.flatMap((part) => commit({ ...rest, token, parts: [part] })),
      Effect.onError(() => Effect.ignore(remove(partialOf(rest.step, token))))
    )
  })

  const openFile =
    (path: string) =>
    (file: string): Effect.Effect<Safetensors.Reader, CheckpointError, Scope.Scope> =>
      Safetensors.openFile(file).pipe(
        Effect.provideService(FileSystem.FileSystem, fs),
        Effect.mapError((error) =>
          error._tag === "PlatformError"
            ? readFailed(path, file)(error)
            : new CheckpointError({ path, reason: new Truncated({ file, detail: error.detail }) })
        )
      )

  const openPath = Effect.fnUntraced(function* (path: string, skipped: ReadonlyArray<SkippedCheckpoint>) {
    const manifest = yield* CheckpointFolder.verify(fs, path)
    return yield* CheckpointFolder.openReader(path, manifest, openFile(path), skipped)
  })

  const openLatest: Effect.Effect<CheckpointReader, CheckpointError, Scope.Scope> = Effect.gen(function* () {
    const skipped: Array<SkippedCheckpoint> = []
    for (const step of (yield* steps).toReversed()) {
      const path = `${folder}/${folderName(step)}`
      const opened = yield* Effect.result(openPath(path, skipped))
      if (opened._tag === "Success") return opened.success
      // A checkpoint of another version is sound: passing over it would lose work without need.
      if (opened.failure.reason._tag === "VersionMismatch") return yield* opened.failure
      skipped.push({ path, error: opened.failure })
      yield* Effect.logWarning(`${opened.failure.message}; trying the checkpoint before it`)
    }
    const hint =
      skipped.length === 0
        ? "none has been saved there"
        : `all are damaged: ${skipped.map(({ error }) => `${error.path}: ${String(error.reason)}`).join("; ")}`
    return yield* new CheckpointError({ path: folder, reason: new NotFound({ wanted: "a valid checkpoint", hint }) })
  })

  const open = Effect.fn("CheckpointStore.open")(function* (ref: CheckpointRef) {
    if (ref === "latest") return yield* openLatest
    if ("path" in ref) {
      if (yield* fs.exists(ref.path).pipe(Effect.mapError(readFailed(ref.path, ref.path))))
        return yield* openPath(ref.path, [])
      const reason = new NotFound({ wanted: `the folder ${ref.path}`, hint: "" })
      return yield* new CheckpointError({ path: ref.path, reason })
    }
    const all = yield* steps
    if (all.includes(ref.step)) return yield* openPath(`${folder}/${folderName(ref.step)}`, [])
    const hint = all.length === 0 ? "the folder holds no checkpoint" : `the folder holds steps ${all.join(", ")}`
    const wanted = `a checkpoint of step ${ref.step}`
    return yield* new CheckpointError({ path: folder, reason: new NotFound({ wanted, hint }) })
  })

  yield* fs.makeDirectory(folder, { recursive: true }).pipe(failedAt(folder))
  if (owner) yield* cleanUp
  return CheckpointStore.of({
    folder,
    save,
    savePart,
    commit,
    open,
    list,
    verify: (path) => CheckpointFolder.verify(fs, path),
    inspect: (path) => CheckpointFolder.readManifest(fs, path)
  })
})

/** Keeps the checkpoints in `folder`: the newest two by default, and the best where `keepBest` says so. */
export const layer = (
  options: FileCheckpointsOptions
): Layer.Layer<CheckpointStore, CheckpointError, FileSystem.FileSystem> => Layer.effect(CheckpointStore, make(options))
