/** Every rule against its formula in plain loops, over five steps. */
import { adafactor } from "@tessera/core/optimizers/adafactor"
import { adamw } from "@tessera/core/optimizers/adamw"
import { lamb } from "@tessera/core/optimizers/lamb"
import { lion } from "@tessera/core/optimizers/lion"
import { sgd } from "@tessera/core/optimizers/sgd"
import * as Axis from "@tessera/core/Axis"
import * as DType from "@tessera/core/DType"
import * as Evaluate from "@tessera/core/Evaluate"
import type { HostArray } from "@tessera/core/HostArray"
import * as Host from "@tessera/core/HostArray"
import * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import { input } from "@tessera/core/Node"
import * as Optimizer from "@tessera/core/Optimizer"
import * as Program from "@tessera/core/Program"
import * as fc from "fast-check"
import { describe, expect, it } from "vitest"
import * as M from "./models.ts"

const inner = Module.make(
  { s: Module.param({ embed: 2, mlp: 3 }, Init.normal(1)) },
  (_p, layer: Module.Layer<"batch">): Module.LayerResult<"batch"> => ({ value: layer.value, captured: {} })
)
const tree = {
  w: Module.param({ embed: 3, mlp: 4 }, Init.normal(1)),
  b: Module.param({ mlp: 4 }, Init.normal(1), { decay: false }),
  stack: Module.stack(inner, 2).params,
  t: Module.param({}, Init.ones)
}
const leaves = Module.leaves(tree)

/** Gradients and scalars in, the next parameters, state and averages out. */
const updateProgram = (optimizer: Optimizer.Optimizer) => {
  const parameters = leaves.map((l) => input({ axes: l.param.axes, dtype: "f32" }, "parameter"))
  const gradients = leaves.map((l) => input({ axes: l.param.axes, dtype: "f32" }, "gradient"))
  const state = Optimizer.inputs(optimizer, tree)
  const scalars = ["total", "weight", "learningRate", "step", "lossScale"].map(() => input({ axes: [], dtype: "f32" }))
  const [total, weight, learningRate, step, lossScale] = scalars as any
  const next = Optimizer.update(optimizer, leaves, {
    parameters: new Map(leaves.map((l, i) => [l.path, parameters[i]!])),
    gradients: new Map(leaves.map((l, i) => [l.path, gradients[i]!])),
    state: state.optimizer,
    ema: state.ema,
    total,
    weight,
    learningRate,
    step,
    lossScale
  })
  return Program.make(
    { parameters, state: state.optimizer, ema: state.ema ?? {}, gradients, scalars },
    {
      parameters: leaves.map((l) => next.parameters.get(l.path)!),
      state: next.state,
      ema: next.ema ?? {},
      norm: next.gradientNorm
    }
  )
}

interface Formula {
  /** One layer of one leaf: changes `p` and `s` in place. `shape` has the sizes of the axes of the layer. */
  readonly step: (
    p: Array<number>,
    g: ReadonlyArray<number>,
    s: Record<string, any>,
    t: number,
    rate: number,
    decay: number,
    shape: ReadonlyArray<number>
  ) => void
}

/** Runs both for five steps; the largest difference of parameters. */
const compare = (optimizer: Optimizer.Optimizer, formula: Formula, seed: number): number => {
  const program = updateProgram(optimizer)
  const next = M.noise(seed)
  let values: ReadonlyArray<HostArray> = leaves.map((l) =>
    Host.make(l.param.axes, "f32", Array.from({ length: Axis.count(l.param.axes) }, next))
  )
  const plain = leaves.map((l, i) => {
    const all = [...values[i]!.data]
    const count = l.param.repeated.length === 0 ? 1 : 2
    return Array.from({ length: count }, (_, k) => all.slice((k * all.length) / count, ((k + 1) * all.length) / count))
  })
  const memory = plain.map((layers) => layers.map(() => ({})))
  let state = M.stateOf(optimizer, tree, values)
  let worst = 0
  for (let t = 1; t <= 5; t++) {
    const gradients = leaves.map((l) =>
      Host.make(l.param.axes, "f32", Array.from({ length: Axis.count(l.param.axes) }, next))
    )
    const [weight, rate, lossScale] = [3, 0.03 * t, 1024]
    const scaled = gradients.map((g) => ({ ...g, data: g.data.map((v) => v * weight * lossScale) }))
    const scalars = [1, weight, rate, t, lossScale].map((v) => Host.scalar(v))
    const out = Evaluate.runUnsafe(program, [...values, ...state, ...scaled, ...scalars])
    const norm = Math.hypot(...gradients.flatMap((g) => [...g.data]))
    const { clip } = optimizer
    const factor =
      clip === null
        ? 1
        : clip.formula === "megatron"
          ? Math.min(1, clip.maxNorm / (norm + 1e-6))
          : norm < clip.maxNorm
            ? 1
            : clip.maxNorm / norm
    worst = Math.max(worst, Math.abs(out.at(-1)!.data[0]! - norm))
    leaves.forEach((leaf, i) => {
      const scale = optimizer.learningRateScale(leaf)
      const decay = optimizer.decayMask(leaf) ? optimizer.decay : 0
      plain[i]!.forEach((p, k) => {
        const own = [...gradients[i]!.data].slice(k * p.length, (k + 1) * p.length).map((v) => v * factor)
        const shape = Axis.without(leaf.param.axes, leaf.param.repeated).map((a) => a.size)
        formula.step(p, own, memory[i]![k]!, t, rate * (typeof scale === "number" ? scale : scale[k]!), decay, shape)
      })
      const found = Host.reorder(out[i]!, leaf.param.axes).data
      plain[i]!.flat().forEach((v, k) => (worst = Math.max(worst, Math.abs(v - found[k]!))))
    })
    values = out.slice(0, leaves.length)
    state = out.slice(leaves.length, -1)
  }
  return worst
}

