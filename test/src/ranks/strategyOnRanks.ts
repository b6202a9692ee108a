/** Every strategy on native ranks means what one device means: loss, gradients and three optimizer steps in f32, against the evaluator's doubles. */
import * as Host from "@tessera/core/HostArray"
import * as Optimizer from "@tessera/core/Optimizer"
import { adamw } from "@tessera/core/optimizers/adamw"
import { sgd } from "@tessera/core/optimizers/sgd"
import type { Backend } from "@tessera/core/services/Backend"
import * as Simulate from "@tessera/core/Simulate"
import type { Choices } from "@tessera/core/Strategy"
import * as Strategy from "@tessera/core/Strategy"
import * as Arbitraries from "@tessera/core/testing/Arbitraries"
import { widest } from "@tessera/core/testing/compare"
import type { Sizes, Subject, Values } from "@tessera/core/testing/Subject"
import * as Subjects from "@tessera/core/testing/Subject"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Result from "effect/Result"
import * as fc from "fast-check"
import { afterAll, describe, expect, it } from "vitest"
import { oneBitAway, timesOneBit } from "../backend/agreement.ts"
import { alone } from "../strategy/alone.ts"
import type { Kind } from "./onRanks.ts"
import { type Stepped, trainOnRanks } from "./trainOnRanks.ts"

/** Of arrays of this size and more, relative to their largest element; of smaller ones absolute. */
const tolerance = 1e-5

/**
 * A gradient, then a rule with state, decay and clipping. Its large epsilon keeps it from dividing the roundings of gradients that are almost zero by
 * something as small, its small rate from feeding them into the next step: on one device, too, f32 would be off by more than the tolerance.
 */
const trials = [
  { name: "gradient", optimizer: Optimizer.make(sgd()), steps: 1, rate: 1 },
  {
    name: "adamw",
    optimizer: Optimizer.make(adamw({ epsilon: 1e-2 }), { decay: 0.1, clip: { maxNorm: 0.5, formula: "optax" } }),
    steps: 3,
    rate: 0.004
  }
] as const

export interface Case {
  readonly sizes: Sizes
  readonly strategy: Choices
  readonly seed: number
}

/** What is wrong with one case; null, too, for a strategy that is refused. */
const problem = (
  subject: Subject,
  { seed, sizes, strategy: chosen }: Case,
  kind: Kind = "simulated"
): Effect.Effect<string | null, unknown, Backend> =>
  Effect.gen(function* () {
    const experiment = subject.make(sizes)
    const strategy = Strategy.make(chosen)
    for (const { name, optimizer, rate, steps } of trials) {
      const values = Subjects.draw(experiment, optimizer, seed)
      const config = { ...experiment, optimizer }
      if (Result.isFailure(Simulate.step({ ...config, strategy }))) return null
      const found = yield* trainOnRanks({ ...config, strategy }, values, { steps, rate, seed }, kind)
      const truth = known(JSON.stringify([subject.name, sizes, seed, name]), () =>
        onOneDevice(config, values, { steps, rate, seed })
      )
      for (const [k, { arrays, disagreement, metrics }] of found.entries()) {
        const gap = widest(truth[k]!, outputsOf({ arrays, metrics }))
        if (Math.max(gap.distance, disagreement) <= tolerance) continue
        // Now and then a step is ill-conditioned: a row that dropout left almost empty is divided by its own size, and the last bit of a parameter moves a
        // gradient by the tolerance.
        const nudged = onOneDevice(
          config,
          { ...values, parameters: oneBitAway(values.parameters, seed) },
          { steps, rate, seed }
        )
        const own = widest(truth[k]!, nudged[k]!).distance
        if (disagreement > tolerance || gap.distance > timesOneBit * own)
          return `${name}, step ${k + 1}: output ${gap.output} differs by ${gap.distance} (one bit of all parameters makes ${own}), ranks by ${disagreement}`
      }
    }
    return null
  })

const outputsOf = ({ arrays, metrics }: Pick<Stepped, "arrays" | "metrics">) => [
  ...arrays,
  ...Object.values(metrics).map((v) => Host.scalar(v))
]

