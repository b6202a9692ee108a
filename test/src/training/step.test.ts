/** The step program: skipped updates, averages, frozen leaves, layer decay, loss scaling, donation, errors; and its sisters for evaluation. */
import * as Axis from "@tessera/core/Axis"
import * as Evaluate from "@tessera/core/Evaluate"
import type { HostArray } from "@tessera/core/HostArray"
import * as Host from "@tessera/core/HostArray"
import * as Module from "@tessera/core/Module"
import * as Optimizer from "@tessera/core/Optimizer"
import * as Precision from "@tessera/core/Precision"
import * as Program from "@tessera/core/Program"
import * as Step from "@tessera/core/Step"
import * as T from "@tessera/core/Tensor"
import { adamw } from "@tessera/core/optimizers/adamw"
import { sgd } from "@tessera/core/optimizers/sgd"
import * as Result from "effect/Result"
import * as fc from "fast-check"
import { describe, expect, it } from "vitest"
import * as M from "./models.ts"

const adam = Optimizer.make(adamw(), { decay: 0.1, clip: { maxNorm: 1, formula: "megatron" }, ema: { decay: 0.9 } })
const batch = 4
const leaves = Module.leaves(M.params)

const startOf = (optimizer: Optimizer.Optimizer) => {
  const values = M.start()
  return [...values, ...M.stateOf(optimizer, M.params, values)]
}
const runOn = (
  step: Step.StepProgram,
  state: ReadonlyArray<HostArray>,
  data: ReadonlyArray<HostArray>,
  scalars: M.Scalars = {}
) => Evaluate.runUnsafe(step.program, [...state, ...data, ...M.scalars(scalars)])
const same = (a: ReadonlyArray<HostArray>, b: ReadonlyArray<HostArray>) =>
  a.every((x, i) => Host.distance(x, b[i]!) === 0)

