/**
 * Ranks as fibers of one process. They meet for every collective, results are made in the order of the ranks, and a rank can be made to die, to stall or
 * to bring another shape.
 *
 * ```ts
 * const exits = yield* SimulatedCollectives.ranks([["data", 4]], (rank) => train(rank))
 * ```
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Axis from "../Axis.ts"
import { CollectiveError } from "../Errors.ts"
import * as Host from "../HostArray.ts"
import * as Mesh from "../Mesh.ts"
import { combine } from "../primitives/collective.ts"
import type { CollectivesService, Message, Operation, Span } from "../services/Collectives.ts"
import { Collectives, describe } from "../services/Collectives.ts"

/** What happens to a rank when it comes to its n-th collective (from 1), messages and barriers among them. */
export interface Fault {
  readonly rank: number
  readonly collective: number
  /** dies: the rank ends. stalls: it does not go on, and ends when all others have. shape: it brings one element less. */
  readonly kind: "dies" | "stalls" | "shape"
}

export interface Options {
  /** How long a rank waits for the others; 10 seconds unless given. */
  readonly timeout?: Duration.Input
  readonly faults?: ReadonlyArray<Fault>
  /**
   * Spoils what is received until it is there, and dies of memory that changes while it is sent: what is right only because ranks of one process take
   * turns is found. False unless given.
   */
  readonly strict?: boolean
}

interface Arrival {
  readonly rank: number
  /** What it does, by which all must agree, and where. */
  readonly what: string
  readonly line: string
  readonly send: ReadonlyArray<Uint8Array>
  /** Where `send` was read. */
  readonly sent: ReadonlyArray<Span>
  readonly receive: ReadonlyArray<Span>
}

/** Ranks that come together once. */
interface Meeting {
  readonly expected: ReadonlyArray<number>
  readonly arrived: Map<number, Arrival>
  readonly done: Deferred.Deferred<void, Failure>
}

/** What went wrong, before it is known who hears of it. */
interface Failure {
  readonly reason: "Timeout" | "RankLost" | "ShapeDisagreement" | "Disagreement"
  readonly ranks: ReadonlyArray<number>
  readonly detail: string
}

/** All ranks of one process. */
interface Cluster {
  readonly mesh: Mesh.Mesh
  readonly timeout: Duration.Duration
  readonly faults: ReadonlyArray<Fault>
  readonly strict: boolean
  readonly meetings: Map<string, Meeting>
  readonly lost: Map<number, string>
  /** Ranks that stall, and what they wait for: the end of the others. */
  readonly stalled: Set<number>
  readonly over: Deferred.Deferred<void>
}

/** Runs one effect for every rank of a mesh, all at once, and gives how each ended. Interruption interrupts all. */
export const ranks = <A, E, R>(
  mesh: Mesh.Mesh,
  effect: (rank: number) => Effect.Effect<A, E, R>,
  options: Options = {}
): Effect.Effect<ReadonlyArray<Exit.Exit<A, E>>, never, R> =>
  Effect.suspend(() => {
    const cluster: Cluster = {
      mesh,
      timeout: Duration.fromInputUnsafe(options.timeout ?? "10 seconds"),
      faults: options.faults ?? [],
      strict: options.strict ?? false,
      meetings: new Map(),
      lost: new Map(),
      stalled: new Set(),
      over: Deferred.makeUnsafe<void>()
    }
    const all = Array.from({ length: Mesh.rankCount(mesh) }, (_, rank) => rank)
    return Effect.forEach(
      all,
      (rank) =>
        // A fiber of its own: its interruption is the end of this rank only.
        Effect.forkChild(
          Effect.provideService(effect(rank), Collectives, serviceOf(cluster, rank)).pipe(
            Effect.onExit((exit) => lose(cluster, rank, Exit.isSuccess(exit) ? "has ended" : "has failed"))
          )
        ).pipe(Effect.flatMap((fiber) => Effect.onInterrupt(Fiber.await(fiber), () => Fiber.interrupt(fiber)))),
      { concurrency: "unbounded" }
    )
  })

/** `ranks`, failing with what the first failing rank failed with. */
export const all = <A, E, R>(
  mesh: Mesh.Mesh,
  effect: (rank: number) => Effect.Effect<A, E, R>,
  options: Options = {}
): Effect.Effect<ReadonlyArray<A>, E, R> =>
  Effect.flatMap(ranks(mesh, effect, options), (exits) => Effect.forEach(exits, (exit) => exit))

/** Nobody waits for a rank that is gone. */
const lose = (cluster: Cluster, rank: number, how: string, left?: Meeting): Effect.Effect<void> =>
  Effect.suspend(() => {
    cluster.lost.set(rank, how)
    if (cluster.lost.size + cluster.stalled.size >= Mesh.rankCount(cluster.mesh))
      Deferred.doneUnsafe(cluster.over, Exit.void)
    const waiting = [...cluster.meetings.values()].filter(
      (m) => m.expected.includes(rank) && (m === left || !m.arrived.has(rank))
    )
    return Effect.forEach(waiting, (m) => Deferred.fail(m.done, gone(cluster, rank)), { discard: true })
  })

