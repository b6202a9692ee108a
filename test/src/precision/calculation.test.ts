/** Norms, softmax, losses and logit scale in 16 bits: what that means, that a policy asks for it, and that no kernel silently calculates in f32. */
import * as Axis from "@tessera/core/Axis"
import * as DType from "@tessera/core/DType"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Host from "@tessera/core/HostArray"
import type { AnyPrimitive, Body, Equation } from "@tessera/core/Node"
import { build, input } from "@tessera/core/Node"
import * as Precision from "@tessera/core/Precision"
import { all } from "@tessera/core/primitives/all"
import * as Program from "@tessera/core/Program"
import * as T from "@tessera/core/Tensor"
import * as Dice from "@tessera/core/testing/Dice"
import * as fc from "fast-check"
import * as Result from "effect/Result"
import { afterAll, describe, expect, it } from "vitest"
import { onCpu } from "../backend/onCpu.ts"

const halves = ["bf16", "f16"] as const
type Half = (typeof halves)[number]

const draw = (seed: number, axes: Axis.Axes, scale = 1, offset = 0): Host.HostArray => {
  const dice = Dice.make(seed)
  return Host.make(
    axes,
    "f32",
    Float64Array.from({ length: Axis.count(axes) }, () => Math.fround(offset + scale * (2 * dice.next() - 1)))
  )
}

const bodyOf = (primitive: AnyPrimitive, arrays: ReadonlyArray<Host.HostArray>, params: object): Body => {
  const inputs = arrays.map((a) => input({ axes: a.axes, dtype: a.dtype }))
  return Program.body(inputs, build(primitive, inputs, params, "compute"))
}

const run = (primitive: AnyPrimitive, arrays: ReadonlyArray<Host.HostArray>, params: object) =>
  Evaluate.runUnsafe(bodyOf(primitive, arrays, params), arrays)

interface Use {
  readonly primitive: AnyPrimitive
  readonly params: object
  readonly arrays: ReadonlyArray<Host.HostArray>
}

const rows = Axis.list({ row: 24, embed: 33 })
const attend = { query: "seq", key: "keySeq", depth: "depth", scale: 0.4, causal: false, offset: 0 }
const attention = { ...attend, segments: false, lengths: false, dropout: 0, counts: [0, 0] }
const queries = Axis.list({ batch: 3, seq: 9, depth: 8 })
const keys = Axis.list({ batch: 3, keySeq: 17, depth: 8 })
const entropy = { classes: "embed", targets: "labels", smoothing: 0.1 }
const labels = Host.make(
  Axis.list({ row: 24 }),
  "i32",
  Array.from({ length: 24 }, (_, i) => i % 33)
)

/** One use of everything that calculates in a type of its own; a backward reads what its forward gave. */
const uses = (seed: number, calculation: Half): Readonly<Record<string, Use>> => {
  const x = draw(seed, rows, 3, 1)
  const weights = [draw(seed + 1, Axis.list({ embed: 33 })), draw(seed + 2, Axis.list({ embed: 33 }))]
  const norm = (kind: string) => ({ kind, axis: "embed", epsilon: 1e-5, affine: 2 })
  const [, mean, rstd] = run(all.norm, [x, ...weights], { ...norm("layer"), calculation })
  const [q, k, v] = [draw(seed + 3, queries, 2), draw(seed + 4, keys, 2), draw(seed + 5, keys, 2)]
  const [out, lse] = run(all.attention, [q, k, v], { ...attention, calculation })
  const [, lseOfLoss] = run(all.crossEntropy, [x, labels], { ...entropy, calculation })
  return {
    layerNorm: { primitive: all.norm, params: norm("layer"), arrays: [x, ...weights] },
    rmsNorm: { primitive: all.norm, params: { ...norm("rms"), affine: 1 }, arrays: [x, weights[0]!] },
    normBackward: {
      primitive: all.normBackward,
      params: norm("layer"),
      arrays: [x, mean!, rstd!, draw(seed + 6, rows), ...weights]
    },
    softmax: { primitive: all.softmax, params: { axis: "embed" }, arrays: [x] },
    attention: { primitive: all.attention, params: attention, arrays: [q, k, v] },
    attentionBackward: {
      primitive: all.attentionBackward,
      params: attention,
      arrays: [q, k, v, out!, lse!, draw(seed + 7, queries)]
    },
    crossEntropy: { primitive: all.crossEntropy, params: entropy, arrays: [x, labels] },
    crossEntropyBackward: {
      primitive: all.crossEntropyBackward,
      params: entropy,
      arrays: [x, labels, lseOfLoss!, draw(seed + 8, Axis.list({ row: 24 }))]
    }
  }
}

