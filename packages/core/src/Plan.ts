/**
 * From a program to a list of launches over planned memory. Regions are opened (a scan becomes its repetitions), operations that only rename or
 * cut axes become views, results are written where they are wanted (a layer's residual straight into its slot of the stack), and every
 * intermediate gets a place in one arena by its lifetime. What a launch contains is the backend's business.
 */
import * as Axis from "./Axis.ts"
import { Arena } from "./Arena.ts"
import * as DType from "./DType.ts"
import type { AnyTensor, Body, Equation, Role } from "./Node.ts"
import type { Exchange } from "./plan/Exchange.ts"
import { exchanges, lowerExchange } from "./plan/Exchange.ts"
import type { Peak } from "./plan/Peak.ts"
import { peakOf } from "./plan/Peak.ts"
import { alias, lifetimes, reuse, sinkUpdates, type Working } from "./plan/Reuse.ts"
import { dimensions, isIdentity, pick, same, unpackedViews, type View, viewOf } from "./plan/View.ts"
import { allReduceP } from "./primitives/collective.ts"
import { scanP, type ScanParams } from "./primitives/control.ts"

export type { Exchange } from "./plan/Exchange.ts"
export type { Peak } from "./plan/Peak.ts"
export { type Dimension, dimensions, elements, pick, same, type View } from "./plan/View.ts"

interface Touching {
  readonly reads: ReadonlyArray<View>
  readonly writes: ReadonlyArray<View>
  /** An output may stand where an input of the same strides stood, element by element. */
  readonly elementwise: boolean
  readonly equation: number
}

export interface Kernel<P> extends Touching {
  readonly kind: "kernel"
  readonly payload: P
}

/** The beginning or the end of a collective. */
export interface Crossing extends Touching {
  readonly kind: "start" | "wait"
  readonly exchange: Exchange
}

export type Launch<P> = Kernel<P> | Crossing

/** What a backend's emitter may do while it turns one equation into launches. */
export interface Emission<P> {
  /** A contiguous intermediate, axes in the order given. */
  readonly temporary: (
    axes: ReadonlyArray<{ readonly name: string; readonly size: number }>,
    dtype: DType.DType
  ) => View
  readonly push: (payload: P, reads: ReadonlyArray<View>, writes: ReadonlyArray<View>, elementwise?: boolean) => void
}

export type Emit<P> = (
  equation: Equation,
  inputs: ReadonlyArray<View>,
  outputs: ReadonlyArray<View>,
  emission: Emission<P>
) => void

export type BufferKind =
  | { readonly kind: "arena"; readonly offset: number }
  | { readonly kind: "input"; readonly index: number }
  | { readonly kind: "output"; readonly index: number }

export interface Plan<P> {
  readonly launches: ReadonlyArray<Launch<P>>
  readonly buffers: ReadonlyArray<BufferKind>
  /** Bytes of the arena: the most that intermediates need at one time, and gaps between them. */
  readonly arenaBytes: number
  readonly peak: Peak
  /** For every output, where it is: an output buffer of its own, or the input it was donated. */
  readonly outputs: ReadonlyArray<{ readonly view: View; readonly donated: number | null }>
  /** Equations in the order of their numbers, for profiles. */
  readonly equations: ReadonlyArray<Equation>
}

export interface Options<P> {
  readonly emit: Emit<P>
  /** Copies a view into another of the same axes. */
  readonly copy: (from: View, to: View, emission: Emission<P>) => void
  /** `to += from`, elementwise. */
  readonly accumulate: (from: View, to: View, emission: Emission<P>) => void
  readonly zero: (to: View, emission: Emission<P>) => void
  /** [input, output]: the output may be written over the input. */
  readonly donated: ReadonlyArray<readonly [input: number, output: number]>
  /** Gathers of parameters that are under way before their turn. */
  readonly prefetch?: number
}

