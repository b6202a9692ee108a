/** The trainer on simulated ranks: the same losses as on one device, checkpoints that load under any strategy, and failures that nobody waits for. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as FileCheckpoints from "@tessera/core/layers/FileCheckpoints"
import * as SimulatedCollectives from "@tessera/core/layers/SimulatedCollectives"
import type * as Mesh from "@tessera/core/Mesh"
import { CheckpointStore } from "@tessera/core/services/CheckpointStore"
import * as Schedule from "@tessera/core/Schedule"
import type { Choices } from "@tessera/core/Strategy"
import * as Strategy from "@tessera/core/Strategy"
import * as Trainer from "@tessera/core/Trainer"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import * as Trainings from "../application/trainings.ts"

const sizes: Trainings.Sizes = { batch: 8, hidden: 16, layers: 2 }
const layers = Layer.mergeAll(CpuBackend.layerWith({ threads: 1 }), NodeServices.layer)

/** Trains until a step; begins with what is in the store. Gives the losses; saves at the end. */
const train = Effect.fnUntraced(function* (choices: Choices, until: number) {
  const store = yield* CheckpointStore
  const strategy = Strategy.make(choices)
  const training = yield* Trainer.make({ ...Trainings.config(sizes), strategy })
  if ((yield* store.list).length === 0) yield* Trainer.initialise(training, 5)
  else yield* Trainer.restore(training, yield* store.open("latest"))
  const reports = yield* Trainer.steps(training, {
    run: "ranks",
    data: Trainings.data(sizes),
    schedule: Schedule.constant(1e-3),
    totalSteps: until,
    seed: 3
  }).pipe(Stream.runCollect)
  yield* Trainer.save(training)
  return reports.map((r) => r.loss)
}, Effect.scoped)

const inFolder = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.scoped(
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* fs.makeTempDirectoryScoped()
      return yield* effect.pipe(Effect.provide(FileCheckpoints.layer({ folder })))
    })
  )

const near = (found: ReadonlyArray<number>, expected: ReadonlyArray<number>) => {
  assert.lengthOf(found, expected.length)
  expected.forEach((x, i) => assert.approximately(found[i]!, x, 1e-5 * Math.abs(x)))
}

const strategies: Readonly<Record<string, Choices>> = {
  fsdp: { mesh: [["data", 2]], fsdp: {} },
  "tensor, zero 1": {
    mesh: [
      ["data", 2],
      ["tensor", 2]
    ],
    zero: 1
  },
  "pipeline, interleaved": {
    mesh: [["stage", 2]],
    schedule: "interleaved",
    virtualStages: 1,
    microbatches: 2
  }
}

describe("training on ranks", () => {
  it.live.each(Object.entries(strategies))("equals one device, and goes on from its checkpoint: %s", ([, choices]) =>
    Effect.gen(function* () {
      const ranks = (until: number) => SimulatedCollectives.all(choices.mesh, () => train(choices, until))
      const expected = yield* inFolder(train({ mesh: [] }, 6))
      const moved = yield* inFolder(
        Effect.gen(function* () {
          const first = yield* ranks(2)
          for (const own of first) assert.deepStrictEqual(own, first[0])
          const second = yield* train({ mesh: [] }, 4)
          return [...first[0]!, ...second, ...(yield* ranks(6))[0]!]
        })
      )
      near(moved, expected)
    }).pipe(Effect.provide(layers))
  )

  it.live("is refused when the ranks are not those of the strategy", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(inFolder(train({ mesh: [["data", 4]] }, 1)))
      assert.strictEqual(error._tag, "PartitionError")
      assert.strictEqual(
        error.message,
        "the strategy is for data=4, the ranks are one device; start 4 ranks with that mesh, or take a strategy for one device"
      )
    }).pipe(Effect.provide(layers))
  )
})

describe("a rank that", () => {
  const mesh: Mesh.Mesh = [["data", 4]]
  const withFault = (kind: SimulatedCollectives.Fault["kind"]) =>
    inFolder(
      SimulatedCollectives.ranks(mesh, () => train({ mesh, zero: 1 }, 5), {
        timeout: "500 millis",
        faults: [{ rank: 2, collective: 7, kind }]
      })
    )
  /** What every other rank fails with. */
  const failures = (exits: ReadonlyArray<Exit.Exit<unknown, { readonly _tag: string }>>) =>
    exits.flatMap((exit, rank) => {
      if (rank === 2) return []
      assert.isTrue(Exit.isFailure(exit), `rank ${rank} goes on alone`)
      const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : null
      return [
        error as {
          readonly _tag: string
          readonly reason: string
          readonly ranks: Array<number>
          readonly message: string
        }
      ]
    })

  it.live("dies is named by all others, with the collective and the line of the program", () =>
    Effect.gen(function* () {
      for (const error of failures(yield* withFault("dies"))) {
        assert.strictEqual(error._tag, "CollectiveError")
        assert.strictEqual(error.reason, "RankLost")
        assert.match(
          error.message,
          /^(allReduce|allGather|reduceScatter) over "data", RankLost at rank \d: rank \d has (died|failed)/
        )
        assert.match(error.message, /\((allReduce|allGather|reduceScatter)\(.*"meshAxis":"data".*\)$/)
      }
    }).pipe(Effect.provide(layers))
  )

  it.live("stalls is named after the timeout", () =>
    Effect.gen(function* () {
      const found = failures(yield* withFault("stalls"))
      for (const error of found) assert.include(["Timeout", "RankLost"], error.reason)
      const late = found.filter((e) => e.reason === "Timeout")
      assert.isNotEmpty(late)
      for (const error of late) assert.match(error.message, /rank 2 did not come within 500ms/)
    }).pipe(Effect.provide(layers))
  )

  it.live("brings another shape is named with what it brings", () =>
    Effect.gen(function* () {
      for (const error of failures(yield* withFault("shape"))) {
        assert.strictEqual(error.reason, "ShapeDisagreement")
        assert.deepStrictEqual(error.ranks, [2])
        assert.match(error.message, /rank 2 brings .* less one element; rank 0 brings /)
      }
    }).pipe(Effect.provide(layers))
  )
})
