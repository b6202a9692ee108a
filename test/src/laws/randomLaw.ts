/** Random bits depend on seed, path, layer, example and element, and on nothing else. */
import * as Axis from "@tessera/core/Axis"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Host from "@tessera/core/HostArray"
import type { AnyTensor, Tensor } from "@tessera/core/Node"
import { input } from "@tessera/core/Node"
import * as Program from "@tessera/core/Program"
import * as Random from "@tessera/core/Random"
import * as Dice from "@tessera/core/testing/Dice"

type Word = Tensor<never, "int">

/** What is drawn: bits, numbers or masks over axes, from a key. */
export type Drawing = (key: Random.Key, axes: Axis.Axes) => AnyTensor

export interface Draw {
  readonly seed: number
  /** Logical indices of the examples of the batch. */
  readonly examples: ReadonlyArray<number>
  /** Sizes of the axes besides the batch. */
  readonly sizes: Readonly<Record<string, number>>
  readonly path: ReadonlyArray<string>
  readonly layer: number | null
}

/** Values over `[batch, ..sizes]`, in the memory order given by `order`. */
export const draw = (drawing: Drawing, d: Draw, order: (axes: Axis.Axes) => Axis.Axes = (a) => a): Host.HostArray => {
  const batch = Axis.list({ batch: d.examples.length })
  const [seed, examples] = [input({ axes: [], dtype: "u32" }), input({ axes: batch, dtype: "u32" })]
  const layer = input({ axes: [], dtype: "u32" })
  let key = Random.make(seed as Word, examples)
  for (const name of d.path) key = Random.child(key, name)
  if (d.layer !== null) key = Random.at(key, layer as Word)
  const body = Program.body([seed, examples, layer], [drawing(key, order([...batch, ...Axis.list(d.sizes)]))])
  return Evaluate.runUnsafe(body, [
    Host.scalar(d.seed, "u32"),
    Host.make(batch, "u32", d.examples),
    Host.scalar(d.layer ?? 0, "u32")
  ])[0]!
}

/** Another memory order of the axes draws the same elements. */
export const orderProblem =
  (drawing: Drawing) =>
  (d: Draw): string | null => {
    const dice = Dice.make(d.seed + 1)
    const distance = Host.distance(
      draw(drawing, d),
      draw(drawing, d, (axes) => dice.shuffle(axes))
    )
    return distance === 0 ? null : `in another memory order elements differ by ${distance}`
  }

/** A part of the batch, with its own example counters, draws the rows of the whole. */
export const sliceProblem =
  (drawing: Drawing) =>
  (d: Draw): string | null => {
    const start = Math.floor(d.examples.length / 3)
    const part = draw(drawing, { ...d, examples: d.examples.slice(start) })
    const rows = Host.slice(draw(drawing, d), "batch", start, d.examples.length - start)
    const distance = Host.distance(rows, part)
    return distance === 0 ? null : `rows of a part of the batch differ by ${distance}`
  }

/** Seeds, paths, layers and examples that differ share few words. */
export const separationProblem =
  (drawing: Drawing) =>
  (d: Draw): string | null => {
    const others: ReadonlyArray<readonly [string, Draw]> = [
      ["seed", { ...d, seed: (d.seed + 1) >>> 0 }],
      ["path", { ...d, path: [...d.path, "more"] }],
      ["part's name", { ...d, path: [...d.path.slice(0, -1), `${d.path.at(-1) ?? ""}2`] }],
      ["layer", { ...d, layer: (d.layer ?? 0) + 1 }],
      ["example", { ...d, examples: d.examples.map((e) => e + 1000) }]
    ]
    const own = draw(drawing, d).data
    for (const [what, other] of others) {
      const equal = draw(drawing, other).data.reduce((n, v, i) => n + (v === own[i] ? 1 : 0), 0)
      if (own.length > 0 && equal > own.length / 2) return `another ${what}, and ${equal} of ${own.length} are the same`
    }
    return null
  }

/** Mean and variance as they should be, within five standard errors of n independent draws. */
export const momentsProblem = (values: Float64Array, mean: number, variance: number, fourth: number): string | null => {
  const n = values.length
  const found = values.reduce((t, v) => t + v, 0) / n
  const spread = values.reduce((t, v) => t + (v - mean) ** 2, 0) / n
  if (!(Math.abs(found - mean) < 5 * Math.sqrt(variance / n))) return `mean ${found}, expected ${mean}`
  if (!(Math.abs(spread - variance) < 5 * Math.sqrt((fourth - variance ** 2) / n))) {
    return `variance ${spread}, expected ${variance}`
  }
  return null
}