export const make = <P>(program: Body, options: Options<P>): Plan<P> => {
  const buffers: Array<Working> = []
  const launches: Array<Launch<P>> = []
  const equations: Array<Equation> = []
  const numbers = new Map<Equation, number>()

  const allocate = (
    axes: ReadonlyArray<{ readonly name: string; readonly size: number }>,
    dtype: DType.DType,
    role: Role = "compute"
  ): View => {
    const count = axes.reduce((n, a) => n * a.size, 1)
    buffers.push({ bytes: count * DType.bytesOf(dtype), kind: "arena", index: 0, role })
    return { buffer: buffers.length - 1, offset: 0, dtype, dimensions: dimensions(axes) }
  }
  const emissionFor = (equation: number): Emission<P> => ({
    temporary: allocate,
    push: (payload, reads, writes, elementwise = false) =>
      launches.push({ kind: "kernel", payload, reads, writes, elementwise, equation })
  })
  const numberOf = (e: Equation): number => {
    const known = numbers.get(e)
    if (known !== undefined) return known
    numbers.set(e, equations.length)
    return equations.push(e) - 1
  }

  /**
   * Lowers one body; `wanted` says where its outputs should stand, `totals` to what they should be added. Returns where they do stand; what a loop
   * has added part by part stands nowhere by itself.
   */
  const lower = (
    body: Body,
    inputs: ReadonlyArray<View>,
    wanted: ReadonlyArray<View | null>,
    totals: ReadonlyArray<View | null> = []
  ): ReadonlyArray<View> => {
    const env = new Map<AnyTensor, View>(body.inputs.map((x, i) => [x, inputs[i]!]))
    const added = addedInLoops(body, totals)
    const places = new Map<AnyTensor, View>()
    body.outputs.forEach((o, i) => {
      const place = wanted[i] ?? null
      if (place !== null && !places.has(o) && o.equation !== null) places.set(o, place)
    })
    const placeOf = (x: AnyTensor): View => places.get(x) ?? allocate(x.type.axes, x.type.dtype, x.role)
    for (const e of body.equations) {
      const xs = e.inputs.map((x) => env.get(x)!)
      const emission = emissionFor(numberOf(e))
      if (e.primitive.name === "scan") {
        const results = lowerScan(
          e.params as ScanParams,
          xs,
          { places: e.outputs.map((o) => places.get(o) ?? null), totals: e.outputs.map((o) => added.get(o) ?? null) },
          emission
        )
        e.outputs.forEach((o, i) => env.set(o, results[i]!))
        continue
      }
      if (e.primitive.name === "recompute") {
        const results = lower(
          e.params.body,
          xs,
          e.outputs.map((o) => places.get(o) ?? null)
        )
        e.outputs.forEach((o, i) => env.set(o, results[i]!))
        continue
      }
      if (e.primitive.name === "unpack") {
        const views = unpackedViews(e, xs[0]!)
        e.outputs.forEach((o, i) => env.set(o, views[i]!))
        continue
      }
      if (e.primitive.meaning.kind === "collective") {
        const views = lowerExchange(
          e,
          xs,
          e.outputs.map((o) => places.get(o) ?? null),
          {
            allocate: (axes, x) => allocate(axes, x.dtype, e.outputs[0]!.role),
            copy: (from, to) => options.copy(from, to, emission),
            start: (exchange) =>
              launches.push({
                kind: "start",
                exchange: { ...exchange, id: launches.length },
                reads: exchange.send,
                writes: exchange.receive,
                // Sums may stand where their operands stood.
                elementwise: e.primitive === allReduceP,
                equation: numberOf(e)
              })
          }
        )
        e.outputs.forEach((o, i) => env.set(o, views[i]!))
        continue
      }
      const view = xs.length === 1 ? viewOf(e, xs[0]!) : null
      if (view !== null) {
        env.set(e.outputs[0]!, view)
        continue
      }
      if (e.primitive.name === "merge") {
        const part = (name: string) => xs[0]!.dimensions.find((d) => d.name === name)!
        const wide = e.outputs[0]!.type.axes.flatMap(
          (a): ReadonlyArray<{ readonly name: string; readonly size: number }> =>
            a.name === e.params.axis ? [part(e.params.outer), part(e.params.inner)] : [a]
        )
        // The copy is laid out wide and then seen as merged.
        const temporary = allocate(wide, e.outputs[0]!.type.dtype, e.outputs[0]!.role)
        options.copy(xs[0]!, temporary, emission)
        env.set(e.outputs[0]!, viewOf(e, temporary)!)
        continue
      }
      const outs = e.outputs.map(placeOf)
      options.emit(e, xs, outs, emission)
      e.outputs.forEach((o, i) => env.set(o, outs[i]!))
    }
    return body.outputs.map((o) => env.get(o)!)
  }

  const lowerScan = (
    p: ScanParams,
    xs: ReadonlyArray<View>,
    {
      places: wanted,
      totals
    }: { readonly places: ReadonlyArray<View | null>; readonly totals: ReadonlyArray<View | null> },
    emission: Emission<P>
  ): ReadonlyArray<View> => {
    const last = p.carried + p.stacked
    const adds = p.body.outputs.slice(p.carried, last).map((_, j) => totals[p.carried + j] ?? null)
    const stacks = p.body.outputs
      .slice(p.carried, last)
      .map(
        (o, j) =>
          adds[j] ??
          wanted[p.carried + j] ??
          allocate([Axis.make(p.axis, p.size), ...o.type.axes], o.type.dtype, o.role)
      )
    const sums = p.body.outputs
      .slice(last)
      .map((o, j) => wanted[last + j] ?? allocate(o.type.axes, o.type.dtype, o.role))
    if (p.size === 0) for (const s of sums) options.zero(s, emission)
    // A carry that is also saved is written straight into the slot of the iteration that will save it.
    const slotOf = p.body.inputs.slice(0, p.carried).map((x) => {
      const j = p.body.outputs.slice(p.carried, last).indexOf(x)
      return j >= 0 && adds[j] !== null ? -1 : j
    })
    let carry = xs.slice(0, p.carried)
    for (let k = 0; k < p.size; k++) {
      const i = p.reverse ? p.size - 1 - k : k
      const next = p.reverse ? i - 1 : i + 1
      const inside = [
        ...carry,
        ...xs.slice(p.carried, p.carried + p.each).map((x) => pick(x, p.axis, i)),
        ...xs.slice(p.carried + p.each)
      ]
      const places: ReadonlyArray<View | null> = [
        ...slotOf.map((j, c) =>
          k === p.size - 1 ? (wanted[c] ?? null) : j < 0 ? null : pick(stacks[j]!, p.axis, next)
        ),
        ...stacks.map((s, j) => (adds[j] === null ? pick(s, p.axis, i) : null)),
        ...sums.map((s) => (k === 0 ? s : null))
      ]
      const into: ReadonlyArray<View | null> = [
        ...slotOf.map(() => null),
        ...stacks.map((s, j) => (adds[j] === null ? null : pick(s, p.axis, i))),
        ...sums.map((s) => (k === 0 ? null : s))
      ]
      const done = new Set(addedInLoops(p.body, into).values())
      const out = lower(p.body, inside, places, into)
      // A carried value that stands where a sum begins would change when the next iteration adds to it.
      carry = out.slice(0, p.carried).map((v) => {
        if (k > 0 || p.size === 1 || !sums.some((s) => s.buffer === v.buffer)) return v
        const kept = allocate(v.dimensions, v.dtype)
        options.copy(v, kept, emission)
        return kept
      })
      stacks.forEach((s, j) => {
        const slot = pick(s, p.axis, i)
        const part = out[p.carried + j]!
        if (adds[j] !== null) {
          if (!done.has(into[p.carried + j]!)) options.accumulate(part, slot, emission)
        } else if (!same(part, slot)) options.copy(part, slot, emission)
      })
      sums.forEach((s, j) => {
        const part = out[last + j]!
        if (k === 0) {
          if (!same(part, s)) options.copy(part, s, emission)
        } else if (!done.has(s)) options.accumulate(part, s, emission)
      })
    }
    return [...carry, ...stacks, ...sums]
  }

  const inputViews = program.inputs.map((x, i): View => {
    const count = Axis.count(x.type.axes)
    buffers.push({ bytes: count * DType.bytesOf(x.type.dtype), kind: "input", index: i, role: x.role })
    return { buffer: buffers.length - 1, offset: 0, dtype: x.type.dtype, dimensions: dimensions(x.type.axes) }
  })
  const problem = donationProblem(program, options.donated)
  if (problem !== null) throw new Error(problem)
  const donor = new Map(options.donated.map(([from, to]) => [to, from]))
  const outputViews = program.outputs.map((o, i): View => {
    const from = donor.get(i)
    const axes = from === undefined ? o.type.axes : program.inputs[from]!.type.axes
    const view = allocate(axes, o.type.dtype, o.role)
    buffers[view.buffer]!.kind = "output"
    buffers[view.buffer]!.index = i
    return view
  })
  const results = lower(program, inputViews, outputViews)
  results.forEach((r, i) => {
    if (!same(r, outputViews[i]!)) options.copy(r, outputViews[i]!, emissionFor(equations.length))
  })

  const ordered = [...exchanges(sinkUpdates(launches, buffers, donor), options.prefetch ?? 0)]
  const finish = emissionInto(ordered, allocate, equations.length)
  const donated = alias(ordered, buffers, inputViews, outputViews, donor, (from, to) => options.copy(from, to, finish))
  const merged = reuse(ordered, buffers)
  const intervals = lifetimes(merged.launches, buffers)
  const arena = new Arena(intervals)
  return {
    launches: merged.launches,
    buffers: buffers.map((b, i): BufferKind =>
      b.kind === "arena"
        ? { kind: "arena", offset: arena.offsets.get(merged.root(i)) ?? 0 }
        : { kind: b.kind, index: b.index }
    ),
    arenaBytes: arena.bytes,
    peak: peakOf(intervals, (b) => buffers[b]!.role),
    outputs: outputViews.map((view, i) => ({ view, donated: donated.has(i) ? donor.get(i)! : null })),
    equations
  }
}

