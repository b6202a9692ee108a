/**
 * Ranks that are processes of one machine. They read each other's memory where it stands; one thread of the native library moves all collectives on
 * while kernels run. The backend beside this layer takes its memory from the region that others can read (`memory: "shared"`): what stands elsewhere
 * is copied first.
 *
 * ```ts
 * const layers = Layer.mergeAll(LocalCollectives.layer({ control, rank, mesh: [["data", 2]] }), CpuBackend.layerWith({ memory: "shared" }))
 * ```
 */
import { CollectiveError, type CompileError } from "@tessera/core/Errors"
import * as Mesh from "@tessera/core/Mesh"
import {
  Collectives,
  type CollectivesService,
  describe,
  type Message,
  type Operation,
  type Span
} from "@tessera/core/services/Collectives"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import { createHash } from "node:crypto"
import * as NativeLibrary from "./NativeLibrary.ts"
import { dtypes } from "./opcodes.ts"

export interface LocalOptions extends NativeLibrary.LibraryOptions {
  /** A file that all ranks name, empty or missing when the first one comes. */
  readonly control: string
  readonly rank: number
  readonly mesh: Mesh.Mesh
  /** How long a rank waits for one that is alive but does not come; 10 minutes unless given. One that has died is noticed at once. */
  readonly timeout?: Duration.Input
}

const kinds = { allReduce: 0, allGather: 1, reduceScatter: 2, allToAll: 3, permute: 4, barrier: 5, send: 6, receive: 7 }

/** Spans that the library takes at once. */
const most = 64

/** The group of all ranks, behind those of the mesh axes. */
const everyone = 7

const status = { done: 0, timedOut: 1, rankLost: 2, disagreement: 3, cancelled: 4, refused: 5 } as const

/** What the library is told of one collective. */
interface Job {
  readonly kind: number
  readonly group: number
  /** What members must agree in. */
  readonly word: string
  /** For errors: the word, or what is beside it. */
  readonly what: string
  readonly by: number
  readonly shift: number
  readonly peer: number
  readonly members: ReadonlyArray<number>
  readonly spans: ReadonlyArray<Piece>
  readonly collective: string
  readonly line: string
  readonly onDisagreement: "ShapeDisagreement" | "Disagreement"
}

interface Piece {
  readonly dtype: number
  readonly count: number
  readonly send: Span | null
  readonly receive: Span | null
}

/** How one ended. */
interface End {
  readonly status: number
  readonly text: string
}

const hashes = new Map<string, bigint>()
const hashOf = (word: string): bigint => {
  const found = hashes.get(word) ?? createHash("sha256").update(word).digest().readBigInt64LE()
  if (hashes.size < 10_000) hashes.set(word, found)
  return found
}

const chunked = <A>(xs: ReadonlyArray<A>): ReadonlyArray<ReadonlyArray<A>> =>
  Array.from({ length: Math.max(1, Math.ceil(xs.length / most)) }, (_, i) => xs.slice(i * most, (i + 1) * most))

