/**
 * From a program to a list of launches over planned memory. Regions are opened (a scan becomes its repetitions), operations that only rename or
 * cut axes become views, results are written where they are wanted (a layer's residual straight into its slot of the stack), and every
 * intermediate gets a place in one arena by its lifetime. What a launch contains is the backend's business.
 */
import * as Axis from "./Axis.ts"
import * as DType from "./DType.ts"
import { Arena, type Interval } from "./Arena.ts"
import type { AnyTensor, Body, Equation } from "./Node.ts"
import type { ScanParams } from "./primitives/control.ts"
import type { PackParams } from "./primitives/pack.ts"

/** One axis of a view; strides count elements. */
export interface Dimension {
  readonly name: string
  readonly size: number
  readonly stride: number
}

/** Where a tensor stands: a strided window of a buffer. */
export interface View {
  readonly buffer: number
  /** Elements from the beginning of the buffer. */
  readonly offset: number
  readonly dtype: DType.DType
  readonly dimensions: ReadonlyArray<Dimension>
}

export interface Launch<P> {
  readonly payload: P
  readonly reads: ReadonlyArray<View>
  readonly writes: ReadonlyArray<View>
  /** An output may stand where an input of the same strides stood, element by element. */
  readonly elementwise: boolean
  readonly equation: number
}

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
  /** Bytes of the arena: the most that intermediates need at one time. */
  readonly arenaBytes: number
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
}

export const dimensions = (
  axes: ReadonlyArray<{ readonly name: string; readonly size: number }>
): ReadonlyArray<Dimension> => {
  let stride = 1
  const all: Array<Dimension> = []
  for (let i = axes.length - 1; i >= 0; i--) {
    all.unshift({ name: axes[i]!.name, size: axes[i]!.size, stride })
    stride *= axes[i]!.size
  }
  return all
}

/** Same window of the same buffer. */
export const same = (a: View, b: View): boolean =>
  a.buffer === b.buffer &&
  a.offset === b.offset &&
  a.dimensions.length === b.dimensions.length &&
  a.dimensions.every((d) =>
    b.dimensions.some((o) => o.name === d.name && o.size === d.size && (o.stride === d.stride || d.size === 1))
  )

export const elements = (v: View): number => v.dimensions.reduce((n, d) => n * d.size, 1)

/** Drops `name` by fixing its index. */
export const pick = (v: View, name: string, index: number): View => {
  const axis = v.dimensions.find((d) => d.name === name)!
  return { ...v, offset: v.offset + index * axis.stride, dimensions: v.dimensions.filter((d) => d !== axis) }
}

interface Working {
  bytes: number
  kind: "arena" | "input" | "output"
  index: number
}

/** Views of operations that move nothing, or null where a copy is needed. */
const viewOf = (e: Equation, x: View): View | null => {
  const p = e.params
  switch (e.primitive.name) {
    case "place":
    case "named":
    case "stopGradient":
      return x
    case "rename":
      return { ...x, dimensions: x.dimensions.map((d) => (d.name === p.from ? { ...d, name: p.to } : d)) }
    case "split":
      return {
        ...x,
        dimensions: x.dimensions.flatMap((d) =>
          d.name === p.axis
            ? [
                { name: p.outer, size: d.size / p.size, stride: d.stride * p.size },
                { name: p.inner, size: p.size, stride: d.stride }
              ]
            : [d]
        )
      }
    case "merge": {
      const [outer, inner] = [
        x.dimensions.find((d) => d.name === p.outer)!,
        x.dimensions.find((d) => d.name === p.inner)!
      ]
      const joins = outer.size === 1 || inner.size === 1 || outer.stride === inner.stride * inner.size
      if (!joins) return null
      const stride = inner.size === 1 ? outer.stride : inner.stride
      const merged = { name: p.axis as string, size: outer.size * inner.size, stride }
      return { ...x, dimensions: x.dimensions.filter((d) => d !== inner).map((d) => (d === outer ? merged : d)) }
    }
    case "slice": {
      const axis = x.dimensions.find((d) => d.name === p.axis)!
      return {
        ...x,
        offset: x.offset + p.start * axis.stride,
        dimensions: x.dimensions.map((d) => (d === axis ? { name: p.to, size: p.size, stride: d.stride } : d))
      }
    }
    case "broadcast": {
      const out = e.outputs[0]!.type.axes
      return {
        ...x,
        dimensions: out.map(
          (a) => x.dimensions.find((d) => d.name === a.name) ?? { name: a.name, size: a.size, stride: 0 }
        )
      }
    }
    default:
      return null
  }
}

