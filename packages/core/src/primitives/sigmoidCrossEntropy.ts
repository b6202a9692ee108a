/** The loss of yes-or-no answers. */
import * as Result from "effect/Result"
import * as Axis from "../Axis.ts"
import { invalid } from "../Errors.ts"
import type { AnyTensor, Primitive, Tensor } from "../Node.ts"
import { add, cast, constant, div, mul, neg, shift, sub } from "./algebra.ts"
import type { Calculating } from "./composite.ts"
import { composite } from "./composite.ts"
import { emit1 } from "./emit.ts"
import { abs, exp, expm1, log, maximum, sigmoid } from "./pointwise.ts"

type T = Tensor<string>
const wide = (x: AnyTensor): T => cast(x as T, "f32")

/** Operands in the type of the calculation. */
const own = (x: AnyTensor, { calculation = "f32" }: Calculating): T => cast(x as T, calculation)

/** log(1 + e) for e in [0, 1]: one Newton step gives small e the digits that 1 + e loses. */
const log1p = (e: T): T => {
  const near = log(shift(e, 1))
  return sub(near, div(sub(expm1(near), e), shift(e, 1)))
}

/** logits, targets in [0, 1] of the same axes to the loss of each element, f32. */
export const sigmoidCrossEntropyP: Primitive<"sigmoidCrossEntropy", Calculating> = composite(
  "sigmoidCrossEntropy",
  ([logits, targets], p) => {
    const [x, t] = [own(logits!, p), own(targets!, p)]
    const positive = maximum(x, constant(0, x.type.dtype))
    return [wide(add(sub(positive, mul(x, t)), log1p(exp(neg(abs(x))))))]
  },
  {
    precision: "loss",
    calculates: (p, calculation) => Result.succeed({ ...p, calculation }),
    flops: (types) => ({ contraction: 0, other: 8 * Axis.count(types[0]!.axes) }),
    vjp: {
      kind: "short",
      pullback: ([c], [logits, targets], _out, p) => {
        const [d, x, t] = [wide(c!), own(logits!, p), own(targets!, p)]
        // Not sigmoid(x) - t: that cancels where the answer is right.
        const slope = sub(mul(shift(neg(t), 1), sigmoid(x)), mul(t, sigmoid(neg(x))))
        // A loss scale may be more than the type holds: what it multiplies is f32.
        return [cast(mul(d, wide(slope)), logits!.type.dtype), cast(neg(mul(d, wide(x))), targets!.type.dtype)]
      }
    }
  }
)

/**
 * Minus the log-likelihood of yes-or-no answers, natural log, f32: `-t log sigmoid(x) - (1 - t) log(1 - sigmoid(x))`, elementwise, finite for any
 * finite logit. `[..] x [..] -> [..]`
 */
export const sigmoidCrossEntropy = <A extends string>(logits: Tensor<A>, targets: Tensor<A>): Tensor<A> => {
  if (!Axis.equal(logits.type.axes, targets.type.axes)) {
    invalid(
      "sigmoidCrossEntropy",
      `targets have ${Axis.print(targets.type.axes)}, the logits ${Axis.print(logits.type.axes)}; they need the same axes`
    )
  }
  return emit1(sigmoidCrossEntropyP, [logits, targets], {})
}