const make = Effect.fn("LocalCollectives.make")(function* (options: LocalOptions) {
  const { control, mesh, rank } = options
  const count = Mesh.rankCount(mesh)
  const timeout = Duration.fromInputUnsafe(options.timeout ?? "10 minutes")
  const { local } = yield* NativeLibrary.load(options)
  const refused = (detail: string) =>
    new CollectiveError({ reason: "Refused", rank, ranks: [rank], collective: "joining the ranks", line: "", detail })
  /** What goes on, by ticket. */
  const flights = new Map<number, (end: End) => void>()
  const comm = yield* Effect.acquireRelease(
    Effect.suspend(() => {
      const joined = local.join(control, rank, count, Duration.toSeconds(timeout))
      return typeof joined === "string" ? Effect.fail(refused(joined)) : Effect.succeed(joined.comm)
    }),
    (c, exit) =>
      Effect.sync(() => {
        local.leave(c, Exit.isFailure(exit), Exit.isFailure(exit) ? reasonOf(exit.cause) : "")
        local.destroy(c)
      })
  )

  let listening = false
  const listen = async () => {
    listening = true
    while (flights.size > 0) {
      const { ticket, ...end } = await local.next(comm)
      const resume = flights.get(ticket)
      flights.delete(ticket)
      resume?.(end)
    }
    listening = false
  }

  let tickets = 0
  /** Every group counts its own collectives. Numbers are taken when a collective is asked for: on all ranks in the same order. */
  const counts = new Map<number, number>()
  const next = (group: number): number => {
    const number = counts.get(group) ?? 0
    counts.set(group, number + 1)
    return number
  }
  const begin = (job: Job, number: number): Effect.Effect<End, CollectiveError> =>
    Effect.callback<End, CollectiveError>((resume) => {
      const ticket = ++tickets
      const words = BigInt64Array.from([
        ...[ticket, job.kind, job.group, number].map(BigInt),
        hashOf(job.word),
        ...[
          job.by,
          job.shift,
          job.peer,
          job.members.length,
          job.spans.length,
          Math.max(0, job.members.indexOf(rank))
        ].map(BigInt),
        ...job.members.map(BigInt),
        ...job.spans.flatMap(({ count: elements, dtype, receive, send }) => [
          BigInt(dtype),
          BigInt(elements),
          send?.address ?? 0n,
          BigInt(send?.bytes ?? 0),
          receive?.address ?? 0n,
          BigInt(receive?.bytes ?? 0)
        ])
      ])
      const landed = new Promise<void>((land) => {
        flights.set(ticket, (end) => {
          land()
          resume(end.status === status.done ? Effect.succeed(end) : Effect.fail(failure(rank, job, end, timeout)))
        })
      })
      if (!local.start(comm, words, job.what)) {
        flights.delete(ticket)
        return resume(Effect.die(new Error(`the library refused ${job.collective}: ${job.what}`)))
      }
      if (!listening) void listen()
      // Nobody may free memory that others still read.
      return Effect.promise(() => {
        local.leave(comm, true, "it was interrupted")
        local.cancel(comm, ticket)
        return landed
      })
    })

  const everyRank = Array.from({ length: count }, (_, r) => r)
  const together = (collective: string, word: string, flag = false) =>
    Effect.suspend(() => begin(meeting(collective, word, flag), next(everyone)))
  const meeting = (collective: string, word: string, flag: boolean): Job => ({
    kind: kinds.barrier,
    group: everyone,
    word: `${collective}: ${word}`,
    what: word === "" ? collective : word,
    // Brought to all.
    by: flag ? 1 : 0,
    shift: 0,
    peer: 0,
    members: everyRank,
    spans: [],
    collective,
    line: "",
    onDisagreement: "Disagreement"
  })

  const message = ({ line, peer, tag }: Message, spans: ReadonlyArray<Span>, sends: boolean) =>
    Effect.forEach(
      chunked(spans),
      (some, part) =>
        begin(
          {
            kind: sends ? kinds.send : kinds.receive,
            group: 0,
            word: part === 0 ? tag : `${tag} part ${part}`,
            what: `bytes ${some.map((s) => s.bytes).join(", ")}`,
            by: 0,
            shift: 0,
            peer,
            members: [],
            spans: some.map((s) => ({
              dtype: 0,
              count: s.bytes / 4,
              send: sends ? s : null,
              receive: sends ? null : s
            })),
            collective: sends ? `send to rank ${peer}` : `receive from rank ${peer}`,
            line,
            onDisagreement: "ShapeDisagreement"
          },
          0
        ),
      { discard: true }
    )

  const run = (operation: Operation, send: ReadonlyArray<Span>, receive: ReadonlyArray<Span>) => {
    const { by, kind, line, meshAxis, shift } = operation
    const pieces = operation.operands.map(({ count: elements, dtype }, i): Piece => ({
      dtype: dtypes[dtype],
      count: elements,
      send: send[i]!,
      receive: receive[i]!
    }))
    const what = describe(operation)
    const group = mesh.findIndex(([name]) => name === meshAxis)
    const members = Mesh.peers(mesh, rank, meshAxis)
    // More than the library takes at once are several collectives.
    return Effect.suspend(() =>
      Effect.forEach(
        chunked(pieces).map((spans, part) => ({ spans, part, number: next(group) })),
        ({ number, part, spans }) =>
          begin(
            {
              kind: kinds[kind],
              group,
              word: `${what} part ${part} for ${line}`,
              what,
              by: by === "sum" ? 0 : 1,
              shift,
              peer: 0,
              members,
              spans,
              collective: `${kind} over "${meshAxis}"`,
              line,
              onDisagreement: "ShapeDisagreement"
            },
            number
          ),
        { concurrency: "unbounded", discard: true }
      )
    )
  }

  // Everyone is there, and can read everyone's memory.
  yield* together("joining the ranks", `${count} ranks, ${Mesh.print(mesh)}`)
  const service: CollectivesService = {
    name: "local",
    rank,
    mesh,
    run,
    send: (m, spans) => message(m, spans, true),
    receive: (m, spans) => message(m, spans, false),
    barrier: Effect.asVoid(together("barrier", "")),
    any: (flag, word = "") => Effect.map(together("any", word, flag), ({ text }) => text === "1"),
    agree: (about, word) => Effect.asVoid(together(`agreement on ${about}`, word))
  }
  return service
})

/** The first line of what ended a rank, for the others. */
const reasonOf = (cause: Cause.Cause<unknown>): string => {
  if (Cause.hasInterruptsOnly(cause)) return "it was interrupted"
  const error = Cause.squash(cause)
  return (error instanceof Error ? error.message : String(error)).split("\n")[0]!.slice(0, 200)
}

const failure = (
  rank: number,
  { collective, line, onDisagreement }: Job,
  end: End,
  timeout: Duration.Duration
): CollectiveError => {
  const error = (reason: CollectiveError["reason"], ranks: ReadonlyArray<number>, detail: string) =>
    new CollectiveError({ reason, rank, ranks, collective, line, detail })
  const { text } = end
  switch (end.status) {
    case status.timedOut: {
      const late = text.split(",").map(Number)
      return error("Timeout", late, `rank ${late.join(", ")} did not come within ${Duration.format(timeout)}`)
    }
    case status.rankLost: {
      const at = text.indexOf(" ")
      return error("RankLost", [Number(text.slice(0, at))], text.slice(at + 1))
    }
    case status.disagreement: {
      const [odd] = text.split("; ")
      return error(
        onDisagreement,
        [...odd!.matchAll(/rank (\d+) brings/g)].map((m) => Number(m[1])),
        text
      )
    }
    case status.cancelled:
      return error("RankLost", [rank], "it was interrupted")
    default:
      return error("Refused", [rank], text)
  }
}

/** Joins the ranks and stays one of them as long as its scope. Fails when not all of them come. */
export const layer = (options: LocalOptions): Layer.Layer<never, CompileError | CollectiveError> =>
  Layer.effect(Collectives, make(options))
