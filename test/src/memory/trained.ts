/** Trains a vision transformer for one step in a process of its own and prints what was predicted and what it took: JSON on one line. */
import * as Distribute from "@tessera/core/Distribute"
import * as Footprint from "@tessera/core/Footprint"
import * as Schedule from "@tessera/core/Schedule"
import * as Strategy from "@tessera/core/Strategy"
import * as Trainer from "@tessera/core/Trainer"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as NativeLibrary from "@tessera/cpu/NativeLibrary"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { readFileSync } from "node:fs"
import * as Trainings from "../application/trainings.ts"

/** Narrow layers: much memory for little work. */
const sizes: Trainings.Sizes = { batch: 2048, hidden: 96, layers: 8 }

/** Most memory that the process ever held, in bytes. */
const mostResident = (): number =>
  Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"))![1]) * 1024

const program = Effect.gen(function* () {
  const recompute = process.argv[2] === "full" ? ({ kind: "full" } as const) : ({ kind: "none" } as const)
  const config = { ...Trainings.config(sizes), strategy: Strategy.make({ mesh: [], recompute }) }
  const library = yield* NativeLibrary.load()
  const predicted = yield* Footprint.of(yield* Effect.fromResult(Distribute.step(config)), config.strategy)
  const [resident, live] = [mostResident(), library.memoryLive()]
  const training = yield* Trainer.make(config)
  yield* Trainer.initialise(training, 1)
  library.memoryResetPeak()
  yield* Trainer.steps(training, {
    run: "memory",
    data: Trainings.data(sizes),
    schedule: Schedule.constant(1e-3),
    totalSteps: 1,
    seed: 1
  }).pipe(Stream.runDrain)
  return { predicted, allocated: library.memoryPeak() - live, resident: mostResident() - resident }
})

const found = await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(CpuBackend.layerWith({ threads: 2 }))))
console.log(JSON.stringify(found))
