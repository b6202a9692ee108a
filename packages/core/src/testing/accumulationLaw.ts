/** However many microbatches a batch is cut into, a step means what it means on the whole batch. */
import * as fc from "fast-check"
import type * as Result from "effect/Result"
import type { PartitionError, ProgramError, RecipeError } from "../Errors.ts"
import type { HostArray } from "../HostArray.ts"
import * as Step from "../Step.ts"
import * as Strategy from "../Strategy.ts"
import * as Arbitraries from "./Arbitraries.ts"
import * as FirstDifference from "./FirstDifference.ts"
import * as Law from "./Law.ts"
import * as Sightings from "./Sighting.ts"
import * as Steps from "./Steps.ts"
import type { Given, Sizes } from "./Subject.ts"
import * as Subjects from "./Subject.ts"

export interface AccumulationOptions extends Law.Options {
  /** Numbers of microbatches to try; every divisor of the batch but 1 unless given. */
  readonly microbatches?: (batch: number) => fc.Arbitrary<number>
  /** What a step does with the gradients; the bare gradient, SGD with momentum, and AdamW, the last two with clipping, unless given. */
  readonly trials?: ReadonlyArray<Steps.Trial>
  /** Largest relative difference; 1e-10 unless given. */
  readonly tolerance?: number
  /** How the step of `strategy.microbatches` is made, to try another way; `Step.make` unless given. */
  readonly implementation?: StepImplementation
}

export type StepImplementation = (
  config: Step.Config<any, any> & { readonly strategy: Strategy.Strategy }
) => Result.Result<Step.StepProgram<any, any>, ProgramError | RecipeError | PartitionError>

interface Case {
  readonly sizes: Sizes
  readonly microbatches: number
  /** Index of the trial. */
  readonly trial: number
  readonly seed: number
}

const usual: ReadonlyArray<Steps.Trial> = [Steps.gradient, Steps.momentum(2), Steps.adam(2)]

/** What is wrong with one case. */
const problem = (given: Given, options: AccumulationOptions) => {
  const { implementation = Step.make, tolerance = 1e-10, trials = usual } = options
  const subject = Subjects.of(given)
  const single = Steps.singles()
  return (c: Case): Law.Verdict => {
    const experiment = subject.make(c.sizes)
    const trial = trials[c.trial]!
    const config = { ...experiment, optimizer: trial.optimizer }
    const strategy = { ...Strategy.single, microbatches: c.microbatches }
    return Law.legal(implementation({ ...config, strategy }), ["RecipeError"], (cut) => {
      const one = single(`${JSON.stringify(c.sizes)} ${trial.name}`, config)
      const values = Subjects.draw(experiment, trial.optimizer, c.seed)
      const truth = Steps.train(Steps.alone(one), values, trial, c.seed)
      const found = Steps.train(Steps.alone(cut), values, trial, c.seed)
      const parting = Steps.parting(one, truth, found, tolerance)
      if (parting === null) return null
      return {
        what: `${subject.name}: ${parting.what} (${trial.name}, step ${parting.step + 1})`,
        where: () => located(one, cut, c.microbatches, parting.inputs, tolerance)
      }
    })
  }
}

/** The first value of the whole batch that the microbatches do not have, neither as parts nor as addends. */
const located = (
  one: Step.StepProgram,
  cut: Step.StepProgram,
  microbatches: number,
  inputs: ReadonlyArray<HostArray>,
  tolerance: number
): ReadonlyArray<string> => {
  const run = FirstDifference.record({ body: cut.program, inputs })
  const seen = Sightings.ofRun(cut.program, run, [], microbatches)
  const body = Steps.forwardFirst(one)
  const found = FirstDifference.byValue({ body, inputs }, seen, tolerance)
  const sides = { expected: "one batch", found: `${microbatches} microbatches` }
  return found === null
    ? ["every value of the whole batch is there: the outputs are put together wrongly"]
    : FirstDifference.print(found, body, sides, Steps.inputNames(one))
}

const law = (given: Given, options: AccumulationOptions): Law.Law<Case> => {
  const { microbatches = Arbitraries.microbatchesOf, trials = usual } = options
  const subject = Subjects.of(given)
  return {
    name: "accumulationEqualsFullBatch",
    cases: Arbitraries.sizes(subject).chain((sizes) =>
      fc.record({
        sizes: fc.constant(sizes),
        microbatches: microbatches(Subjects.examplesOf(subject.make(sizes))),
        trial: fc.nat(trials.length - 1),
        seed: Arbitraries.seed
      })
    ),
    show: ({ microbatches: count, seed, sizes }) => [
      ...Steps.showSizes(sizes),
      `mesh: one device, ${count} microbatches`,
      `values from seed ${seed}`
    ]
  }
}

/** The smallest case in which microbatches change what a step means, or null. */
export const accumulationCounterexample = (given: Given, options: AccumulationOptions = {}): Law.LawBroken | null =>
  Law.counterexample(law(given, options), problem(given, options), options, 30)

/**
 * Loss, metrics, gradients and updates over k microbatches equal those of the whole batch, in float64: for sums and means, for examples of unequal
 * weight, for gradients that are clipped, for losses that compare all examples with each other. Throws `LawBroken` with the smallest counterexample
 * and the first equation of the whole batch whose value the microbatches do not have.
 */
export const accumulationEqualsFullBatch = (given: Given, options: AccumulationOptions = {}): void =>
  Law.assert(accumulationCounterexample(given, options))
