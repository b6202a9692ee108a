import type * as DType from "../DType.ts"
import type { Rule } from "../Optimizer.ts"
import { cast, mul, sub } from "../primitives/algebra.ts"
import { sign } from "../primitives/pointwise.ts"
import { blend, decayed, gradientOf, like, wide } from "./moments.ts"

export interface LionOptions {
  readonly b1?: number
  readonly b2?: number
  /** Storage of the momentum. */
  readonly momentumType?: DType.DType
}

/** The sign of an interpolated momentum, with decoupled weight decay. @source arXiv:2302.06675, algorithm 2 */
export const lion = ({ b1 = 0.9, b2 = 0.99, momentumType = "f32" }: LionOptions = {}): Rule => ({
  name: `lion(b1 ${b1}, b2 ${b2}${momentumType === "f32" ? "" : `, ${momentumType}`})`,
  elementwise: true,
  state: (leaf) => ({ m: like(leaf, momentumType) }),
  averages: { m: { decay: b2, squares: false } },
  update: (x) => {
    const gradient = gradientOf(x)
    const m = wide(x.state["m"]!)
    const direction = sign(blend(m, gradient, b1))
    return {
      parameter: sub(decayed(x), mul(direction, x.learningRate)),
      state: { m: cast(blend(m, gradient, b2), momentumType) }
    }
  }
})
