/** Worker threads that augment. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { Worker } from "node:worker_threads"
import { DataError, textOf, WorkerFailed } from "./Errors.ts"
import type { Done, Job } from "./Rows.ts"

/** One thread. Jobs are answered in any order; after a crash every job fails. */
export interface AugmentWorker {
  readonly run: (job: Omit<Job, "id">) => Effect.Effect<Done["mismatch"], DataError>
}

// Sources run as they are in development; a published package holds the compiled file.
const file = new URL(import.meta.url.endsWith(".ts") ? "./augment.worker.ts" : "./augment.worker.js", import.meta.url)

/** Starts a thread that ends with the scope. */
export const make = (name: string): Effect.Effect<AugmentWorker, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => {
        const worker = new Worker(file, { name })
        const waiting = new Map<number, (answer: Effect.Effect<Done["mismatch"], DataError>) => void>()
        const state = { failure: null as DataError | null, next: 0 }
        const crash = (found: string) => {
          state.failure ??= new DataError({ reason: new WorkerFailed({ worker: name, found }) })
          for (const answer of waiting.values()) answer(Effect.fail(state.failure))
          waiting.clear()
        }
        worker.on("message", (done: Done) => {
          waiting.get(done.id)?.(Effect.succeed(done.mismatch))
          waiting.delete(done.id)
        })
        worker.on("error", (cause) => crash(textOf(cause)))
        worker.on("exit", (code) => crash(`it ended with code ${code}`))
        return { worker, waiting, state }
      }),
      ({ worker }) => Effect.promise(() => worker.terminate())
    ),
    ({ state, waiting, worker }) => ({
      run: (job) =>
        Effect.callback((resume) => {
          if (state.failure !== null) return resume(Effect.fail(state.failure))
          const id = state.next++
          waiting.set(id, resume)
          worker.postMessage({ ...job, id } satisfies Job)
          return Effect.sync(() => waiting.delete(id))
        })
    })
  )
