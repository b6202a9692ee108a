/** Ranks over shared memory, for tests all in this process: each joins by itself, and reads the others as processes would. */
import type { CollectiveError, CompileError } from "@tessera/core/Errors"
import * as SimulatedCollectives from "@tessera/core/layers/SimulatedCollectives"
import * as Mesh from "@tessera/core/Mesh"
import * as LocalCollectives from "@tessera/cpu/LocalCollectives"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"

type Failures<E> = E | CompileError | CollectiveError

/** How every rank ended. */
export const exits = <A, E, R>(
  mesh: Mesh.Mesh,
  effect: (rank: number) => Effect.Effect<A, E, R>,
  options: Partial<LocalCollectives.LocalOptions> = {}
): Effect.Effect<ReadonlyArray<Exit.Exit<A, Failures<E>>>, never, R> =>
  Effect.scoped(
    Effect.gen(function* () {
      const folder = yield* Effect.acquireRelease(
        Effect.promise(() => mkdtemp(join(tmpdir(), "tessera-ranks-"))),
        (path) => Effect.promise(() => rm(path, { recursive: true }))
      )
      const control = join(folder, "control")
      return yield* Effect.forEach(
        Array.from({ length: Mesh.rankCount(mesh) }, (_, rank) => rank),
        (rank) =>
          Effect.exit(
            Effect.provide(
              effect(rank),
              LocalCollectives.layer({ control, rank, mesh, timeout: "20 seconds", ...options })
            )
          ),
        { concurrency: "unbounded" }
      )
    })
  )

/** `exits`, failing with the first failure. */
export const all = <A, E, R>(
  mesh: Mesh.Mesh,
  effect: (rank: number) => Effect.Effect<A, E, R>
): Effect.Effect<ReadonlyArray<A>, Failures<E>, R> =>
  Effect.flatMap(exits(mesh, effect), (found) => Effect.forEach(found, (exit) => exit))

/** Ranks that meet in JavaScript, with memory watched while it is sent and received. */
export const simulated = <A, E, R>(
  mesh: Mesh.Mesh,
  effect: (rank: number) => Effect.Effect<A, E, R>
): Effect.Effect<ReadonlyArray<A>, E, R> => SimulatedCollectives.all(mesh, effect, { strict: true })
