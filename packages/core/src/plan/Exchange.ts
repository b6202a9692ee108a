/**
 * Collectives in a plan. What is sent and received is contiguous, with the axis of the ranks outermost; where an operand stands so already it is
 * sent from there, and the result is a view of what arrives. A collective starts as early as memory allows and is awaited by its first reader.
 */
import type { Equation } from "../Node.ts"
import type { Crossing, Launch } from "../Plan.ts"
import { dimensions, type Dimension, type View } from "./View.ts"

/** A collective that is under way between its start and its wait. */
export interface Exchange {
  readonly id: number
  readonly equation: Equation
  readonly send: ReadonlyArray<View>
  readonly receive: ReadonlyArray<View>
}

interface Means {
  readonly allocate: (axes: ReadonlyArray<{ readonly name: string; readonly size: number }>, x: View) => View
  readonly copy: (from: View, to: View) => void
  readonly start: (exchange: Omit<Exchange, "id">) => void
}

/** Whether a window has no gaps and runs through its axes in this order. */
const runs = (x: View, order: ReadonlyArray<string>): boolean => {
  let stride = 1
  for (const name of order.toReversed()) {
    const d = x.dimensions.find((o) => o.name === name)!
    if (d.size !== 1 && d.stride !== stride) return false
    stride *= d.size
  }
  return true
}

/** Its axes, those furthest apart in memory first. */
const byStride = (x: View): ReadonlyArray<Dimension> => [...x.dimensions].sort((a, b) => b.stride - a.stride)

/** The same elements without gaps, these axes outermost. */
const compact = (x: View, first: ReadonlyArray<string>, means: Means): View => {
  const rest = byStride(x).filter((d) => !first.includes(d.name))
  const order = [...first, ...rest.map((d) => d.name)]
  if (runs(x, order)) return x
  const to = means.allocate(
    order.map((name) => x.dimensions.find((d) => d.name === name)!),
    x
  )
  means.copy(x, to)
  return to
}

/** Memory for a result of these axes, in this order: where it is wanted, if that has no gaps and the same order. */
const arrival = (
  axes: ReadonlyArray<{ readonly name: string; readonly size: number }>,
  wanted: View | null,
  sent: View,
  means: Means
): View =>
  wanted !== null &&
  runs(
    wanted,
    axes.map((a) => a.name)
  )
    ? wanted
    : means.allocate(axes, sent)

const resized = (x: View, axis: string, by: number) =>
  byStride(x).map((d) => (d.name === axis ? { name: d.name, size: d.size * by } : { name: d.name, size: d.size }))

/** Starts the collective of an equation; gives where its results will stand. */
export const lowerExchange = (
  e: Equation,
  inputs: ReadonlyArray<View>,
  wanted: ReadonlyArray<View | null>,
  means: Means
): ReadonlyArray<View> => {
  const [send, receive]: [Array<View>, Array<View>] = [[], []]
  inputs.forEach((x, i) => {
    const place = wanted[i] ?? null
    switch (e.primitive.name) {
      case "allGather":
      case "reduceScatter": {
        const axis = e.params.axes[i] as string
        const sent = compact(x, [axis], means)
        const by = e.primitive.name === "allGather" ? e.params.count : 1 / e.params.count
        send.push(sent)
        receive.push(arrival(resized(outermost(sent, axis), axis, by), place, sent, means))
        return
      }
      case "allToAll": {
        const { count, from, to } = e.params as { readonly count: number; readonly from: string; readonly to: string }
        const peer = `${to} of peer`
        const cut: View = {
          ...x,
          dimensions: x.dimensions.flatMap((d) =>
            d.name === to
              ? [
                  { name: peer, size: count, stride: (d.stride * d.size) / count },
                  { name: to, size: d.size / count, stride: d.stride }
                ]
              : [d]
          )
        }
        const sent = compact(cut, [peer, from], means)
        const rest = byStride(sent).filter((d) => d.name !== peer && d.name !== from)
        const own = sent.dimensions.find((d) => d.name === from)!
        send.push(sent)
        receive.push(arrival([{ name: from, size: own.size * count }, ...rest], place, sent, means))
        return
      }
      default: {
        const sent = compact(x, [], means)
        send.push(sent)
        receive.push(arrival(byStride(sent), place, sent, means))
      }
    }
  })
  means.start({ equation: e, send, receive })
  return receive
}

