/** Regions: programs inside programs. `scan` repeats along an axis, `recompute` forgets intermediates, `fused` is one kernel. */
import * as Axis from "../Axis.ts"
import { invalid } from "../Errors.ts"
import * as Gradient from "../Gradient.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import type { AnyTensor, Body, Lockstep, Primitive, Pullback } from "../Node.ts"
import { build, input } from "../Node.ts"
import * as Program from "../Program.ts"
import { sizeOf, zeros } from "./algebra.ts"
import { place } from "./emit.ts"

const free = () => ({ contraction: 0, other: 0 })

/**
 * Repeats `body` along `axis`. Inputs: carried, each (sliced along the axis), fixed. Results: carried, stacked (along the axis), summed.
 * These are dual: the cotangent of `each` is stacked, of `fixed` summed, of stacked `each`, of summed `fixed`, of carried carried.
 * Summed results are linear by construction, hence may stay partial over iterations.
 */
export interface ScanParams {
  readonly axis: string
  readonly size: number
  readonly reverse: boolean
  readonly body: Body
  readonly carried: number
  readonly each: number
  readonly stacked: number
}

const plus = (x: HostArray, y: HostArray): HostArray => {
  const z = Host.reorder(y, x.axes)
  return { axes: x.axes, dtype: x.dtype, data: x.data.map((v, k) => v + z.data[k]!) }
}

export const scanP: Primitive<"scan", ScanParams> = {
  name: "scan",
  type: (types, p) => {
    p.body.inputs.forEach((x, i) => {
      const isEach = i >= p.carried && i < p.carried + p.each
      const given = types[i]!
      const expected = isEach ? Axis.without(given.axes, [p.axis]) : given.axes
      if (isEach && Axis.find(given.axes, p.axis)?.size !== p.size) {
        invalid("scan", `operand ${i} has ${Axis.print(given.axes)}, needs "${p.axis}" of size ${p.size}`)
      }
      if (!Axis.equal(expected, x.type.axes) || given.dtype !== x.type.dtype) {
        invalid(
          "scan",
          `operand ${i} is ${given.dtype}${Axis.print(expected)}, the body takes ${x.type.dtype}${Axis.print(x.type.axes)}`
        )
      }
    })
    return p.body.outputs.map((o, i) => {
      if (
        i < p.carried &&
        (!Axis.equal(o.type.axes, p.body.inputs[i]!.type.axes) || o.type.dtype !== p.body.inputs[i]!.type.dtype)
      ) {
        const was = p.body.inputs[i]!.type
        invalid(
          "scan",
          `carried value ${i} changes from ${was.dtype}${Axis.print(was.axes)} to ${o.type.dtype}${Axis.print(o.type.axes)}`
        )
      }
      if (i < p.carried) return p.body.inputs[i]!.type
      return i < p.carried + p.stacked
        ? { axes: [Axis.make(p.axis, p.size), ...o.type.axes], dtype: o.type.dtype }
        : o.type
    })
  },
  meaning: {
    kind: "region",
    evaluate: (xs, p, call) => {
      const ranks = xs[0]?.length ?? 1
      let carry = xs.slice(0, p.carried)
      const each = xs.slice(p.carried, p.carried + p.each)
      const fixed = xs.slice(p.carried + p.each)
      const stacks: Array<Array<Lockstep>> = Array.from({ length: p.stacked }, () => [])
      const summedTypes = p.body.outputs.slice(p.carried + p.stacked).map((o) => o.type)
      let totals: ReadonlyArray<Lockstep> = summedTypes.map((t) =>
        Array.from({ length: ranks }, () => ({
          axes: t.axes,
          dtype: t.dtype,
          data: new Float64Array(Axis.count(t.axes))
        }))
      )
      for (let k = 0; k < p.size; k++) {
        const i = p.reverse ? p.size - 1 - k : k
        const out = call(p.body, [...carry, ...each.map((x) => x.map((a) => Host.at(a, p.axis, i))), ...fixed])
        carry = out.slice(0, p.carried)
        stacks.forEach((stack, j) => {
          stack[i] = out[p.carried + j]!
        })
        const before = totals
        totals = out.slice(p.carried + p.stacked).map((x, j) => x.map((a, r) => plus(before[j]![r]!, a)))
      }
      const axis = Axis.make(p.axis, p.size)
      const stacked = stacks.map((stack, j) =>
        Array.from({ length: ranks }, (_, r) =>
          Host.stack(
            stack.map((x) => x[r]!),
            axis,
            p.body.outputs[p.carried + j]!.type
          )
        )
      )
      return [...carry, ...stacked, ...totals]
    },
    bodies: (p) => [p.body],
    withBodies: (p, [body]) => ({ ...p, body: body! })
  },
  vjp: { kind: "long", differentiate: (inputs, p) => differentiateScan(inputs, p) },
  partition: { kind: "region" },
  flops: free,
  precision: "exact",
  recompute: "expensive"
}

