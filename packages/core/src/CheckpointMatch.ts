/** Compares a checkpoint with the tensors that a model expects, before anything is loaded. */
import * as Result from "effect/Result"
import { CheckpointError, ManifestMismatch } from "./CheckpointError.ts"
import type { Kind, Manifest } from "./CheckpointManifest.ts"
import { describe } from "./CheckpointManifest.ts"
import type { DType } from "./DType.ts"

/** A tensor that a model wants from a checkpoint. */
export interface Expected {
  readonly name: string
  readonly kind: Kind
  readonly dtype: DType
  readonly axes: ReadonlyArray<{ readonly name: string; readonly size: number }>
}

/** Edits (insert, delete, replace) that turn one text into the other; gives up above `limit`. */
const distance = (a: string, b: string, limit: number): number => {
  if (Math.abs(a.length - b.length) > limit) return limit + 1
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const replaced = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(replaced, row[j]! + 1, next[j - 1]! + 1))
    }
    row = next
  }
  return row[b.length]!
}

/** The candidate with the fewest edits from `name`, if one is similar at all (fewer than half of its letters change). */
export const nearest = (name: string, candidates: Iterable<string>): string | undefined => {
  let best: string | undefined
  let least = Math.ceil(name.length / 2)
  for (const candidate of candidates) {
    const edits = distance(name, candidate, least)
    if (edits < least) {
      least = edits
      best = candidate
    }
  }
  return best
}

const sameForm = (expected: Expected, found: Omit<Expected, "kind">): boolean =>
  expected.dtype === found.dtype &&
  expected.axes.length === found.axes.length &&
  expected.axes.every(({ name, size }) => found.axes.some((axis) => axis.name === name && axis.size === size))

const key = ({ kind, name }: { readonly kind: Kind; readonly name: string }) => `${kind}:${name}`

const shownName = ({ kind, name }: { readonly kind: Kind; readonly name: string }) =>
  kind === "parameter" ? name : `${name} (${kind})`

/** How many missing names get a nearest name: looking is quadratic, and nobody reads more. */
const nearestLimit = 20

/**
 * Succeeds when the checkpoint has exactly the expected tensors. Axes are compared by name, in any order. With `kinds`,
 * only tensors of these kinds are compared: parameters alone, say, to evaluate a model that was saved with its optimizer.
 */
export const match = (
  path: string,
  manifest: Manifest,
  expected: ReadonlyArray<Expected>,
  kinds?: ReadonlyArray<Kind>
): Result.Result<void, CheckpointError> => {
  const counts = (tensor: { readonly kind: Kind }) => kinds === undefined || kinds.includes(tensor.kind)
  const wanted = new Map(expected.filter(counts).map((tensor) => [key(tensor), tensor]))
  const found = new Map(manifest.tensors.filter(counts).map((tensor) => [key(tensor), tensor]))
  const unexpected = [...found.values()].filter((tensor) => !wanted.has(key(tensor)))
  const missing = [...wanted.values()]
    .filter((tensor) => !found.has(key(tensor)))
    .map((tensor, index) => {
      const near =
        index < nearestLimit
          ? nearest(
              tensor.name,
              unexpected.map(({ name }) => name)
            )
          : undefined
      return { name: shownName(tensor), ...(near === undefined ? {} : { nearest: near }) }
    })
  const differing = [...wanted.values()].flatMap((tensor) => {
    const other = found.get(key(tensor))
    if (other === undefined || sameForm(tensor, other)) return []
    return [{ name: shownName(tensor), expected: describe(tensor), found: describe(other) }]
  })
  if (missing.length + unexpected.length + differing.length === 0) return Result.void
  const reason = new ManifestMismatch({ missing, unexpected: unexpected.map(shownName), differing })
  return Result.fail(new CheckpointError({ path, reason }))
}
