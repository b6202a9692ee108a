/** What ranks do together. Programs of one rank name the mesh axis; who is along it, this service knows. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as DType from "../DType.ts"
import { CollectiveError } from "../Errors.ts"
import * as Mesh from "../Mesh.ts"

/** A stretch of a backend's memory, contiguous. Valid until the operation that it was given to has ended. */
export interface Span {
  /** Where it is: of the Cpu backend a host address, of a GPU a device address. */
  readonly address: bigint
  readonly bytes: number
  /** A copy of its content. */
  readonly read: () => Uint8Array
  readonly write: (bytes: Uint8Array) => void
}

/**
 * One collective of a mesh axis of p ranks. Chunks count along the first axis of the memory. allReduce: everyone receives the sum (or maximum) of all.
 * allGather: what all send, one after another. reduceScatter: the own one of p chunks of the sum. allToAll: the own chunk of everyone's p. permute:
 * what the rank sends that stands `shift` before, around the ring.
 */
export interface Operation {
  readonly kind: "allReduce" | "allGather" | "reduceScatter" | "allToAll" | "permute"
  readonly meshAxis: string
  /** Of reductions. */
  readonly by: "sum" | "max"
  readonly shift: number
  /** What this rank sends: storage type and number of elements of every span. */
  readonly operands: ReadonlyArray<{ readonly dtype: DType.DType; readonly count: number }>
  /** The line of the program, for errors. */
  readonly line: string
}

/** What a rank brings, by which all must agree: `allReduce sum of 1024 f32`. */
export const describe = ({ by, kind, operands, shift }: Operation): string => {
  const more = kind === "allReduce" ? ` ${by}` : kind === "permute" ? ` ${shift}` : ""
  return `${kind}${more} of ${operands.map(({ count, dtype }) => `${count} ${dtype}`).join(", ")}`
}

/** A message from one rank to another. Messages of one pair and tag arrive in order, and are received in the order in which they are sent. */
export interface Message {
  readonly peer: number
  readonly tag: string
  readonly line: string
}

export interface CollectivesService {
  readonly name: string
  readonly rank: number
  readonly mesh: Mesh.Mesh
  /**
   * Begins in the order of the calls, which is the same on all ranks along the mesh axis; ends when `receive` holds the result. `send` must not change
   * before. Of allReduce and permute both may be the same memory. Fails with `CollectiveError` when a rank is lost, does not come, or brings something else.
   * Interruption ends it for all: nothing writes to the memory any more once it has ended, and the others fail with `RankLost`.
   */
  readonly run: (
    operation: Operation,
    send: ReadonlyArray<Span>,
    receive: ReadonlyArray<Span>
  ) => Effect.Effect<void, CollectiveError>
  /** Ends when the spans may be overwritten, whether or not the peer receives by then: stages of a pipeline send to each other at once. */
  readonly send: (message: Message, spans: ReadonlyArray<Span>) => Effect.Effect<void, CollectiveError>
  readonly receive: (message: Message, spans: ReadonlyArray<Span>) => Effect.Effect<void, CollectiveError>
  /** Ends when every rank of the mesh has come. */
  readonly barrier: Effect.Effect<void, CollectiveError>
  /** Whether any rank of the mesh brings true: all come, with the same word where there is one, and all hear the same. */
  readonly any: (flag: boolean, word?: string) => Effect.Effect<boolean, CollectiveError>
  /** Ends when every rank of the mesh has come with the same word, such as the hash of its program; else fails with `Disagreement` on all of them. */
  readonly agree: (about: string, word: string) => Effect.Effect<void, CollectiveError>
}

const alone = (what: string, line: string) =>
  Effect.fail(
    new CollectiveError({
      reason: "NoPeers",
      rank: 0,
      ranks: [],
      collective: what,
      line,
      detail: "there is one rank only"
    })
  )

/** One rank. */
export const single: CollectivesService = {
  name: "single",
  rank: 0,
  mesh: Mesh.single,
  run: ({ kind, line, meshAxis }) => alone(`${kind} over "${meshAxis}"`, line),
  send: ({ line, peer }) => alone(`send to rank ${peer}`, line),
  receive: ({ line, peer }) => alone(`receive from rank ${peer}`, line),
  barrier: Effect.void,
  any: (flag) => Effect.succeed(flag),
  agree: () => Effect.void
}

/** The rank that this is, among which others. One rank unless provided. */
export const Collectives: Context.Reference<CollectivesService> = Context.Reference<CollectivesService>(
  "@tessera/core/Collectives",
  { defaultValue: () => single }
)
