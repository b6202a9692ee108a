/** Modes by name, their options, what each keeps from step to step; and what is refused before anything is built. */
import * as Axis from "@tessera/core/Axis"
import * as DType from "@tessera/core/DType"
import { RecipeError } from "@tessera/core/Errors"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Host from "@tessera/core/HostArray"
import * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import * as Optimizer from "@tessera/core/Optimizer"
import { adafactor } from "@tessera/core/optimizers/adafactor"
import { adamw } from "@tessera/core/optimizers/adamw"
import { lamb } from "@tessera/core/optimizers/lamb"
import { lion } from "@tessera/core/optimizers/lion"
import { sgd } from "@tessera/core/optimizers/sgd"
import * as Precision from "@tessera/core/Precision"
import { composite } from "@tessera/core/primitives/composite"
import { emit1 } from "@tessera/core/primitives/emit"
import * as Program from "@tessera/core/Program"
import * as Step from "@tessera/core/Step"
import * as T from "@tessera/core/Tensor"
import * as fc from "fast-check"
import * as Result from "effect/Result"
import { describe, expect, it } from "vitest"
import * as M from "../training/models.ts"

const made = (given: string | Precision.Options) => Result.getOrThrow(Precision.make(given))

/** The message of what fails. */
const message = (result: Result.Result<unknown, { readonly message: string }>): string =>
  Result.isFailure(result) ? result.failure.message : "nothing failed"

describe("modes", () => {
  it("have names, old ones and those of the levels", () => {
    expect(Object.keys(Precision.all)).toEqual(
      "f32 bf16 bf16-O1 bf16-O2 bf16-full f16 f16-O1 f16-O2 f16-full".split(" ")
    )
    expect(made("bf16-O2")).toEqual(Precision.bf16)
    expect(made("f16-O2")).toEqual(Precision.f16)
    for (const precision of Object.values(Precision.all)) expect(Precision.problem(precision)).toBeNull()
  })

  it("differ in what they store: parameters, travelling, products, activations, optimizer, gradients", () => {
    const table = Object.entries(Precision.all).map(([name, p]) =>
      [name, p.master, p.parameters, p.matmul, p.pointwise, p.state, p.accumulation, p.gradients].join(" ")
    )
    expect(table).toEqual([
      "f32 f32 f32 f32 f32 f32 f32 f32",
      "bf16 f32 bf16 bf16 bf16 f32 f32 f32",
      "bf16-O1 f32 f32 bf16 f32 f32 f32 f32",
      "bf16-O2 f32 bf16 bf16 bf16 f32 f32 f32",
      "bf16-full bf16 bf16 bf16 bf16 bf16 bf16 bf16",
      "f16 f32 f16 f16 f16 f32 f32 f32",
      "f16-O1 f32 f32 f16 f32 f32 f32 f32",
      "f16-O2 f32 f16 f16 f16 f32 f32 f32",
      "f16-full f16 f16 f16 f16 f16 f16 f16"
    ])
    for (const p of Object.values(Precision.all)) {
      expect([p.norms, p.softmax, p.losses, p.logitScale, p.reduction]).toEqual(["f32", "f32", "f32", "f32", "f32"])
      expect(p.lossScale === null).toBe(p.matmul !== "f16")
    }
  })

  it("take options, which their names tell", () => {
    expect(made({ mode: "bf16", norms: "bf16", gradients: "bf16" }).name).toBe("bf16 (norms bf16, gradients bf16)")
    expect(made({ mode: "bf16", norms: "f32" })).toEqual(Precision.bf16)
    // What a loss reads is kept in f32 only for a loss that calculates in f32.
    expect(made({ mode: "bf16", losses: "bf16" }).logits).toBeNull()
    expect(made({ mode: "f32", norms: "bf16" }).norms).toBe("bf16")
  })
})

