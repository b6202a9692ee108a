/** Whether ranks meet: every collective needs all ranks along its mesh axis to come with the same call, in the same order. */
import * as Mesh from "../Mesh.ts"
import type { Body, Equation } from "../Node.ts"
import { moves } from "../primitives/collective.ts"
import * as Program from "../Program.ts"

/** Collectives of a program in the order in which a rank comes to them; those in loops once for every repetition. */
export const callsOf = function* (bodies: ReadonlyArray<Body>): Generator<Equation> {
  for (const body of bodies) {
    for (const e of body.equations) {
      const { meaning } = e.primitive
      if (meaning.kind === "region") {
        const times = typeof e.params.size === "number" ? e.params.size : 1
        for (let k = 0; k < times; k++) yield* callsOf(meaning.bodies(e.params))
      } else if (meaning.kind === "collective" && moves(e.primitive)) yield e
    }
  }
}

/** Ranks that do not meet. */
export interface Missed {
  readonly what: string
  /** For each rank that takes part: where it is. */
  readonly ranks: ReadonlyArray<{ readonly rank: number; readonly call: string }>
}

interface Standing {
  readonly calls: Generator<Equation>
  /** The call that the rank waits in; null when it is done. */
  now: Equation | null
  /** Calls before. */
  done: number
}

const next = (calls: Generator<Equation>): Equation | null => {
  const result = calls.next()
  return result.done === true ? null : result.value
}

/** Lets the ranks run until all are done, or some wait for each other. `programs` holds for every rank what it runs, one after another. */
export const meet = (mesh: Mesh.Mesh, programs: ReadonlyArray<ReadonlyArray<Body>>): Missed | null => {
  const standings: ReadonlyArray<Standing> = programs.map((bodies) => {
    const calls = callsOf(bodies)
    return { calls, now: next(calls), done: 0 }
  })
  const advance = (s: Standing) => {
    s.now = next(s.calls)
    s.done++
  }
  for (;;) {
    let moved = false
    for (const [rank, { now }] of standings.entries()) {
      if (now === null) continue
      const { meshAxis } = now.params
      const group = Mesh.peers(mesh, rank, meshAxis)
      const there = group.filter((r) => standings[r]!.now?.params.meshAxis === meshAxis)
      if (there.length < group.length) continue
      if (there.some((r) => Program.line(standings[r]!.now!) !== Program.line(now)))
        return missed("ranks come to one collective with different calls", group, standings)
      for (const r of group) advance(standings[r]!)
      moved = true
    }
    if (moved) continue
    const waiting = standings.findIndex(({ now }) => now !== null)
    if (waiting < 0) return null
    const { meshAxis } = standings[waiting]!.now!.params
    return missed("ranks wait for each other", Mesh.peers(mesh, waiting, meshAxis), standings)
  }
}

const missed = (what: string, group: ReadonlyArray<number>, standings: ReadonlyArray<Standing>): Missed => ({
  what,
  ranks: group.map((rank) => {
    const { done, now } = standings[rank]!
    const call = now === null ? `done after ${done} collectives` : `collective ${done + 1}: ${Program.line(now)}`
    return { rank, call }
  })
})
