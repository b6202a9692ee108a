/** k microbatches equal one batch: state, parameters and every metric, whatever the optimizer, the clipping and the weights. */
import * as Accumulate from "@tessera/core/Accumulate"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Optimizer from "@tessera/core/Optimizer"
import * as Program from "@tessera/core/Program"
import type * as Recompute from "@tessera/core/Recompute"
import * as Step from "@tessera/core/Step"
import * as Strategy from "@tessera/core/Strategy"
import * as T from "@tessera/core/Tensor"
import { adafactor } from "@tessera/core/optimizers/adafactor"
import { adamw } from "@tessera/core/optimizers/adamw"
import { lamb } from "@tessera/core/optimizers/lamb"
import { lion } from "@tessera/core/optimizers/lion"
import { sgd } from "@tessera/core/optimizers/sgd"
import * as Result from "effect/Result"
import * as fc from "fast-check"
import { describe, expect, it } from "vitest"
import * as M from "./models.ts"

type Loss = typeof M.loss

const rules = {
  sgd: sgd({ momentum: 0.9 }),
  nesterov: sgd({ momentum: 0.9, nesterov: true }),
  adamw: adamw(),
  lion: lion(),
  lamb: lamb(),
  adafactor: adafactor({ least: 2, momentumType: "f32" })
}
const clips: ReadonlyArray<Optimizer.Clip | null> = [
  null,
  { maxNorm: 0.1, formula: "megatron" },
  { maxNorm: 0.1, formula: "optax" }
]

const optimizerOf = (rule: keyof typeof rules, clip: number) =>
  Optimizer.make(rules[rule], { decay: 0.1, clip: clips[clip]!, ema: { decay: 0.9 } })

const programs = new Map<string, Step.StepProgram>()
const programOf = (
  loss: Loss,
  rule: keyof typeof rules,
  clip: number,
  batch: number,
  microbatches: number,
  full: boolean
) => {
  const key = JSON.stringify([loss.name, rule, clip, batch, microbatches, full])
  const known = programs.get(key)
  if (known !== undefined) return known
  const recompute: Recompute.Policy = { kind: full ? "full" : "none" }
  const made = Result.getOrThrow(
    Step.make({
      params: M.params,
      loss,
      batch: M.batchOf(batch),
      optimizer: optimizerOf(rule, clip),
      strategy: { ...Strategy.single, microbatches, recompute }
    })
  )
  programs.set(key, made)
  return made
}

interface Case {
  readonly rule: keyof typeof rules
  readonly clip: number
  readonly shape: readonly [batch: number, microbatches: number]
  readonly weights: ReadonlyArray<number>
  readonly seed: number
  readonly full: boolean
}

/** The law's checker: the largest relative difference after one step between k microbatches and one batch, in state and metrics. */
const gap = (loss: Loss, { clip, full, rule, seed, shape: [batch, k], weights }: Case): number => {
  const one = programOf(loss, rule, clip, batch, 1, false)
  const many = programOf(loss, rule, clip, batch, k, full)
  const values = M.start(M.params, seed)
  const given = [
    ...values,
    ...M.stateOf(optimizerOf(rule, clip), M.params, values),
    ...M.dataOf(batch, seed, weights.slice(0, batch)),
    ...M.scalars({ rate: 0.05, step: 1 + (seed % 4), seed })
  ]
  return M.difference(Evaluate.runUnsafe(one.program, given), Evaluate.runUnsafe(many.program, given))
}

const cases = fc.record({
  rule: fc.constantFrom(...(Object.keys(rules) as ReadonlyArray<keyof typeof rules>)),
  clip: fc.nat({ max: 2 }),
  shape: fc.constantFrom([2, 2], [4, 2], [4, 4], [6, 3], [6, 2], [5, 5], [4, 1]) as fc.Arbitrary<
    readonly [number, number]
  >,
  weights: fc.array(fc.oneof(fc.constantFrom(0, 0, 1, 1, 1), fc.double({ min: 0.01, max: 30, noNaN: true })), {
    minLength: 6,
    maxLength: 6
  }),
  seed: fc.integer({ min: 1, max: 1000 }),
  full: fc.boolean()
})

describe("accumulation", () => {
  it("k microbatches equal one batch, with dropout, unequal and zero weights", () => {
    fc.assert(
      fc.property(cases, (c) => {
        expect(gap(M.loss, c)).toBeLessThan(1e-8)
      }),
      { numRuns: 240 }
    )
  })

  it("the law notices a mean taken in every microbatch, and a sum of means", () => {
    const meanOfMeans: Loss = (p, b, call) => {
      const { metrics, total, weight } = M.loss(p, b, call)
      return { total: T.div(total, weight), weight: T.constant(1), metrics: metrics! }
    }
    const c: Case = { rule: "sgd", clip: 0, shape: [4, 2], weights: [1, 2, 5, 1, 1, 1], seed: 3, full: false }
    expect(gap(meanOfMeans, c)).toBeGreaterThan(1e-3)
    // Adam forgives a factor, but not clipping and not unequal weights.
    expect(gap(meanOfMeans, { ...c, rule: "adamw", clip: 1 })).toBeGreaterThan(1e-4)
  })

  it("the law notices dropout that counts within the microbatch", () => {
    const local: Loss = (p, b, call) => {
      const position = T.cast(T.iota("batch", b.examples.type.axes[0].size), "u32")
      return M.loss(p, b, { ...call, key: { ...call.key!, example: position } })
    }
    expect(
      gap(local, { rule: "sgd", clip: 0, shape: [4, 2], weights: [1, 1, 1, 1], seed: 3, full: false })
    ).toBeGreaterThan(1e-4)
  })

  it("one microbatch makes no loop; several make one, which adds up f32", () => {
    const loops = (k: number) =>
      programOf(M.loss, "adamw", 1, 4, k, false).program.equations.filter(
        (e) => e.primitive.name === "scan" && e.params.axis === "micro"
      )
    expect(loops(1).length).toBe(0)
    const [loop] = loops(4)
    expect(loops(4).length).toBe(1)
    expect(loop!.outputs.every((o) => o.type.dtype === "f32")).toBe(true)
    expect(loop!.params).toMatchObject({ carried: 0, stacked: 0, size: 4 })
  })

  it("programs type-check", () => {
    for (const p of programs.values()) expect(Program.check(p.program)).toBe(null)
  })

  it("refuses a batch that does not divide, naming both and the nearest that does", () => {
    const made = Step.make({
      params: M.params,
      loss: M.loss,
      batch: M.batchOf(12),
      optimizer: optimizerOf("sgd", 0),
      strategy: { ...Strategy.single, microbatches: 5 }
    })
    expect(Result.isFailure(made) && made.failure.message).toBe(
      "strategy.microbatches: 5 microbatches do not divide a batch of 12 examples; the nearest number that does is 4"
    )
    expect(Result.getOrThrow(Accumulate.size(12, 4))).toBe(3)
    expect(Result.isFailure(Accumulate.size(12, 0))).toBe(true)
    expect(Result.isFailure(Accumulate.size(12, 2.5))).toBe(true)
  })
})
