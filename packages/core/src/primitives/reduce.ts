/** Reductions other than sums, and the running sum. */
import * as Axis from "../Axis.ts"
import type * as DType from "../DType.ts"
import { invalid, refuse, UnknownAxis } from "../Errors.ts"
import * as Host from "../HostArray.ts"
import type { Primitive, Tensor } from "../Node.ts"
import { sub, sum } from "./algebra.ts"
import { emit1 } from "./emit.ts"

const known = (operation: string, axes: Axis.Axes, over: ReadonlyArray<string>): void => {
  for (const name of over) {
    if (!Axis.has(axes, name))
      refuse(new UnknownAxis({ operation, axis: name, present: Axis.names(axes), problem: "no such axis" }))
  }
}

/** Largest element over axes; a NaN wins; -infinity when there is none. Used for stability, hence without a derivative. */
export const maxP: Primitive<"max", { readonly over: ReadonlyArray<string> }> = {
  name: "max",
  type: ([t], p) => {
    known("max", t!.axes, p.over)
    return [{ axes: Axis.without(t!.axes, p.over), dtype: t!.dtype }]
  },
  meaning: {
    kind: "core",
    evaluate: ([x], _p, [type]) => {
      const lowest =
        type!.dtype === "i32"
          ? -(2 ** 31)
          : type!.dtype === "f32" || type!.dtype === "bf16" || type!.dtype === "f16"
            ? -Infinity
            : 0
      const data = new Float64Array(Axis.count(type!.axes)).fill(lowest)
      const at = Host.offsets(type!.axes, x!.axes)
      for (let k = 0; k < at.length; k++) {
        const [a, b] = [data[at[k]!]!, x!.data[k]!]
        data[at[k]!] = Number.isNaN(a) || Number.isNaN(b) ? NaN : Math.max(a, b)
      }
      return [{ axes: type!.axes, dtype: type!.dtype, data }]
    }
  },
  vjp: { kind: "none" },
  partition: { kind: "byName", reduces: "max" },
  flops: ([t]) => ({ contraction: 0, other: Axis.count(t!.axes) }),
  precision: "reduction",
  recompute: "expensive"
}

/** Index (i32) of the largest element along one axis, the first of equals; a NaN is larger than all. */
export const argmaxP: Primitive<"argmax", { readonly over: string }> = {
  name: "argmax",
  type: ([t], p) => {
    known("argmax", t!.axes, [p.over])
    if (Axis.find(t!.axes, p.over)!.size === 0) invalid("argmax", `axis "${p.over}" is empty`)
    return [{ axes: Axis.without(t!.axes, [p.over]), dtype: "i32" }]
  },
  meaning: {
    kind: "core",
    evaluate: ([x], p, [type]) => {
      const stride = Host.strideOf(x!.axes, p.over)
      const size = Axis.find(x!.axes, p.over)!.size
      const data = Float64Array.from(Host.offsets(x!.axes, type!.axes), (o) => {
        let best = 0
        for (let i = 1; i < size; i++) {
          const [a, b] = [x!.data[o + best * stride]!, x!.data[o + i * stride]!]
          if (!Number.isNaN(a) && (b > a || Number.isNaN(b))) best = i
        }
        return best
      })
      return [{ axes: type!.axes, dtype: "i32", data }]
    }
  },
  vjp: { kind: "short", pullback: () => [null] },
  partition: { kind: "byName", whole: (p) => [p.over] },
  flops: ([t]) => ({ contraction: 0, other: Axis.count(t!.axes) }),
  precision: "exact",
  recompute: "expensive"
}

/** Running sum along one axis, the element itself included. */
export const cumsumP: Primitive<"cumsum", { readonly over: string }> = {
  name: "cumsum",
  type: ([t], p) => {
    known("cumsum", t!.axes, [p.over])
    return [t!]
  },
  meaning: {
    kind: "core",
    evaluate: ([x], p, [type]) => {
      const stride = Host.strideOf(x!.axes, p.over)
      const size = Axis.find(x!.axes, p.over)!.size
      const data = Float64Array.from(x!.data)
      for (const o of Host.offsets(x!.axes, Axis.without(x!.axes, [p.over]))) {
        for (let i = 1; i < size; i++) data[o + i * stride]! += data[o + (i - 1) * stride]!
      }
      return [{ axes: x!.axes, dtype: type!.dtype, data }]
    }
  },
  /** The transpose is the running sum from the other end: total - running + own. */
  vjp: {
    kind: "short",
    pullback: ([c], _x, _o, p) => {
      const g = c as Tensor<string>
      return [sub(sum(g, p.over), sub(emit1(cumsumP, [g], p) as Tensor<string>, g))]
    }
  },
  partition: { kind: "byName", whole: (p) => [p.over], linear: [[0]] },
  flops: ([t]) => ({ contraction: 0, other: Axis.count(t!.axes) }),
  precision: "reduction",
  recompute: "expensive"
}

export const max = <A extends string, O extends A, K extends DType.Kind>(
  x: Tensor<A, K>,
  ...over: ReadonlyArray<O>
): Tensor<Exclude<A, O>, K> => emit1(maxP, [x], { over })
export const argmax = <A extends string, O extends A, K extends DType.Kind>(
  x: Tensor<A, K>,
  over: O
): Tensor<Exclude<A, O>, "int"> => emit1(argmaxP, [x], { over })
export const cumsum = <A extends string, O extends A>(x: Tensor<A>, over: O): Tensor<A> => emit1(cumsumP, [x], { over })