const buildScan = (p: ScanParams, inputs: ReadonlyArray<AnyTensor>): ReadonlyArray<AnyTensor> =>
  build(
    scanP,
    inputs,
    p,
    p.body.outputs.map((o) => o.role)
  )

/** The forward saves residuals along the axis; the backward is a scan in the other direction that reads them. */
const differentiateScan = (inputs: ReadonlyArray<AnyTensor>, p: ScanParams) => {
  const parts = Gradient.split(p.body)
  const carriedIn = p.body.inputs.slice(0, p.carried)
  const eachIn = p.body.inputs.slice(p.carried, p.carried + p.each)
  const fixedIn = p.body.inputs.slice(p.carried + p.each)
  const kept = [...carriedIn.filter((x) => parts.used.has(x)), ...parts.residuals]
  const last = p.carried + p.stacked
  const forward = Program.body(p.body.inputs, [...parts.outputs.slice(0, last), ...kept, ...parts.outputs.slice(last)])
  const run = buildScan({ ...p, stacked: p.stacked + kept.length, body: forward }, inputs)
  const outputs = [...run.slice(0, last), ...run.slice(last + kept.length)]
  const saved = run.slice(last, last + kept.length)

  const pullback: Pullback = (cotangents) => {
    const given = outputs.map((o, i) => cotangents[i] ?? zeros(o.type, o.role))
    const live = parts.inputCotangents.map((c, i) => i < p.carried || c !== null)
    const eachLive = eachIn.map((_, i) => live[p.carried + i]!)
    const fixedLive = fixedIn.map((_, i) => live[p.carried + p.each + i]!)
    const body = Program.body(
      [
        ...parts.cotangents.slice(0, p.carried),
        ...kept,
        ...eachIn,
        ...parts.cotangents.slice(p.carried, last),
        ...fixedIn,
        ...parts.cotangents.slice(last)
      ],
      parts.inputCotangents.flatMap((c, i) =>
        live[i] ? [c ?? zeros(p.body.inputs[i]!.type, p.body.inputs[i]!.role)] : []
      )
    )
    const each = [...saved, ...inputs.slice(p.carried, p.carried + p.each), ...given.slice(p.carried, last)]
    const back = buildScan(
      {
        axis: p.axis,
        size: p.size,
        reverse: !p.reverse,
        body,
        carried: p.carried,
        each: each.length,
        stacked: eachLive.filter(Boolean).length
      },
      [...given.slice(0, p.carried), ...each, ...inputs.slice(p.carried + p.each), ...given.slice(last)]
    )
    let k = 0
    return [
      ...inputs.slice(0, p.carried).map(() => back[k++]!),
      ...eachLive.map((l) => (l ? back[k++]! : null)),
      ...fixedLive.map((l) => (l ? back[k++]! : null))
    ]
  }
  return { outputs, pullback }
}

export interface ScanInputs {
  readonly carried: ReadonlyArray<AnyTensor>
  readonly each: ReadonlyArray<AnyTensor>
  readonly fixed: ReadonlyArray<AnyTensor>
}

export interface ScanResults {
  readonly carried: ReadonlyArray<AnyTensor>
  readonly stacked: ReadonlyArray<AnyTensor>
  readonly summed: ReadonlyArray<AnyTensor>
}

/**
 * Repeats `f` along `axis` of the `each` operands (or `size` times when there are none). Everything `f` reads must be passed in.
 * Parameters among `each` keep their role: they are placed inside, one slice at a time.
 */