/** Members of a flat axis are windows of it. */
const unpackedViews = (e: Equation, x: View): ReadonlyArray<View> => {
  const p = e.params as PackParams
  const flat = x.dimensions.find((d) => d.name === p.axis)!
  return p.members.map(({ axes, start }) => ({
    ...x,
    offset: x.offset + start * flat.stride,
    dimensions: [
      ...x.dimensions.filter((d) => d !== flat),
      ...dimensions(axes).map((d) => ({ ...d, stride: d.stride * flat.stride }))
    ]
  }))
}

const aligned = (bytes: number): number => Math.ceil(bytes / 64) * 64

export const make = <P>(program: Body, options: Options<P>): Plan<P> => {
  const buffers: Array<Working> = []
  const launches: Array<Launch<P>> = []
  const equations: Array<Equation> = []
  const numbers = new Map<Equation, number>()

  const allocate = (
    axes: ReadonlyArray<{ readonly name: string; readonly size: number }>,
    dtype: DType.DType
  ): View => {
    const count = axes.reduce((n, a) => n * a.size, 1)
    buffers.push({ bytes: count * DType.bytesOf(dtype), kind: "arena", index: 0 })
    return { buffer: buffers.length - 1, offset: 0, dtype, dimensions: dimensions(axes) }
  }
  const emissionFor = (equation: number): Emission<P> => ({
    temporary: allocate,
    push: (payload, reads, writes, elementwise = false) =>
      launches.push({ payload, reads, writes, elementwise, equation })
  })
  const numberOf = (e: Equation): number => {
    const known = numbers.get(e)
    if (known !== undefined) return known
    numbers.set(e, equations.length)
    return equations.push(e) - 1
  }

  /** Lowers one body; `wanted` says where its outputs should stand. Returns where they do stand. */
  const lower = (body: Body, inputs: ReadonlyArray<View>, wanted: ReadonlyArray<View | null>): ReadonlyArray<View> => {
    const env = new Map<AnyTensor, View>(body.inputs.map((x, i) => [x, inputs[i]!]))
    const places = new Map<AnyTensor, View>()
    body.outputs.forEach((o, i) => {
      const place = wanted[i] ?? null
      if (place !== null && !places.has(o) && o.equation !== null) places.set(o, place)
    })
    const placeOf = (x: AnyTensor): View => places.get(x) ?? allocate(x.type.axes, x.type.dtype)
    for (const e of body.equations) {
      const xs = e.inputs.map((x) => env.get(x)!)
      const emission = emissionFor(numberOf(e))
      if (e.primitive.name === "scan") {
        const results = lowerScan(
          e.params as ScanParams,
          xs,
          e.outputs.map((o) => places.get(o) ?? null),
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
        const temporary = allocate(wide, e.outputs[0]!.type.dtype)
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
    wanted: ReadonlyArray<View | null>,
    emission: Emission<P>
  ): ReadonlyArray<View> => {
    const last = p.carried + p.stacked
    const stacks = p.body.outputs
      .slice(p.carried, last)
      .map((o, j) => wanted[p.carried + j] ?? allocate([Axis.make(p.axis, p.size), ...o.type.axes], o.type.dtype))
    const sums = p.body.outputs.slice(last).map((o, j) => wanted[last + j] ?? allocate(o.type.axes, o.type.dtype))
    if (p.size === 0) for (const s of sums) options.zero(s, emission)
    // A carry that is also saved is written straight into the slot of the iteration that will save it.
    const slotOf = p.body.inputs.slice(0, p.carried).map((x) => p.body.outputs.slice(p.carried, last).indexOf(x))
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
        ...stacks.map((s) => pick(s, p.axis, i)),
        ...sums.map((s) => (k === 0 ? s : null))
      ]
      const out = lower(p.body, inside, places)
      // A carried value that stands where a sum begins would change when the next iteration adds to it.
      carry = out.slice(0, p.carried).map((v) => {
        if (k > 0 || p.size === 1 || !sums.some((s) => s.buffer === v.buffer)) return v
        const kept = allocate(v.dimensions, v.dtype)
        options.copy(v, kept, emission)
        return kept
      })
      stacks.forEach((s, j) => {
        const slot = pick(s, p.axis, i)
        if (!same(out[p.carried + j]!, slot)) options.copy(out[p.carried + j]!, slot, emission)
      })
      sums.forEach((s, j) => {
        const part = out[last + j]!
        if (k === 0) {
          if (!same(part, s)) options.copy(part, s, emission)
        } else options.accumulate(part, s, emission)
      })
    }
    return [...carry, ...stacks, ...sums]
  }

  const inputViews = program.inputs.map((x, i): View => {
    const count = Axis.count(x.type.axes)
    buffers.push({ bytes: count * DType.bytesOf(x.type.dtype), kind: "input", index: i })
    return { buffer: buffers.length - 1, offset: 0, dtype: x.type.dtype, dimensions: dimensions(x.type.axes) }
  })
  const problem = donationProblem(program, options.donated)
  if (problem !== null) throw new Error(problem)
  const donor = new Map(options.donated.map(([from, to]) => [to, from]))
  const outputViews = program.outputs.map((o, i): View => {
    const from = donor.get(i)
    const axes = from === undefined ? o.type.axes : program.inputs[from]!.type.axes
    const view = allocate(axes, o.type.dtype)
    buffers[view.buffer]!.kind = "output"
    buffers[view.buffer]!.index = i
    return view
  })
  const results = lower(program, inputViews, outputViews)
  results.forEach((r, i) => {
    if (!same(r, outputViews[i]!)) options.copy(r, outputViews[i]!, emissionFor(equations.length))
  })

  const ordered = sinkUpdates(launches, buffers, donor)
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
    outputs: outputViews.map((view, i) => ({ view, donated: donated.has(i) ? donor.get(i)! : null })),
    equations
  }
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
    launches.push({ payload, reads, writes, elementwise, equation })
})

