/** Ranks agree: in what they do together, and in what they should all hold. */
import * as fc from "fast-check"
import * as Result from "effect/Result"
import type { PartitionError, ProgramError, RecipeError } from "../Errors.ts"
import * as Evaluate from "../Evaluate.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import * as Layout from "../Layout.ts"
import * as Mesh from "../Mesh.ts"
import type { AnyTensor, Body, Lockstep } from "../Node.ts"
import { specialise } from "../partition/Specialise.ts"
import * as Simulate from "../Simulate.ts"
import type * as Step from "../Step.ts"
import type { Choices } from "../Strategy.ts"
import * as Strategy from "../Strategy.ts"
import * as Arbitraries from "./Arbitraries.ts"
import * as FirstDifference from "./FirstDifference.ts"
import * as Law from "./Law.ts"
import { Recording } from "./Recording.ts"
import * as Rendezvous from "./Rendezvous.ts"
import * as Steps from "./Steps.ts"
import type { Given, Sizes } from "./Subject.ts"
import * as Subjects from "./Subject.ts"

/** What every rank runs, one program after another, and a step of all of them together. */
export interface Ranks {
  readonly programs: ReadonlyArray<ReadonlyArray<Body>>
  readonly simulation: Simulate.Simulation
}

/** The programs of a simulation, for each rank as it knows itself. */
export const ranksOf = (simulation: Simulate.Simulation, mesh: Mesh.Mesh): Ranks => {
  const { how } = simulation
  const ranks = Array.from({ length: Mesh.rankCount(mesh) }, (_, rank) => rank)
  if (how.kind === "spread")
    return { simulation, programs: ranks.map((rank) => [specialise(how.local.body, mesh, rank)]) }
  const { chunks, pipeline, stages, ticks, update } = how.step
  const programs = ranks.map((rank) => {
    const stage = Mesh.coordinate(mesh, rank, pipeline.meshAxis)
    const parts = ticks[stage]!.map(({ chunk, pass }) => chunks[chunk * stages + stage]![pass].body)
    return [...parts, update.body]
  })
  return { simulation, programs }
}

export interface CollectivesOptions extends Law.Options {
  /** Strategies to try; any combination on meshes of up to 8 ranks unless given. */
  readonly strategies?: fc.Arbitrary<Choices>
  /** How the programs of all ranks are made, to try another way; those of `Simulate.step` unless given. */
  readonly implementation?: RanksImplementation
}

export type RanksImplementation = (
  config: Step.Config<any, any> & { readonly strategy: Strategy.Strategy }
) => Result.Result<Ranks, ProgramError | RecipeError | PartitionError>

interface Case {
  readonly sizes: Sizes
  readonly strategy: Choices
  readonly seed: number
}

const usual: RanksImplementation = (config) =>
  Result.map(Simulate.step(config), (made) => ranksOf(made, config.strategy.mesh))

const trial = Steps.adam(1)

/** What is wrong with one case. */
const problem =
  (given: Given, { implementation = usual }: CollectivesOptions) =>
  ({ seed, sizes, strategy: chosen }: Case): Law.Verdict => {
    const subject = Subjects.of(given)
    const experiment = subject.make(sizes)
    const strategy = Strategy.make(chosen)
    const config = { ...experiment, optimizer: trial.optimizer, strategy }
    return Law.legal(implementation(config), ["PartitionError", "RecipeError"], ({ programs, simulation }) => {
      const missed = Rendezvous.meet(strategy.mesh, programs)
      if (missed !== null) return { what: `${subject.name}: ${missed.what}`, where: () => calls(missed) }
      const values = Subjects.draw(experiment, trial.optimizer, seed)
      const [outcome] = Steps.train(simulation.run, values, trial, seed)
      const { disagreement, inputs } = outcome!
      if (disagreement === 0) return null
      return {
        what: `${subject.name}: ranks that should hold the same are ${disagreement.toExponential(1)} apart after a step`,
        where: () => located(simulation, strategy.mesh, inputs)
      }
    })
  }

/** The first rank that does not come as the first one does, then where all of them are. */
const calls = ({ ranks }: Rendezvous.Missed): ReadonlyArray<string> => {
  const odd = ranks.find(({ call }) => call !== ranks[0]!.call) ?? ranks[0]!
  const others = ranks.filter((one) => one !== odd).slice(0, 7)
  return [
    `first different equation: rank ${odd.rank}, ${odd.call}`,
    ...others.map(({ call, rank }) => `  rank ${rank}, ${call}`)
  ]
}

/** The first equation of the ranks' program whose results should be the same on several of them and are not. */
const located = (
  { how }: Simulate.Simulation,
  mesh: Mesh.Mesh,
  inputs: ReadonlyArray<HostArray>
): ReadonlyArray<string> => {
  const nowhere = ["ranks agree on every equation whose layout is known"]
  if (how.kind === "pipelined") return nowhere
  const { local, step } = how
  const layouts = new Map<AnyTensor, Layout.Layout>()
  for (const versions of local.held.values()) for (const v of versions) layouts.set(v.tensor, v.layout)
  const run = new Recording()
  Evaluate.lockstep(local.body, Simulate.parts(step, local, mesh, inputs), mesh, run.observe)
  for (const { equation, occurrence, output, value } of run.all) {
    const layout = layouts.get(equation.outputs[output]!)
    const pair = layout === undefined ? null : apart(value, layout, mesh)
    if (layout === undefined || pair === null) continue
    const [a, b] = pair
    const [expected, found] = [value[a]!, value[b]!]
    const distance = Host.distance(expected, found)
    return FirstDifference.print({ equation, output, occurrence, layout, distance, expected, found }, local.body, {
      expected: `rank ${a}`,
      found: `rank ${b}`
    })
  }
  return nowhere
}

/** Two ranks that should hold the same and do not. */
const apart = (value: Lockstep, layout: Layout.Layout, mesh: Mesh.Mesh): readonly [number, number] | null => {
  for (const [meshAxis] of mesh) {
    if (layout.get(meshAxis) !== "whole") continue
    for (const rank of value.keys()) {
      const [first] = Mesh.peers(mesh, rank, meshAxis)
      if (Host.distance(value[first!]!, value[rank]!) !== 0) return [first!, rank]
    }
  }
  return null
}

const law = (given: Given, { strategies = Arbitraries.choices(8) }: CollectivesOptions): Law.Law<Case> => ({
  name: "collectivesAgree",
  cases: fc.record({ sizes: Arbitraries.sizes(Subjects.of(given)), strategy: strategies, seed: Arbitraries.seed }),
  show: ({ seed, sizes, strategy }) => [
    ...Steps.showSizes(sizes),
    ...Steps.showStrategy(strategy),
    `values from seed ${seed}`
  ]
})

/** The smallest case in which ranks do not agree, or null. */
export const collectivesCounterexample = (given: Given, options: CollectivesOptions = {}): Law.LawBroken | null =>
  Law.counterexample(law(given, options), problem(given, options), options, 20)

/**
 * Under any strategy all ranks come to the same collectives in the same order with operands of the same types, and nobody waits for ever; after a step
 * all ranks that should hold the same do so, bit for bit. Throws `LawBroken` with the smallest counterexample and the first equation in which ranks
 * differ.
 */
export const collectivesAgree = (given: Given, options: CollectivesOptions = {}): void =>
  Law.assert(collectivesCounterexample(given, options))
