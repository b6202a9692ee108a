import * as Gradient from "@tessera/core/Gradient"
import * as Recompute from "@tessera/core/Recompute"
import * as Simulate from "@tessera/core/Simulate"
import * as Step from "@tessera/core/Step"
import type { Choices } from "@tessera/core/Strategy"
import * as Strategy from "@tessera/core/Strategy"
import type { Subject } from "@tessera/core/testing"
import * as FirstDifference from "@tessera/core/testing/FirstDifference"
import * as Losses from "@tessera/core/testing/Losses"
import * as Sightings from "@tessera/core/testing/Sighting"
import * as Steps from "@tessera/core/testing/Steps"
import { strategyDifference } from "@tessera/core/testing/strategyLaw"
import * as Subjects from "@tessera/core/testing/Subject"
import * as Result from "effect/Result"
import { describe, expect, it } from "vitest"
import { layered, tagger, towers } from "./models.ts"

const models = [layered(0.25), towers, tagger]
const trial = Steps.adam(1)

/** The largest sizes of a subject. */
const sizesOf = ({ sizes }: Subject) =>
  Object.fromEntries(Object.entries(sizes).map(([name, values]) => [name, values[values.length - 1]!]))

const setup = (subject: Subject, choices: Choices) => {
  const experiment = subject.make(sizesOf(subject))
  const config = { ...experiment, optimizer: trial.optimizer, strategy: Strategy.make(choices) }
  const values = Subjects.draw(experiment, trial.optimizer, 3)
  const inputs = [...values.parameters, ...values.state, ...values.batch, ...Subjects.scalars(1, trial.rate, 3)]
  return { config, inputs }
}

// A place that is named where nothing is wrong would be a guess.
describe("where nothing is wrong, no equation is named", () => {
  const strategies: Readonly<Record<string, Choices>> = {
    data: { mesh: [["data", 2]] },
    "data and tensor, zero 3, microbatches": {
      mesh: [
        ["data", 2],
        ["tensor", 2]
      ],
      zero: 3,
      microbatches: 2
    },
    fsdp: { mesh: [["data", 2]], fsdp: {} },
    "recomputed layers": { mesh: [["data", 2]], recompute: { kind: "full", layers: 2 } },
    stages: {
      mesh: [
        ["stage", 2],
        ["data", 2]
      ],
      microbatches: 2
    }
  }
  for (const [name, choices] of Object.entries(strategies)) {
    const able = choices.mesh.some(([axis]) => axis === "stage") ? [layered(0.25)] : models
    it.each(able)(`${name}: $name`, (subject) => {
      const { config, inputs } = setup(subject, choices)
      const simulation = Result.getOrThrow(Simulate.step(config))
      expect(strategyDifference(simulation, config, inputs, 1e-10).difference).toBe(null)
    })
  }

  it.each(models)("microbatches: $name", (subject) => {
    const { config, inputs } = setup(subject, { mesh: [] })
    const one = Result.getOrThrow(Step.make(config)) as Step.StepProgram
    const cut = Result.getOrThrow(Step.make({ ...config, strategy: { ...config.strategy, microbatches: 2 } }))
    const body = Steps.forwardFirst(one)
    const run = FirstDifference.record({ body: cut.program, inputs })
    expect(FirstDifference.byValue({ body, inputs }, Sightings.ofRun(cut.program, run, [], 2), 1e-10)).toBe(null)
  })

  it.each(models)("recomputation: $name", (subject) => {
    const loss = Losses.of(subject.make(sizesOf(subject)), 3)
    const wrt = loss.parameters.map((_, i) => i)
    const again = Gradient.valueAndGrad(Recompute.apply(loss.body, Recompute.selective), wrt)
    const body = Gradient.valueAndGrad(loss.body, wrt)
    const seen = Sightings.ofRun(again, FirstDifference.record({ body: again, inputs: loss.inputs }), [])
    expect(FirstDifference.byValue({ body, inputs: loss.inputs }, seen, 0)).toBe(null)
  })
})
