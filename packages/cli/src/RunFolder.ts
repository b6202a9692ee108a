/** What lies where in the folder of a run. */
import type { FileCheckpointsOptions } from "@tessera/core/layers/FileCheckpoints"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import { dirname, join } from "node:path"
import { UsageError } from "./Failure.ts"
import type { Recipe } from "./Recipe.ts"

export interface Paths {
  readonly folder: string
  readonly recipe: string
  readonly metrics: string
  readonly events: string
  readonly checkpoints: string
  readonly curves: string
  readonly samples: string
  readonly sample: string
  readonly report: string
}

export const paths = (folder: string): Paths => ({
  folder,
  recipe: join(folder, "recipe.json"),
  metrics: join(folder, "metrics.jsonl"),
  events: join(folder, "events"),
  checkpoints: join(folder, "checkpoints"),
  curves: join(folder, "curves.svg"),
  samples: join(folder, "samples.png"),
  sample: join(folder, "sample.png"),
  report: join(folder, "report.html")
})

/** Makes the folder of a new run, or checks that there is one to go on with. */
export const prepare = Effect.fnUntraced(function* (folder: string, resume: boolean) {
  const fs = yield* FileSystem.FileSystem
  const names = yield* fs.readDirectory(folder).pipe(Effect.orElseSucceed((): ReadonlyArray<string> => []))
  if (!resume && names.length > 0) {
    const hint = `go on with it by --resume, or choose another folder by --run`
    return yield* new UsageError({ problem: `the run folder ${folder} is not empty`, hint })
  }
  if (resume && names.length === 0)
    return yield* new UsageError({
      problem: `there is no run to resume in ${folder}`,
      hint: "leave out --resume, or name the folder by --run"
    })
  yield* fs
    .makeDirectory(folder, { recursive: true })
    .pipe(
      Effect.mapError(
        (e) => new UsageError({ problem: `the run folder ${folder} cannot be made: ${e.message}`, hint: "" })
      )
    )
  return paths(folder)
})

/** Where the checkpoints of a path lie: of a run folder, of a folder of checkpoints, or that one checkpoint. */
export const located = Effect.fnUntraced(function* (path: string) {
  const fs = yield* FileSystem.FileSystem
  if (!(yield* fs.exists(path)))
    return yield* new UsageError({
      problem: `there is no run or checkpoint at ${path}`,
      hint: "train one first: tessera quickstart"
    })
  if (yield* fs.exists(join(path, "manifest.json"))) return { folder: dirname(path), single: path }
  const inside = join(path, "checkpoints")
  return { folder: (yield* fs.exists(inside)) ? inside : path, single: null }
})

/** `runs/mnist`, or `runs/mnist-2` and so on where that exists. */
export const fresh = Effect.fnUntraced(function* (folder: string) {
  const fs = yield* FileSystem.FileSystem
  for (let n = 1; ; n++) {
    const candidate = n === 1 ? folder : `${folder}-${n}`
    if (!(yield* fs.exists(candidate))) return candidate
  }
})

/** How checkpoints of a run are kept. */
export const checkpointOptions = (folder: string, recipe: Recipe): FileCheckpointsOptions => ({
  folder,
  keepLast: recipe.checkpoint.keepLast,
  ...(recipe.checkpoint.keepBest === 0
    ? {}
    : { keepBest: { metric: "accuracy", mode: "max" as const, count: recipe.checkpoint.keepBest } })
})
