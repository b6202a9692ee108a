/** `tessera launch`: starts the ranks of one machine, passes on what they say, and begins again when one is lost. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { type ChildProcess, spawn } from "node:child_process"
import { access, constants, mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { LaunchError, UsageError } from "../Failure.ts"
import { note } from "../Output.ts"
import * as Ranks from "../Ranks.ts"

export interface LaunchInput {
  readonly ranks: number
  readonly restarts: number
  readonly timeout: number
  readonly command: ReadonlyArray<string>
}

/** How one rank ended. */
interface Ended {
  readonly rank: number
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

const isFine = ({ code }: Ended): boolean => code === 0

const inWords = ({ code, rank, signal }: Ended): string =>
  signal === null ? `rank ${rank} failed with exit code ${code}` : `rank ${rank} was killed by ${signal}`

/** Ranks that see another one die have this long to say so. */
const graceSeconds = 10

/** A folder of memory where there is one. */
const controlFolder: Effect.Effect<string, UsageError, Scope.Scope> = Effect.acquireRelease(
  Effect.tryPromise({
    try: async () => {
      const memory = await access("/dev/shm", constants.W_OK).then(
        () => true,
        () => false
      )
      return mkdtemp(join(memory ? "/dev/shm" : tmpdir(), "tessera-"))
    },
    catch: (e) => new UsageError({ problem: `no folder for the ranks to meet: ${String(e)}`, hint: "set TMPDIR" })
  }),
  (folder) => Effect.promise(() => rm(folder, { recursive: true, force: true }))
)

interface Rank {
  readonly child: ChildProcess
  readonly ended: Deferred.Deferred<Ended>
}

/** The first rank speaks as if it were alone; what others say is marked. */
const start = (place: Ranks.Place, command: ReadonlyArray<string>): Effect.Effect<Rank, UsageError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<Rank, UsageError>((resume) => {
      const isFirst = place.rank === 0
      const child = spawn(process.execPath, [...process.execArgv, process.argv[1]!, ...command], {
        // A closed standard input tells a rank that the launcher is gone.
        stdio: ["pipe", isFirst ? "inherit" : "ignore", isFirst ? "inherit" : "pipe"],
        env: { ...process.env, ...Ranks.environment(place) },
        // Signals of the terminal come to the launcher alone.
        detached: true
      })
      const ended = Deferred.makeUnsafe<Ended>()
      child.stdin?.on("error", () => {})
      if (child.stderr !== null)
        createInterface(child.stderr).on("line", (line) => process.stderr.write(`rank ${place.rank}: ${line}\n`))
      child.on("exit", (code, signal) => Deferred.doneUnsafe(ended, Exit.succeed({ rank: place.rank, code, signal })))
      child.on("error", (e) =>
        resume(Effect.fail(new UsageError({ problem: `rank ${place.rank} cannot be started: ${e.message}`, hint: "" })))
      )
      child.on("spawn", () => resume(Effect.succeed({ child, ended })))
    }),
    ({ child, ended }) =>
      Effect.gen(function* () {
        if (yield* Deferred.isDone(ended)) return
        child.kill("SIGTERM")
        yield* Effect.timeoutOrElse(Deferred.await(ended), {
          duration: "5 seconds",
          orElse: () => Effect.sync(() => child.kill("SIGKILL"))
        })
        yield* Deferred.await(ended)
      })
  )

/** One attempt: all ranks until all have ended. Gives those that did not end well, in the order in which they ended. */
const attempt = (input: LaunchInput, command: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<Ended>, UsageError> =>
  Effect.scoped(
    Effect.gen(function* () {
      const control = join(yield* controlFolder, "control")
      const places = Array.from({ length: input.ranks }, (_, rank): Ranks.Place => ({
        rank,
        ranks: input.ranks,
        control,
        timeoutSeconds: input.timeout
      }))
      const ranks = yield* Effect.forEach(places, (place) => start(place, command))
      const bad: Array<Ended> = []
      const first = yield* Deferred.make<void>()
      const watched = yield* Effect.forkScoped(
        Effect.forEach(
          ranks,
          ({ ended }) =>
            Effect.tap(Deferred.await(ended), (end) => {
              if (isFine(end)) return Effect.void
              bad.push(end)
              return Deferred.succeed(first, undefined)
            }),
          { concurrency: "unbounded", discard: true }
        )
      )
      const lost = Effect.delay(Effect.void, `${graceSeconds} seconds`)
      // Once a rank has ended badly the others have a while to notice; then they are ended.
      yield* Effect.race(Fiber.join(watched), Effect.andThen(Deferred.await(first), lost)).pipe(
        Effect.onInterrupt(() => stop(ranks, watched))
      )
      return bad
    })
  )

/** Asks all to stop after the same step and waits: they save what they have. Asked again, they are ended. */
const stop = (ranks: ReadonlyArray<Rank>, watched: Fiber.Fiber<void>): Effect.Effect<void> =>
  Effect.suspend(() => {
    for (const { child } of ranks) child.kill("SIGUSR2")
    return Effect.race(Effect.asVoid(Fiber.await(watched)), again)
  })

const again: Effect.Effect<void> = Effect.callback((resume) => {
  const heard = () => resume(Effect.void)
  process.once("SIGINT", heard)
  process.once("SIGTERM", heard)
  return Effect.sync(() => {
    process.off("SIGINT", heard)
    process.off("SIGTERM", heard)
  })
})

/** Exit codes that say the input is wrong: beginning again would change nothing. */
const isOfUser = ({ code }: Ended): boolean => code === 2

/** Runs the command on all ranks. */
export const launch = Effect.fn("launch")(function* (input: LaunchInput) {
  const { command, ranks, restarts } = input
  const wrong = (problem: string, hint: string) => new UsageError({ problem, hint })
  if (ranks < 1 || ranks > 64) return yield* wrong(`--ranks ${ranks}`, "1 to 64 ranks of one machine")
  if (input.timeout < 1) return yield* wrong(`--timeout ${input.timeout}`, "at least one second")
  if (restarts < 0) return yield* wrong(`--restarts ${restarts}`, "0 or more")
  if (command[0] !== "train")
    return yield* wrong(`ranks cannot ${command[0]}`, "they train: tessera launch --ranks 2 -- train RECIPE")
  for (let left = restarts; ; left--) {
    const resumes = left < restarts && !command.includes("--resume")
    const bad = yield* attempt(input, resumes ? [...command, "--resume"] : command)
    const [first] = bad
    if (first === undefined) return
    if (bad.every((end) => end.code === 130)) return yield* Effect.interrupt
    const user = bad.find(isOfUser)
    const error = new LaunchError({ detail: inWords(user ?? first), exitCode: user === undefined ? 1 : 2 })
    if (left === 0 || user !== undefined) return yield* error
    yield* note(
      `${error.message}; beginning again from the newest checkpoint, ${left - 1} restart${left === 2 ? "" : "s"} left`
    )
  }
})
