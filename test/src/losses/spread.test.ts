/** Losses over pairs are one on every mesh and for every number of microbatches, for every parameter, in float64. */
import * as Axis from "@tessera/core/Axis"
import type * as Module from "@tessera/core/Module"
import type { Equation } from "@tessera/core/Node"
import * as Optimizer from "@tessera/core/Optimizer"
import { sgd } from "@tessera/core/optimizers/sgd"
import * as Simulate from "@tessera/core/Simulate"
import type { Choices } from "@tessera/core/Strategy"
import * as Step from "@tessera/core/Step"
import * as Strategy from "@tessera/core/Strategy"
import * as Arbitraries from "@tessera/core/testing/Arbitraries"
import { accumulationCounterexample, accumulationEqualsFullBatch } from "@tessera/core/testing/accumulationLaw"
import type { StrategyOptions } from "@tessera/core/testing/strategyLaw"
import { strategyPreservesMeaning, strategyProblem } from "@tessera/core/testing/strategyLaw"
import type { Sizes, Subject } from "@tessera/core/testing/Subject"
import * as T from "@tessera/core/Tensor"
import * as Contrastive from "@tessera/models/losses/contrastive"
import * as Result from "effect/Result"
import { describe, expect, it } from "vitest"
import type { Compare, Options } from "./towers.ts"
import { compares, towers } from "./towers.ts"

const sizes: Sizes = { batch: 8, embed: 4, mlp: 4 }
const both = [
  ["data", 2],
  ["tensor", 2]
] as const

const problem = (compare: Compare, strategy: Choices, options: StrategyOptions = {}, own: Options = {}) =>
  strategyProblem(towers(compare, own), options)({ sizes, strategy, seed: 3 })

describe("a loss over pairs", () => {
  it.each(Object.entries(compares))("is one on data and tensor meshes: %s", (_name, compare: Compare) => {
    expect(problem(compare, { mesh: both, microbatches: 2 })).toBe(null)
    const strategies = Arbitraries.choices(8, ["data", "tensor"])
    strategyPreservesMeaning(towers(compare), { strategies, runs: 4, steps: 1 })
  })

  it.each(Object.entries(compares))("is exact for every parameter in microbatches: %s", (_name, compare: Compare) => {
    accumulationEqualsFullBatch(towers(compare), { runs: 8 })
  })

  it.each(["own rows", "whole matrix", "sigmoid"] as const)("is one where exp(logit) is infinite: %s", (name) => {
    const strategy: Choices = { mesh: [["data", 4]], microbatches: 2 }
    expect(problem(compares[name], strategy, { tolerance: 1e-8 }, { logScale: Math.log(3000) })).toBe(null)
  })

  it("with the negatives of a microbatch is another loss for every number of them", () => {
    const own: Options = { negatives: "microbatch" }
    expect(problem(compares["own rows"], { mesh: [["data", 2]] }, {}, own)).toBe(null)
    expect(accumulationCounterexample(towers(compares["own rows"], own), { runs: 1 })).not.toBe(null)
  })
})

it("a step with the biased combination is not made", () => {
  const refused = towers((p) => Contrastive.loss(p, { gatherWithGrad: false }))
  const config = { ...refused.make(sizes), optimizer: Optimizer.make(sgd()) }
  const made = Simulate.step({ ...config, strategy: Strategy.make({ mesh: [["data", 4]] }) })
  expect(Result.isFailure(made) && made.failure).toMatchObject({ _tag: "RecipeError", key: "loss.gatherWithGrad" })
})

