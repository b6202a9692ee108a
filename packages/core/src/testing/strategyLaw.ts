/** Whatever the strategy, a step means what it means on one device. */
import * as fc from "fast-check"
import * as Result from "effect/Result"
import type { HostArray } from "../HostArray.ts"
import * as Layout from "../Layout.ts"
import type { Body } from "../Node.ts"
import * as Optimizer from "../Optimizer.ts"
import { adamw } from "../optimizers/adamw.ts"
import { sgd } from "../optimizers/sgd.ts"
import * as Simulate from "../Simulate.ts"
import type { Choices } from "../Strategy.ts"
import * as Strategy from "../Strategy.ts"
import * as Arbitraries from "./Arbitraries.ts"
import { widest } from "./compare.ts"
import * as FirstDifference from "./FirstDifference.ts"
import * as Law from "./Law.ts"
import type { Sizes, Subject, Values } from "./Subject.ts"
import * as Subjects from "./Subject.ts"

export interface StrategyOptions extends Law.Options {
  /** Strategies to try; any combination on meshes of up to 16 ranks unless given. */
  readonly strategies?: fc.Arbitrary<Choices>
  /** Steps after each other; 3 unless given. */
  readonly steps?: number
  /** Largest relative difference; 1e-10 unless given. */
  readonly tolerance?: number
  /** How the step of a strategy is made, to try one that is wrong. */
  readonly simulate?: typeof Simulate.step
}

export interface StrategyCase {
  readonly sizes: Sizes
  readonly strategy: Choices
  readonly seed: number
}

/**
 * One update at rate 1 without momentum shows the gradient itself; then a rule with state and clipping, whose epsilon keeps it from blowing up the
 * rounding of gradients that are almost zero.
 */
const optimizers = [
  { name: "gradient", optimizer: Optimizer.make(sgd()), steps: 1, rate: 1 },
  {
    name: "adamw",
    optimizer: Optimizer.make(adamw({ epsilon: 1e-4 }), { decay: 0.1, clip: { maxNorm: 0.5, formula: "optax" } }),
    rate: 0.02
  }
] as const

/** Steps after each other; all outputs of each. */
export const train = (
  run: (inputs: ReadonlyArray<HostArray>) => Simulate.Outcome,
  values: Values,
  steps: number,
  rate: number,
  seed: number
): ReadonlyArray<Simulate.Outcome> => {
  const live = values.parameters.length + values.state.length
  let held: ReadonlyArray<HostArray> = [...values.parameters, ...values.state]
  return Array.from({ length: steps }, (_, i) => {
    const outcome = run([...held, ...values.batch, ...Subjects.scalars(i + 1, rate, seed)])
    held = outcome.outputs.slice(0, live)
    return outcome
  })
}

/** Whether the ranks never add up anything: then nothing may differ, not even in the last bit. */
const addsNothing = (body: Body): boolean =>
  body.equations.every((e) => {
    const { meaning } = e.primitive
    if (meaning.kind === "region") return meaning.bodies(e.params).every(addsNothing)
    return e.primitive.name !== "reduceScatter" && !(e.primitive.name === "allReduce" && e.params.by === "sum")
  })

/** What is wrong with one case. */
export const strategyProblem =
  (subject: Subject, options: StrategyOptions = {}) =>
  ({ seed, sizes, strategy: chosen }: StrategyCase): Law.Verdict => {
    const { simulate = Simulate.step, steps: most = 3, tolerance = 1e-10 } = options
    const experiment = subject.make(sizes)
    const strategy = Strategy.make(chosen)
    for (const { name, optimizer, rate, ...own } of optimizers) {
      const steps = "steps" in own ? own.steps : most
      const values = Subjects.draw(experiment, optimizer, seed)
      const config = { ...experiment, optimizer }
      const verdict = Law.legal(simulate({ ...config, strategy }), ["PartitionError", "RecipeError"], (spread) => {
        const one = Result.getOrThrow(Simulate.step({ ...config, strategy: { ...Strategy.single, microbatches: 1 } }))
        const truth = train(one.run, values, steps, rate, seed)
        const found = train(spread.run, values, steps, rate, seed)
        const exact =
          spread.how.kind === "spread" &&
          strategy.microbatches === 1 &&
          strategy.ring.length === 0 &&
          addsNothing(spread.how.local.body)
        for (const [step, { disagreement, outputs }] of found.entries()) {
          const gap = widest(truth[step]!.outputs, outputs)
          const worst = Math.max(gap.distance, disagreement)
          if (worst <= (exact ? 0 : tolerance)) continue
          const what = disagreement > gap.distance ? "ranks disagree" : `output ${gap.output} differs`
          const inputs = [...values.parameters, ...values.state, ...values.batch, ...Subjects.scalars(1, rate, seed)]
          return [
            `${subject.name}, ${name}, step ${step + 1}: ${what} by ${worst.toExponential(1)}`,
            ...(step === 0 && spread.how.kind === "spread" ? [located(spread.how, strategy, inputs, tolerance)] : [])
          ].join("\n")
        }
        return null
      })
      if (verdict !== null) return verdict
    }
    return null
  }

/** The first equation whose value the ranks hold differently. */
const located = (
  { local, step }: Simulate.Spread,
  { mesh }: Strategy.Strategy,
  inputs: ReadonlyArray<HostArray>,
  tolerance: number
): string => {
  const parts = Simulate.parts(step, local, mesh, inputs)
  const whole = parts.map((x, i) => Layout.collect(x, local.inputLayouts[i]!, mesh).array)
  const found = FirstDifference.firstDifference(
    { body: step.program, inputs: whole },
    { lowered: local, inputs: parts, mesh },
    tolerance
  )
  return found === null
    ? "every equation agrees by itself: the outputs are put together wrongly"
    : FirstDifference.print(found)
}

/** The smallest case in which a strategy changes what a step means, or null. */
export const strategyCounterexample = (subject: Subject, options: StrategyOptions = {}): string | null => {
  const cases: fc.Arbitrary<StrategyCase> = fc.record({
    sizes: Arbitraries.sizes(subject),
    strategy: options.strategies ?? Arbitraries.choices(),
    seed: fc.integer({ min: 1, max: 1000 })
  })
  return Law.counterexample("strategyPreservesMeaning", cases, strategyProblem(subject, options), options)
}

/**
 * Loss, gradients and three optimizer steps under any strategy equal those on one device, in float64; bit for bit where ranks add up nothing.
 * Throws `LawBroken` with the smallest counterexample and the first equation whose values differ.
 */
export const strategyPreservesMeaning = (subject: Subject, options: StrategyOptions = {}): void =>
  Law.assert(strategyCounterexample(subject, options))
