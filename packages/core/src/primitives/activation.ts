/** Activations with kernels of their own; only the input is kept for the backward pass. */
import * as Axis from "../Axis.ts"
import type { AnyTensor, Primitive, Tensor, TensorType } from "../Node.ts"
import { add, cast, constant, mul, neg, scale, shift } from "./algebra.ts"
import { composite } from "./composite.ts"
import { emit1 } from "./emit.ts"
import { equal, erf, exp, select, sigmoid, tanh } from "./pointwise.ts"

/** erf: x Phi(x), exact. tanh: its approximation (arXiv:1606.08415, section 2). quick: x sigmoid(1.702 x), OpenAI's CLIP. */
export type GeluKind = "erf" | "tanh" | "quick"

type T = Tensor<string>
const wide = (x: AnyTensor): T => cast(x as T, "f32")
const perElement = (_: unknown, outputs: ReadonlyArray<TensorType>) => ({
  contraction: 0,
  other: 8 * Axis.count(outputs[0]!.axes)
})
const root = Math.sqrt(2 / Math.PI)

/** At minus infinity the value is its limit, zero. */
const value = (x: T, kind: GeluKind): T =>
  select(equal(x, constant(-Infinity)), constant(0), finite(x, kind)) as AnyTensor as T

const finite = (x: T, kind: GeluKind): T => {
  if (kind === "quick") return mul(x, sigmoid(scale(x, 1.702)))
  if (kind === "erf") return mul(scale(x, 0.5), shift(erf(scale(x, Math.SQRT1_2)), 1))
  const inner = scale(mul(x, shift(scale(mul(x, x), 0.044715), 1)), root)
  return mul(scale(x, 0.5), shift(tanh(inner), 1))
}

const derivative = (x: T, kind: GeluKind): T => {
  if (kind === "quick") {
    const s = sigmoid(scale(x, 1.702))
    return mul(s, shift(mul(scale(x, 1.702), shift(neg(s), 1)), 1))
  }
  if (kind === "erf") {
    const density = scale(exp(scale(mul(x, x), -0.5)), 1 / Math.sqrt(2 * Math.PI))
    return add(scale(shift(erf(scale(x, Math.SQRT1_2)), 1), 0.5), mul(x, density))
  }
  const square = mul(x, x)
  const t = tanh(scale(mul(x, shift(scale(square, 0.044715), 1)), root))
  const slope = scale(shift(scale(square, 3 * 0.044715), 1), root)
  return add(scale(shift(t, 1), 0.5), mul(mul(scale(x, 0.5), shift(neg(mul(t, t)), 1)), slope))
}

export const geluP: Primitive<"gelu", { readonly kind: GeluKind }> = composite(
  "gelu",
  ([x], p) => [cast(value(wide(x!), p.kind), x!.type.dtype)],
  {
    precision: "pointwise",
    flops: perElement,
    vjp: { kind: "short", pullback: ([c], [x], _o, p) => [emit1(geluBackwardP, [x!, c!], p)] }
  }
)

/** Input and cotangent to the input's cotangent. */
export const geluBackwardP: Primitive<"geluBackward", { readonly kind: GeluKind }> = composite(
  "geluBackward",
  ([x, c], p) => [cast(mul(derivative(wide(x!), p.kind), wide(c!)), x!.type.dtype)],
  { precision: "pointwise", flops: perElement }
)

/** Gaussian error linear unit. `[..] -> [..]` @source arXiv:1606.08415 */
export const gelu = <A extends string>(x: Tensor<A>, kind: GeluKind = "erf"): Tensor<A> => emit1(geluP, [x], { kind })