describe("Step", () => {
  it("descends", () => {
    const step = M.stepOf({ batch, optimizer: adam })
    let state: ReadonlyArray<HostArray> = startOf(adam)
    const losses = Array.from({ length: 30 }, (_, i) => {
      const out = runOn(step, state, M.dataOf(batch, 1), { step: i + 1, rate: 0.05, seed: i })
      state = out.slice(0, step.donated.length)
      return M.metricsOf(step, out)["loss"]!
    })
    expect(losses.at(-1)!).toBeLessThan(losses[0]! * 0.6)
  })

  it("keeps everything when nothing has weight, and says so", () => {
    for (const microbatches of [1, 2]) {
      const step = M.stepOf({ batch, optimizer: adam, microbatches })
      const state = startOf(adam)
      const out = runOn(step, state, M.dataOf(batch, 1, [0, 0, 0, 0]))
      expect(M.metricsOf(step, out)).toMatchObject({ loss: 0, weight: 0, gradientNorm: 0, finite: 1, updated: 0 })
      expect(same(out.slice(0, state.length), state)).toBe(true)
    }
  })

  it("keeps everything when a gradient is not finite, and says so", () => {
    const step = M.stepOf({ batch, optimizer: adam })
    const state = startOf(adam)
    for (const bad of [NaN, Infinity]) {
      const data = M.dataOf(batch, 1)
      data[0]!.data[3] = bad
      const out = runOn(step, state, data)
      expect(M.metricsOf(step, out)).toMatchObject({ finite: 0, updated: 0 })
      expect(same(out.slice(0, state.length), state)).toBe(true)
    }
  })

  it("a loss scale changes nothing", () => {
    const step = M.stepOf({ batch, optimizer: adam })
    const state = startOf(adam)
    const plain = runOn(step, state, M.dataOf(batch, 1))
    expect(M.difference(plain, runOn(step, state, M.dataOf(batch, 1), { lossScale: 2 ** 20 }))).toBeLessThan(1e-10)
  })

  it("an f16 gradient that overflows skips the update; half the scale, and the next goes through", () => {
    const step = M.stepOf({ batch, optimizer: adam, precision: Precision.f16 })
    const state = startOf(adam)
    let scale = Precision.initialLossScale(Precision.f16)
    let out: ReadonlyArray<HostArray> = []
    let skipped = 0
    for (; skipped < 60; skipped++) {
      out = runOn(step, state, M.dataOf(batch, 1), { lossScale: scale.scale })
      const finite = M.metricsOf(step, out)["finite"] === 1
      scale = Precision.nextLossScale(Precision.f16, scale, finite)
      if (finite) break
      expect(same(out.slice(0, state.length), state)).toBe(true)
    }
    expect(skipped).toBeGreaterThan(5)
    expect(M.metricsOf(step, out)["updated"]).toBe(1)
    const plain = runOn(M.stepOf({ batch, optimizer: adam }), state, M.dataOf(batch, 1))
    expect(
      Math.abs(M.metricsOf(step, out)["gradientNorm"]! / M.metricsOf(step, plain)["gradientNorm"]! - 1)
    ).toBeLessThan(0.01)
  })

  it("averages follow the parameters, once an update", () => {
    const step = M.stepOf({ batch, optimizer: adam, microbatches: 2 })
    let state: ReadonlyArray<HostArray> = startOf(adam)
    let average = [...state[0]!.data]
    for (let t = 1; t <= 5; t++) {
      state = runOn(step, state, M.dataOf(batch, t), { step: t, seed: t }).slice(0, step.donated.length)
      average = average.map((v, k) => 0.9 * v + 0.1 * state[0]!.data[k]!)
      state[state.length - leaves.length]!.data.forEach((v, k) => expect(v).toBeCloseTo(average[k]!, 10))
    }
  })

  it("frozen leaves stay bit-equal, have no state and no gradient; the others train as before", () => {
    const frozen = (leaf: Module.Leaf) => leaf.path.startsWith("blocks/") || leaf.path === "stem"
    const optimizer = Optimizer.make(adamw(), { trainable: (leaf) => !frozen(leaf), ema: { decay: 0.9 } })
    const step = M.stepOf({ batch, optimizer })
    const state = startOf(optimizer)
    expect(state.length).toBe(leaves.length + 2 * 3)
    const out = runOn(step, state, M.dataOf(batch, 1))
    leaves.forEach((leaf, i) => expect(same([out[i]!], [state[i]!])).toBe(frozen(leaf)))
    leaves.forEach((leaf, i) => expect(step.program.outputs[i] === step.program.inputs[i]).toBe(frozen(leaf)))
    // The backward of the frozen part is not there.
    expect(Program.print(step.program)).not.toContain("normBackward")
    expect(Program.print(M.stepOf({ batch, optimizer: adam }).program)).toContain("normBackward")
  })

  it("layer decay 0.5 over two layers: 1, 0.5, 0.25, 0.125", () => {
    const learningRateScale = Optimizer.layerDecay({ decay: 0.5, layers: 2, head: (l) => l.path === "head" })
    const scales = Object.fromEntries(leaves.map((l) => [l.path, learningRateScale(l)]))
    expect(scales).toMatchObject({ head: 1, stem: 0.125, "blocks/up": [0.25, 0.5] })
    const plain = Optimizer.make(sgd())
    const decayed = Optimizer.make(sgd(), { learningRateScale })
    const state = M.start()
    const move = (optimizer: Optimizer.Optimizer) =>
      runOn(M.stepOf({ batch, optimizer }), state, M.dataOf(batch, 1))
        .slice(0, leaves.length)
        .map((x, i) => {
          const y = Host.reorder(x, leaves[i]!.param.axes)
          return y.data.map((v, k) => v - state[i]!.data[k]!)
        })
    const [a, b] = [move(plain), move(decayed)]
    leaves.forEach((leaf, i) => {
      const s = scales[leaf.path]!
      a[i]!.forEach((v, k) =>
        expect(b[i]![k]).toBeCloseTo(v * (typeof s === "number" ? s : s[Math.floor((2 * k) / a[i]!.length)]!), 12)
      )
    })
  })

  it("donates parameters, state and averages to outputs of their own type, leaf by leaf", () => {
    const { donated, program } = M.stepOf({ batch, optimizer: adam, microbatches: 2 })
    expect(donated.length).toBe(leaves.length * 4)
    for (const [i, o] of donated) {
      expect(Axis.equal(program.inputs[i]!.type.axes, program.outputs[o]!.type.axes)).toBe(true)
      expect(program.inputs[i]!.type.dtype).toBe(program.outputs[o]!.type.dtype)
      expect(program.inputs[i]!.role).toBe(program.outputs[o]!.role)
    }
    // No second update begins before the first has taken over its memory.
    const names = program.equations.flatMap((e) =>
      e.primitive.name === "adamw"
        ? ["u"]
        : e.primitive.name === "select" && e.outputs[0]!.type.axes.length > 0
          ? ["s"]
          : []
    )
    expect(names.join("").replaceAll("ussss", "")).toMatch(/^u*$/)
  })

  it("differs in digest exactly where it differs", () => {
    expect(M.stepOf({ batch, optimizer: adam }).digest).toBe(M.stepOf({ batch, optimizer: adam }).digest)
    expect(M.stepOf({ batch, optimizer: adam }).digest).not.toBe(
      M.stepOf({ batch, optimizer: { ...adam, decay: 0.2 } }).digest
    )
  })

  it("refuses batches that contradict themselves, and metrics that are not sums", () => {
    const types = M.batchOf(batch)
    const make = (config: object) =>
      Step.make({ params: M.params, loss: M.loss, batch: types, optimizer: adam, ...config } as any)
    const message = (config: object) => {
      const made = make(config)
      return Result.isFailure(made) ? made.failure.message : "fine"
    }
    const { examples: _e, ...without } = types
    expect(message({ batch: without })).toContain("batch.examples: the logical index of every example is missing")
    expect(message({ batch: { ...types, label: { axes: Axis.list({ batch: 3 }), dtype: "i32" } } })).toBe(
      "batch.label: has 3 examples, batch.examples has 4; give all the same"
    )
    const withMetrics = (metrics: (l: any, b: any) => object) => ({
      loss: (p: any, b: any, call: any) => ({ ...M.loss(p, b, call), metrics: metrics(M.loss(p, b, call), b) })
    })
    expect(message(withMetrics((l) => ({ finite: l.total })))).toContain(
      "metrics.finite: the step reports this name itself"
    )
    expect(message(withMetrics((_l, b) => ({ each: b.weights })))).toContain("metrics.each: has the axes [batch=4]")
    const made = make({
      loss: (p: any, b: any) => ({ total: T.contract(p.stem, b.image, "no" as never), weight: b.weights })
    })
    expect(Result.isFailure(made) && made.failure._tag).toBe("ProgramError")
  })

  it("evaluation gives sums without dropout; forward gives outputs in f32", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 500 }), (seed) => {
        const data = M.dataOf(batch, seed, [1, 0, 2, 1])
        const [image, label, , weights] = data
        const types = M.batchOf(batch)
        const evaluate = Result.getOrThrow(
          Step.evaluation({
            params: M.params,
            batch: types,
            metrics: (p, b: any, call) => {
              const { metrics, total, weight } = M.loss(p, b, call)
              return { total, weight, ...metrics }
            }
          })
        )
        const given = [...M.start(M.params, seed), ...data]
        const [total, weight, correct] = Evaluate.runUnsafe(evaluate, given).map((x) => x.data[0]!)
        const forward = Result.getOrThrow(
          Step.forward({
            params: M.params,
            batch: { image: types.image },
            apply: (p, b: any, call) => ({ logits: M.logits(p, b.image, call) }),
            precision: Precision.bf16
          })
        )
        expect(forward.outputs[0]!.type.dtype).toBe("f32")
        const [logits] = Evaluate.runUnsafe(forward, [...given.slice(0, leaves.length), image!])
        const rows = Array.from({ length: batch }, (_, i) => [...Host.at(logits!, "batch", i).data])
        const w = [...weights!.data]
        const losses = rows.map((r, i) => Math.log(r.reduce((a, v) => a + Math.exp(v), 0)) - r[label!.data[i]!]!)
        expect(weight).toBe(4)
        expect(Math.abs(losses.reduce((a, v, i) => a + v * w[i]!, 0) - total!)).toBeLessThan(
          0.1 * (1 + Math.abs(total!))
        )
        expect(correct! >= 0 && correct! <= 4).toBe(true)
      }),
      { numRuns: 10 }
    )
  })
})
