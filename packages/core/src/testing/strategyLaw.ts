/** Whatever the strategy, a step means what it means on one device. */
import * as fc from "fast-check"
import * as Result from "effect/Result"
import type { PartitionError, ProgramError, RecipeError } from "../Errors.ts"
import type { HostArray } from "../HostArray.ts"
import * as Axis from "../Axis.ts"
import * as Layout from "../Layout.ts"
import type { AnyTensor, Body, Lockstep as Values } from "../Node.ts"
import * as Lockstep from "../pipeline/Lockstep.ts"
import * as Simulate from "../Simulate.ts"
import * as Step from "../Step.ts"
import type { Choices } from "../Strategy.ts"
import * as Strategy from "../Strategy.ts"
import * as Arbitraries from "./Arbitraries.ts"
import * as FirstDifference from "./FirstDifference.ts"
import * as Law from "./Law.ts"
import type { Sighting } from "./Sighting.ts"
import * as Steps from "./Steps.ts"
import type { Given, Sizes } from "./Subject.ts"
import * as Subjects from "./Subject.ts"

export interface StrategyOptions extends Law.Options {
  /** Strategies to try; any combination on meshes of up to 8 ranks unless given. */
  readonly strategies?: fc.Arbitrary<Choices>
  /** Steps after each other; 3 unless given. */
  readonly steps?: number
  /** Largest relative difference; 1e-10 unless given. */
  readonly tolerance?: number
  /** How the step of a strategy is made, to try another way; `Simulate.step` unless given. */
  readonly implementation?: StrategyImplementation
}

export type StrategyImplementation = (
  config: Step.Config<any, any>
) => Result.Result<Simulate.Simulation, ProgramError | RecipeError | PartitionError>

export interface StrategyCase {
  readonly sizes: Sizes
  readonly strategy: Choices
  readonly seed: number
}

/** Whether the ranks never add up anything: then nothing may differ, not even in the last bit. */
const addsNothing = (body: Body): boolean =>
  body.equations.every((e) => {
    const { meaning } = e.primitive
    if (meaning.kind === "region") return meaning.bodies(e.params).every(addsNothing)
    return e.primitive.name !== "reduceScatter" && !(e.primitive.name === "allReduce" && e.params.by === "sum")
  })

/** What is wrong with one case. */
export const strategyProblem = (given: Given, options: StrategyOptions = {}) => {
  const subject = Subjects.of(given)
  const { implementation = Simulate.step, steps = 3, tolerance = 1e-10 } = options
  const single = Steps.singles()
  return ({ seed, sizes, strategy: chosen }: StrategyCase): Law.Verdict => {
    const experiment = subject.make(sizes)
    const strategy = Strategy.make(chosen)
    for (const trial of [Steps.gradient, Steps.adam(steps)]) {
      const config = { ...experiment, optimizer: trial.optimizer, strategy }
      const verdict = Law.legal(implementation(config), ["PartitionError", "RecipeError"], (spread) => {
        const one = single(`${JSON.stringify(sizes)} ${trial.name}`, config)
        const values = Subjects.draw(experiment, trial.optimizer, seed)
        const truth = Steps.train(Steps.alone(one), values, trial, seed)
        const found = Steps.train(spread.run, values, trial, seed)
        const exact =
          spread.how.kind === "spread" &&
          strategy.microbatches === 1 &&
          strategy.ring.length === 0 &&
          addsNothing(spread.how.local.body)
        const parting = Steps.parting(one, truth, found, exact ? 0 : tolerance)
        if (parting === null) return null
        return {
          what: `${subject.name}: ${parting.what} (${trial.name}, step ${parting.step + 1})`,
          where: () => located(spread, config, parting.inputs, exact ? 0 : tolerance)
        }
      })
      if (verdict !== null) return verdict
    }
    return null
  }
}

