/** What a step keeps of each layer between its forward and its backward pass. */
import type { Body, TensorType } from "./Node.ts"
import { bytesOf } from "./Node.ts"
import type { ScanParams } from "./primitives/control.ts"
import { scanP } from "./primitives/control.ts"

/** One stack of layers, or of groups of layers that are recomputed together. */
export interface Stack {
  /** Repetitions of the loop: layers, or groups. */
  readonly size: number
  readonly kept: ReadonlyArray<TensorType>
  /** Bytes of one repetition. */
  readonly bytes: number
}

/** Loops over layers, and over groups of layers. */
const loops: ReadonlySet<string> = new Set(["layers", "chunks"])

/** Stacks in the order in which they run forward, those within an accumulation loop included. Of a program of one rank: what that rank keeps. */
export const of = (body: Body): ReadonlyArray<Stack> =>
  body.equations.flatMap((e): ReadonlyArray<Stack> => {
    if (e.primitive === scanP) {
      const p = e.params as ScanParams
      if (!p.reverse && loops.has(p.axis) && p.stacked > 0) {
        const kept = p.body.outputs.slice(p.carried, p.carried + p.stacked).map((o) => o.type)
        return [{ size: p.size, kept, bytes: kept.reduce((n, t) => n + bytesOf(t), 0) }]
      }
    }
    const { meaning } = e.primitive
    return meaning.kind === "region" ? meaning.bodies(e.params).flatMap(of) : []
  })
