/** A training that was stopped, saved and restored goes on as if nothing had happened, bit for bit. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as fc from "fast-check"
import * as Host from "../HostArray.ts"
import * as MemoryCheckpoints from "../layers/MemoryCheckpoints.ts"
import * as ReferenceBackend from "../layers/ReferenceBackend.ts"
import * as Optimizer from "../Optimizer.ts"
import { adamw } from "../optimizers/adamw.ts"
import { sgd } from "../optimizers/sgd.ts"
import type { Precision } from "../Precision.ts"
import * as Precisions from "../Precision.ts"
import type { Backend } from "../services/Backend.ts"
import type { CheckpointStore } from "../services/CheckpointStore.ts"
import * as Step from "../Step.ts"
import * as Strategy from "../Strategy.ts"
import * as Trainer from "../Trainer.ts"
import * as Arbitraries from "./Arbitraries.ts"
import * as FirstDifference from "./FirstDifference.ts"
import * as Law from "./Law.ts"
import * as Resuming from "./Resuming.ts"
import * as Steps from "./Steps.ts"
import type { Given, Sizes } from "./Subject.ts"
import * as Subjects from "./Subject.ts"

export interface ResumeOptions extends Law.Options {
  /** What trains and where it is saved; the evaluator and the memory of the process unless given. */
  readonly services?: Layer.Layer<Backend | CheckpointStore, unknown>
  /** Optimizers to try; SGD with momentum, and AdamW with averaged weights, unless given. */
  readonly optimizers?: ReadonlyArray<Optimizer.Optimizer>
  /** Precisions to try; f32, bf16, and f16 with a loss scale that moves, unless given. */
  readonly precisions?: ReadonlyArray<Precision>
  /** How a training is saved and restored, to try another way; `Trainer.save` and `Trainer.restore` unless given. */
  readonly implementation?: Resuming.SaveAndRestore
}

interface Case {
  readonly sizes: Sizes
  /** Indices of the optimizer and of the precision. */
  readonly optimizer: number
  readonly precision: number
  readonly microbatches: number
  /** Steps before the checkpoint, and after it. */
  readonly before: number
  readonly after: number
  readonly seed: number
}

const usual = {
  optimizers: [
    Optimizer.make(sgd({ momentum: 0.9 })),
    Optimizer.make(adamw(), { decay: 0.1, ema: { decay: 0.9 }, clip: { maxNorm: 1, formula: "megatron" } })
  ],
  precisions: [
    Precisions.f32,
    Precisions.bf16,
    // Falls from where gradients overflow, and grows again within a few steps.
    { ...Precisions.f16, lossScale: { ...Precisions.lossScale, initial: 2 ** 18, growthInterval: 2 } }
  ],
  services: Layer.merge(ReferenceBackend.layer, MemoryCheckpoints.layer),
  implementation: { save: Trainer.save, restore: Trainer.restore }
} satisfies ResumeOptions

/** Batches that cannot be trained on: another case is drawn. */
const unusable: ReadonlySet<string> = new Set(["TrainError", "RecipeError"])

const plan = (given: Given, options: ResumeOptions, c: Case): Resuming.Plan => {
  const { optimizers = usual.optimizers, precisions = usual.precisions } = options
  const experiment = Subjects.of(given).make(c.sizes)
  const strategy = { ...Strategy.single, microbatches: c.microbatches }
  const [optimizer, precision] = [optimizers[c.optimizer]!, precisions[c.precision]!]
  const config = { ...experiment, optimizer, precision, strategy }
  return { experiment, config, total: c.before + c.after, seed: c.seed }
}

/** What is wrong with one case. */
const problem = (given: Given, options: ResumeOptions, c: Case) =>
  Effect.gen(function* () {
    const { implementation = usual.implementation } = options
    const { name } = Subjects.of(given)
    const made = plan(given, options, c)
    const truth = yield* Resuming.uninterrupted(made, c.before)
    const found = yield* Resuming.interrupted(made, c.before, implementation)
    const what = difference(truth, found, c.before)
    return what === null
      ? null
      : ({ what: `${name}: ${what}`, where: () => located(made, truth, found) } satisfies Law.Problem)
  }).pipe(
    Effect.catch((error): Effect.Effect<Law.Verdict> =>
      Effect.succeed(
        unusable.has(error._tag) ? "skip" : { what: `${Subjects.of(given).name}: ${error.message}`, where: () => [] }
      )
    )
  )

