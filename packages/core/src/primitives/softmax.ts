/** Softmax along one axis, in f32 unless asked otherwise. */
import * as Result from "effect/Result"
import type { AnyTensor, Primitive, Tensor } from "../Node.ts"
import { axisOf, cast, constant, div, sub, sum } from "./algebra.ts"
import type { Calculating } from "./composite.ts"
import { composite } from "./composite.ts"
import { emit1 } from "./emit.ts"
import { iota } from "./index.ts"
import { stopGradient } from "./mark.ts"
import { exp, less, select } from "./pointwise.ts"
import { max } from "./reduce.ts"

type T = Tensor<string>

/** In a 16-bit calculation every intermediate is rounded; the sum adds up in f32 and is rounded once. */
export interface SoftmaxParams extends Calculating {
  readonly axis: string
}

/** Elements along an axis that are meant, where more are stored; null when all are. */
export const meantOf = (x: AnyTensor, axis: string): Tensor<string, "bool"> | null => {
  const { logical, size } = axisOf(x, axis)
  const at = iota(axis, size)
  return logical === size ? null : less(at, constant(logical, at.type.dtype) as unknown as Tensor<never, "int">)
}

export const only = (meant: Tensor<string, "bool"> | null, x: T, otherwise: number): T =>
  meant === null ? x : (select(meant, x, constant(otherwise, x.type.dtype)) as AnyTensor as T)

/** `[.., axis] -> [.., axis]`, in the type of the operand. What is stored beyond the axis gets nothing. */
export const softmaxP: Primitive<"softmax", SoftmaxParams> = composite(
  "softmax",
  ([given], p) => {
    const x = only(meantOf(given!, p.axis), cast(given as T, p.calculation ?? "f32"), -Infinity)
    // The maximum cancels, so its derivative is not needed.
    const e = exp(sub(x, stopGradient(max(x, p.axis))))
    return [cast(div(e, sum(e, p.axis)) as AnyTensor as T, given!.type.dtype)]
  },
  {
    precision: "softmax",
    calculates: (p, calculation) => Result.succeed({ ...p, calculation }),
    opens: (p) => [p.axis]
  }
)

/** Exponentials along an axis, divided by their sum. `[.., axis] -> [.., axis]` */
export const softmax = <A extends string, E extends A>(x: Tensor<A>, axis: E): Tensor<A> =>
  emit1(softmaxP, [x], { axis })
