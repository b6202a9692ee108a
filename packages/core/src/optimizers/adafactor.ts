import * as Axis from "../Axis.ts"
import type * as DType from "../DType.ts"
import type * as Module from "../Module.ts"
import type { AnyTensor, Tensor } from "../Node.ts"
import type { Rule } from "../Optimizer.ts"
import { add, cast, constant, div, mul, neg, scale, shift, sub, sum } from "../primitives/algebra.ts"
import { exp, log, maximum, minimum, sqrt } from "../primitives/pointwise.ts"
import { blend, decayed, gradientOf, like, norm, wide } from "./moments.ts"

type T = Tensor<string>

export interface AdafactorOptions {
  /** Decay of the second moment at update t: min(cap, 1 - t^-rate). */
  readonly rate?: number
  readonly cap?: number
  /** Added to squared gradients. */
  readonly epsilon?: number
  /** Leaves are factored when their two largest axes have at least this size. */
  readonly least?: number
  /** Updates are shortened to this root mean square, for each leaf and layer; null for never. */
  readonly clipping?: number | null
  /** Moving average of the update; null for none. */
  readonly momentum?: number | null
  readonly momentumType?: DType.DType
  /** Steps relative to the root mean square of the parameter, which counts as at least this; null for absolute steps. */
  readonly relative?: number | null
}

/** Sum over an axis divided by its size; what is stored beyond is zero. */
const meanOver = (x: T, axis: string): T =>
  scale(sum(x, axis) as AnyTensor as T, 1 / Axis.find(x.type.axes, axis)!.logical)

/** The two largest axes of one layer, the smaller first; of equals the later counts as larger. */
const factors = (
  leaf: { readonly axes: Axis.Axes; readonly repeated: ReadonlyArray<string> },
  least: number
): readonly [string, string] | null => {
  const sorted = Axis.without(leaf.axes, leaf.repeated)
    .map((axis, i) => ({ axis, i }))
    .sort((a, b) => a.axis.size - b.axis.size || a.i - b.i)
    .map((x) => x.axis)
  const [small, large] = sorted.slice(-2)
  return small === undefined || large === undefined || small.size < least ? null : [small.name, large.name]
}

/** Root mean square for each layer. */
const meanSquare = (x: T, repeated: ReadonlyArray<string>): T =>
  scale(norm(x, repeated), 1 / Math.sqrt(Axis.without(x.type.axes, repeated).reduce((n, a) => n * a.logical, 1)))

/**
 * Second moments kept as means along two axes; their product over the mean of means stands for the whole. The defaults are big_vision's variant
 * with momentum in bf16, of arXiv:2106.04560, section 3.5; the paper's own has momentum null, clipping 1, relative 1e-3 and cap 1.
 * @source arXiv:1804.04235, algorithm 4; optax scale_by_factored_rms; big_vision/optax.py scale_by_adafactor
 */
export const adafactor = (options: AdafactorOptions = {}): Rule => {
  const { cap = 0.999, clipping = null, epsilon = 1e-30, least = 32 } = options
  const { momentum = 0.9, momentumType = "bf16", rate = 0.8, relative = null } = options
  const squares = { decay: cap, squares: true }
  const split = (leaf: Module.Leaf) => factors({ axes: leaf.param.axes, repeated: leaf.param.repeated }, least)
  return {
    name: `adafactor(rate ${rate}, cap ${cap}, momentum ${momentum})`,
    elementwise: false,
    averages: { v: squares, row: squares, column: squares, m: { decay: momentum ?? 0, squares: false } },
    state: (leaf) => {
      const two = split(leaf)
      const drop = (name: string) => ({ axes: Axis.without(leaf.param.axes, [name]), dtype: "f32" as const, init: 0 })
      return {
        ...(two === null ? { v: like(leaf) } : { row: drop(two[1]), column: drop(two[0]) }),
        ...(momentum === null ? {} : { m: like(leaf, momentumType) })
      }
    },
    update: (x) => {
      const gradient = gradientOf(x)
      const square = shift(mul(gradient, gradient), epsilon)
      const keep = minimum(constant(cap), shift(neg(exp(scale(log(x.step), -rate))), 1)) as AnyTensor as T
      const average = (old: T, fresh: T) => add(mul(old, keep), mul(fresh, shift(neg(keep), 1)))
      const two = factors({ axes: x.parameter.type.axes, repeated: x.repeated }, least)
      const moments: Record<string, T> = {}
      let update: T
      if (two === null) {
        const v = average(x.state["v"] as T, square)
        moments["v"] = v
        update = div(gradient, sqrt(v))
      } else {
        const [small, large] = two
        const row = average(x.state["row"] as T, meanOver(square, large))
        const column = average(x.state["column"] as T, meanOver(square, small))
        Object.assign(moments, { row, column })
        update = div(div(gradient, sqrt(div(row, meanOver(row, small)))), sqrt(column))
      }
      if (clipping !== null)
        update = div(update, maximum(constant(1), scale(meanSquare(update, x.repeated), 1 / clipping)))
      if (relative !== null) update = mul(update, maximum(constant(relative), meanSquare(x.parameter, x.repeated)))
      if (momentum === null) return { parameter: sub(decayed(x), mul(update, x.learningRate)), state: moments }
      const m = blend(wide(x.state["m"]!), update, momentum)
      return { parameter: sub(decayed(x), mul(m, x.learningRate)), state: { ...moments, m: cast(m, momentumType) } }
    }
  }
}
