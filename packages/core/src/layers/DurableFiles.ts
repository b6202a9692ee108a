/** Writing files so that they survive a crash, hashing them, and turning what the system refuses into typed reasons. */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import type { PlatformError } from "effect/PlatformError"
import { createHash, randomBytes } from "node:crypto"
import { CheckpointError, ReadFailed, Truncated, WriteFailed } from "../CheckpointError.ts"

/** SHA-256 in lower-case hexadecimal. */
export const sha256 = (data: string | Uint8Array): string => createHash("sha256").update(data).digest("hex")

/** A name that no other process has chosen. */
export const randomToken = Effect.sync(() => randomBytes(6).toString("hex"))

/** The system's own code, such as `ENOSPC`, where there is one. */
const systemCode = (error: PlatformError): string | undefined => {
  const { cause } = error.reason
  return typeof cause === "object" && cause !== null && "code" in cause ? String(cause.code) : undefined
}

/** A failed write as an error of the store; `bytesNeeded` is what the whole checkpoint takes. */
export const writeFailed = (path: string, folder: string, bytesNeeded?: number) => (error: PlatformError) => {
  const code = systemCode(error)
  const detail =
    code === "ENOSPC"
      ? "no space left on the device"
      : code === "EDQUOT"
        ? "the disk quota is used up"
        : code === "EROFS"
          ? "the file system is read-only"
          : error.message
  const needed = bytesNeeded === undefined ? {} : { bytesNeeded }
  return new CheckpointError({ path, reason: new WriteFailed({ folder, detail, ...needed }) })
}

/** A failed read as an error of the store: a missing file makes the checkpoint incomplete. */
export const readFailed = (path: string, file: string) => (error: PlatformError) =>
  new CheckpointError({
    path,
    reason:
      error.reason._tag === "NotFound"
        ? new Truncated({ file, detail: "the file is missing" })
        : new ReadFailed({ file, detail: error.message })
  })

const chunkBytes = 8 << 20

/** A new file that is being written; `append` hashes what passes. */
export interface HashingFile {
  readonly append: (bytes: Uint8Array) => Effect.Effect<void, PlatformError>
  /** Flushes to the device; gives the length and the hash of everything appended. */
  readonly finish: Effect.Effect<{ readonly bytes: number; readonly sha256: string }, PlatformError>
}

/** Creates a file to append to. It is closed with the scope. */
export const createFile = Effect.fnUntraced(function* (fs: FileSystem.FileSystem, path: string) {
  const file = yield* fs.open(path, { flag: "w" })
  const hash = createHash("sha256")
  let bytes = 0
  const append = Effect.fnUntraced(function* (data: Uint8Array) {
    for (let from = 0; from < data.byteLength; from += chunkBytes) {
      const chunk = data.subarray(from, from + chunkBytes)
      hash.update(chunk)
      yield* file.writeAll(chunk)
      bytes += chunk.byteLength
    }
  })
  const finish = Effect.map(file.sync, () => ({ bytes, sha256: hash.digest("hex") }))
  return { append, finish } satisfies HashingFile
})

/** Flushes a folder's entries to the device. Windows cannot and need not: it journals them. */
export const syncFolder = (fs: FileSystem.FileSystem, path: string): Effect.Effect<void, PlatformError> =>
  process.platform === "win32"
    ? Effect.void
    : Effect.scoped(Effect.flatMap(fs.open(path, { flag: "r" }), (folder) => folder.sync))

/** Length and hash of a file, read in pieces. */
export const hashFile = (
  fs: FileSystem.FileSystem,
  path: string
): Effect.Effect<{ readonly bytes: number; readonly sha256: string }, PlatformError> =>
  Effect.scoped(
    Effect.gen(function* () {
      const file = yield* fs.open(path, { flag: "r" })
      const hash = createHash("sha256")
      const buffer = new Uint8Array(chunkBytes)
      let bytes = 0
      for (;;) {
        const size = yield* file.read(buffer, { position: BigInt(bytes) })
        if (size === 0) return { bytes, sha256: hash.digest("hex") }
        hash.update(buffer.subarray(0, size))
        bytes += size
      }
    })
  )
