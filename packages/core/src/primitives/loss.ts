/** Losses with kernels of their own, computed in f32. */
import * as Axis from "../Axis.ts"
import { invalid, NotDifferentiable, refuse } from "../Errors.ts"
import type { AnyTensor, Primitive, Tensor, TensorType } from "../Node.ts"
import { add, axisOf, cast, constant, div, mul, scale, shift, sub, sum } from "./algebra.ts"
import { composite } from "./composite.ts"
import { emit } from "./emit.ts"
import { iota, oneHot } from "./index.ts"
import { stopGradient } from "./mark.ts"
import { and, equal, exp, less, log, not, select } from "./pointwise.ts"
import { max } from "./reduce.ts"

type T = Tensor<string>
const wide = (x: AnyTensor): T => cast(x as T, "f32")

export interface CrossEntropyParams {
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

/** Classes that are meant, where more are stored; null when all are. */
const meantOf = (logits: AnyTensor, classes: string): Tensor<string, "bool"> | null => {
  const { logical, size } = axisOf(logits, classes)
  const at = iota(classes, size)
  return logical === size ? null : less(at, whole(logical, at))
}

const only = (meant: Tensor<string, "bool"> | null, x: T, otherwise: number): T =>
  meant === null ? x : (select(meant, x, constant(otherwise)) as AnyTensor as T)

/** The distribution that is compared with. */
const target = (logits: AnyTensor, targets: AnyTensor, p: CrossEntropyParams): T => {
  const { logical: count, size } = axisOf(logits, p.classes)
  const meant = meantOf(logits, p.classes)
  if (p.targets === "soft") return only(meant, shift(scale(wide(targets), 1 - p.smoothing), p.smoothing / count), 0)
  const hot = shift(
    scale(oneHot(targets as Tensor<string, "int">, p.classes, size), 1 - p.smoothing),
    p.smoothing / count
  )
  return select(validOf(targets, count), only(meant, hot, 0), constant(0)) as AnyTensor as T
}

const logSumExp = (x: T, axis: string): T => {
  // The maximum cancels, so its derivative is not needed.
  const top = stopGradient(max(x, axis))
  const safe = select(equal(top, constant(-Infinity)), constant(0), top)
  return add(safe, log(sum(exp(sub(x, safe)), axis))) as AnyTensor as T
}

const flops = (types: ReadonlyArray<TensorType>) => ({ contraction: 0, other: 6 * Axis.count(types[0]!.axes) })

/** logits, targets to the loss of each row and its log-sum-exp, both f32. */
export const crossEntropyP: Primitive<"crossEntropy", CrossEntropyParams> = composite(
  "crossEntropy",
  ([logits, targets], p) => {
    const x = only(meantOf(logits!, p.classes), wide(logits!), -Infinity)
    const lse = logSumExp(x, p.classes)
    const t = target(logits!, targets!, p)
    // Rows without a target count nothing even where a logit is infinite.
    const each = select(equal(t, constant(0)), constant(0), mul(t, sub(lse, x)))
    return [sum(each, p.classes), lse]
  },
  {
    precision: "loss",
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
    const t = target(logits!, targets!, p)
    const meant = meantOf(logits!, p.classes)
    const softmax = only(meant, exp(sub(wide(logits!), lse as T)), 0)
    // Where nothing is compared nothing flows, even from rows whose softmax is not a number. Labels weigh 1, without a sum over split classes.
    const count = axisOf(logits!, p.classes).logical
    const labels = p.targets === "labels"
    const total = (labels
      ? select(validOf(targets!, count), constant(1), constant(0))
      : sum(t, p.classes)) as AnyTensor as T
    const gradient = select(equal(total, constant(0)), constant(0), mul(dLoss as T, sub(mul(total, softmax), t)))
    return [cast(gradient, logits!.type.dtype)]
  },
  { precision: "loss", flops, opens: (p) => [p.classes] }
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

/** `softmax(x)` along an axis, in f32. */
export const softmax = <A extends string, E extends A>(x: Tensor<A>, axis: E): Tensor<A> => {
  const e = exp(sub(x, stopGradient(max(x, axis))))
  return div(e, sum(e, axis)) as unknown as Tensor<A>
}