const gone = (cluster: Cluster, rank: number): Failure => ({
  reason: "RankLost",
  ranks: [rank],
  detail: `rank ${rank} ${cluster.lost.get(rank)!}`
})

/** What one rank brings to a meeting. */
interface Part {
  readonly key: string
  readonly expected: ReadonlyArray<number>
  readonly collective: string
  readonly line: string
  readonly what: string
  readonly send: ReadonlyArray<Span>
  readonly receive: ReadonlyArray<Span>
  readonly exchange: (arrivals: ReadonlyArray<Arrival>) => void
  /** What is sent was copied: a message needs not wait for its reader. */
  readonly waits: boolean
}

const serviceOf = (cluster: Cluster, rank: number): CollectivesService => {
  const { mesh } = cluster
  /** Every group and every pair of ranks counts its own meetings. */
  const counts = new Map<string, number>()
  let begun = 0
  const faultOf = (): Fault | undefined => {
    begun++
    return cluster.faults.find((f) => f.rank === rank && f.collective === begun)
  }
  const next = (key: string): string => {
    const n = counts.get(key) ?? 0
    counts.set(key, n + 1)
    return `${key} #${n}`
  }
  const meet = (part: Part): Effect.Effect<void, CollectiveError> =>
    Effect.suspend(() => {
      const fault = faultOf()
      if (fault?.kind === "dies") return Effect.andThen(lose(cluster, rank, "has died"), Effect.interrupt)
      if (fault?.kind === "stalls") {
        cluster.stalled.add(rank)
        return Effect.andThen(Deferred.await(cluster.over), Effect.interrupt)
      }
      const what = fault?.kind === "shape" ? `${part.what} less one element` : part.what
      const arrival: Arrival = {
        rank,
        what,
        line: part.line,
        send: part.send.map((s) => s.read()),
        sent: part.send,
        receive: part.receive
      }
      if (cluster.strict) spoil(part)
      return Effect.mapError(
        attend(cluster, next(part.key), arrival, part),
        (failure) => new CollectiveError({ ...failure, rank, collective: part.collective, line: part.line })
      )
    })
  const message = (message: Message, spans: ReadonlyArray<Span>, sends: boolean) => {
    const [from, to] = sends ? [rank, message.peer] : [message.peer, rank]
    return meet({
      key: `${from} to ${to} ${message.tag}`,
      expected: [from, to],
      collective: sends ? `send to rank ${to}` : `receive from rank ${from}`,
      line: message.line,
      what: `bytes ${spans.map((s) => s.bytes).join(", ")}`,
      send: sends ? spans : [],
      receive: sends ? [] : spans,
      waits: !sends,
      exchange: (arrivals) => {
        const source = arrivals.find((a) => a.rank === from)!
        arrivals.find((a) => a.rank === to)!.receive.forEach((span, i) => span.write(source.send[i]!))
      }
    })
  }
  const together = (collective: string, what: string, flag = false) =>
    Effect.suspend(() => {
      let result = false
      const own: Span = {
        address: 0n,
        bytes: 1,
        read: () => Uint8Array.of(flag ? 1 : 0),
        write: ([x]) => (result = x === 1)
      }
      return Effect.map(
        meet({
          key: "all",
          expected: Array.from({ length: Mesh.rankCount(mesh) }, (_, r) => r),
          collective,
          line: "",
          what: `${collective}: ${what}`,
          send: [own],
          receive: [own],
          waits: true,
          exchange: (arrivals) => {
            const any = arrivals.some((a) => a.send[0]![0] === 1)
            for (const a of arrivals) a.receive[0]!.write(Uint8Array.of(any ? 1 : 0))
          }
        }),
        () => result
      )
    })
  return {
    name: "simulated",
    rank,
    mesh,
    run: (operation, send, receive) => {
      const expected = Mesh.peers(mesh, rank, operation.meshAxis)
      return meet({
        key: `${operation.meshAxis} of ${expected[0]!}`,
        expected,
        collective: `${operation.kind} over "${operation.meshAxis}"`,
        line: operation.line,
        what: describe(operation),
        send,
        receive,
        waits: true,
        exchange: (arrivals) => exchange(operation, arrivals)
      })
    },
    send: (m, spans) => message(m, spans, true),
    receive: (m, spans) => message(m, spans, false),
    barrier: Effect.asVoid(together("barrier", "")),
    any: (flag, word = "") => together("any", word, flag),
    agree: (about, word) => Effect.asVoid(together(`agreement on ${about}`, word))
  }
}

