/** Layer and RMS normalisation, statistics in f32 whatever the storage, unless asked otherwise. One equation each way, backward too. */
import * as Result from "effect/Result"
import * as Axis from "../Axis.ts"
import * as DType from "../DType.ts"
import { invalid, NotDifferentiable, refuse } from "../Errors.ts"
import type { AnyTensor, Primitive, Tensor, TensorType } from "../Node.ts"
import { add, cast, constant, contract, div, mul, scale, shift, sizeOf, sub, sum } from "./algebra.ts"
import type { Calculating } from "./composite.ts"
import { composite } from "./composite.ts"
import { emit } from "./emit.ts"
import { sqrt } from "./pointwise.ts"

type T = Tensor<string>
const wide = (x: AnyTensor): T => cast(x as T, "f32")

/**
 * In a 16-bit calculation every elementwise result is rounded to that type, and so is every mean; the sum inside of a mean adds up in f32, as sums in
 * contractions do.
 */
export interface NormParams extends Calculating {
  readonly kind: "layer" | "rms"
  /** The normalised axis. */
  readonly axis: string
  readonly epsilon: number
  /** How many of gamma, beta follow the input. */
  readonly affine: 0 | 1 | 2
}

/** Mean along the axis, rounded once. */
const over = (x: T, axis: string): T =>
  cast(scale(sum(wide(x), axis) as AnyTensor as T, 1 / sizeOf(x, axis)), x.type.dtype)

const normalised = (x: T, mean: T | null, rstd: T): T => mul(mean === null ? x : sub(x, mean), rstd)

/** Operands in the type of the calculation. */
const typed = (p: NormParams) => {
  const type = p.calculation ?? "f32"
  return { type, own: (x: AnyTensor): T => cast(x as T, type) }
}

const calculates = (p: NormParams, type: DType.DType): Result.Result<NormParams, string> =>
  DType.store(type, p.epsilon) === 0 && p.epsilon > 0
    ? Result.fail(`its epsilon of ${p.epsilon} is 0 in ${type}, so that equal elements give no number`)
    : Result.succeed({ ...p, calculation: type })

const flops = (types: ReadonlyArray<TensorType>) => ({ contraction: 0, other: 8 * Axis.count(types[0]!.axes) })

/** x, gamma?, beta? to y, mean, rstd (both stored in f32; the mean of rms is zero). */
export const normP: Primitive<"norm", NormParams> = composite(
  "norm",
  (inputs, p) => {
    const { own, type } = typed(p)
    const x = own(inputs[0]!)
    const mean = p.kind === "layer" ? over(x, p.axis) : null
    const centred = mean === null ? x : sub(x, mean)
    const rstd = div(constant(1, type), sqrt(shift(over(mul(centred, centred), p.axis), p.epsilon))) as T
    let y = mul(centred, rstd)
    if (p.affine > 0) y = mul(y, own(inputs[1]!))
    if (p.affine > 1) y = add(y, own(inputs[2]!))
    return [cast(y, inputs[0]!.type.dtype), wide(mean ?? scale(rstd, 0)), wide(rstd)]
  },
  {
    precision: "norm",
    calculates,
    flops,
    vjp: {
      kind: "long",
      differentiate: (inputs, p) => {
        const outputs = emit(normP, inputs, p)
        return {
          outputs,
          pullback: ([dy, dMean, dRstd]) => {
            if (dMean !== null || dRstd !== null) refuse(new NotDifferentiable({ operation: "the statistics of norm" }))
            if (dy === null || dy === undefined) return inputs.map(() => null)
            return emit(normBackwardP, [inputs[0]!, outputs[1]!, outputs[2]!, dy, ...inputs.slice(1)], p)
          }
        }
      }
    }
  }
)

/** x, mean, rstd, dy, gamma?, beta? to dx, dgamma?, dbeta?. */
export const normBackwardP: Primitive<"normBackward", NormParams> = composite(
  "normBackward",
  ([input, mean, rstd, cotangent, gamma, beta], p) => {
    const { own } = typed(p)
    const [x, dy, k] = [own(input!), own(cotangent!), own(rstd!)]
    // Also of what is not read: the mean of rms, the values of beta.
    Axis.inOrder(
      "normBackward",
      [input!, mean!, rstd!, cotangent!, ...(gamma ? [gamma] : []), ...(beta ? [beta] : [])].map((t) => t.type.axes)
    )
    const h = normalised(x, p.kind === "layer" ? own(mean!) : null, k)
    const w = gamma === undefined ? dy : mul(dy, own(gamma))
    const along = over(mul(w, h), p.axis)
    const inner = p.kind === "layer" ? sub(sub(w, over(w, p.axis)), mul(h, along)) : sub(w, mul(h, along))
    const rows = Axis.names(x.type.axes).filter((n) => n !== p.axis)
    const results: Array<AnyTensor> = [cast(mul(k, inner), input!.type.dtype)]
    if (gamma !== undefined)
      results.push(
        cast((rows.length === 0 ? mul(dy, h) : contract(dy, h, ...rows)) as AnyTensor as T, gamma.type.dtype)
      )
    if (beta !== undefined) results.push(cast(sum(dy, ...rows), beta.type.dtype))
    return results
  },
  { precision: "norm", calculates, flops }
)

const check = (x: AnyTensor, axis: string, weights: ReadonlyArray<AnyTensor>): void => {
  for (const w of weights) {
    if (w.type.axes.length !== 1 || w.type.axes[0]!.name !== axis) {
      invalid(
        "norm",
        `weights have ${Axis.print(w.type.axes)}, the normalised axis is "${axis}" of ${Axis.print(x.type.axes)}`
      )
    }
  }
}

/** `(x - mean) / sqrt(variance + epsilon) * gamma + beta` along one axis. `[.., axis] -> [.., axis]` @source arXiv:1607.06450 */
export const layerNorm = <A extends string, E extends A>(
  x: Tensor<A>,
  axis: E,
  epsilon: number,
  gamma?: Tensor<E>,
  beta?: Tensor<E>
): Tensor<A> => {
  const weights = gamma === undefined ? [] : beta === undefined ? [gamma] : [gamma, beta]
  check(x, axis, weights)
  return emit(normP, [x, ...weights], {
    kind: "layer",
    axis,
    epsilon,
    affine: weights.length as 0 | 1 | 2
  })[0]! as Tensor<A>
}

/** `x / sqrt(mean(x^2) + epsilon) * gamma` along one axis. @source arXiv:1910.07467 */
export const rmsNorm = <A extends string, E extends A>(
  x: Tensor<A>,
  axis: E,
  epsilon: number,
  gamma?: Tensor<E>
): Tensor<A> => {
  const weights = gamma === undefined ? [] : [gamma]
  check(x, axis, weights)
  return emit(normP, [x, ...weights], { kind: "rms", axis, epsilon, affine: weights.length as 0 | 1 })[0]! as Tensor<A>
}
