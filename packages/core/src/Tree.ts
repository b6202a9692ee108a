/** Nested records and arrays with leaves of one kind: parameters, states, batches. Keys are visited in insertion order. */
import type { AnyTensor } from "./Node.ts"
import { isTensor } from "./Node.ts"

/** A tree with its leaves cut off; `T` remembers what it was. */
export interface Shape<T = unknown> {
  readonly _tree?: T
  readonly keys: ReadonlyArray<readonly [key: string, child: Shape | null]> | null
  readonly isArray: boolean
}

/** The same tree with leaves of another type. */
export type Mapped<T, L> = T extends AnyTensor
  ? T
  : T extends { readonly axes: ReadonlyArray<unknown> }
    ? L
    : T extends ReadonlyArray<unknown>
      ? { readonly [K in keyof T]: Mapped<T[K], L> }
      : T extends object
        ? { readonly [K in keyof T]: Mapped<T[K], L> }
        : L

export const isTensorLeaf = (x: unknown): x is AnyTensor => isTensor(x)

/** Leaves in order, and the shape to put them back. */
export const flatten = <L, T>(tree: T, isLeaf: (x: unknown) => x is L): readonly [ReadonlyArray<L>, Shape<T>] => {
  const leaves: Array<L> = []
  const walk = (x: unknown): Shape | null => {
    if (isLeaf(x)) {
      leaves.push(x)
      return null
    }
    const entries = typeof x === "object" && x !== null ? Object.entries(x) : []
    return { keys: entries.map(([k, v]) => [k, walk(v)] as const), isArray: Array.isArray(x) }
  }
  const shape = walk(tree)
  return [leaves, (shape ?? { keys: null, isArray: false }) as Shape<T>]
}

/** Puts leaves back. */
export const unflatten = <L>(shape: Shape, leaves: ReadonlyArray<L>): unknown => {
  let next = 0
  const walk = (s: Shape | null): unknown => {
    if (s === null || s.keys === null) return leaves[next++]
    if (s.isArray) return s.keys.map(([, child]) => walk(child))
    return Object.fromEntries(s.keys.map(([k, child]) => [k, walk(child)]))
  }
  return walk(shape)
}

/** Path of every leaf, parts joined by "/". */
export const paths = (shape: Shape): ReadonlyArray<string> => {
  const all: Array<string> = []
  const walk = (s: Shape | null, path: string) => {
    if (s === null || s.keys === null) all.push(path)
    else for (const [k, child] of s.keys) walk(child, path === "" ? k : `${path}/${k}`)
  }
  walk(shape, "")
  return all
}
