/** Sizes of matrices that vector and tensor units cannot fill. @source FairScale's FSDP recipe: dimensions of matrices are multiples of 8 */
import * as Axis from "./Axis.ts"
import type { Body } from "./Node.ts"
import { contractP } from "./primitives/algebra.ts"

/** A dimension of a product of matrices, such as `heads x headDim`. */
export interface Misaligned {
  readonly axes: ReadonlyArray<string>
  readonly size: number
  /** The multiples around it. */
  readonly nearest: ReadonlyArray<number>
}

/** Axes whose length the data decide. */
const ofData: ReadonlySet<string> = new Set(["batch", "otherBatch", "seq", "keySeq", "patch", "micro"])

/** Dimensions of products that are no multiple, each once; those that batches and sequences make are left out. Of a program of one rank: what it multiplies. */
export const misaligned = (body: Body, multiple = 8): ReadonlyArray<Misaligned> => {
  const found = new Map<string, Misaligned>()
  const look = (axes: Axis.Axes) => {
    const own = axes.filter((a) => !ofData.has(a.name))
    const size = Axis.count(own)
    if (own.length === 0 || own.length < axes.length || size % multiple === 0) return
    const below = Math.floor(size / multiple) * multiple
    const names = Axis.names(own).toSorted()
    found.set(`${names.join(" ")} ${size}`, {
      axes: names,
      size,
      nearest: below === 0 ? [multiple] : [below, below + multiple]
    })
  }
  const walk = (b: Body): void => {
    for (const e of b.equations) {
      const { meaning } = e.primitive
      if (meaning.kind === "region") meaning.bodies(e.params).forEach(walk)
      if (e.primitive !== contractP) continue
      const [x, y] = e.inputs as readonly [(typeof e.inputs)[number], (typeof e.inputs)[number]]
      const over = e.params.over as ReadonlyArray<string>
      look(x.type.axes.filter((a) => over.includes(a.name)))
      for (const [own, other] of [
        [x, y],
        [y, x]
      ] as const)
        look(own.type.axes.filter((a) => !over.includes(a.name) && !Axis.has(other.type.axes, a.name)))
    }
  }
  walk(body)
  return [...found.values()]
}

/** `heads x headDim = 150 is no multiple of 8; nearest: 144 or 152`. */
export const print = ({ axes, nearest, size }: Misaligned, multiple = 8): string =>
  `${axes.join(" x ")} = ${size} is no multiple of ${multiple}; nearest: ${nearest.join(" or ")}`
