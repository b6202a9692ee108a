/** What ranks must agree in beside tensors, when they stop, and what a step that ended in its middle leaves behind. */
import { assert, it } from "@effect/vitest"
import { CheckpointError, WriteFailed } from "@tessera/core/CheckpointError"
import * as MemoryCheckpoints from "@tessera/core/layers/MemoryCheckpoints"
import * as SimulatedCollectives from "@tessera/core/layers/SimulatedCollectives"
import type * as Mesh from "@tessera/core/Mesh"
import * as Schedule from "@tessera/core/Schedule"
import { CheckpointStore } from "@tessera/core/services/CheckpointStore"
import { Collectives } from "@tessera/core/services/Collectives"
import * as Strategy from "@tessera/core/Strategy"
import * as Trainer from "@tessera/core/Trainer"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import * as Trainings from "../application/trainings.ts"

const mesh: Mesh.Mesh = [["data", 2]]
const sizes: Trainings.Sizes = { batch: 8, hidden: 16, layers: 2 }
const layers = Layer.mergeAll(CpuBackend.layerWith({ threads: 1 }), MemoryCheckpoints.layer)

interface Given {
  readonly seed: (rank: number) => number
  readonly totalSteps: (rank: number) => number
  /** Of the batches that a rank is given. */
  readonly skips: (rank: number) => number
  readonly stop: (rank: number, asked: number) => boolean
}

const given: Given = { seed: () => 5, totalSteps: () => 4, skips: () => 0, stop: () => false }

const start = Effect.fnUntraced(function* (seed: number) {
  const strategy = Strategy.make({ mesh })
  const training = yield* Trainer.make({ ...Trainings.config(sizes), strategy })
  yield* Trainer.initialise(training, seed)
  return training
})

const steps = (training: Trainer.Training, rank: number, options: Given) => {
  let asked = 0
  const data = Trainings.data(sizes)
  return Trainer.steps(training, {
    run: "agreement",
    data: { batches: (from) => Stream.drop(data.batches(from), options.skips(rank)) },
    schedule: Schedule.constant(1e-3),
    totalSteps: options.totalSteps(rank),
    seed: 3,
    stop: () => options.stop(rank, ++asked)
  }).pipe(Stream.runCollect)
}

const train = (options: Partial<Given>, faults: SimulatedCollectives.Options = {}) => {
  const all = { ...given, ...options }
  return SimulatedCollectives.ranks(
    mesh,
    (rank) => Effect.scoped(Effect.flatMap(start(all.seed(rank)), (training) => steps(training, rank, all))),
    { timeout: "5 seconds", strict: true, ...faults }
  )
}

const messageOf = (exit: Exit.Exit<unknown, unknown>): string => {
  assert.isTrue(Exit.isFailure(exit))
  return Exit.isFailure(exit) ? (Cause.squash(exit.cause) as Error).message : ""
}

it.live("seeds, plans and batches must be the same on all ranks", () =>
  Effect.gen(function* () {
    const cases: ReadonlyArray<readonly [Partial<Given>, RegExp]> = [
      [{ seed: (rank) => rank }, /^agreement on the seed, Disagreement at rank \d/],
      [{ totalSteps: (rank) => 4 + rank }, /^agreement on the way ahead, Disagreement at rank \d/],
      [{ skips: (rank) => rank }, /^any, Disagreement at rank \d: rank \d brings any: batch /]
    ]
    for (const [options, message] of cases)
      for (const exit of yield* train(options)) assert.match(messageOf(exit), message)
  }).pipe(Effect.provide(layers))
)

it.live("all stop before the same step when one of them is asked to", () =>
  Effect.gen(function* () {
    const found = yield* train({ stop: (rank, asked) => rank === 1 && asked === 3 })
    for (const exit of found) {
      assert.isTrue(Exit.isSuccess(exit))
      if (Exit.isSuccess(exit)) assert.lengthOf(exit.value, 2)
    }
  }).pipe(Effect.provide(layers))
)

it.live(
  "what a step leaves that ended in its middle is neither saved nor trained further, until a checkpoint is restored",
  () =>
    Effect.gen(function* () {
      // The first rank lives on after the second one has died in a step.
      const found = yield* SimulatedCollectives.ranks(
        mesh,
        (rank) =>
          Effect.scoped(
            Effect.gen(function* () {
              const training = yield* start(5)
              const store = yield* CheckpointStore
              yield* Trainer.save(training)
              const failed = yield* Effect.exit(steps(training, rank, given))
              if (rank === 1) return yield* Effect.die("beyond its death")
              const refusals = [
                messageOf(failed),
                messageOf(yield* Effect.exit(Trainer.save(training))),
                messageOf(yield* Effect.exit(Trainer.parameters(training))),
                messageOf(yield* Effect.exit(steps(training, rank, given)))
              ]
              // To restore it all ranks must come, too: the other one is gone.
              const restored = messageOf(
                yield* Effect.exit(
                  Effect.scoped(Effect.flatMap(store.open("latest"), (r) => Trainer.restore(training, r)))
                )
              )
              return { refusals, restored }
            })
          ),
        { timeout: "2 seconds", faults: [{ rank: 1, collective: 9, kind: "dies" }] }
      )
      const first = found[0]!
      assert.isTrue(Exit.isSuccess(first), Exit.isFailure(first) ? Cause.pretty(first.cause) : "")
      if (!Exit.isSuccess(first)) return
      const { refusals, restored } = first.value as unknown as {
        readonly refusals: ReadonlyArray<string>
        readonly restored: string
      }
      assert.match(refusals[0]!, /RankLost at rank 0: rank 1 has died/)
      for (const refusal of refusals.slice(1))
        assert.match(refusal, /Torn: the step ended in its middle \(.*rank 1 has died.*\).*restore a checkpoint/)
      assert.match(restored, /RankLost/)
    }).pipe(Effect.provide(layers))
)

it.live("all ranks hear that the first one could not write a checkpoint", () =>
  Effect.gen(function* () {
    const full = new CheckpointError({
      path: "a folder",
      reason: new WriteFailed({ folder: "a folder", detail: "no space left" })
    })
    const found = yield* SimulatedCollectives.ranks(mesh, (rank) =>
      Effect.scoped(
        Effect.gen(function* () {
          const store = yield* CheckpointStore
          const training = yield* start(5)
          const save = rank === 0 ? () => Effect.fail(full) : store.save
          const failed = yield* Effect.exit(
            Effect.provideService(Trainer.save(training), CheckpointStore, CheckpointStore.of({ ...store, save }))
          )
          // They go on together.
          const { barrier } = yield* Collectives
          yield* barrier
          return messageOf(failed)
        })
      )
    )
    const messages = found.map((exit) => (Exit.isSuccess(exit) ? exit.value : "died"))
    assert.include(messages[0]!, "no space left")
    assert.include(messages[1]!, "the first rank could not write it")
  }).pipe(Effect.provide(layers))
)
