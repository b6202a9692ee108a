/** Trainings that stop and go on: what the law of resuming runs and compares. */
import * as Effect from "effect/Effect"
import * as Ref from "effect/Ref"
import * as Stream from "effect/Stream"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import * as Schedule from "../Schedule.ts"
import { Backend } from "../services/Backend.ts"
import { CheckpointStore } from "../services/CheckpointStore.ts"
import type * as Step from "../Step.ts"
import * as Trainer from "../Trainer.ts"
import * as Dice from "./Dice.ts"
import type { Experiment } from "./Subject.ts"
import * as Subjects from "./Subject.ts"

/** How a training is saved, and how another becomes what it was. */
export interface SaveAndRestore {
  readonly save: typeof Trainer.save
  readonly restore: typeof Trainer.restore
}

/** Everything that decides how a training goes on. */
export interface Snapshot {
  readonly held: ReadonlyArray<{ readonly name: string; readonly array: HostArray }>
  readonly position: Trainer.Position
}

export interface Plan {
  readonly experiment: Experiment
  readonly config: Step.Config<any, any>
  readonly total: number
  readonly seed: number
}

/** Another rate in every step. */
const schedule = Schedule.make("uneven", (step) => 0.01 * (1 + (step % 3)))

const batchOf = ({ experiment, seed }: Plan, number: number): ReadonlyArray<HostArray> =>
  Subjects.drawBatch(experiment, Dice.make(1 + seed + 1000 * number))

/** Batches without end; the place is the number of the next. Some samples cannot be read. */
const data = (plan: Plan, names: ReadonlyArray<string>): Trainer.Data => ({
  batches: (from) =>
    Stream.unfold(typeof from === "number" ? from : 0, (number) => {
      const arrays = Object.fromEntries(batchOf(plan, number).map((x, i) => [names[i]!, Host.toBytes(x)]))
      const samples = Subjects.examplesOf(plan.experiment)
      const batch = { arrays, samples, skipped: number % 2, epoch: (number + 1) / 4, cursor: number + 1 }
      return Effect.succeed([batch, number + 1] as const)
    })
})

const snapshot = Effect.fnUntraced(function* (training: Trainer.Training) {
  const backend = yield* Backend
  const held: Array<Snapshot["held"][number]> = []
  for (const { buffer, kind, name } of training.runner.held) {
    const { axes, dtype } = buffer.type
    held.push({ name: `${kind} ${name}`, array: Host.fromBytes(axes, dtype, yield* backend.read(buffer)) })
  }
  return { held, position: yield* Ref.get(training.position) } satisfies Snapshot
})

/** What lives is what its bytes say: the evaluator keeps more digits than an f32 has, and a checkpoint does not. */
const settle = Effect.fnUntraced(function* (training: Trainer.Training) {
  const backend = yield* Backend
  for (const { buffer } of training.runner.held) yield* backend.write(buffer, yield* backend.read(buffer))
})

/** Goes on until `until` steps are done; gives the losses, and what there is after every step. */
const run = Effect.fnUntraced(function* (plan: Plan, training: Trainer.Training, until: number) {
  const backend = yield* Backend
  const moments: Array<Snapshot> = []
  const note = Effect.gen(function* () {
    yield* settle(training)
    moments.push(yield* snapshot(training))
  }).pipe(Effect.provideService(Backend, backend), Effect.orDie)
  const names = training.runner.batch.map(({ name }) => name)
  const reports = yield* Trainer.steps(training, {
    run: "law",
    data: data(plan, names),
    schedule,
    totalSteps: until,
    seed: plan.seed,
    onStep: () => note
  }).pipe(Stream.runCollect)
  return { losses: reports.map(({ loss }) => loss), moments }
})

const begin = Effect.fnUntraced(function* (plan: Plan) {
  const training = yield* Trainer.make(plan.config)
  yield* Trainer.initialise(training, plan.seed)
  yield* settle(training)
  return training
})

/** A training from one moment on. */
export interface Course {
  /** What there is at that moment, then after every further step. */
  readonly moments: ReadonlyArray<Snapshot>
  readonly losses: ReadonlyArray<number>
}

/** The rest of a training, from where it is. */
const rest = Effect.fnUntraced(function* (plan: Plan, training: Trainer.Training) {
  const first = yield* snapshot(training)
  const { losses, moments } = yield* run(plan, training, plan.total)
  return { losses, moments: [first, ...moments] } satisfies Course
})

/** All steps in one go. */
export const uninterrupted = Effect.fnUntraced(function* (plan: Plan, at: number) {
  const training = yield* begin(plan)
  yield* run(plan, training, at)
  return yield* rest(plan, training)
}, Effect.scoped)

/** Some steps, a checkpoint, and the rest by another training, which knows nothing but the checkpoint. */
export const interrupted = Effect.fnUntraced(function* (plan: Plan, at: number, { restore, save }: SaveAndRestore) {
  const store = yield* CheckpointStore
  const saved = yield* Effect.scoped(
    Effect.gen(function* () {
      const training = yield* begin(plan)
      yield* run(plan, training, at)
      return yield* save(training)
    })
  )
  const training = yield* Trainer.make(plan.config)
  yield* restore(training, yield* store.open({ path: saved.path }))
  return yield* rest(plan, training)
}, Effect.scoped)

/** What the step after a snapshot reads. */
export const inputsAfter = (plan: Plan, { held, position }: Snapshot): ReadonlyArray<HostArray> => {
  const { cursor, lossScale, step } = position
  return [
    ...held.map(({ array }) => array),
    ...batchOf(plan, typeof cursor === "number" ? cursor : 0),
    Host.scalar(schedule.at(step)),
    Host.scalar(step + 1),
    Host.scalar(Trainer.stepSeed(plan.seed, step + 1), "u32"),
    Host.scalar(lossScale.scale)
  ]
}
