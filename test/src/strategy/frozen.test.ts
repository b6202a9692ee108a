/**
 * Frozen parameters, averages and the norm that clips, under every strategy: frozen ones never share a flat tensor with trained ones and keep no state,
 * and the norm is that of all ranks together.
 */
import type { HostArray } from "@tessera/core/HostArray"
import * as Optimizer from "@tessera/core/Optimizer"
import { adamw } from "@tessera/core/optimizers/adamw"
import * as Precision from "@tessera/core/Precision"
import * as Simulate from "@tessera/core/Simulate"
import type { Choices } from "@tessera/core/Strategy"
import * as Strategy from "@tessera/core/Strategy"
import { widest } from "@tessera/core/testing/compare"
import * as Subjects from "@tessera/core/testing/Subject"
import * as Result from "effect/Result"
import { expect, it } from "vitest"
import { decoder, vit } from "../programs/subjects.ts"
import { alone } from "./alone.ts"

/** Every second declared parameter is frozen, so that trained and frozen ones lie beside each other in every layer. */
const optimizerFor = (params: Parameters<typeof Optimizer.trained>[1]) => {
  const all = Optimizer.trained(Optimizer.make(adamw()), params).map((l) => l.path)
  const frozen = new Set(all.filter((_, i) => i % 2 === 1))
  return Optimizer.make(adamw({ epsilon: 1e-4 }), {
    decay: 0.1,
    clip: { maxNorm: 0.2, formula: "optax" },
    ema: { decay: 0.9 },
    trainable: (leaf) => !frozen.has(leaf.path)
  })
}

/** Outputs of two steps on one device, which are the same for all strategies. */
const truths = new Map<string, ReadonlyArray<ReadonlyArray<HostArray>>>()

const combined: Readonly<Record<string, Choices>> = {
  ...alone,
  "fsdp and tensor, accumulated": {
    mesh: [
      ["data", 2],
      ["tensor", 2]
    ],
    fsdp: {},
    microbatches: 2
  },
  "pipeline and zero 1": {
    mesh: [
      ["stage", 2],
      ["data", 2]
    ],
    zero: 1,
    microbatches: 2
  }
}

it.each(Object.entries(combined))("%s", (_, choices: Choices) => {
  for (const subject of [vit(1), decoder(true)]) {
    const sizes = Object.fromEntries(Object.entries(subject.sizes).map(([name, values]) => [name, values[0]!]))
    const experiment = subject.make({ ...sizes, batch: 8, layers: 4 })
    for (const precision of [Precision.f32, Precision.bf16]) {
      const config = { ...experiment, precision, optimizer: optimizerFor(experiment.params) }
      const values = Subjects.draw(experiment, config.optimizer, 3)
      const step = (strategy: Strategy.Strategy) => Result.getOrThrow(Simulate.step({ ...config, strategy })).run
      const steps = (run: ReturnType<typeof step>) => {
        let held: ReadonlyArray<HostArray> = [...values.parameters, ...values.state]
        return [1, 2].map((k) => {
          const { disagreement, outputs } = run([...held, ...values.batch, ...Subjects.scalars(k, 0.02, 3)])
          held = outputs.slice(0, held.length)
          expect(disagreement).toBe(0)
          return outputs
        })
      }
      const key = `${subject.name} ${precision.name}`
      const truth = truths.get(key) ?? steps(step(Strategy.single))
      truths.set(key, truth)
      const found = steps(step(Strategy.make(choices)))
      // In 16 bits sums in another order are rounded to other neighbours.
      const tolerance = precision === Precision.f32 ? 1e-10 : 0.05
      truth.forEach((outputs, k) => expect(widest(outputs, found[k]!).distance).toBeLessThan(tolerance))
    }
  }
})