/** Waits until everyone has come; whoever comes last does the work. */
const attend = (cluster: Cluster, key: string, arrival: Arrival, part: Part): Effect.Effect<void, Failure> =>
  Effect.suspend(() => {
    const { expected } = part
    const meeting = cluster.meetings.get(key) ?? {
      expected,
      arrived: new Map<number, Arrival>(),
      done: Deferred.makeUnsafe<void, Failure>()
    }
    cluster.meetings.set(key, meeting)
    meeting.arrived.set(arrival.rank, arrival)
    const absent = () => expected.filter((r) => !meeting.arrived.has(r))
    const dead = absent().find((r) => cluster.lost.has(r))
    // Whoever comes too late hears what the others have heard; their memory is in other use by now.
    if (Deferred.isDoneUnsafe(meeting.done)) return Deferred.await(meeting.done)
    if (dead !== undefined) Deferred.doneUnsafe(meeting.done, Exit.fail(gone(cluster, dead)))
    else if (absent().length === 0) {
      cluster.meetings.delete(key)
      const arrivals = expected.map((r) => meeting.arrived.get(r)!)
      const odd = disagreement(arrivals, part.line === "" ? "Disagreement" : "ShapeDisagreement")
      if (odd === null) {
        if (cluster.strict) for (const a of arrivals) unchanged(a, part)
        part.exchange(arrivals)
      }
      Deferred.doneUnsafe(meeting.done, odd === null ? Exit.void : Exit.fail(odd))
    }
    if (!part.waits && !Deferred.isDoneUnsafe(meeting.done)) return Effect.void
    const late = Effect.suspend(() => {
      const detail = `rank ${absent().join(", ")} did not come within ${Duration.format(cluster.timeout)}`
      Deferred.doneUnsafe(meeting.done, Exit.fail<Failure>({ reason: "Timeout", ranks: absent(), detail }))
      return Deferred.await(meeting.done)
    })
    return Effect.timeoutOrElse(Deferred.await(meeting.done), { duration: cluster.timeout, orElse: () => late }).pipe(
      // Nobody may write into memory of one that has gone.
      Effect.onInterrupt(() => lose(cluster, arrival.rank, "was interrupted", meeting))
    )
  })

/** Whoever reads a result before it is there reads what no program makes. Memory that is also sent stays. */
const spoil = ({ receive, send }: Part): void => {
  for (const r of receive) if (!send.some((s) => s.address === r.address)) r.write(new Uint8Array(r.bytes).fill(0xff))
}

const unchanged = ({ rank, send, sent }: Arrival, part: Part): void => {
  const { collective, line } = part
  // Messages were copied when they were sent: their receiver sends nothing.
  if (part.send.length === 0) return
  for (const [i, span] of sent.entries()) {
    const now = span.read()
    if (now.length === send[i]!.length && now.every((byte, k) => byte === send[i]![k])) continue
    throw new Error(`${collective}: rank ${rank} changed tensor ${i} while it was sent (${line})`)
  }
}

/** Who brings something else than most do. */
const disagreement = (arrivals: ReadonlyArray<Arrival>, reason: Failure["reason"]): Failure | null => {
  const same = (a: Arrival, b: Arrival) => a.what === b.what && a.line === b.line
  const count = (a: Arrival) => arrivals.filter((b) => same(a, b)).length
  const most = arrivals.reduce((best, a) => (count(a) > count(best) ? a : best))
  const odd = arrivals.filter((a) => !same(a, most))
  if (odd.length === 0) return null
  const where = (a: Arrival) => (odd.some((o) => o.what === most.what) ? ` for ${a.line}` : "")
  const brings = (a: Arrival) => `rank ${a.rank} brings ${a.what}${where(a)}`
  return { reason, ranks: odd.map((a) => a.rank), detail: `${odd.map(brings).join(", ")}; ${brings(most)}` }
}

/** Part `index` of `count` equal ones. */
const chunk = (bytes: Uint8Array, index: number, count: number): Uint8Array => {
  const size = bytes.byteLength / count
  return bytes.subarray(index * size, (index + 1) * size)
}

const joined = (parts: ReadonlyArray<Uint8Array>): Uint8Array => {
  const all = new Uint8Array(parts.reduce((n, p) => n + p.byteLength, 0))
  let at = 0
  for (const p of parts) {
    all.set(p, at)
    at += p.byteLength
  }
  return all
}

const exchange = ({ by, kind, operands, shift }: Operation, arrivals: ReadonlyArray<Arrival>): void => {
  const count = arrivals.length
  operands.forEach(({ dtype }, i) => {
    const sent = arrivals.map((a) => a.send[i]!)
    const reduced = (parts: ReadonlyArray<Uint8Array>): Uint8Array => {
      const size = parts[0]!.byteLength / Host.storageOf(dtype, new ArrayBuffer(0), 0, 0).BYTES_PER_ELEMENT
      const axes = [Axis.make("element", size)]
      return Host.toBytes(
        combine(
          parts.map((p) => Host.fromBytes(axes, dtype, p.slice())),
          by
        )
      )
    }
    const all = kind === "allReduce" ? reduced(sent) : kind === "allGather" ? joined(sent) : null
    arrivals.forEach(({ receive }, own) => {
      const mine = (): Uint8Array => {
        switch (kind) {
          case "reduceScatter":
            return reduced(sent.map((s) => chunk(s, own, count)))
          case "allToAll":
            return joined(sent.map((s) => chunk(s, own, count)))
          default:
            return sent[(((own - shift) % count) + count) % count]!
        }
      }
      receive[i]!.write(all ?? mine())
    })
  })
}