describe("the laws notice", () => {
  const [rows, pairs] = [compares["own rows"], compares.sigmoid]
  /** Another loss in place of the one that is asked for. */
  const found = (compare: Compare, other: (microbatches: number) => Subject) =>
    accumulationCounterexample(towers(compare), {
      runs: 1,
      implementation: (config) => Step.make({ ...config, loss: other(config.strategy.microbatches).make(sizes).loss })
    })
  const times = (x: T.Tensor<never>, factor: number): T.Tensor<never> => {
    const fixed = T.stopGradient(x)
    return T.add(fixed, T.scale(T.sub(x, fixed), factor))
  }

  it("nothing where nothing is changed", () => {
    expect(found(rows, () => towers(rows))).toBe(null)
    expect(found(pairs, () => towers(pairs))).toBe(null)
  })
  it("a scale that every one of k backward passes adds to", () => {
    expect(found(rows, (k) => towers((p) => rows({ ...p, logScale: times(p.logScale, k) })))).not.toBe(null)
  })
  it("a bias divided by k", () => {
    expect(found(pairs, (k) => towers((p) => pairs({ ...p, bias: times(p.bias, 1 / k) })))).not.toBe(null)
  })
  it("negatives of the microbatch only", () => {
    expect(found(rows, () => towers(rows, { negatives: "microbatch" }))).not.toBe(null)
  })
  it("dropout by the place in the microbatch", () => {
    const call = (c: Module.Call, batch: number): Module.Call => ({
      ...c,
      key: { ...c.key!, example: T.cast(T.iota("batch", batch), "u32") }
    })
    expect(found(rows, () => towers(rows, { call }))).not.toBe(null)
  })
  it("towers that do not learn from the columns of other ranks", () => {
    const wrong = towers(compares.biased).make(sizes)
    const options: StrategyOptions = { implementation: (config) => Simulate.step({ ...config, loss: wrong.loss }) }
    expect(problem(rows, { mesh: [["data", 4]] }, options)).not.toBe(null)
  })
})

/** All equations of a program, those in regions too. */
const all = (equations: ReadonlyArray<Equation>): ReadonlyArray<Equation> =>
  equations.flatMap((e) => {
    const { meaning } = e.primitive
    return meaning.kind === "region" ? meaning.bodies(e.params).flatMap((b) => all(b.equations)) : [e]
  })

describe("the program of one rank", () => {
  const rank = (compare: Compare, choices: Choices) => {
    const config = { ...towers(compare).make({ ...sizes, batch: 16 }), optimizer: Optimizer.make(sgd()) }
    const { how } = Result.getOrThrow(Simulate.step({ ...config, strategy: Strategy.make(choices) }))
    if (how.kind !== "spread") throw new Error("no pipeline was asked for")
    const equations = all(how.local.body.equations)
    const over = (name: string) =>
      equations
        .filter((e) => e.primitive.name === name)
        .flatMap((e) => e.inputs.map((x) => `${Axis.names(x.type.axes).toSorted().join()} over ${e.params.meshAxis}`))
        .filter((what) => /otherBatch|wholeBatch/.test(what) || (/batch/.test(what) && /joint/.test(what)))
        .toSorted()
    const largest = Math.max(
      ...equations.flatMap((e) =>
        e.outputs.filter((o) => !Axis.has(o.type.axes, "pixel")).map((o) => Axis.count(o.type.axes))
      )
    )
    return { gathers: over("allGather"), scatters: over("reduceScatter"), largest }
  }
  const bare =
    (options: Contrastive.Options): Compare =>
    ({ weights: _weights, ...pairs }) =>
      Contrastive.loss(pairs, options)
  const data: Choices = { mesh: [["data", 4]] }

  it("holds its own rows, gathers one side, and sends its cotangent home", () => {
    expect(rank(bare({}), data)).toEqual({
      gathers: ["joint,otherBatch over data"],
      scatters: ["batch,joint over data"],
      largest: 4 * 16
    })
  })
  it("or the whole matrix: both sides gathered, nothing to send home", () => {
    const whole = {
      gathers: ["joint,otherBatch over data", "joint,wholeBatch over data"],
      scatters: [],
      largest: 16 * 16
    }
    expect(rank(bare({ localLoss: false }), data)).toEqual(whole)
    expect(rank(bare({ localLoss: false, gatherWithGrad: false, ranks: 4 }), data)).toEqual(whole)
  })
  it("or, biased, its own rows of both directions", () => {
    expect(rank(bare({ gatherWithGrad: false, allowBiased: true }), data)).toEqual({
      gathers: ["joint,otherBatch over data", "joint,otherBatch over data"],
      scatters: [],
      largest: 4 * 16
    })
  })
  it("gathers over the data axes only", () => {
    for (const compare of Object.values(compares)) {
      const { gathers, scatters } = rank(compare, { mesh: both })
      expect(gathers.length).toBeGreaterThan(0)
      expect([...gathers, ...scatters].filter((what) => !what.endsWith("over data"))).toEqual([])
    }
  })
})
