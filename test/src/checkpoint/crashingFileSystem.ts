/** A file system that stops for good at its k-th change: what the disk holds then is what a killed process leaves. */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import type { PlatformError } from "effect/PlatformError"
import { systemError } from "effect/PlatformError"

export interface Crash {
  readonly fs: FileSystem.FileSystem
  /** Changes that were attempted. */
  readonly operations: () => number
}

const stopped = (method: string, code: string) =>
  systemError({ _tag: "Unknown", module: "FileSystem", method, cause: Object.assign(new Error(code), { code }) })

/**
 * What was written and never flushed is lost with the machine: such files are empty afterwards. Lets `limit` changes (create, write, flush, rename, remove, make a folder) through. The next one happens by half where
 * it can (half of the bytes, half of the tree), and nothing works from then on.
 */
export const crashAfter = (inner: FileSystem.FileSystem, limit: number, code = "EKILLED"): Crash => {
  let done = 0
  const unflushed = new Set<string>()
  const lose = Effect.suspend(() => Effect.forEach(unflushed, (path) => Effect.ignore(inner.truncate(path, 0))))
  const follow = (from: string, to: string) =>
    Effect.sync(() => {
      for (const path of [...unflushed].filter((one) => one.startsWith(`${from}/`))) {
        unflushed.delete(path)
        unflushed.add(to + path.slice(from.length))
      }
    })
  const change = <A, R>(
    method: string,
    effect: Effect.Effect<A, PlatformError, R>,
    half: Effect.Effect<unknown, unknown> = Effect.void
  ) =>
    Effect.suspend((): Effect.Effect<A, PlatformError, R> => {
      done++
      if (done <= limit) return effect
      const fail = Effect.fail(stopped(method, code))
      return done === limit + 1 ? Effect.ignore(half).pipe(Effect.andThen(lose), Effect.andThen(fail)) : fail
    })
  const fs: FileSystem.FileSystem = {
    ...inner,
    makeDirectory: (path, options) => change("makeDirectory", inner.makeDirectory(path, options)),
    rename: (from, to) => change("rename", Effect.andThen(inner.rename(from, to), follow(from, to))),
    remove: (path, options) =>
      change(
        "remove",
        inner.remove(path, options),
        Effect.flatMap(inner.readDirectory(path), (names) =>
          Effect.forEach(names.slice(0, Math.ceil(names.length / 2)), (name) => inner.remove(`${path}/${name}`))
        )
      ),
    open: (path, options) => {
      if ((options?.flag ?? "r") === "r") {
        return Effect.map(inner.open(path, options), (file) => ({
          ...wrap(file),
          sync: change("sync", file.sync),
          read: file.read.bind(file)
        }))
      }
      return Effect.map(change("open", inner.open(path, options)), (file) => ({
        ...wrap(file),
        sync: change(
          "sync",
          Effect.andThen(
            file.sync,
            Effect.sync(() => void unflushed.delete(path))
          )
        ),
        writeAll: (bytes: Uint8Array) =>
          Effect.andThen(
            Effect.sync(() => unflushed.add(path)),
            change("writeAll", file.writeAll(bytes), file.writeAll(bytes.subarray(0, bytes.byteLength >> 1)))
          )
      }))
    }
  }
  return { fs, operations: () => done }
}

/** The methods of a file live on its prototype; a copy needs them as its own. */
const wrap = (file: FileSystem.File): FileSystem.File => ({
  [FileSystem.FileTypeId]: FileSystem.FileTypeId,
  stat: file.stat,
  sync: file.sync,
  seek: file.seek.bind(file),
  read: file.read.bind(file),
  readAlloc: file.readAlloc.bind(file),
  truncate: file.truncate.bind(file),
  write: file.write.bind(file),
  writeAll: file.writeAll.bind(file)
})