export const scan = (
  axis: string,
  given: ScanInputs,
  f: (inside: ScanInputs) => ScanResults,
  size?: number
): ScanResults => {
  const carriedIn = given.carried.map((x) => (x.role === "parameter" ? place(x, "compute") : x))
  const count =
    size ??
    (given.each.length === 0
      ? invalid("scan", "without `each` operands the number of repetitions must be given")
      : sizeOf(given.each[0]!, axis))
  const inside: ScanInputs = {
    carried: carriedIn.map((x) => input(x.type, x.role)),
    each: given.each.map((x) => input({ axes: Axis.without(x.type.axes, [axis]), dtype: x.type.dtype }, x.role)),
    fixed: given.fixed.map((x) => input(x.type, x.role))
  }
  const out = f(inside)
  const [c, s] = [out.carried.length, out.stacked.length]
  const body = Program.body(
    [...inside.carried, ...inside.each, ...inside.fixed],
    [...out.carried, ...out.stacked, ...out.summed]
  )
  const all = buildScan({ axis, size: count, reverse: false, body, carried: c, each: given.each.length, stacked: s }, [
    ...carriedIn,
    ...given.each,
    ...given.fixed
  ])
  return { carried: all.slice(0, c), stacked: all.slice(c, c + s), summed: all.slice(c + s) }
}

export interface RecomputeParams {
  readonly body: Body
}

const region = <Name extends string, P extends { readonly body: Body }>(
  name: Name,
  vjp: Primitive<Name, P>["vjp"],
  precision: Primitive<Name, P>["precision"] = "exact"
): Primitive<Name, P> => ({
  name,
  type: (types, p) => {
    p.body.inputs.forEach((x, i) => {
      const given = types[i]!
      if (!Axis.equal(given.axes, x.type.axes) || given.dtype !== x.type.dtype) {
        invalid(
          name,
          `operand ${i} is ${given.dtype}${Axis.print(given.axes)}, the body takes ${x.type.dtype}${Axis.print(x.type.axes)}`
        )
      }
    })
    return p.body.outputs.map((o) => o.type)
  },
  meaning: {
    kind: "region",
    evaluate: (xs, p, call) => call(p.body, xs),
    bodies: (p) => [p.body],
    withBodies: (p, [body]) => ({ ...p, body: body! })
  },
  vjp,
  partition: { kind: "region" },
  flops: free,
  precision,
  recompute: "expensive"
})

/** A region whose intermediates are not kept: its pullback is a region that contains the forward again. */
export const recomputeP: Primitive<"recompute", RecomputeParams> = region("recompute", {
  kind: "long",
  differentiate: (inputs, p) => {
    const outputs = build(
      recomputeP,
      inputs,
      p,
      p.body.outputs.map((o) => o.role)
    )
    return {
      outputs,
      pullback: (cotangents) => {
        const back = Gradient.vjp(
          p.body,
          cotangents.map((c) => c !== null)
        )
        const results = build(
          recomputeP,
          [...inputs, ...cotangents.filter((c) => c !== null)],
          { body: back.body },
          back.body.outputs.map((o) => o.role)
        )
        return back.spread(results)
      }
    }
  }
})

/** Runs `f` without keeping its intermediates for the backward pass. Everything `f` reads must be passed in. */
export const recompute = (
  inputs: ReadonlyArray<AnyTensor>,
  f: (inside: ReadonlyArray<AnyTensor>) => ReadonlyArray<AnyTensor>
): ReadonlyArray<AnyTensor> => {
  const inside = inputs.map((x) => input(x.type, x.role))
  const body = Program.body(inside, f(inside))
  return build(
    recomputeP,
    inputs,
    { body },
    body.outputs.map((o) => o.role)
  )
}

export interface FusedParams {
  readonly body: Body
  /** Which kind of kernel the backend builds of the body. */
  readonly pattern: "pointwise" | "gemm"
}

/** Equations that a backend runs as one kernel. Made by the fuse pass, after derivatives were taken. */
export const fusedP: Primitive<"fused", FusedParams> = region("fused", { kind: "none" })
