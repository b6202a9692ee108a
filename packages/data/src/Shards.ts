/** Lists of shard files: written short, checked before anything is read. */
import { expand as expandBraces } from "brace-expansion"
import * as Effect from "effect/Effect"
import { stat } from "node:fs/promises"
import { type DataError, EmptySource, fail, reading, ShardUnavailable } from "./Errors.ts"

/**
 * All files of a pattern, in order: `{000000..000146}` keeps its zero padding, several braces give their product,
 * `{a,b}` is a list, and `::` joins patterns. Pure: nothing is looked up. A million files are allowed.
 */
export const expand = (pattern: string): ReadonlyArray<string> =>
  pattern
    .split("::")
    .filter((one) => one !== "")
    .flatMap((one) => expandBraces(one, { max: 1_000_000 }))

/** Size in bytes of every file. Fails with `ShardUnavailable` for the first that is absent, empty, or no file. */
export const sizes = (files: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<number>, DataError> =>
  files.length === 0
    ? fail(new EmptySource({ source: "the shard pattern", expected: "a pattern that names at least one file" }))
    : Effect.forEach(
        files,
        (file, index) => {
          const expected = files.length === 1 ? "a tar file" : `a tar file (shard ${index + 1} of ${files.length})`
          return Effect.flatMap(
            reading(file, expected, () => stat(file)),
            (found) =>
              !found.isFile()
                ? fail(
                    new ShardUnavailable({
                      file,
                      expected,
                      found: found.isDirectory() ? "a folder" : "not a plain file"
                    })
                  )
                : found.size === 0
                  ? fail(new ShardUnavailable({ file, expected, found: "an empty file (0 bytes)" }))
                  : Effect.succeed(found.size)
          )
        },
        { concurrency: 16 }
      )
