/** Losses with kernels of their own, computed in f32 unless asked otherwise. */
import * as Result from "effect/Result"
import * as Axis from "../Axis.ts"
import * as DType from "../DType.ts"
import { invalid, NotDifferentiable, refuse } from "../Errors.ts"
import type { AnyTensor, Primitive, Tensor, TensorType } from "../Node.ts"
import { add, axisOf, cast, constant, mul, scale, shift, sub, sum } from "./algebra.ts"
import type { Calculating } from "./composite.ts"
import { composite } from "./composite.ts"
import { emit } from "./emit.ts"
import { oneHot } from "./index.ts"
import { stopGradient } from "./mark.ts"
import { and, equal, exp, less, log, not, select } from "./pointwise.ts"
import { max } from "./reduce.ts"
import { meantOf, only } from "./softmax.ts"

type T = Tensor<string>
const wide = (x: AnyTensor): T => cast(x as T, "f32")

/** In a 16-bit calculation every intermediate up to the loss of a row is rounded; what leaves is f32. */
export interface CrossEntropyParams extends Calculating {
  readonly classes: string
  /** labels: i32 class numbers, those outside 0..classes-1 are ignored (loss 0). soft: a distribution over the classes axis. */
  readonly targets: "labels" | "soft"
  /** Share of the target spread evenly over all classes. */
  readonly smoothing: number
}

const whole = (n: number, like: AnyTensor) => constant(n, like.type.dtype) as unknown as Tensor<never, "int">

/** Rows whose label is a class. */
const validOf = (targets: AnyTensor, count: number): Tensor<string, "bool"> => {
  const labels = targets as Tensor<string, "int">
  return and(less(labels, whole(count, labels)), not(less(labels, whole(0, labels))))
}

/** Operands and numbers in the type of the calculation. */
const typed = (p: CrossEntropyParams) => {
  const type = p.calculation ?? "f32"
  return { own: (x: AnyTensor): T => cast(x as T, type), number: (n: number) => constant(n, type) }
}

const calculates = (
  p: CrossEntropyParams,
  type: DType.DType,
  [logits]: ReadonlyArray<TensorType>
): Result.Result<CrossEntropyParams, string> => {
  const share = p.smoothing / Axis.find(logits!.axes, p.classes)!.logical
  return share > 0 && DType.store(type, share) === 0
    ? Result.fail(`label smoothing gives every class ${share}, which is 0 in ${type}`)
    : Result.succeed({ ...p, calculation: type })
}

/** The distribution that is compared with. */
const target = (logits: AnyTensor, targets: AnyTensor, p: CrossEntropyParams): T => {
  const { number, own } = typed(p)
  const { logical: count, size } = axisOf(logits, p.classes)
  const meant = meantOf(logits, p.classes)
  if (p.targets === "soft") return only(meant, shift(scale(own(targets), 1 - p.smoothing), p.smoothing / count), 0)
  const hot = shift(
    scale(own(oneHot(targets as Tensor<string, "int">, p.classes, size)), 1 - p.smoothing),
    p.smoothing / count
  )
  return select(validOf(targets, count), only(meant, hot, 0), number(0)) as AnyTensor as T
}

const logSumExp = (x: T, axis: string): T => {
  const number = (n: number) => constant(n, x.type.dtype)
  // The maximum cancels, so its derivative is not needed.
  const top = stopGradient(max(x, axis))
  const safe = select(equal(top, number(-Infinity)), number(0), top)
  return add(safe, log(sum(exp(sub(x, safe)), axis))) as AnyTensor as T
}

const flops = (types: ReadonlyArray<TensorType>) => ({ contraction: 0, other: 6 * Axis.count(types[0]!.axes) })

/** logits, targets to the loss of each row and its log-sum-exp, both f32. */
export const crossEntropyP: Primitive<"crossEntropy", CrossEntropyParams> = composite(
  "crossEntropy",
  ([logits, targets], p) => {
    const { number, own } = typed(p)
    const x = only(meantOf(logits!, p.classes), own(logits!), -Infinity)
    const lse = logSumExp(x, p.classes)
    const t = target(logits!, targets!, p)
    // Rows without a target count nothing even where a logit is infinite.
    const each = select(equal(t, number(0)), number(0), mul(t, sub(lse, x)))
    return [wide(sum(each, p.classes)), wide(lse)]
  },
  {
    precision: "loss",
    calculates,
    flops,
    opens: (p) => [p.classes],
    vjp: {
      kind: "long",
      differentiate: (inputs, p) => {
        const outputs = emit(crossEntropyP, inputs, p)
        return {
          outputs,
          pullback: ([dLoss, dLse]) => {
            if (dLse !== null) refuse(new NotDifferentiable({ operation: "the log-sum-exp of crossEntropy" }))
            if (dLoss === null || dLoss === undefined) return [null, null]
            return [...emit(crossEntropyBackwardP, [inputs[0]!, inputs[1]!, outputs[1]!, dLoss], p), null]
          }
        }
      }
    }
  }
)

/** logits, targets, lse, dLoss to dLogits. */
export const crossEntropyBackwardP: Primitive<"crossEntropyBackward", CrossEntropyParams> = composite(
  "crossEntropyBackward",
  ([logits, targets, lse, dLoss], p) => {
    const { number, own } = typed(p)
    const t = target(logits!, targets!, p)
    const meant = meantOf(logits!, p.classes)
    const softmax = only(meant, exp(sub(own(logits!), own(lse!))), 0)
    // Where nothing is compared nothing flows, even from rows whose softmax is not a number. Labels weigh 1, without a sum over split classes.
    const count = axisOf(logits!, p.classes).logical
    const labels = p.targets === "labels"
    const total = (labels
      ? select(validOf(targets!, count), number(1), number(0))
      : sum(t, p.classes)) as AnyTensor as T
    // A loss scale may be more than the type holds: what it multiplies is f32.
    const inner = wide(sub(mul(total, softmax), t))
    const gradient = select(equal(total, number(0)), constant(0), mul(wide(dLoss!), inner))
    return [cast(gradient, logits!.type.dtype)]
  },
  { precision: "loss", calculates, flops, opens: (p) => [p.classes] }
)

/**
 * `[.., classes] x [..] -> [..]` for labels, `[.., classes] x [.., classes] -> [..]` for soft targets: minus the log-likelihood, natural log, f32.
 * Labels outside the classes are ignored (loss 0, no gradient).
 */
export const softmaxCrossEntropy = <A extends string, C extends A>(
  logits: Tensor<A>,
  targets: Tensor<any, "int"> | Tensor<any>,
  options: { readonly classes: C; readonly smoothing?: number }
): Tensor<Exclude<A, C>> => {
  const soft = Axis.has(targets.type.axes, options.classes)
  const smoothing = options.smoothing ?? 0
  if (!(smoothing >= 0 && smoothing < 1))
    invalid("softmaxCrossEntropy", `label smoothing ${smoothing} is not in [0, 1)`)
  const expected = soft ? logits.type.axes : Axis.without(logits.type.axes, [options.classes])
  if (!Axis.equal(expected, targets.type.axes)) {
    invalid(
      "softmaxCrossEntropy",
      `targets have ${Axis.print(targets.type.axes)}, the logits need ${Axis.print(expected)}`
    )
  }
  return emit(crossEntropyP, [logits, targets], {
    classes: options.classes,
    targets: soft ? "soft" : "labels",
    smoothing
  })[0]! as Tensor<any>
}
