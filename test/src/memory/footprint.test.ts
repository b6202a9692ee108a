/** What memory holds is known before it is taken: against the allocator's peak, and against the growth of the process. */
import { assert, describe, it } from "@effect/vitest"
import * as Distribute from "@tessera/core/Distribute"
import * as Footprint from "@tessera/core/Footprint"
import * as SimulatedCollectives from "@tessera/core/layers/SimulatedCollectives"
import * as Mesh from "@tessera/core/Mesh"
import * as Schedule from "@tessera/core/Schedule"
import type { Choices } from "@tessera/core/Strategy"
import * as Strategy from "@tessera/core/Strategy"
import * as Trainer from "@tessera/core/Trainer"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as NativeLibrary from "@tessera/cpu/NativeLibrary"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import * as Trainings from "../application/trainings.ts"

const within = (found: number, expected: number, share: number) =>
  assert.approximately(found / expected, 1, share, `${found} bytes, predicted ${expected}`)

describe("a process that trains", () => {
  const script = fileURLToPath(new URL("trained.ts", import.meta.url))
  it.each(["none", "full"])("takes what was predicted, recomputation %s", { timeout: 180_000 }, (recompute) => {
    const { stderr, stdout } = spawnSync(process.execPath, [script, recompute], { encoding: "utf8" })
    assert.match(stdout, /^\{/, stderr)
    const { allocated, predicted, resident } = JSON.parse(stdout) as {
      readonly allocated: number
      readonly resident: number
      readonly predicted: Footprint.Footprint
    }
    within(allocated, predicted.total, 0.05)
    within(resident, predicted.total, 0.15)
  })
})

describe("ranks that train", () => {
  const sizes: Trainings.Sizes = { batch: 32, hidden: 64, layers: 4 }
  const strategies: Readonly<Record<string, Choices>> = {
    "zero 1": { mesh: [["data", 2]], zero: 1 },
    fsdp: { mesh: [["data", 2]], fsdp: {} },
    "fsdp, two gathers ahead": { mesh: [["data", 2]], fsdp: { prefetch: 2 } },
    "tensor and sequence": { mesh: [["tensor", 2]], sequence: true },
    "pipeline, interleaved": { mesh: [["stage", 2]], schedule: "interleaved", virtualStages: 2, microbatches: 4 }
  }
  it.live.each(Object.entries(strategies))("take together what was predicted: %s", ([, choices]) =>
    Effect.gen(function* () {
      const strategy = Strategy.make(choices)
      const config = { ...Trainings.config(sizes), strategy }
      const distributed = yield* Effect.fromResult(Distribute.step(config))
      const stages = distributed.kind === "pipelined" ? distributed.step.stages : 1
      const each = Mesh.rankCount(choices.mesh) / stages
      let expected = 0
      for (let stage = 0; stage < stages; stage++)
        expected += each * (yield* Footprint.of(distributed, strategy, stage)).total
      const library = yield* NativeLibrary.load()
      const live = library.memoryLive()
      yield* SimulatedCollectives.all(choices.mesh, () =>
        Effect.gen(function* () {
          const training = yield* Trainer.make(config)
          // Without initialisation, which takes more for a moment.
          library.memoryResetPeak()
          yield* Trainer.steps(training, {
            run: "memory",
            data: Trainings.data(sizes),
            schedule: Schedule.constant(1e-3),
            totalSteps: 2,
            seed: 1
          }).pipe(Stream.runDrain, Effect.ignore)
        }).pipe(Effect.scoped)
      )
      within(library.memoryPeak() - live, expected, 0.05)
    }).pipe(Effect.provide(CpuBackend.layerWith({ threads: 1 })))
  )
})
