/** The law of the four combinations: the loss on a single device, with options, gives the gradients that ranks written out by hand find. */
import type * as Accumulate from "@tessera/core/Accumulate"
import * as Axis from "@tessera/core/Axis"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Gradient from "@tessera/core/Gradient"
import * as Host from "@tessera/core/HostArray"
import * as Program from "@tessera/core/Program"
import * as Dice from "@tessera/core/testing/Dice"
import * as T from "@tessera/core/Tensor"
import * as UnitNorm from "@tessera/models/layers/unitNorm"
import type * as Contrastive from "@tessera/models/losses/contrastive"
import * as fc from "fast-check"
import type { Learned, Towers } from "./byHand.ts"
import * as ByHand from "./byHand.ts"

export type Loss = (pairs: Contrastive.Pairs<"embed">, options: Contrastive.Options) => Accumulate.Loss

export interface Case {
  readonly ranks: number
  readonly each: number
  readonly embed: number
  readonly logScale: number
  readonly seed: number
}

/** Scales up to the 100 at which open_clip stops. */
export const cases: fc.Arbitrary<Case> = fc.record({
  ranks: fc.integer({ min: 1, max: 4 }),
  each: fc.integer({ min: 1, max: 4 }),
  embed: fc.integer({ min: 2, max: 5 }),
  logScale: fc.double({ min: -1, max: Math.log(100), noNaN: true }),
  seed: fc.nat({ max: 1000 })
})

export const combinations = [
  { localLoss: false, gatherWithGrad: true },
  { localLoss: true, gatherWithGrad: true },
  { localLoss: false, gatherWithGrad: false },
  { localLoss: true, gatherWithGrad: false }
] as const
export type Combination = (typeof combinations)[number]

const pixel = 3

export const towersOf = ({ each, embed, logScale, ranks, seed }: Case): Towers => {
  const dice = Dice.make(seed + 1)
  const matrix = (rows: number, columns: number) =>
    Array.from({ length: rows }, () => Array.from({ length: columns }, () => 2 * dice.next() - 1))
  const count = ranks * each
  return {
    x: matrix(count, pixel),
    y: matrix(count, pixel),
    u: matrix(pixel, embed),
    v: matrix(pixel, embed),
    logScale
  }
}

/** The same towers as a program for one device, differentiated by it. */
export const ours = (loss: Loss, towers: Towers, options: Contrastive.Options): Learned => {
  const [batch, embed] = [towers.x.length, towers.u[0]!.length]
  const rows = Axis.list({ batch, pixel })
  const weights = Axis.list({ pixel, embed })
  const type = (axes: Axis.Axes) => ({ axes, dtype: "f32" as const })
  const program = Program.traceUnsafe(
    { u: type(weights), v: type(weights), logScale: type([]), x: type(rows), y: type(rows) },
    ({ logScale, u, v, x, y }) => {
      const view = (data: T.AnyTensor, weight: T.AnyTensor): T.Tensor<"batch" | "embed"> =>
        UnitNorm.apply(T.contract(data as T.Tensor<any>, weight as T.Tensor<any>, "pixel"), "embed")
      const { total, weight } = loss({ image: view(x, u), text: view(y, v), logScale }, options)
      return [T.div(total, weight)]
    }
  )
  // Not by `Host.make`, which rounds to f32.
  const exact = (axes: Axis.Axes, values: ReadonlyArray<ReadonlyArray<number>>): Host.HostArray => ({
    axes,
    dtype: "f32",
    data: Float64Array.from(values.flat())
  })
  const [total, u, v, logScale] = Evaluate.runUnsafe(Gradient.valueAndGrad(program, [0, 1, 2]), [
    exact(weights, towers.u),
    exact(weights, towers.v),
    exact([], [[towers.logScale]]),
    exact(rows, towers.x),
    exact(rows, towers.y)
  ])
  const back = (x: Host.HostArray) => {
    const { data } = Host.reorder(x, weights)
    return Array.from({ length: pixel }, (_, p) => [...data.subarray(p * embed, (p + 1) * embed)])
  }
  return { loss: total!.data[0]!, u: back(u!), v: back(v!), logScale: logScale!.data[0]! }
}

const numbers = ({ logScale, loss, u, v }: Learned) => ({
  loss: [loss],
  u: u.flat(),
  v: v.flat(),
  logScale: [logScale]
})

/** The largest difference of a part (the loss, one tower, the scale) relative to the part, or to 1 where that is smaller. */
export const apart = (a: Learned, b: Learned): number => {
  const [all, others] = [numbers(a), numbers(b)]
  return Object.entries(all).reduce((worst, [name, values]) => {
    const expected = others[name as keyof typeof others]
    const largest = Math.max(1, ...expected.map(Math.abs))
    return values.reduce((w, value, i) => Math.max(w, Math.abs(value - expected[i]!) / largest), worst)
  }, 0)
}

/** What is wrong with one case: the combination that differs most from ranks by hand. */
export const gap = (loss: Loss, c: Case, which: ReadonlyArray<Combination> = combinations): number => {
  const towers = towersOf(c)
  return which.reduce((worst, combination) => {
    const found = ours(loss, towers, { ...combination, ranks: c.ranks, allowBiased: true })
    const expected = ByHand.learned(towers, { ...combination, ranks: c.ranks })
    return Math.max(worst, apart(found, expected))
  }, 0)
}
