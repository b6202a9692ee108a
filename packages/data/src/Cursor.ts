/** Where a run stands in its data. Part of the training state: saved with every checkpoint. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { CursorMismatch, type DataError, fail } from "./Errors.ts"

const Count = Schema.Int.pipe(Schema.check(Schema.isGreaterThanOrEqualTo(0)))

/**
 * `position` samples of epoch `epoch` (from 0) have been consumed, in the order given by `seed`, of the source with
 * `sourceDigest`. The next sample is exactly the one at `position`.
 */
export const Cursor = Schema.Struct({ seed: Schema.Int, epoch: Count, position: Count, sourceDigest: Schema.String })
export type Cursor = typeof Cursor.Type

/** The beginning of the first epoch. */
export const start = (seed: number, sourceDigest: string): Cursor => ({ seed, epoch: 0, position: 0, sourceDigest })

/** Refuses a cursor of other data or of another seed (`CursorMismatch`), else returns it. */
export const check = (
  cursor: Cursor,
  source: { readonly name: string; readonly digest: string; readonly count: number },
  seed: number
): Effect.Effect<Cursor, DataError> => {
  const mismatch = (field: string, expected: string, found: string) =>
    fail(new CursorMismatch({ source: source.name, field, expected, found }))
  if (cursor.sourceDigest !== source.digest) return mismatch("source digest", source.digest, cursor.sourceDigest)
  if (cursor.seed !== seed) return mismatch("seed", String(seed), String(cursor.seed))
  if (cursor.position > source.count) return mismatch("position", `at most ${source.count}`, String(cursor.position))
  return Effect.succeed(cursor)
}
