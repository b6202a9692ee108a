/** Operations that rename, cut and join axes without arithmetic. */
import * as Axis from "../Axis.ts"
import type * as DType from "../DType.ts"
import { kindOf } from "../DType.ts"
import { invalid, refuse, UnknownAxis } from "../Errors.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import type { AnyTensor, Primitive, Tensor, TensorType } from "../Node.ts"
import { reduceTo, zeros } from "./algebra.ts"
import { emit1, sameDType } from "./emit.ts"

const free = () => ({ contraction: 0, other: 0 })
const isFloat = (x: AnyTensor): boolean => kindOf(x.type.dtype) === "float"

const axisOf = (operation: string, type: TensorType, name: string): Axis.Axis =>
  Axis.find(type.axes, name) ??
  refuse(new UnknownAxis({ operation, axis: name, present: Axis.names(type.axes), problem: "no such axis" }))

const absent = (operation: string, type: TensorType, name: string, except: string): void => {
  if (name !== except && Axis.has(type.axes, name)) {
    refuse(
      new UnknownAxis({ operation, axis: name, present: Axis.names(type.axes), problem: "the new axis exists already" })
    )
  }
}

export const renameP: Primitive<"rename", { readonly from: string; readonly to: string }> = {
  name: "rename",
  type: ([t], p) => {
    axisOf("rename", t!, p.from)
    absent("rename", t!, p.to, p.from)
    return [{ axes: t!.axes.map((a) => (a.name === p.from ? { ...a, name: p.to } : a)), dtype: t!.dtype }]
  },
  meaning: {
    kind: "core",
    evaluate: ([x], _p, [type]) => [{ axes: renamed(x!, type!), dtype: x!.dtype, data: x!.data }]
  },
  vjp: {
    kind: "short",
    pullback: ([c], [x], _o, p) => [isFloat(x!) ? emit1(renameP, [c!], { from: p.to, to: p.from }) : null]
  },
  partition: { kind: "byName", linear: [[0]], same: (p) => ({ [p.to]: p.from }) },
  flops: free,
  precision: "exact",
  recompute: "cheap"
}
/** The axes of an array that keeps its memory: those of the type, in the array's own order (same order by construction). */
const renamed = (x: HostArray, type: TensorType): Axis.Axes => {
  const fresh = type.axes.find((a) => !Axis.has(x.axes, a.name))
  return fresh === undefined ? x.axes : x.axes.map((a) => (Axis.has(type.axes, a.name) ? a : fresh))
}

/** One axis into an outer and an inner one of `size` elements. The outer part keeps a split, so a microbatch axis is the inner part. */
export const splitP: Primitive<
  "split",
  { readonly axis: string; readonly outer: string; readonly inner: string; readonly size: number }
> = {
  name: "split",
  type: ([t], p) => {
    const axis = axisOf("split", t!, p.axis)
    absent("split", t!, p.outer, p.axis)
    absent("split", t!, p.inner, p.axis)
    if (p.outer === p.inner) invalid("split", `both parts are called "${p.inner}"`)
    if (p.size < 1 || axis.size % p.size !== 0)
      invalid("split", `axis "${p.axis}" of size ${axis.size} does not divide into parts of ${p.size}`)
    return [
      {
        axes: t!.axes.flatMap((a) =>
          a.name === p.axis ? [Axis.make(p.outer, a.size / p.size), Axis.make(p.inner, p.size)] : [a]
        ),
        dtype: t!.dtype
      }
    ]
  },
  meaning: {
    kind: "core",
    evaluate: ([x], p) => [
      {
        axes: x!.axes.flatMap((a) =>
          a.name === p.axis ? [Axis.make(p.outer, a.size / p.size), Axis.make(p.inner, p.size)] : [a]
        ),
        dtype: x!.dtype,
        data: x!.data
      }
    ]
  },
  vjp: {
    kind: "short",
    pullback: ([c], [x], _o, p) => [
      isFloat(x!) ? emit1(mergeP, [c!], { axis: p.axis, outer: p.outer, inner: p.inner }) : null
    ]
  },
  partition: { kind: "byName", linear: [[0]], same: (p) => ({ [p.outer]: p.axis }), whole: (p) => [p.inner] },
  flops: free,
  precision: "exact",
  recompute: "cheap"
}

export interface MergeParams {
  readonly axis: string
  readonly outer: string
  readonly inner: string
  /** How many elements of the new axis are meant, where not all are. */
  readonly logical?: number
}