const zeros = (p: ReadonlyArray<number>) => p.map(() => 0)
const root = (p: ReadonlyArray<number>) => Math.hypot(...p)

/** torch.optim.AdamW, single-tensor form. */
const adamFormula = (b1: number, b2: number, epsilon: number, first = (x: number) => x): Formula => ({
  step: (p, g, s, t, rate, decay) => {
    s["m"] ??= zeros(p)
    s["v"] ??= zeros(p)
    for (let i = 0; i < p.length; i++) {
      p[i]! *= 1 - rate * decay
      const m = b1 * s["m"][i] + (1 - b1) * g[i]!
      s["m"][i] = first(m)
      s["v"][i] = b2 * s["v"][i] + (1 - b2) * g[i]! * g[i]!
      const denominator = Math.sqrt(s["v"][i]) / Math.sqrt(1 - b2 ** t) + epsilon
      p[i]! -= (rate / (1 - b1 ** t)) * (m / denominator)
    }
  }
})

/** torch.optim.SGD without dampening. */
const sgdFormula = (momentum: number, nesterov: boolean): Formula => ({
  step: (p, g, s, t, rate, decay) => {
    for (let i = 0; i < p.length; i++) {
      let d = g[i]! + decay * p[i]!
      if (momentum !== 0) {
        s["b"] ??= zeros(p)
        s["b"][i] = t === 1 ? d : momentum * s["b"][i] + d
        d = nesterov ? d + momentum * s["b"][i] : s["b"][i]
      }
      p[i]! -= rate * d
    }
  }
})

const lionFormula = (b1: number, b2: number): Formula => ({
  step: (p, g, s, _t, rate, decay) => {
    s["m"] ??= zeros(p)
    for (let i = 0; i < p.length; i++) {
      const c = b1 * s["m"][i] + (1 - b1) * g[i]!
      p[i]! -= rate * (Math.sign(c) + decay * p[i]!)
      s["m"][i] = b2 * s["m"][i] + (1 - b2) * g[i]!
    }
  }
})

const lambFormula = (b1: number, b2: number, epsilon: number): Formula => ({
  step: (p, g, s, t, rate, decay) => {
    s["m"] ??= zeros(p)
    s["v"] ??= zeros(p)
    const r = p.map((x, i) => {
      s["m"][i] = b1 * s["m"][i] + (1 - b1) * g[i]!
      s["v"][i] = b2 * s["v"][i] + (1 - b2) * g[i]! ** 2
      return s["m"][i] / (1 - b1 ** t) / (Math.sqrt(s["v"][i] / (1 - b2 ** t)) + epsilon) + decay * x
    })
    const ratio = root(p) === 0 || root(r) === 0 ? 1 : root(p) / root(r)
    r.forEach((v, i) => (p[i]! -= rate * ratio * v))
  }
})

