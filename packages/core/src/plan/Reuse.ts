/** Memory of launches: donated inputs, results over operands that nobody reads any more, and how long every intermediate lives. */
import * as DType from "../DType.ts"
import type { Interval } from "../Arena.ts"
import type { Role } from "../Node.ts"
import type { Launch } from "../Plan.ts"
import type { View } from "./View.ts"

/** A buffer while a plan is made. */
export interface Working {
  bytes: number
  kind: "arena" | "input" | "output"
  index: number
  /** What it is for: role of the tensor that first stood there. */
  readonly role: Role
}

const aligned = (bytes: number): number => Math.ceil(bytes / 64) * 64

/**
 * Moves launches that write donated outputs behind everything else, when all their readers are there too: then the old values have been read
 * and the write can happen in place.
 */
export const sinkUpdates = <P>(
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
export const alias = <P>(
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
      for (const [i, r] of l.reads.entries()) {
        if (r.buffer !== source.buffer || isEndOf(l, launches[first]!)) continue
        const inPlace =
          k === first &&
          l.elementwise &&
          l.writes.some((w, j) => w.buffer === target.buffer && sameStrides(w, r) && (l.kind !== "start" || i === j)) &&
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

/** Whether a launch awaits what another one started. */
const isEndOf = <P>(l: Launch<P>, start: Launch<P>): boolean =>
  l.kind === "wait" && start.kind === "start" && l.exchange.id === start.exchange.id

const sameStrides = (a: View, b: View): boolean =>
  a.offset === b.offset &&
  DType.bytesOf(a.dtype) === DType.bytesOf(b.dtype) &&
  a.dimensions.length === b.dimensions.length &&
  a.dimensions.every((d) => d.size === 1 || b.dimensions.some((o) => o.name === d.name && o.stride === d.stride))

/**
 * Elementwise launches write over an operand that nobody reads afterwards, a sum over ranks over what this rank sends. A collective reads its operands
 * until it is awaited.
 */
export const reuse = <P>(launches: ReadonlyArray<Launch<P>>, buffers: ReadonlyArray<Working>) => {
  const lastUse = new Map<number, number>()
  launches.forEach((l, k) => {
    // A write that nobody reads counts too: it must not land in what took the buffer over.
    for (const v of [...l.reads, ...l.writes]) lastUse.set(v.buffer, k)
  })
  const firstWrite = new Map<number, number>()
  launches.forEach((l, k) => l.writes.forEach((w) => firstWrite.has(w.buffer) || firstWrite.set(w.buffer, k)))
  const waits = new Map<number, number>()
  launches.forEach((l, k) => l.kind === "wait" && waits.set(l.exchange.id, k))
  const endOf = (l: Launch<P>, k: number): number => (l.kind === "start" ? waits.get(l.exchange.id)! : k)
  /** Whether anyone but the collective itself touches a buffer while it is under way: what stands over its operand comes to be bit by bit. */
  const touchedMeanwhile = (from: number, k: number, end: number): boolean => {
    for (let i = k + 1; i < end; i++)
      for (const v of [...launches[i]!.reads, ...launches[i]!.writes]) if (root(v.buffer) === from) return true
    return false
  }
  const parent = new Map<number, number>()
  const root = (b: number): number => {
    let r = b
    while (parent.has(r)) r = parent.get(r)!
    return r
  }
  launches.forEach((l, k) => {
    if (!l.elementwise) return
    const end = endOf(l, k)
    for (const [i, w] of l.writes.entries()) {
      if (buffers[w.buffer]!.kind !== "arena" || firstWrite.get(w.buffer) !== k || parent.has(w.buffer)) continue
      // Of several tensors that are summed over ranks together each may stand over itself only: some are done before others begin.
      const donor = (l.kind === "start" ? l.reads.slice(i, i + 1) : l.reads).find((r) => {
        const from = root(r.buffer)
        return (
          buffers[r.buffer]!.kind === "arena" &&
          lastUse.get(from) === end &&
          !touchedMeanwhile(from, k, end) &&
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
      lastUse.set(from, Math.max(end, lastUse.get(w.buffer) ?? end))
    }
  })
  const move = (v: View): View => (parent.has(v.buffer) ? { ...v, buffer: root(v.buffer) } : v)
  return { launches: launches.map((l) => moved(l, move)), root }
}

export const lifetimes = <P>(
  launches: ReadonlyArray<Launch<P>>,
  buffers: ReadonlyArray<Working>
): ReadonlyArray<Interval> => {
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

/** A launch on other windows. */
const moved = <P>(l: Launch<P>, move: (v: View) => View): Launch<P> => {
  const touches = { reads: l.reads.map(move), writes: l.writes.map(move) }
  if (l.kind === "kernel") return { ...l, ...touches }
  const { receive, send } = l.exchange
  return { ...l, ...touches, exchange: { ...l.exchange, send: send.map(move), receive: receive.map(move) } }
}