describe("what lives from step to step", () => {
  const rules = {
    sgd: sgd({ momentum: 0.9 }),
    adamw: adamw({ b2: 0.95 }),
    lion: lion(),
    lamb: lamb({ b2: 0.95 }),
    adafactor: adafactor({ cap: 0.95, least: 2 })
  }
  it.each(Object.entries(rules))("is bf16 alone in the full mode, with %s and averages", (_name, rule) => {
    const optimizer = Optimizer.make(rule, { ema: { decay: 0.9 } })
    const step = M.stepOf({ batch: 4, optimizer, precision: Precision.bf16Full, microbatches: 2 })
    expect(Program.check(step.program)).toBeNull()
    for (const [i, o] of step.donated) {
      expect(step.program.inputs[i]!.type.dtype).toBe("bf16")
      expect(step.program.outputs[o]!.type.dtype).toBe("bf16")
    }
    expect(new Set(step.storage.physical.map((h) => h.type.dtype))).toEqual(new Set(["bf16"]))
    // Evaluation reads parameters as they are stored.
    const evaluation = Result.getOrThrow(
      Step.evaluation({
        params: M.params,
        batch: M.batchOf(4),
        precision: Precision.bf16Full,
        metrics: (p, b, call) => ({ total: M.loss(p, b, call).total })
      })
    )
    for (const x of evaluation.inputs.filter((i) => i.role === "parameter")) expect(x.type.dtype).toBe("bf16")
  })

  it("starts from the same draw, rounded", () => {
    const [wide, narrow] = [Module.init(M.params), Module.init(M.params, "bf16")].map((p) =>
      Evaluate.runUnsafe(p, [Host.scalar(3, "u32")])
    )
    wide!.forEach((x, i) => {
      expect(narrow![i]!.dtype).toBe("bf16")
      expect([...narrow![i]!.data]).toEqual([...x.data.map((v) => DType.store("bf16", v))])
    })
  })
})

const features = 4
const linear = {
  params: { weight: Module.param({ feature: features }, Init.ones) },
  batch: {
    x: { axes: Axis.list({ batch: 1, feature: features }), dtype: "f32" },
    examples: { axes: Axis.list({ batch: 1 }), dtype: "u32" }
  } as const,
  // The derivative by the weight is the input.
  loss: (p: { readonly weight: T.Tensor<"feature"> }, b: { readonly x: T.AnyTensor }) => ({
    total: T.sum(T.contract(b.x as T.Tensor<"batch" | "feature">, p.weight, "feature"), "batch"),
    weight: T.constant(1)
  })
}

/** The weights after so many steps with the same gradient. */
const descend = (precision: Precision.Precision, start: number, gradient: number, steps: number) => {
  const { program } = Result.getOrThrow(Step.make({ ...linear, precision, optimizer: Optimizer.make(sgd()) }))
  const x = Host.make(
    linear.batch.x.axes,
    "f32",
    Array.from({ length: features }, () => gradient)
  )
  const rest = [x, Host.make(linear.batch.examples.axes, "u32", [0]), ...M.scalars({ rate: 1 })]
  const data = Array.from({ length: features }, () => start)
  let weight = Host.make(Axis.list({ feature: features }), program.inputs[0]!.type.dtype, data)
  for (let i = 0; i < steps; i++) weight = Evaluate.runUnsafe(program, [weight, ...rest])[0]!
  return weight.data[0]!
}

describe("updates below the resolution of 16 bits", () => {
  // Values that all types hold, between 1 and 2; gradients of 2^-12 to 2^-14: below half of the distance between neighbours, 2^-8 and 2^-11.
  const start = fc.integer({ min: 128, max: 254 }).map((n) => n / 128)
  const exponent = fc.integer({ min: 12, max: 14 })
  const steps = fc.integer({ min: 10, max: 40 })

  it("add up in f32 master weights (O1, O2)", () => {
    fc.assert(
      fc.property(start, exponent, steps, fc.constantFrom("bf16", "bf16-O1", "f16", "f16-O1"), (w, e, n, mode) => {
        expect(descend(made(mode), w, 2 ** -e, n)).toBe(w - n * 2 ** -e)
      }),
      { numRuns: 40 }
    )
  })

  it("are lost without master weights, larger ones are not", () => {
    fc.assert(
      fc.property(start, exponent, steps, fc.constantFrom("bf16-full", "f16-full"), (w, e, n, mode) => {
        expect(descend(made(mode), w, 2 ** -e, n)).toBe(w)
        // Three neighbours down.
        expect(descend(made(mode), w, 3 * 2 ** -7, 1)).toBe(w - 3 * 2 ** -7)
      }),
      { numRuns: 40 }
    )
  })

  it("are calculated in f32 and rounded once", () => {
    // rate * gradient is lost in bf16 beside 1, the gradient squared is no bf16 number: only the sum is rounded.
    const optimizer = Optimizer.make(sgd({ momentum: 0.9 }), { decay: 1 / 3 })
    const step = M.stepOf({ batch: 4, optimizer, precision: Precision.bf16Full })
    const rounds = step.program.equations.filter(
      (e) => e.primitive.name === "cast" && e.params.dtype === "bf16" && e.outputs[0]!.role === "optimizer"
    )
    // One for the parameter and one for its state.
    expect(rounds.length).toBe(2 * Module.leaves(M.params).length)
    for (const e of step.program.equations)
      if (e.outputs[0]!.role === "optimizer" && ["mul", "add", "sub"].includes(e.primitive.name))
        expect(e.outputs[0]!.type.dtype).toBe("f32")
  })
})

