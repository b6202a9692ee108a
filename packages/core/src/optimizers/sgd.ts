import type * as DType from "../DType.ts"
import type { Rule } from "../Optimizer.ts"
import { add, cast, mul, scale, sub } from "../primitives/algebra.ts"
import { gradientOf, like, wide } from "./moments.ts"

export interface SgdOptions {
  readonly momentum?: number
  readonly nesterov?: boolean
  /** Storage of the momentum. */
  readonly momentumType?: DType.DType
}

/**
 * Gradient descent with momentum as torch.optim.SGD without dampening and as optax.sgd: velocity = momentum * velocity + gradient, and Nesterov looks
 * one step ahead. Weight decay is the classical one: it is added to the gradient and goes through the momentum.
 */
export const sgd = ({ momentum = 0, momentumType = "f32", nesterov = false }: SgdOptions = {}): Rule => ({
  name: `sgd(momentum ${momentum}${nesterov ? ", nesterov" : ""}${momentumType === "f32" ? "" : `, ${momentumType}`})`,
  elementwise: true,
  state: (leaf) => (momentum === 0 ? {} : { velocity: like(leaf, momentumType) }),
  averages: { velocity: { decay: momentum, squares: false } },
  update: (x) => {
    const raw = gradientOf(x)
    const gradient = x.decay === 0 ? raw : add(raw, scale(x.parameter, x.decay))
    if (momentum === 0) return { parameter: sub(x.parameter, mul(gradient, x.learningRate)), state: {} }
    const velocity = add(scale(wide(x.state["velocity"]!), momentum), gradient)
    const step = nesterov ? add(gradient, scale(velocity, momentum)) : velocity
    return { parameter: sub(x.parameter, mul(step, x.learningRate)), state: { velocity: cast(velocity, momentumType) } }
  }
})
