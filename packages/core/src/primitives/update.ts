/** Optimizer updates with kernels of their own. */
import * as Axis from "../Axis.ts"
import type { AnyTensor, Primitive, Tensor } from "../Node.ts"
import { add, cast, div, mul, neg, scale, shift, sub, sum } from "./algebra.ts"
import { slice } from "./axes.ts"
import { composite } from "./composite.ts"
import { sqrt } from "./pointwise.ts"

type T = Tensor<string>

export interface AdamwParams {
  readonly b1: number
  readonly b2: number
  readonly epsilon: number
  readonly decay: number
}

/** Element `i` of the scalars. */
const pick = (scalars: AnyTensor, i: number): Tensor<never> =>
  sum(
    slice(scalars as Tensor<"scalar">, "scalar", { to: "one", start: i, size: 1 }),
    "one"
  ) as AnyTensor as Tensor<never>

/**
 * parameter, gradient, m, v and scalars `[scalar=4]` (learning rate, 1-b1^t, 1-b2^t, gradient scale) to parameter, m, v.
 * The gradient may be of any float type; state and arithmetic are f32. @source arXiv:1711.05101, algorithm 2
 */
export const adamwP: Primitive<"adamw", AdamwParams> = composite(
  "adamw",
  ([p, g, m, v, scalars], { b1, b2, decay, epsilon }) => {
    const [rate, c1, c2, factor] = [pick(scalars!, 0), pick(scalars!, 1), pick(scalars!, 2), pick(scalars!, 3)]
    const gradient = mul(cast(g as T, "f32") as T, factor)
    const m1 = add(scale(m as T, b1), scale(gradient, 1 - b1))
    const v1 = add(scale(v as T, b2), scale(mul(gradient, gradient), 1 - b2))
    const step = div(div(m1, c1), shift(sqrt(div(v1, c2)), epsilon))
    const kept = decay === 0 ? (p as T) : mul(p as T, shift(neg(scale(rate, decay)), 1))
    return [sub(kept, mul(rate, step)), m1, v1]
  },
  { precision: "exact", flops: ([p]) => ({ contraction: 0, other: 14 * Axis.count(p!.axes) }), vjp: { kind: "none" } }
)