describe("refused, with the nearest legal choice", () => {
  const policies: ReadonlyArray<readonly [string, string | Precision.Options | Precision.Precision, string]> = [
    ["a misspelt name", "fp16", 'precision: unknown precision "fp16"; did you mean "f16"?'],
    ["a name like none", "int4", "known: f32, bf16"],
    ["a misspelt mode", { mode: "bf16-02" }, 'precision.mode: unknown precision "bf16-02"; did you mean "bf16-O2"?'],
    ["a property of objects", "constructor", 'unknown precision "constructor"'],
    [
      "no type of floats",
      { mode: "bf16", norms: "fp32" as "f32" },
      'precision.norms: unknown type of floats "fp32"; did you mean "f32"?'
    ],
    [
      "two 16-bit types",
      { mode: "bf16", norms: "f16" },
      'precision.norms: f16 beside bf16, whose numbers have another range; use "bf16" or "f32"'
    ],
    [
      "f16 without a loss scale",
      { ...Precision.f16, lossScale: null },
      "precision.lossScale: gradients in f16 without a loss scale"
    ],
    ["f16 norms alone without one", { mode: "f32", norms: "f16" }, "precision.lossScale"],
    [
      "wide gradients of narrow weights",
      { mode: "bf16-full", gradients: "f32" },
      'precision.gradients: f32, but nothing is kept in more than bf16 where master weights are bf16; use "bf16", or mode "bf16" (f32 master weights)'
    ],
    [
      "narrow sums beside master weights",
      { ...Precision.bf16, accumulation: "bf16" },
      'precision.accumulation: bf16 beside f32 master weights; use "f32"'
    ],
    ["parameters that grow on the way", { ...Precision.bf16Full, parameters: "f32" }, "precision.parameters"],
    [
      "a scale that grows at once",
      { mode: "f16", lossScale: { ...Precision.lossScale, growthInterval: 0 } },
      "precision.lossScale.growthInterval: is 0; needs a whole number of at least 1"
    ],
    [
      "a scale that does not fall",
      { mode: "f16", lossScale: { ...Precision.lossScale, backoff: 1 } },
      "precision.lossScale.backoff: is 1; needs a factor between 0 and 1"
    ],
    [
      "a scale that starts too low",
      { mode: "f16", lossScale: { ...Precision.lossScale, initial: 0.5 } },
      "precision.lossScale.initial: is 0.5; needs at least minimum, 1"
    ]
  ]
  const isPolicy = (x: string | Precision.Options | Precision.Precision): x is Precision.Precision =>
    typeof x !== "string" && "matmul" in x

  it.each(policies)("%s", (_what, given, expected) => {
    const result: Result.Result<unknown, Error> = isPolicy(given)
      ? Step.make({ ...linear, precision: given, optimizer: Optimizer.make(sgd()) })
      : Precision.make(given)
    expect(Result.isFailure(result) ? result.failure : null).toBeInstanceOf(RecipeError)
    expect(message(result)).toContain(expected)
  })

  const step = (optimizer: Optimizer.Optimizer, precision: Precision.Precision) =>
    message(Step.make({ params: M.params, loss: M.loss, batch: M.batchOf(4), optimizer, precision }))

  it("optimizers whose state 16 bits cannot hold", () => {
    expect(step(Optimizer.make(adamw()), Precision.bf16Full)).toBe(
      'precision: bf16 cannot hold the state "v" of adamw(b1 0.9, b2 0.999, epsilon 1e-8) for stem: a running average with decay 0.999 changes by less than the type\'s rounding and never falls; use a decay of at most 0.996, or mode "bf16" with f32 master weights and state'
    )
    expect(step(Optimizer.make(adamw({ b2: 0.99 })), Precision.f16Full)).toContain(
      "squares of small gradients are 0 there; use sgd or lion, or bf16"
    )
    expect(step(Optimizer.make(lamb()), Precision.bf16Full)).toContain('the state "v" of lamb')
    expect(step(Optimizer.make(adafactor({ momentum: null, least: 2 })), Precision.bf16Full)).toContain(
      'the state "row"'
    )
    expect(step(Optimizer.make(sgd(), { ema: { decay: 0.9999 } }), Precision.bf16Full)).toContain(
      "bf16 cannot hold averaged weights"
    )
    const { averages: _averages, ...silent } = sgd({ momentum: 0.9 })
    expect(step(Optimizer.make(silent), Precision.bf16Full)).toContain(
      'does not say whether its state "velocity" may be kept'
    )
    for (const legal of [sgd(), sgd({ momentum: 0.9 }), lion()]) {
      expect(step(Optimizer.make(legal), Precision.bf16Full)).toBe("nothing failed")
      expect(step(Optimizer.make(legal), Precision.f16Full)).toBe("nothing failed")
    }
    expect(step(Optimizer.make(adamw({ b2: 0.996 })), Precision.bf16Full)).toBe("nothing failed")
  })

  it("the bound on decays is where running averages stop falling", () => {
    const falls = (decay: number, type: "bf16" | "f16") =>
      Array.from({ length: 256 }, (_, i) => DType.store(type, 1 + i / 256)).every(
        (v) => DType.store(type, v * decay) < v
      )
    for (const type of ["bf16", "f16"] as const) {
      const bound = Number(
        /at most (0\.\d+)/.exec(step(Optimizer.make(sgd({ momentum: 0.9999 })), made(`${type}-full`)))![1]
      )
      expect(falls(bound, type)).toBe(true)
      expect(falls(bound + 2e-4, type)).toBe(false)
    }
  })

  it("operations that cannot calculate in the type", () => {
    const x = { axes: Axis.list({ row: 2, embed: 8 }), dtype: "f32" as const }
    const normed = Program.traceUnsafe({ x }, (i) => T.layerNorm(i.x as T.Tensor<"row" | "embed">, "embed", 1e-12))
    const apply = (program: Program.Program, options: Precision.Options) =>
      message(Result.try({ try: () => Precision.apply(program, made(options)), catch: (e) => e as Error }))
    expect(apply(normed, { mode: "f16", norms: "f16" })).toBe(
      'precision.norms: norm(f32[row=2, embed=8]) {"kind":"layer","axis":"embed","epsilon":1e-12,"affine":0} cannot calculate in f16: its epsilon of 1e-12 is 0 in f16, so that equal elements give no number; use norms "f32"'
    )
    expect(apply(normed, { mode: "bf16", norms: "bf16" })).toBe("nothing failed")
    const own = composite("ownLoss", ([y]) => [T.sum(T.exp(y as T.Tensor<string>), "embed" as never)], {
      precision: "loss"
    })
    const lost = Program.traceUnsafe({ x }, (i) => emit1(own, [i.x], {}))
    expect(apply(lost, { mode: "bf16", losses: "bf16" })).toContain(
      'precision.losses: ownLoss(f32[row=2, embed=8]) cannot calculate in bf16: it calculates in f32 alone; use losses "f32"'
    )
    const wide = { axes: Axis.list({ row: 1, embed: 1_000_000 }), dtype: "f32" as const }
    const smooth = Program.traceUnsafe({ wide, label: { axes: Axis.list({ row: 1 }), dtype: "i32" } }, (i) =>
      T.softmaxCrossEntropy(i.wide as T.Tensor<"row" | "embed">, i.label as T.Tensor<"row", "int">, {
        classes: "embed",
        smoothing: 0.01
      })
    )
    expect(apply(smooth, { mode: "f16", losses: "f16" })).toContain("label smoothing gives every class 1e-8")
  })
})
