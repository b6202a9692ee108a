import type { Rule } from "../Optimizer.ts"
import { add, constant, div, mul, scale, shift, sub } from "../primitives/algebra.ts"
import { equal, or, select, sqrt } from "../primitives/pointwise.ts"
import { blend, correction, gradientOf, like, norm, wide } from "./moments.ts"

export interface LambOptions {
  readonly b1?: number
  readonly b2?: number
  readonly epsilon?: number
}

/**
 * Adam's step with decay, times |parameter| / |step| for each leaf and layer; the ratio is 1 where either norm is 0 (as optax.lamb).
 * @source arXiv:1904.00962, algorithm 2 with phi(z) = z
 */
export const lamb = ({ b1 = 0.9, b2 = 0.999, epsilon = 1e-6 }: LambOptions = {}): Rule => ({
  name: `lamb(b1 ${b1}, b2 ${b2}, epsilon ${epsilon})`,
  elementwise: false,
  state: (leaf) => ({ m: like(leaf), v: like(leaf) }),
  averages: { m: { decay: b1, squares: false }, v: { decay: b2, squares: true } },
  update: (x) => {
    const gradient = gradientOf(x)
    const m = blend(wide(x.state["m"]!), gradient, b1)
    const v = blend(wide(x.state["v"]!), mul(gradient, gradient), b2)
    const adam = div(div(m, correction(x.step, b1)), shift(sqrt(div(v, correction(x.step, b2))), epsilon))
    const direction = x.decay === 0 ? adam : add(adam, scale(x.parameter, x.decay))
    const [size, length] = [norm(x.parameter, x.repeated), norm(direction, x.repeated)]
    const none = or(equal(size, constant(0)), equal(length, constant(0)))
    const ratio = select(none, constant(1), div(size, select(none, constant(1), length)))
    return { parameter: sub(x.parameter, mul(direction, mul(ratio, x.learningRate))), state: { m, v } }
  }
})
