/** Identities that say something about a tensor. */
import type { AnyTensor, Primitive, Tensor } from "../Node.ts"
import type { Kind } from "../DType.ts"
import { emit1 } from "./emit.ts"

const identity = <P>(name: string, pullback: (c: AnyTensor) => AnyTensor | null): Primitive<string, P> => ({
  name,
  type: ([t]) => [t!],
  meaning: { kind: "core", evaluate: ([x]) => [x!] },
  vjp: { kind: "short", pullback: ([c]) => [pullback(c!)] },
  partition: { kind: "byName", linear: [[0]] },
  flops: () => ({ contraction: 0, other: 0 }),
  precision: "exact",
  recompute: "cheap"
})

export const stopGradientP = identity<Record<string, never>>("stopGradient", () => null)
/** Names an intermediate, for recomputation policies and captures. */
export const namedP = identity<{ readonly as: string }>("named", (c) => c)

export const stopGradient = <A extends string, K extends Kind>(x: Tensor<A, K>): Tensor<A, K> =>
  emit1(stopGradientP, [x], {})
/** The name by which precision policies know a logit scale. */
export const logitScaleName = "logitScale"

export const named = <A extends string, K extends Kind>(x: Tensor<A, K>, as: string): Tensor<A, K> =>
  emit1(namedP, [x], { as })
/** Marks the number (a temperature, after its exponential) that similarities are multiplied with, so that a precision policy finds it. */
export const logitScale = <A extends string>(x: Tensor<A>): Tensor<A> => named(x, logitScaleName)