/**
 * Outputs that a loop makes slice by slice and that nobody else reads: each slice is added to its place in the total at once, and the whole never stands
 * beside it. Gradients of layers under accumulation. By the loop's own output.
 */
const addedInLoops = (body: Body, totals: ReadonlyArray<View | null>): ReadonlyMap<AnyTensor, View> => {
  const found = new Map<AnyTensor, View>()
  if (!totals.some((t) => t !== null)) return found
  const uses = new Map<AnyTensor, number>()
  const use = (x: AnyTensor) => uses.set(x, (uses.get(x) ?? 0) + 1)
  for (const e of body.equations) e.inputs.forEach(use)
  body.outputs.forEach(use)
  body.outputs.forEach((o, i) => {
    const total = totals[i] ?? null
    let x = o
    while (uses.get(x) === 1 && x.equation !== null && isIdentity(x.equation)) x = x.equation.inputs[0]!
    const e = x.equation
    if (total === null || e === null || e.primitive !== scanP || uses.get(x) !== 1) return
    const { carried, stacked } = e.params as ScanParams
    if (x.index >= carried && x.index < carried + stacked) found.set(x, total)
  })
  return found
}

/** What is wrong with the donations, or null: they must pair different inputs with different outputs of the same type. */
const donationProblem = (
  program: Body,
  donated: ReadonlyArray<readonly [input: number, output: number]>
): string | null => {
  const [inputs, outputs] = [new Set<number>(), new Set<number>()]
  for (const [from, to] of donated) {
    const [input, output] = [program.inputs[from]?.type, program.outputs[to]?.type]
    if (input === undefined || output === undefined) return `input ${from} is donated to output ${to}: no such pair`
    if (input.dtype !== output.dtype || !Axis.equal(input.axes, output.axes))
      return `input ${from}, ${input.dtype}${Axis.print(input.axes)}, is donated to output ${to}, ${output.dtype}${Axis.print(output.axes)}`
    if (inputs.has(from)) return `input ${from} is donated to two outputs`
    if (outputs.has(to)) return `output ${to} is donated two inputs`
    inputs.add(from)
    outputs.add(to)
  }
  return null
}

const emissionInto = <P>(
  launches: Array<Launch<P>>,
  temporary: Emission<P>["temporary"],
  equation: number
): Emission<P> => ({
  temporary,
  push: (payload, reads, writes, elementwise = false) =>
    launches.push({ kind: "kernel", payload, reads, writes, elementwise, equation })
})
