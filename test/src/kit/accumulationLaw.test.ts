import type * as Accumulate from "@tessera/core/Accumulate"
import * as Module from "@tessera/core/Module"
import type { AnyTensor, Tensor } from "@tessera/core/Node"
import { build } from "@tessera/core/Node"
import type { ScanParams } from "@tessera/core/primitives/control"
import * as Program from "@tessera/core/Program"
import * as Step from "@tessera/core/Step"
import * as T from "@tessera/core/Tensor"
import type { Sizes, StepImplementation } from "@tessera/core/testing"
import { accumulationCounterexample, accumulationEqualsFullBatch } from "@tessera/core/testing"
import * as Result from "effect/Result"
import { describe, expect, it } from "vitest"
import { layered, tagger, towers } from "./models.ts"
import { replacing } from "./rewriting.ts"
import { expectSmall } from "./screen.ts"

describe("microbatches mean what the whole batch means", () => {
  it.each([layered(0.25), towers, tagger])("$name", (subject) => accumulationEqualsFullBatch(subject))
})

/** The program of a step with a fault. */
const faulty =
  (change: (program: Program.Body, microbatches: number) => Program.Body): StepImplementation =>
  (config) =>
    Result.map(Step.make(config), (step) => ({
      ...step,
      program: Program.withBody(step.program, change(step.program, config.strategy.microbatches))
    }))

/** A step whose loss has a fault. */
const withLoss =
  (change: (loss: Accumulate.Loss) => Accumulate.Loss): StepImplementation =>
  (config) =>
    Step.make({ ...config, loss: (...given) => change((config.loss as Step.LossFunction<any, any>)(...given)) })

const divided = ({ total, weight }: Accumulate.Loss): Accumulate.Loss => ({
  total: T.div(total, weight),
  weight: T.constant(1)
})

/** The mean of the means of microbatches, whatever each of them weighs. */
const meanOfMeans = withLoss(divided)

/** Every microbatch numbers its examples from the beginning: all of them draw the masks of the first. */
const sharedKey: StepImplementation = (config) =>
  Step.make({
    ...config,
    loss: (params, batch, call) => {
      const size = T.sizeOf(batch.examples as AnyTensor, "batch")
      const key = { ...call.key!, example: T.iota("batch", size, "u32") as AnyTensor }
      return (config.loss as Step.LossFunction<any, any>)(params, batch, Module.training(key))
    }
  })

/** The loop over microbatches stops before the last one. */
const lastForgotten = faulty((body) =>
  replacing("scan", (e, inputs) => {
    const p = e.params as ScanParams
    if (p.axis !== "micro") return null
    const axis = (x: AnyTensor, i: number) =>
      i < p.carried || i >= p.carried + p.each
        ? x
        : T.slice(x as Tensor<"micro">, "micro", { to: "micro", start: 0, size: p.size - 1 })
    const roles = e.outputs.map((o) => o.role)
    return build(e.primitive, inputs.map(axis), { ...p, size: p.size - 1 }, roles)
  })(body)
)

/** Each microbatch clips its own gradients. */
const clippedEach = faulty((body) =>
  replacing("scan", (e, inputs) => {
    const p = e.params as ScanParams
    if (p.axis !== "micro") return null
    const outputs = p.body.outputs.map((o) =>
      o.role === "gradient" ? T.maximum(T.minimum(o as Tensor<string>, T.constant(0.1)), T.constant(-0.1)) : o
    )
    const roles = e.outputs.map((o) => o.role)
    return build(e.primitive, inputs, { ...p, body: Program.body(p.body.inputs, outputs) }, roles)
  })(body)
)

/** Only examples of the same microbatch are compared, though the loss says that all are. */
const localNegatives: StepImplementation = (config) =>
  Step.make({ ...config, loss: { ...(config.loss as Step.PairwiseLoss<any, any>), negatives: "microbatch" } })

describe("the law catches", () => {
  const find = (implementation: StepImplementation, subject = layered(0.25)) =>
    accumulationCounterexample(subject, { implementation, seed: 3 })
  const plainest = ["sizes: batch=2, embed=2, layers=1, mlp=2\n", "one device, 2 microbatches\n"]

  it("the mean of the means of microbatches", () => expectSmall(find(meanOfMeans), ...plainest))
  it("a dropout key that microbatches share", () => expectSmall(find(sharedKey), ...plainest, "randomBits("))
  it("a loop that forgets the last microbatch", () => expectSmall(find(lastForgotten), ...plainest))
  it("gradients that each microbatch clips", () => expectSmall(find(clippedEach), ...plainest))
  it("negatives from the own microbatch only", () =>
    expectSmall(find(localNegatives, towers), "batch=2, embed=2\n", "2 microbatches\n", "contract("))
})

it("a loss that divides by the weight of its examples does not accumulate, and the division is named", () => {
  const { make, ...rest } = layered(0)
  const dividing = (sizes: Sizes) => {
    const experiment = make(sizes)
    const loss = experiment.loss as Step.LossFunction<any, any>
    return { ...experiment, loss: (...given: Parameters<typeof loss>) => divided(loss(...given)) }
  }
  const found = accumulationCounterexample({ ...rest, make: dividing }, { seed: 3 })
  expectSmall(found, "2 microbatches")
  expect(found!.message).toMatch(/first different equation: .* = div\(/)
})