type Truth = ReadonlyArray<ReadonlyArray<Host.HostArray>>

/** The truth is slow to come by, and the same for all strategies. */
const truths = new Map<string, Truth>()
const known = (key: string, make: () => Truth): Truth => {
  const found = truths.get(key) ?? make()
  truths.set(key, found)
  return found
}

const onOneDevice = (
  config: ReturnType<Subject["make"]> & { readonly optimizer: Optimizer.Optimizer },
  values: Values,
  { rate, seed, steps }: { readonly steps: number; readonly rate: number; readonly seed: number }
): Truth => {
  const one = Result.getOrThrow(Simulate.step({ ...config, strategy: Strategy.single }))
  let held: ReadonlyArray<Host.HostArray> = [...values.parameters, ...values.state]
  return Array.from({ length: steps }, (_, k) => {
    const { outputs } = one.run([...held, ...values.batch, ...Subjects.scalars(k + 1, rate, seed)])
    held = outputs.slice(0, held.length)
    return outputs
  })
}

const useCpu = (memory: "guarded" | "shared" = "guarded") => {
  const runtime = ManagedRuntime.make(CpuBackend.layerWith({ threads: 1, memory }))
  afterAll(() => runtime.dispose())
  return <A, E>(effect: Effect.Effect<A, E, Backend>) => runtime.runPromise(effect)
}

const plain = (subject: Subject): Sizes => ({
  ...Object.fromEntries(Object.entries(subject.sizes).map(([name, values]) => [name, values[0]!])),
  batch: 8,
  layers: 4
})

/** Some that combine more than one kind of parallelism. */
const combined: Readonly<Record<string, Choices>> = {
  "interleaved pipeline": {
    mesh: [["stage", 2]],
    schedule: "interleaved",
    virtualStages: 2,
    microbatches: 4
  },
  "pipeline, data and tensor, zero 1": {
    mesh: [
      ["stage", 2],
      ["data", 2],
      ["tensor", 2]
    ],
    microbatches: 2,
    zero: 1
  },
  "fsdp and tensor, started ahead, recomputed": {
    mesh: [
      ["data", 2],
      ["tensor", 2]
    ],
    fsdp: { prefetch: 2 },
    microbatches: 2,
    recompute: { kind: "full" }
  },
  "data, ring and tensor, zero 3": {
    mesh: [
      ["data", 2],
      ["context", 2],
      ["tensor", 2]
    ],
    context: "ring",
    zero: 3
  }
}

export const everyStrategyOnRanks = (subject: Subject, kind: Kind = "simulated"): void => {
  const run = useCpu(kind === "local" ? "shared" : "guarded")
  describe(`${subject.name}, ${kind} ranks`, () => {
    it.each(Object.entries({ ...alone, ...combined }))("%s", async (_what, strategy: Choices) => {
      expect(await run(problem(subject, { sizes: plain(subject), strategy, seed: 11 }, kind))).toBe(null)
    })
  })
}

/** Random combinations on up to 16 ranks. */
export const combinationsOnRanks = (subject: Subject, runs: number): void => {
  const run = useCpu()
  it(`${subject.name}: ${runs} random combinations`, async () => {
    const cases = fc.record({
      sizes: Arbitraries.sizes(subject),
      strategy: Arbitraries.choices(),
      seed: fc.integer({ min: 1, max: 1000 })
    })
    let legal = 0
    const judge = async (one: Case) => {
      if (
        Result.isFailure(
          Simulate.step({
            ...subject.make(one.sizes),
            optimizer: trials[0].optimizer,
            strategy: Strategy.make(one.strategy)
          })
        )
      )
        return fc.pre(false)
      legal++
      const found = await run(problem(subject, one))
      if (found !== null) throw new Error(`${JSON.stringify(one.strategy)} ${JSON.stringify(one.sizes)}: ${found}`)
    }
    await fc.assert(fc.asyncProperty(cases, judge), { numRuns: runs, maxSkipsPerRun: 100 })
    expect(legal).toBeGreaterThanOrEqual(runs)
  })
}
