/** Who this process is among the ranks that `tessera launch` started, and what it needs to be one of them. */
import type { CollectiveError, CompileError } from "@tessera/core/Errors"
import * as Mesh from "@tessera/core/Mesh"
import { Backend } from "@tessera/core/services/Backend"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { availableParallelism } from "node:os"
import * as Backends from "./Backends.ts"
import * as Experiment from "./Experiment.ts"
import { UsageError } from "./Failure.ts"
import type { Recipe } from "./Recipe.ts"

export interface Place {
  readonly rank: number
  readonly ranks: number
  /** The file by which ranks of one machine find each other. */
  readonly control: string
  readonly timeoutSeconds: number
}

/** How the launcher tells a rank its place. */
export const environment = ({ control, rank, ranks, timeoutSeconds }: Place): Readonly<Record<string, string>> => ({
  TESSERA_RANK: String(rank),
  TESSERA_RANKS: String(ranks),
  TESSERA_CONTROL: control,
  TESSERA_TIMEOUT: String(timeoutSeconds)
})

/** Null for a process that was started by itself. */
export const place: Effect.Effect<Place | null, UsageError> = Effect.suspend(() => {
  const { TESSERA_CONTROL: control, TESSERA_RANK: rank, TESSERA_RANKS: ranks, TESSERA_TIMEOUT: timeout } = process.env
  if (rank === undefined && ranks === undefined) return Effect.succeed(null)
  const found: Place = {
    rank: Number(rank),
    ranks: Number(ranks),
    control: control ?? "",
    timeoutSeconds: Number(timeout ?? 600)
  }
  const whole = Number.isSafeInteger(found.rank) && Number.isSafeInteger(found.ranks) && found.rank >= 0
  if (whole && found.rank < found.ranks && found.control !== "" && found.timeoutSeconds > 0)
    return Effect.succeed(found)
  return Effect.fail(
    new UsageError({
      problem: `TESSERA_RANK=${rank ?? ""}, TESSERA_RANKS=${ranks ?? ""}, TESSERA_CONTROL=${control ?? ""} name no place among ranks`,
      hint: "start ranks by tessera launch, or unset these variables"
    })
  )
})

/** Where a recipe names no mesh, the ranks share the batch. */
export const meshOf = (recipe: Recipe, found: Place | null): Mesh.Mesh => {
  const { mesh } = Experiment.strategy(recipe)
  return found !== null && mesh.length === 0 && found.ranks > 1 ? [["data", found.ranks]] : mesh
}

/** The backend of this process and, where it was launched as a rank, the ranks around it. */
export const layer = (
  recipe: Recipe,
  found: Place | null,
  options: Backends.BackendOptions
): Layer.Layer<Backend, CompileError | CollectiveError | UsageError> => {
  const { mesh } = Experiment.strategy(recipe)
  const count = Mesh.rankCount(mesh)
  const wrong = (problem: string, hint: string): Layer.Layer<Backend, UsageError> =>
    Layer.effect(Backend, Effect.fail(new UsageError({ problem, hint })))
  if (found === null) {
    if (count === 1) return Backends.layer(options)
    return wrong(
      `the recipe is for ${count} ranks (${Mesh.print(mesh)}), this is one process`,
      `start it by tessera launch --ranks ${count} -- train ...`
    )
  }
  if (count !== found.ranks)
    return wrong(
      `the recipe is for ${count} rank${count === 1 ? "" : "s"} (${Mesh.print(mesh)}), ${found.ranks} were started`,
      `--ranks ${count}, or another strategy.mesh`
    )
  if (options.backend !== "cpu")
    return wrong(`ranks compute with the cpu backend, not with ${options.backend}`, "leave out --backend")
  const { control, rank, timeoutSeconds } = found
  const threads = options.threads ?? Math.max(1, Math.floor(availableParallelism() / found.ranks))
  const ranks = Layer.unwrap(
    Effect.map(
      Effect.promise(() => import("@tessera/cpu/LocalCollectives")),
      (m) => m.layer({ control, rank, mesh, timeout: timeoutSeconds * 1000 })
    )
  )
  return Layer.merge(Backends.layer({ ...options, threads, shared: true }), ranks)
}

/** Set once the launcher asks its ranks to stop: they do after a step, all after the same one. */
let asked = false

/** From now on SIGUSR2 asks this process to stop, and the end of the launcher ends it. */
export const listen: Effect.Effect<void> = Effect.sync(() => {
  process.on("SIGUSR2", () => (asked = true))
  process.stdin.on("end", () => process.kill(process.pid, "SIGTERM"))
  process.stdin.resume()
  process.stdin.unref?.()
})

export const stopAsked = (): boolean => asked