/** A window without gaps whose dimensions begin with this axis: of axes with one element strides do not tell. */
const outermost = (x: View, axis: string): View => {
  const order = [axis, ...byStride(x).flatMap((d) => (d.name === axis ? [] : [d.name]))]
  return { ...x, dimensions: dimensions(order.map((name) => x.dimensions.find((d) => d.name === name)!)) }
}

/**
 * Puts starts and waits: a gather of parameters starts before the first use of the one that is `prefetch` gathers ahead of it, everything else where it
 * stands; all are awaited by the first launch that touches what they receive, or writes what they send.
 */
export const exchanges = <P>(launches: ReadonlyArray<Launch<P>>, prefetch: number): ReadonlyArray<Launch<P>> =>
  launches.some((l) => l.kind === "start") ? awaited(hoisted(launches, prefetch)) : launches

const isGather = <P>(l: Launch<P>): boolean =>
  l.kind === "start" &&
  l.exchange.equation.primitive.name === "allGather" &&
  l.exchange.equation.outputs[0]!.role === "gathered"

const hoisted = <P>(launches: ReadonlyArray<Launch<P>>, prefetch: number): ReadonlyArray<Launch<P>> => {
  const gathers = launches.flatMap((l, i) => (isGather(l) ? [i] : []))
  if (prefetch === 0 || gathers.length === 0) return launches
  const [lastWrite, firstTouch] = [new Map<number, number>(), new Map<number, number>()]
  /** First reader of what each launch writes. */
  const firstRead = new Map<number, number>()
  launches.forEach((l, i) => {
    for (const r of l.reads) if (!firstRead.has(r.buffer)) firstRead.set(r.buffer, i)
    for (const v of [...l.reads, ...l.writes]) if (!firstTouch.has(v.buffer)) firstTouch.set(v.buffer, i)
  })
  const before = new Map<number, Array<number>>()
  let writesSeen = 0
  const ready = (i: number): number => {
    for (; writesSeen < i; writesSeen++)
      for (const w of launches[writesSeen]!.writes) lastWrite.set(w.buffer, writesSeen)
    return Math.max(0, ...launches[i]!.reads.map((r) => (lastWrite.get(r.buffer) ?? -1) + 1))
  }
  gathers.forEach((i, k) => {
    const fresh = launches[i]!.writes.every((w) => firstTouch.get(w.buffer) === i)
    const ahead = gathers[k - prefetch]
    const use = ahead === undefined ? 0 : Math.min(...launches[ahead]!.writes.map((w) => firstRead.get(w.buffer) ?? i))
    const at = fresh ? Math.max(ready(i), Math.min(i, use)) : i
    if (at < i) before.set(at, [...(before.get(at) ?? []), i])
  })
  const moved = new Set([...before.values()].flat())
  return launches.flatMap((l, i) => [...(before.get(i) ?? []).map((j) => launches[j]!), ...(moved.has(i) ? [] : [l])])
}

const awaited = <P>(launches: ReadonlyArray<Launch<P>>): ReadonlyArray<Launch<P>> => {
  const out: Array<Launch<P>> = []
  /** Those under way, by buffer. */
  let open: ReadonlyArray<Crossing> = []
  const wait = (which: (exchange: Exchange) => boolean) => {
    for (const start of open.filter((s) => which(s.exchange))) out.push(waitFor(start))
    open = open.filter((s) => !which(s.exchange))
  }
  for (const l of launches) {
    const [reads, writes] = [new Set(l.reads.map((r) => r.buffer)), new Set(l.writes.map((w) => w.buffer))]
    wait(
      ({ receive, send }) =>
        receive.some((v) => reads.has(v.buffer) || writes.has(v.buffer)) || send.some((v) => writes.has(v.buffer))
    )
    out.push(l)
    if (l.kind === "start") open = [...open, l]
  }
  wait(() => true)
  return out
}

const waitFor = (start: Crossing): Crossing => ({
  kind: "wait",
  exchange: start.exchange,
  reads: [...start.reads, ...start.writes],
  writes: [],
  elementwise: false,
  equation: start.equation
})