/** Two axes into one, `outer` varying slowest. */
export const mergeP: Primitive<"merge", MergeParams> = {
  name: "merge",
  type: ([t], p) => {
    const inner = axisOf("merge", t!, p.inner)
    const outer = axisOf("merge", t!, p.outer)
    if (p.outer === p.inner) invalid("merge", `axis "${p.inner}" with itself`)
    if (p.axis !== p.outer) absent("merge", t!, p.axis, p.inner)
    return [
      {
        axes: t!.axes
          .filter((a) => a.name !== p.inner)
          .map((a) => (a.name === p.outer ? Axis.make(p.axis, outer.size * inner.size, p.logical) : a)),
        dtype: t!.dtype
      }
    ]
  },
  meaning: {
    kind: "core",
    evaluate: ([x], p, [type]) => {
      const [outer, inner] = [Axis.find(x!.axes, p.outer)!, Axis.find(x!.axes, p.inner)!]
      const wide = type!.axes.flatMap((a) => (a.name === p.axis ? [outer, inner] : [a]))
      return [
        { axes: type!.axes, dtype: x!.dtype, data: Float64Array.from(Host.offsets(x!.axes, wide), (o) => x!.data[o]!) }
      ]
    }
  },
  vjp: {
    kind: "short",
    pullback: ([c], [x], _o, p) => {
      if (!isFloat(x!)) return [null]
      const { size } = Axis.find(x!.type.axes, p.inner)!
      // An empty inner part leaves no trace to split by.
      if (size === 0) return [zeros(x!.type, c!.role)]
      return [emit1(splitP, [c!], { axis: p.axis, outer: p.outer, inner: p.inner, size })]
    }
  },
  partition: {
    kind: "byName",
    linear: [[0]],
    same: (p) => ({ [p.axis]: p.outer }),
    whole: (p) => [p.inner],
    localize: ({ axis, inner, outer }) => ({ axis, outer, inner })
  },
  flops: free,
  precision: "exact",
  recompute: "cheap"
}

export interface Cut {
  readonly axis: string
  readonly to: string
  readonly start: number
  readonly size: number
  /** How many elements of the new axis are meant, where not all are. */
  readonly logical?: number
}

/** On a rank masks are explicit, and an axis has just a size. */
const stored = ({ axis, size, start, to }: Cut): Cut => ({ axis, to, start, size })

/** The other way: from the new axis to one like that of `x`. */
const back = (p: Cut, x: AnyTensor): Cut => {
  const { logical, size } = Axis.find(x.type.axes, p.axis)!
  return { axis: p.to, to: p.axis, start: p.start, size, ...(logical === size ? {} : { logical }) }
}

/** Elements start .. start+size of `axis`, as the axis `to`: an axis whose size changes gets another name, because names decide layouts. */
export const sliceP: Primitive<"slice", Cut> = {
  name: "slice",
  type: ([t], p) => {
    const axis = axisOf("slice", t!, p.axis)
    absent("slice", t!, p.to, p.axis)
    if (p.start < 0 || p.size < 0 || p.start + p.size > axis.size) {
      invalid("slice", `elements ${p.start}..${p.start + p.size} of axis "${p.axis}", which has ${axis.size}`)
    }
    return [{ axes: t!.axes.map((a) => (a.name === p.axis ? Axis.make(p.to, p.size, p.logical) : a)), dtype: t!.dtype }]
  },
  meaning: {
    kind: "core",
    evaluate: ([x], p) => {
      const cut = Host.slice(x!, p.axis, p.start, p.size)
      return [{ ...cut, axes: cut.axes.map((a) => (a.name === p.axis ? { ...a, name: p.to } : a)) }]
    }
  },
  vjp: {
    kind: "short",
    pullback: ([c], [x], _o, p) => [isFloat(x!) ? emit1(padP, [c!], back(p, x!)) : null]
  },
  partition: { kind: "byName", linear: [[0]], whole: (p) => [p.axis, p.to], localize: stored },
  flops: free,
  precision: "exact",
  recompute: "cheap"
}

/** Zeros around `axis`, which becomes `to` of `size` elements beginning at `start`. The transpose of slice. */
export const padP: Primitive<"pad", Cut> = {
  name: "pad",
  type: ([t], p) => {
    const axis = axisOf("pad", t!, p.axis)
    absent("pad", t!, p.to, p.axis)
    if (p.start < 0 || p.start + axis.size > p.size)
      invalid("pad", `axis "${p.axis}" of ${axis.size} at ${p.start} does not fit into ${p.size}`)
    return [{ axes: t!.axes.map((a) => (a.name === p.axis ? Axis.make(p.to, p.size, p.logical) : a)), dtype: t!.dtype }]
  },
  meaning: {
    kind: "core",
    evaluate: ([x], p, [type]) => {
      const data = new Float64Array(Axis.count(type!.axes))
      const base = p.start * Host.strideOf(type!.axes, p.to)
      const to = Host.offsets(
        type!.axes.map((a) => (a.name === p.to ? { ...a, name: p.axis } : a)),
        x!.axes
      )
      for (let k = 0; k < to.length; k++) data[to[k]! + base] = x!.data[k]!
      return [{ axes: type!.axes, dtype: x!.dtype, data }]
    }
  },
  vjp: {
    kind: "short",
    pullback: ([c], [x], _o, p) => [isFloat(x!) ? emit1(sliceP, [c!], back(p, x!)) : null]
  },
  partition: { kind: "byName", linear: [[0]], whole: (p) => [p.axis, p.to], localize: stored },
  flops: free,
  precision: "exact",
  recompute: "cheap"
}