/** Where a step on a mesh parts from the one on one device; null where every value of one device is there. */
export const strategyDifference = (
  { how }: Simulate.Simulation,
  config: Step.Config<any, any> & { readonly strategy: Strategy.Strategy },
  inputs: ReadonlyArray<HostArray>,
  tolerance: number
): { readonly difference: FirstDifference.Difference | null; readonly body: Body; readonly step: Step.StepProgram } => {
  if (how.kind === "spread") {
    const { local, step } = how
    const { mesh } = config.strategy
    const parts = Simulate.parts(step, local, mesh, inputs)
    const whole = parts.map((x, i) => Layout.collect(x, local.inputLayouts[i]!, mesh).array)
    const body = Steps.forwardFirst(step)
    const ranks = { lowered: local, inputs: parts, mesh }
    return { difference: FirstDifference.onRanks({ body, inputs: whole }, ranks, tolerance), body, step }
  }
  const strategy = { ...config.strategy, microbatches: 1 }
  const step = Result.getOrThrow(Step.make({ ...config, strategy })) as Step.StepProgram
  const stored = Simulate.stored(how.step.storage, inputs)
  const body = Steps.forwardFirst(step)
  // Whole stacks are nowhere: each stage has its run of layers. Their layers are compared inside of the stack.
  const difference = FirstDifference.byValue({ body, inputs: stored }, onStages(how, stored), tolerance, {
    relevant: ({ value }) => !Axis.has(value[0]!.axes, "layers")
  })
  return { difference, body, step }
}

const located = (
  simulation: Simulate.Simulation,
  config: Step.Config<any, any> & { readonly strategy: Strategy.Strategy },
  inputs: ReadonlyArray<HostArray>,
  tolerance: number
): ReadonlyArray<string> => {
  const { body, difference, step } = strategyDifference(simulation, config, inputs, tolerance)
  const sides = { expected: "one device", found: simulation.how.kind === "spread" ? "ranks" : "stages" }
  return difference === null
    ? ["every equation agrees by itself: the outputs are put together wrongly"]
    : FirstDifference.print(difference, body, sides, Steps.inputNames(step))
}

/** What the stages see, of all microbatches together. */
const onStages = ({ step }: Simulate.Pipelined, inputs: ReadonlyArray<HostArray>): ReadonlyArray<Sighting> => {
  const seen: Array<Sighting> = []
  const byTick = new Map<AnyTensor, Map<number, Array<Values>>>()
  Lockstep.run(step, inputs, (tick, tensor, value) => {
    const primitive = tensor.equation?.primitive.name ?? null
    if (tick === null) {
      seen.push({ parts: [value], mesh: step.mesh, primitive })
      return
    }
    const known = byTick.get(tensor) ?? new Map<number, Array<Values>>()
    known.set(tick.microbatch, [...(known.get(tick.microbatch) ?? []), value])
    byTick.set(tensor, known)
  })
  for (const [tensor, microbatches] of byTick) {
    const [first] = microbatches.values()
    if (microbatches.size < step.microbatches) continue
    const all = Array.from({ length: step.microbatches }, (_, m) => microbatches.get(m)!)
    const primitive = tensor.equation!.primitive.name
    first!.forEach((_, k) => seen.push({ parts: all.map((values) => values[k]!), mesh: step.inner, primitive }))
  }
  return seen
}

const law = (given: Given, options: StrategyOptions): Law.Law<StrategyCase> => ({
  name: "strategyPreservesMeaning",
  cases: fc.record({
    sizes: Arbitraries.sizes(Subjects.of(given)),
    strategy: options.strategies ?? Arbitraries.choices(8),
    seed: Arbitraries.seed
  }),
  show: ({ seed, sizes, strategy }) => [
    ...Steps.showSizes(sizes),
    ...Steps.showStrategy(strategy),
    `values from seed ${seed}`
  ]
})

/** The smallest case in which a strategy changes what a step means, or null. */
export const strategyCounterexample = (given: Given, options: StrategyOptions = {}): Law.LawBroken | null =>
  Law.counterexample(law(given, options), strategyProblem(given, options), options, 20)

/**
 * Loss, gradients and three optimizer steps under any strategy equal those on one device, in float64; bit for bit where ranks add up nothing.
 * Throws `LawBroken` with the smallest counterexample and the first equation whose values differ.
 */
export const strategyPreservesMeaning = (given: Given, options: StrategyOptions = {}): void =>
  Law.assert(strategyCounterexample(given, options))