const distance = (xs: ReadonlyArray<Host.HostArray>, ys: ReadonlyArray<Host.HostArray>): number =>
  xs.reduce((sum, x, i) => {
    const y = Host.reorder(ys[i]!, x.axes).data
    return sum + x.data.reduce((s, v, k) => s + Math.abs(v - y[k]!), 0)
  }, 0)

describe("a 16-bit calculation rounds every intermediate", () => {
  const cpu = onCpu()
  afterAll(() => cpu.close())

  it("a layer norm is what rounding by hand gives", () => {
    fc.assert(
      fc.property(fc.nat(1000), fc.constantFrom(...halves), fc.integer({ min: 1, max: 40 }), (seed, type, width) => {
        const r = (v: number) => DType.store(type, v)
        const x = draw(seed, Axis.list({ embed: width }), 2, 5)
        const [gamma, beta] = [draw(seed + 1, x.axes), draw(seed + 2, x.axes)]
        const [found] = run(all.norm, [x, gamma, beta], {
          kind: "layer",
          axis: "embed",
          epsilon: 1e-3,
          affine: 2,
          calculation: type
        })
        const own = Array.from(x.data, r)
        const mean = r(own.reduce((a, b) => a + b, 0) * (1 / width))
        const centred = own.map((v) => r(v - mean))
        const variance = r(centred.reduce((a, v) => a + r(v * v), 0) * (1 / width))
        const rstd = r(1 / r(Math.sqrt(r(variance + r(1e-3)))))
        const expected = centred.map((v, i) => r(r(r(v * rstd) * r(gamma.data[i]!)) + r(beta.data[i]!)))
        expect([...found!.data]).toEqual(expected)
      })
    )
  })

  it("a softmax is what rounding by hand gives, that inside of attention too", () => {
    fc.assert(
      fc.property(fc.nat(1000), fc.constantFrom(...halves), (seed, type) => {
        const r = (v: number) => DType.store(type, v)
        const softmax = (scores: ReadonlyArray<number>) => {
          const top = Math.max(...scores)
          const powers = scores.map((s) => r(Math.exp(r(s - top))))
          const total = r(powers.reduce((a, b) => a + b, 0))
          return powers.map((p) => r(p / total))
        }
        const x = draw(seed, Axis.list({ keySeq: 9 }), 4)
        const [found] = run(all.softmax, [x], { axis: "keySeq", calculation: type })
        const expected = softmax(Array.from(x.data, r))
        expect([...found!.data]).toEqual(expected)
        // With one query of 1 and a depth of 1 the scores are the keys.
        const one = (name: string, size: number) => Axis.list({ [name]: size, depth: 1 })
        const values = draw(seed + 1, one("keySeq", 9))
        const [out] = run(
          all.attention,
          [Host.make(one("seq", 1), "f32", [1]), { ...x, axes: one("keySeq", 9) }, values],
          { ...attention, scale: 1, calculation: type }
        )
        expect(out!.data[0]).toBeCloseTo(
          expected.reduce((sum, p, i) => sum + p * values.data[i]!, 0),
          12
        )
      })
    )
  })

  it.each(halves)("the native backend calculates in %s as the evaluator does, and not in f32", async (type) => {
    for (const [name, { arrays, params, primitive }] of Object.entries(uses(3, type))) {
      const exact = run(primitive, arrays, params)
      const expected = run(primitive, arrays, { ...params, calculation: type })
      const found = await cpu.run(bodyOf(primitive, arrays, { ...params, calculation: type }), arrays)
      const effect = distance(exact, expected)
      expect(effect, name).toBeGreaterThan(0)
      expect(distance(found, expected), name).toBeLessThan(0.05 * effect)
    }
  })
})

const weightTypes = {
  x: { axes: Axis.list({ batch: 4, embed: 8 }), dtype: "f32" as const },
  up: input({ axes: Axis.list({ embed: 8, joint: 6 }), dtype: "f32" }, "parameter"),
  gamma: input({ axes: Axis.list({ joint: 6 }), dtype: "f32" }, "parameter"),
  temperature: input({ axes: [], dtype: "f32" }, "parameter")
}