/** arXiv:1804.04235, algorithms 4 and 5, with the options of optax. */
const adafactorFormula = (o: {
  least: number
  cap: number
  clipping: number | null
  momentum: number | null
  relative: number | null
}): Formula => ({
  step: (p, g, s, t, rate, decay, shape) => {
    const b = Math.min(o.cap, 1 - t ** -0.8)
    const square = g.map((x) => x * x + 1e-30)
    let u: Array<number>
    if (shape.length === 2 && Math.min(...shape) >= o.least) {
      const [n, m] = shape as [number, number]
      s["r"] ??= Array(n).fill(0)
      s["c"] ??= Array(m).fill(0)
      for (let i = 0; i < n; i++)
        s["r"][i] = b * s["r"][i] + ((1 - b) * square.slice(i * m, (i + 1) * m).reduce((a, x) => a + x, 0)) / m
      for (let j = 0; j < m; j++)
        s["c"][j] = b * s["c"][j] + ((1 - b) * square.filter((_, k) => k % m === j).reduce((a, x) => a + x, 0)) / n
      const mean = s["r"].reduce((a: number, x: number) => a + x, 0) / n
      u = g.map((x, k) => x / Math.sqrt((s["r"][Math.floor(k / m)] * s["c"][k % m]) / mean))
    } else {
      s["v"] ??= zeros(p)
      u = g.map((x, k) => x / Math.sqrt((s["v"][k] = b * s["v"][k] + (1 - b) * square[k]!)))
    }
    const rms = (x: ReadonlyArray<number>) => root(x) / Math.sqrt(x.length)
    if (o.clipping !== null) {
      const by = Math.max(1, rms(u) / o.clipping)
      u = u.map((x) => x / by)
    }
    if (o.relative !== null) {
      const by = Math.max(o.relative, rms(p))
      u = u.map((x) => x * by)
    }
    if (o.momentum !== null) {
      s["m"] ??= zeros(p)
      u = u.map((x, k) => {
        const m = o.momentum! * s["m"][k] + (1 - o.momentum!) * x
        s["m"][k] = DType.store("bf16", m)
        return m
      })
    }
    for (let k = 0; k < p.length; k++) p[k] = p[k]! * (1 - rate * decay) - rate * u[k]!
  }
})

const clips = [
  null,
  { maxNorm: 1, formula: "megatron" },
  { maxNorm: 1, formula: "optax" },
  { maxNorm: 100, formula: "optax" }
] as const
const settings = fc.record({
  seed: fc.integer({ min: 1, max: 10_000 }),
  decay: fc.constantFrom(0, 0.1),
  clip: fc.constantFrom(...clips),
  layered: fc.boolean()
})
const factor = (layered: boolean) => (leaf: Module.Leaf) =>
  leaf.param.repeated.length > 0 && layered ? [0.25, 0.5] : layered ? 0.125 : 1

const holds = (rule: Optimizer.Rule, formula: Formula, tolerance = 1e-9) =>
  fc.assert(
    fc.property(settings, ({ clip, decay, layered, seed }) => {
      const optimizer = Optimizer.make(rule, { decay, clip, learningRateScale: factor(layered), ema: { decay: 0.5 } })
      expect(compare(optimizer, formula, seed)).toBeLessThan(tolerance)
    }),
    { numRuns: 12 }
  )

describe("rules equal their formulas", () => {
  it("AdamW as torch.optim.AdamW", () => holds(adamw(), adamFormula(0.9, 0.999, 1e-8)))
  it("AdamW with a bf16 first moment", () =>
    holds(
      adamw({ b2: 0.98, firstMoment: "bf16" }),
      adamFormula(0.9, 0.98, 1e-8, (x) => DType.store("bf16", x))
    ))
  it("SGD", () => holds(sgd(), sgdFormula(0, false)))
  it("SGD with momentum", () => holds(sgd({ momentum: 0.9 }), sgdFormula(0.9, false)))
  it("SGD with Nesterov's momentum", () => holds(sgd({ momentum: 0.9, nesterov: true }), sgdFormula(0.9, true)))
  it("Lion", () => holds(lion(), lionFormula(0.9, 0.99)))
  it("LAMB", () => holds(lamb(), lambFormula(0.9, 0.999, 1e-6)))
  it("Adafactor, big_vision's variant", () =>
    holds(
      adafactor({ least: 2 }),
      adafactorFormula({ least: 2, cap: 0.999, clipping: null, momentum: 0.9, relative: null }),
      1e-8
    ))
  it("Adafactor, the paper's", () =>
    holds(
      adafactor({ least: 3, cap: 1, clipping: 1, momentum: null, relative: 1e-3 }),
      adafactorFormula({ least: 3, cap: 1, clipping: 1, momentum: null, relative: 1e-3 }),
      1e-8
    ))

  it("the comparison notices a wrong formula", () => {
    const optimizer = Optimizer.make(adamw(), { decay: 0.1 })
    expect(compare(optimizer, adamFormula(0.9, 0.999, 1e-8), 3)).toBeLessThan(1e-9)
    expect(compare(optimizer, adamFormula(0.9, 0.99, 1e-8), 3)).toBeGreaterThan(1e-4)
    // Decay inside the gradient, as plain Adam has it, is not AdamW.
    const coupled: Formula = {
      step: (p, g, s, t, rate, decay) =>
        adamFormula(0.9, 0.999, 1e-8).step(
          p,
          g.map((x, i) => x + decay * p[i]!),
          s,
          t,
          rate,
          0,
          []
        )
    }
    expect(compare(optimizer, coupled, 3)).toBeGreaterThan(1e-4)
  })
})