/** Parts, each along an axis of its own name, one after another along the new axis `axis`; parts broadcast along what they lack. */
export const concatP: Primitive<"concat", { readonly axes: ReadonlyArray<string>; readonly axis: string }> = {
  name: "concat",
  type: (types, p) => {
    if (types.length === 0) invalid("concat", "needs at least one part")
    const own = types.map((t, i) => axisOf("concat", t, p.axes[i]!))
    const rest = Axis.union(
      "concat",
      types.map((t, i) => Axis.without(t.axes, [p.axes[i]!]))
    )
    if (Axis.has(rest, p.axis)) absent("concat", { axes: rest, dtype: "f32" }, p.axis, "")
    const largest = types.reduce((best, t, i) => (t.axes.length > types[best]!.axes.length ? i : best), 0)
    const joined = Axis.make(
      p.axis,
      own.reduce((n, a) => n + a.size, 0)
    )
    // The joined axis stands where the part with most axes has its own.
    const order = types[largest]!.axes.map((a) => (a.name === p.axes[largest] ? joined : a))
    return [{ axes: Axis.inOrder("concat", [order, rest]), dtype: sameDType("concat", types) }]
  },
  meaning: {
    kind: "core",
    evaluate: (xs, p, [type]) => {
      const data = new Float64Array(Axis.count(type!.axes))
      const stride = Host.strideOf(type!.axes, p.axis)
      let start = 0
      xs.forEach((x, i) => {
        const own = Axis.find(x.axes, p.axes[i]!)!
        const part = type!.axes.map((a) => (a.name === p.axis ? { ...own, name: p.axis } : a))
        const to = Host.offsets(type!.axes, part)
        const from = Host.offsets(
          x.axes.map((a) => (a.name === own.name ? { ...a, name: p.axis } : a)),
          part
        )
        for (let k = 0; k < to.length; k++) data[to[k]! + start * stride] = x.data[from[k]!]!
        start += own.size
      })
      return [{ axes: type!.axes, dtype: type!.dtype, data }]
    }
  },
  vjp: {
    kind: "short",
    pullback: ([c], inputs, _o, p) => {
      let start = 0
      return inputs.map((x, i) => {
        const own = Axis.find(x.type.axes, p.axes[i]!)!
        const cut = { axis: p.axis, to: own.name, start, size: own.size }
        start += own.size
        if (!isFloat(x)) return null
        // Another part may have an axis of this name, along which this one was repeated.
        const clash = own.name !== p.axis && Axis.has(c!.type.axes, own.name)
        const from = clash ? reduceTo(c!, { axes: Axis.without(c!.type.axes, [own.name]), dtype: c!.type.dtype }) : c!
        return reduceTo(emit1(sliceP, [from], cut), x.type)
      })
    }
  },
  partition: { kind: "byName", whole: (p) => [...p.axes, p.axis] },
  flops: free,
  precision: "exact",
  recompute: "expensive"
}

export const rename = <A extends string, F extends A, N extends string, K extends DType.Kind>(
  x: Tensor<A, K>,
  from: F,
  to: N
): Tensor<Exclude<A, F> | N, K> => ((from as string) === to ? (x as Tensor<any, K>) : emit1(renameP, [x], { from, to }))

export const split = <A extends string, F extends A, O extends string, I extends string, K extends DType.Kind>(
  x: Tensor<A, K>,
  axis: F,
  parts: { readonly outer: O; readonly inner: I; readonly size: number }
): Tensor<Exclude<A, F> | O | I, K> => emit1(splitP, [x], { axis, ...parts })

export const merge = <A extends string, O extends A, I extends A, N extends string, K extends DType.Kind>(
  x: Tensor<A, K>,
  outer: O,
  inner: I,
  axis: N
): Tensor<Exclude<A, O | I> | N, K> => emit1(mergeP, [x], { axis, outer, inner })

export const slice = <A extends string, F extends A, N extends string, K extends DType.Kind>(
  x: Tensor<A, K>,
  axis: F,
  cut: { readonly to: N; readonly start: number; readonly size: number }
): Tensor<Exclude<A, F> | N, K> => emit1(sliceP, [x], { axis, ...cut })

export const pad = <A extends string, F extends A, N extends string>(
  x: Tensor<A>,
  axis: F,
  into: { readonly to: N; readonly start: number; readonly size: number }
): Tensor<Exclude<A, F> | N> => emit1(padP, [x], { axis, ...into })

/** `concat([[classToken, "class"], [patches, "patch"]], "seq")`. */
export const concat = <A extends string, P extends string, N extends string, K extends DType.Kind>(
  parts: ReadonlyArray<readonly [part: Tensor<A, K> | Tensor<any, K>, axis: P]>,
  axis: N
): Tensor<Exclude<A, P> | N, K> =>
  emit1(
    concatP,
    parts.map(([x]) => x),
    { axes: parts.map(([, own]) => own), axis }
  )