/** A product, a norm, similarities with a temperature, a loss over them. */
const similarities = (marked: boolean) =>
  Program.traceUnsafe(weightTypes, ({ gamma, temperature, up, x }) => {
    const h = T.layerNorm(T.contract(x as never, up as never, "embed" as never), "joint" as never, 1e-5, gamma as never)
    const other = T.rename(h as T.Tensor<"batch" | "joint">, "batch", "otherBatch")
    const factor = T.exp(temperature as T.Tensor<never>)
    const alike = T.contract(h as T.Tensor<"batch" | "joint">, other, "joint")
    const logits = T.mul(alike, marked ? T.logitScale(factor) : factor)
    const each = T.softmaxCrossEntropy(logits, T.iota("batch", 4), { classes: "otherBatch" })
    return { loss: T.sum(each, "batch"), mixed: T.softmax(logits, "otherBatch") }
  })

const named = (body: Body, name: string): ReadonlyArray<Equation> =>
  body.equations.filter((e) => e.primitive.name === name)
const typesOf = (e: Equation) => e.inputs.map((x) => x.type.dtype)
const policy = (options: Omit<Precision.Options, "mode">) =>
  Result.getOrThrow(Precision.make({ mode: "bf16", ...options }))

describe("what a policy asks for", () => {
  const after = (options: Omit<Precision.Options, "mode">, marked = true) =>
    Precision.apply(similarities(marked), policy(options))

  it("without options: norms, softmax, losses and logit scale in f32, weights of norms and scalars f32", () => {
    const body = after({})
    for (const name of ["norm", "softmax", "crossEntropy"]) {
      const [e] = named(body, name)
      expect(e!.params.calculation).toBeUndefined()
    }
    expect(typesOf(named(body, "norm")[0]!)).toEqual(["bf16", "f32"])
    expect(typesOf(named(body, "mul")[0]!)).toEqual(["f32", "f32"])
    expect(typesOf(named(body, "crossEntropy")[0]!)[0]).toBe("f32")
    expect(typesOf(named(body, "softmax")[0]!)).toEqual(["f32"])
  })

  it("norms: they calculate in bf16 and their weights travel so", () => {
    const body = after({ norms: "bf16" })
    expect(named(body, "norm")[0]!.params.calculation).toBe("bf16")
    expect(typesOf(named(body, "norm")[0]!)).toEqual(["bf16", "bf16"])
    const travelling = named(body, "place").filter((e) => e.inputs[0]!.type.axes.length > 0)
    expect(travelling.map(typesOf)).toEqual([["bf16"], ["bf16"]])
    expect(named(body, "crossEntropy")[0]!.params.calculation).toBeUndefined()
  })

  it("softmax, losses: the same, and logits are no longer kept in f32", () => {
    const body = after({ softmax: "bf16", losses: "bf16" })
    expect(named(body, "softmax")[0]!.params.calculation).toBe("bf16")
    expect(named(body, "crossEntropy")[0]!.params.calculation).toBe("bf16")
    expect(typesOf(named(body, "crossEntropy")[0]!)[0]).toBe("bf16")
    expect(named(body, "norm")[0]!.params.calculation).toBeUndefined()
  })

  it("logitScale: what is marked multiplies in bf16; other scalars never do", () => {
    expect(typesOf(named(after({ logitScale: "bf16" }), "mul")[0]!)).toEqual(["bf16", "bf16"])
    expect(typesOf(named(after({ logitScale: "bf16" }, false), "mul")[0]!)).toEqual(["f32", "f32"])
  })

  it("type-checks in every combination and stays near", () => {
    const type = fc.constantFrom<Array<Precision.Float>>("f32", "bf16")
    const options = fc.record({ norms: type, softmax: type, losses: type, logitScale: type, gradients: type })
    const program = similarities(true)
    const arrays = program.inputs.map((x, i) => draw(i + 1, x.type.axes, 0.7))
    const exact = Evaluate.runUnsafe(program, arrays)
    fc.assert(
      fc.property(options, fc.constantFrom("f32", "bf16-O1", "bf16-O2", "bf16-full"), (chosen, mode) => {
        const gradients = mode === "bf16-full" ? "bf16" : chosen.gradients
        const body = Precision.apply(program, Result.getOrThrow(Precision.make({ ...chosen, mode, gradients })))
        expect(Program.check(body)).toBeNull()
        const given = body.inputs.map((x, i) => ({
          ...arrays[i]!,
          dtype: x.type.dtype,
          data: arrays[i]!.data.map((v) => DType.store(x.type.dtype, v))
        }))
        const found = Evaluate.runUnsafe(body, given)
        exact.forEach((e, i) => expect(Host.distance(e, found[i]!)).toBeLessThan(0.25))
      }),
      { numRuns: 60 }
    )
  })
})
