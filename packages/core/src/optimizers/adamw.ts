import type * as DType from "../DType.ts"
import * as Axis from "../Axis.ts"
import type { AnyTensor, Tensor } from "../Node.ts"
import type { Rule } from "../Optimizer.ts"
import { broadcast, cast } from "../primitives/algebra.ts"
import { concat } from "../primitives/axes.ts"
import { emit, place } from "../primitives/emit.ts"
import { adamwP } from "../primitives/update.ts"
import { correction, like, wide } from "./moments.ts"

export interface AdamwOptions {
  readonly b1?: number
  readonly b2?: number
  readonly epsilon?: number
  /** bf16 halves the first moment; the update still uses it unrounded (as optax mu_dtype). */
  readonly firstMoment?: DType.DType
}

/** Numbers one after another; those of layers keep their axis, the others repeat. `[] x4 -> [scalar=4]` */
const vectorOf = (parts: Readonly<Record<string, AnyTensor>>): AnyTensor => {
  const operands = Object.entries(parts).map(([name, given]) => {
    const x = place(given, "compute") as Tensor<string>
    return [broadcast(x, [...x.type.axes, Axis.make(name, 1)]), name] as const
  })
  return place(concat(operands, "scalar"), "optimizer")
}

/**
 * Adam with decoupled weight decay: parameter * (1 - rate * decay) - rate * (m / c1) / (sqrt(v / c2) + epsilon), as torch.optim.AdamW and
 * NeMo's fused_adam. Without decay it is Adam. @source arXiv:1711.05101, algorithm 2; arXiv:1412.6980, algorithm 1
 */
export const adamw = ({ b1 = 0.9, b2 = 0.999, epsilon = 1e-8, firstMoment = "f32" }: AdamwOptions = {}): Rule => ({
  name: `adamw(b1 ${b1}, b2 ${b2}, epsilon ${epsilon}${firstMoment === "f32" ? "" : `, first moment ${firstMoment}`})`,
  elementwise: true,
  state: (leaf) => ({ m: like(leaf, firstMoment), v: like(leaf) }),
  averages: { m: { decay: b1, squares: false }, v: { decay: b2, squares: true } },
  update: ({ decay, gradient, gradientScale, learningRate, parameter, state, step }) => {
    const params = { b1, b2, decay, epsilon }
    const c1 = correction(step, b1)
    const c2 = correction(step, b2)
    const scalars = vectorOf({ rate: learningRate, c1, c2, gradientScale })
    const operands = [parameter, gradient, wide(state["m"]!), wide(state["v"]!), scalars]
    const { meaning } = adamwP
    // Kernels take four scalars. Where layers learn at different rates, the parts of the composite run instead of it.
    const whole = learningRate.type.axes.length === 0
    const results =
      whole || meaning.kind !== "composite" ? emit(adamwP, operands, params) : meaning.decompose(operands, params)
    const [next, m, v] = results as ReadonlyArray<Tensor<string>>
    return { parameter: next!, state: { m: cast(m!, firstMoment), v: v! } }
  }
})