/**
 * Moves launches that write donated outputs behind everything else, when all their readers are there too: then the old values have been read
 * and the write can happen in place.
 */
const sinkUpdates = <P>(
  launches: ReadonlyArray<Launch<P>>,
  buffers: ReadonlyArray<Working>,
  donor: ReadonlyMap<number, number>
): Array<Launch<P>> => {
  const late = new Set<number>()
  const tail: Array<Launch<P>> = []
  const head: Array<Launch<P>> = []
  // Readers seen so far that stay in the head.
  const readInHead = new Set<number>()
  const writtenInHead = new Set<number>()
  for (let k = launches.length - 1; k >= 0; k--) {
    const l = launches[k]!
    const isUpdate = l.writes.some((w) => buffers[w.buffer]!.kind === "output" && donor.has(buffers[w.buffer]!.index))
    const needed = l.writes.some((w) => readInHead.has(w.buffer) || writtenInHead.has(w.buffer))
    // What it reads must not be overwritten by a launch that now runs before it.
    const overwritten = l.reads.some((r) => writtenInHead.has(r.buffer))
    if (isUpdate && !needed && !overwritten) {
      tail.push(l)
      l.writes.forEach((w) => late.add(w.buffer))
    } else {
      head.push(l)
      l.reads.forEach((r) => readInHead.add(r.buffer))
      l.writes.forEach((w) => writtenInHead.add(w.buffer))
    }
  }
  return [...head.reverse(), ...tail.reverse()]
}

