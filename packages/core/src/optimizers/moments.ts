/** What the rules share: slots, running averages, bias corrections, norms by layer. */
import * as Axis from "../Axis.ts"
import type * as DType from "../DType.ts"
import type * as Module from "../Module.ts"
import type { AnyTensor, Tensor } from "../Node.ts"
import type { Slot, Update } from "../Optimizer.ts"
import { add, cast, contractP, mul, neg, scale, shift } from "../primitives/algebra.ts"
import { emit1 } from "../primitives/emit.ts"
import { expm1, sqrt } from "../primitives/pointwise.ts"

type T = Tensor<string>

/** State of the leaf's own shape that begins at zero. */
export const like = (leaf: Module.Leaf, dtype: DType.DType = "f32"): Slot => ({ axes: leaf.param.axes, dtype, init: 0 })

/** State or gradient of any float type, as f32. */
export const wide = (x: AnyTensor): T => cast(x as T, "f32")

/** The clipped mean gradient, f32. */
export const gradientOf = (x: Update): T => mul(wide(x.gradient), x.gradientScale)

/** b * average + (1 - b) * x */
export const blend = (average: T, x: T, b: number): T => add(scale(average, b), scale(x, 1 - b))

/** 1 - b^t as -expm1(t log b): exact where t is small and b near 1. `[] -> []` */
export const correction = (step: Tensor<never>, b: number): Tensor<never> => neg(expm1(scale(step, Math.log(b))))

/** parameter * (1 - rate * decay): decoupled weight decay. */
export const decayed = ({ decay, learningRate, parameter }: Update): T =>
  decay === 0 ? parameter : mul(parameter, shift(neg(scale(learningRate, decay)), 1))

/** Root of the sum of squares over all axes but `kept`. `[..] -> [kept..]` */
export const norm = (x: T, kept: ReadonlyArray<string>): T => {
  const over = Axis.names(x.type.axes).filter((n) => !kept.includes(n))
  return sqrt((over.length === 0 ? mul(x, x) : emit1(contractP, [x, x], { over, dtype: "f32" })) as T)
}