/** The first thing that two trainings do not have in common. */
const difference = (truth: Resuming.Course, found: Resuming.Course, before: number): string | null => {
  for (const [i, { held, position }] of truth.moments.entries()) {
    const other = found.moments[i]
    const when = i === 0 ? "restored" : `after step ${before + i}`
    if (other === undefined) return `${when}, there are no more steps`
    const [places, others] = [placesOf(position), placesOf(other.position)]
    const place = Object.keys(places).find((key) => places[key] !== others[key])
    if (place !== undefined) return `${when}, ${place} is ${others[place]}, without a stop ${places[place]}`
    for (const [k, { array, name }] of held.entries()) {
      const distance = Host.distance(array, other.held[k]!.array)
      if (distance > 0) return `${when}, ${name} differs by ${distance.toExponential(1)}`
    }
    const [loss, own] = [truth.losses[i], found.losses[i]]
    if (!Object.is(loss, own)) return `the loss of step ${before + i + 1} is ${own}, without a stop ${loss}`
  }
  return null
}

/** Every number of a position by its path. */
const placesOf = ({ lossScale, ...rest }: Trainer.Position): Readonly<Record<string, string>> => {
  const all = Object.entries({ ...rest, ...lossScale })
  return Object.fromEntries(all.map(([name, value]) => [name, JSON.stringify(value)]))
}

/** The first equation after the checkpoint that computes something else. */
const located = (made: Resuming.Plan, truth: Resuming.Course, found: Resuming.Course): ReadonlyArray<string> => {
  const step = Result.getOrThrow(Step.make(made.config)) as Step.StepProgram
  const body = Steps.forwardFirst(step)
  for (const [i, moment] of truth.moments.entries()) {
    const other = found.moments[i]
    if (other === undefined) break
    const first = FirstDifference.onInputs(body, Resuming.inputsAfter(made, moment), Resuming.inputsAfter(made, other))
    const sides = { expected: "without a stop", found: "resumed" }
    if (first !== null) return FirstDifference.print(first, body, sides, Steps.inputNames(step))
  }
  return ["no step has computed anything else yet"]
}

const law = (given: Given, options: ResumeOptions): Law.Law<Case> => {
  const { optimizers = usual.optimizers, precisions = usual.precisions } = options
  return {
    name: "resumeIsExact",
    cases: fc.record({
      sizes: Arbitraries.sizes(Subjects.of(given)),
      optimizer: fc.nat(optimizers.length - 1),
      precision: fc.nat(precisions.length - 1),
      microbatches: Arbitraries.among(1, 2),
      before: fc.integer({ min: 1, max: 4 }),
      after: fc.integer({ min: 1, max: 3 }),
      seed: Arbitraries.seed
    }),
    show: (c) => [
      ...Steps.showSizes(c.sizes),
      `mesh: one device, ${c.microbatches} microbatch${c.microbatches === 1 ? "" : "es"}`,
      `training: ${optimizers[c.optimizer]!.rule.name}, ${precisions[c.precision]!.name}, stopped after step ${c.before} of ${c.before + c.after}`,
      `values from seed ${c.seed}`
    ],
    advice: "no batch could be trained on; look at weights and ranges"
  }
}

/** The smallest case in which a training does not go on as it would have, or null. */
export const resumeCounterexample = (given: Given, options: ResumeOptions = {}): Effect.Effect<Law.LawBroken | null> =>
  Effect.gen(function* () {
    const services = yield* Effect.context<Backend | CheckpointStore>()
    const verdict = (c: Case) => Effect.runPromiseWith(services)(problem(given, options, c))
    return yield* Effect.promise(() => Law.counterexampleLater(law(given, options), verdict, options, 8))
  }).pipe(Effect.provide(options.services ?? usual.services), Effect.orDie)

/**
 * Training k steps, saving through a checkpoint store, restoring in a new training and going on equals training without a stop: losses, parameters,
 * optimizer state, averages, position and loss scale, bit for bit. Fails with `LawBroken`: the smallest counterexample, and the first equation of the
 * step after the checkpoint that computes something else.
 */
export const resumeIsExact = (given: Given, options: ResumeOptions = {}): Effect.Effect<void, Law.LawBroken> =>
  Effect.flatMap(resumeCounterexample(given, options), (found) => (found === null ? Effect.void : Effect.fail(found)))