/** Lets donated outputs stand in their inputs' buffers where that is safe; elsewhere a copy at the end does it. Gives the donated outputs. */
const alias = <P>(
  launches: Array<Launch<P>>,
  buffers: Array<Working>,
  inputs: ReadonlyArray<View>,
  outputs: ReadonlyArray<View>,
  donor: ReadonlyMap<number, number>,
  copy: (from: View, to: View) => void
): ReadonlySet<number> => {
  const donated = new Set<number>()
  const copies: Array<readonly [View, View]> = []
  for (const [output, input] of donor) {
    const [target, source] = [outputs[output]!, inputs[input]!]
    const first = launches.findIndex((l) => l.writes.some((w) => w.buffer === target.buffer))
    let safe = first >= 0
    for (let k = first; safe && k < launches.length; k++) {
      const l = launches[k]!
      for (const r of l.reads) {
        if (r.buffer !== source.buffer) continue
        const inPlace =
          k === first &&
          l.elementwise &&
          l.writes.some((w) => w.buffer === target.buffer && sameStrides(w, r)) &&
          !l.writes.some((w) => w.buffer === target.buffer && !sameStrides(w, r))
        if (!inPlace) safe = false
      }
    }
    donated.add(output)
    if (safe) buffers[target.buffer] = { ...buffers[source.buffer]! }
    else {
      buffers[target.buffer] = { ...buffers[target.buffer]!, kind: "arena" }
      copies.push([target, source])
    }
  }
  for (const [from, to] of copies) copy(from, to)
  return donated
}

const sameStrides = (a: View, b: View): boolean =>
  a.offset === b.offset &&
  DType.bytesOf(a.dtype) === DType.bytesOf(b.dtype) &&
  a.dimensions.length === b.dimensions.length &&
  a.dimensions.every((d) => d.size === 1 || b.dimensions.some((o) => o.name === d.name && o.stride === d.stride))

/** Elementwise launches write over an operand that nobody reads afterwards. */
const reuse = <P>(launches: ReadonlyArray<Launch<P>>, buffers: ReadonlyArray<Working>) => {
  const lastUse = new Map<number, number>()
  launches.forEach((l, k) => {
    // A write that nobody reads counts too: it must not land in what took the buffer over.
    for (const v of [...l.reads, ...l.writes]) lastUse.set(v.buffer, k)
  })
  const firstWrite = new Map<number, number>()
  launches.forEach((l, k) => l.writes.forEach((w) => firstWrite.has(w.buffer) || firstWrite.set(w.buffer, k)))
  const parent = new Map<number, number>()
  const root = (b: number): number => {
    let r = b
    while (parent.has(r)) r = parent.get(r)!
    return r
  }
  launches.forEach((l, k) => {
    if (!l.elementwise) return
    for (const w of l.writes) {
      if (buffers[w.buffer]!.kind !== "arena" || firstWrite.get(w.buffer) !== k || parent.has(w.buffer)) continue
      const donor = l.reads.find((r) => {
        const from = root(r.buffer)
        return (
          buffers[r.buffer]!.kind === "arena" &&
          lastUse.get(from) === k &&
          buffers[from]!.bytes === buffers[w.buffer]!.bytes &&
          sameStrides(r, w) &&
          // Every read of that buffer in this launch sees the element it is about to overwrite.
          l.reads.every((o) => root(o.buffer) !== from || sameStrides(o, w)) &&
          l.writes.every((o) => o === w || root(o.buffer) !== from)
        )
      })
      if (donor === undefined) continue
      const from = root(donor.buffer)
      parent.set(w.buffer, from)
      lastUse.set(from, Math.max(k, lastUse.get(w.buffer) ?? k))
    }
  })
  const move = (v: View): View => (parent.has(v.buffer) ? { ...v, buffer: root(v.buffer) } : v)
  return { launches: launches.map((l) => ({ ...l, reads: l.reads.map(move), writes: l.writes.map(move) })), root }
}

const lifetimes = <P>(launches: ReadonlyArray<Launch<P>>, buffers: ReadonlyArray<Working>): ReadonlyArray<Interval> => {
  const all = new Map<number, { from: number; to: number }>()
  launches.forEach((l, k) => {
    for (const v of [...l.reads, ...l.writes]) {
      if (buffers[v.buffer]!.kind !== "arena") continue
      const known = all.get(v.buffer)
      if (known === undefined) all.set(v.buffer, { from: k, to: k })
      else known.to = k
    }
  })
  return [...all].map(([id, { from, to }]) => ({ id, from, to, bytes: aligned(buffers[id]!.bytes) }))
}
