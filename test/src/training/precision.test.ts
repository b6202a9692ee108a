/** The precision pass: where casts go, what stays f32, and how far the result is from f32. */
import * as Axis from "@tessera/core/Axis"
import * as DType from "@tessera/core/DType"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Host from "@tessera/core/HostArray"
import * as Module from "@tessera/core/Module"
import type { Body, Equation } from "@tessera/core/Node"
import * as Optimizer from "@tessera/core/Optimizer"
import * as Precision from "@tessera/core/Precision"
import * as Program from "@tessera/core/Program"
import * as Random from "@tessera/core/Random"
import * as Recompute from "@tessera/core/Recompute"
import * as T from "@tessera/core/Tensor"
import { sgd } from "@tessera/core/optimizers/sgd"
import * as Result from "effect/Result"
import * as fc from "fast-check"
import { describe, expect, it } from "vitest"
import * as M from "./models.ts"
import * as Programs from "./programs.ts"

const policies = [
  Precision.bf16,
  Precision.bf16O1,
  Precision.bf16Full,
  Precision.f16,
  Precision.f16O1,
  Precision.f16Full,
  Result.getOrThrow(Precision.make({ mode: "bf16", norms: "bf16", softmax: "bf16", losses: "bf16", gradients: "bf16" }))
]
const leaves = Module.leaves(M.params)

/** Parameters, batch and seed to logits and loss, in training. */
const forward = (recompute: Recompute.Policy = Recompute.none) => {
  const traced = Program.traceUnsafe(
    {
      params: Module.inputs(M.params) as any,
      batch: Object.values(M.batchOf(4)) as any,
      seed: { axes: [], dtype: "u32" as const } as any
    },
    (given: any) => {
      const [image, label, examples, weights] = given.batch
      const call = Module.training(Random.make(given.seed, examples))
      const { metrics, total, weight } = M.loss(given.params, { image, label, examples, weights }, call)
      return { total, weight, ...metrics }
    }
  )
  return Program.withBody(traced, Recompute.apply(traced, recompute))
}

const all = (body: Body): ReadonlyArray<Equation> =>
  body.equations.flatMap((e) => {
    const { meaning } = e.primitive
    return [e, ...(meaning.kind === "region" ? meaning.bodies(e.params).flatMap(all) : [])]
  })
const named = (body: Body, name: string) => all(body).filter((e) => e.primitive.name === name)

describe("Precision", () => {
  it("f32 changes nothing at all", () => {
    const p = forward()
    expect(Precision.apply(p, Precision.f32)).toBe(p)
  })

  it("type-checks and keeps the types of inputs and outputs, with and without recomputation", () => {
    for (const policy of policies) {
      for (const kind of ["none", "full"] as const) {
        const before = forward({ kind })
        const after = Precision.apply(before, policy)
        expect(Program.check(after)).toBe(null)
        expect(after.inputs.map((x) => x.type.dtype)).toEqual(
          before.inputs.map((x) => (x.role === "parameter" ? policy.master : x.type.dtype))
        )
        expect(after.outputs.map((o) => o.type.dtype)).toEqual(before.outputs.map((o) => o.type.dtype))
      }
    }
  })

  it("O2: activations and travelling weights bf16; norm weights, statistics, logits and loss f32", () => {
    const p = Precision.apply(forward(), Precision.bf16)
    for (const e of named(p, "contract")) expect(e.inputs.map((x) => x.type.dtype)).toEqual(["bf16", "bf16"])
    const [scan] = named(p, "scan")
    expect(scan!.outputs[0]!.type.dtype).toBe("bf16")
    const [norm] = named(p, "norm")
    expect(norm!.inputs.map((x) => x.type.dtype)).toEqual(["bf16", "f32", "f32"])
    expect(norm!.outputs.map((x) => x.type.dtype)).toEqual(["bf16", "f32", "f32"])
    // Weights are converted before they travel, norm weights not.
    const travelling = named(p, "place").map((e) => [
      Axis.names(e.inputs[0]!.type.axes).join(),
      e.inputs[0]!.type.dtype
    ])
    expect(new Set(travelling.map(String))).toEqual(
      new Set(["pixel,embed,bf16", "embed,f32", "embed,mlp,bf16", "mlp,embed,bf16", "embed,classes,bf16", ",f32"])
    )
    const [loss] = named(p, "crossEntropy")
    expect(loss!.inputs.map((x) => x.type.dtype)).toEqual(["f32", "i32"])
    expect(loss!.outputs.map((x) => x.type.dtype)).toEqual(["f32", "f32"])
  })

  it("O1: weights travel f32, contractions multiply bf16, activations are f32", () => {
    const p = Precision.apply(forward(), Precision.bf16O1)
    for (const e of named(p, "contract")) {
      expect(e.inputs.map((x) => x.type.dtype)).toEqual(["bf16", "bf16"])
      expect(e.outputs[0]!.type.dtype).toBe("f32")
    }
    for (const e of named(p, "place")) expect(e.inputs[0]!.type.dtype).toBe("f32")
    expect(named(p, "scan")[0]!.outputs[0]!.type.dtype).toBe("f32")
  })

  it("labels, example numbers and random bits are untouched", () => {
    for (const policy of policies) {
      const before = forward()
      const after = Precision.apply(before, policy)
      const bits = (b: Body) => all(b).filter((e) => e.outputs.every((o) => DType.kindOf(o.type.dtype) === "int"))
      expect(bits(after).length).toBe(bits(before).length)
      // What decides dropout is compared in f32: the same units fall in every precision.
      for (const e of named(after, "less")) for (const x of e.inputs) expect(["f32", "i32"]).toContain(x.type.dtype)
    }
  })

  it("factors are not rounded: dropout keeps its mean", () => {
    const types = {
      x: { axes: Axis.list({ row: 4, embed: 8 }), dtype: "f32" as const },
      w: { axes: Axis.list({ embed: 8, mlp: 4 }), dtype: "f32" as const }
    }
    const p = Program.traceUnsafe(types, (i: any) => T.scale(T.contract(i.x, i.w, "embed") as any, 1 / 0.9))
    const text = Program.print(Precision.apply(p, Precision.bf16))
    expect(text).toContain(`constant() {"value":${1 / 0.9},"dtype":"f32"}`)
  })

  it("exponentials, logarithms and sums are f32, and stay so until a contraction", () => {
    const types = {
      x: { axes: Axis.list({ row: 4, embed: 8 }), dtype: "f32" as const },
      w: { axes: Axis.list({ embed: 8, mlp: 4 }), dtype: "f32" as const }
    }
    const p = Program.traceUnsafe(types, (i: any) => {
      const h = T.softmax(T.contract(i.x, i.w, "embed") as any, "mlp")
      const entropy = T.sum(T.mul(h, T.log(h)) as any, "mlp")
      return T.contract(T.mul(h, entropy as any) as any, i.w, "mlp")
    })
    const q = Precision.apply(p, Precision.bf16)
    expect(named(q, "contract")[0]!.outputs[0]!.type.dtype).toBe("bf16")
    expect(named(q, "softmax")[0]!.outputs[0]!.type.dtype).toBe("f32")
    expect(named(q, "log")[0]!.outputs[0]!.type.dtype).toBe("f32")
    expect(named(q, "mul")[0]!.outputs[0]!.type.dtype).toBe("f32")
    expect(named(q, "contract")[1]!.inputs.map((x) => x.type.dtype)).toEqual(["bf16", "bf16"])
  })

  it("gradients reach the reduction over devices in f32, or in bf16 where the policy says so", () => {
    const optimizer = Optimizer.make(sgd())
    const placed = (precision: Precision.Precision) =>
      named(M.stepOf({ batch: 4, optimizer, precision }).program, "place")
        .filter((e) => e.params.role === "gradient" && e.inputs[0]!.type.axes.length > 1)
        .map((e) => e.inputs[0]!.type.dtype)
    expect(new Set(placed(Precision.bf16))).toEqual(new Set(["f32"]))
    expect(new Set(placed({ ...Precision.bf16, gradients: "bf16" }))).toEqual(new Set(["bf16"]))
    const step = M.stepOf({ batch: 4, optimizer, precision: Precision.bf16 })
    // Weight gradients leave their contraction unrounded.
    const products = named(step.program, "contract").filter((e) => e.params.over.includes("batch"))
    expect(products.every((e) => e.outputs[0]!.type.dtype === "f32")).toBe(true)
  })

  it("master weights, state and their outputs are f32", () => {
    const step = M.stepOf({ batch: 4, optimizer: Optimizer.make(sgd({ momentum: 0.9 })), precision: Precision.bf16 })
    for (const [i, o] of step.donated) {
      expect(step.program.inputs[i]!.type.dtype).toBe("f32")
      expect(step.program.outputs[o]!.type.dtype).toBe("f32")
    }
  })

  it("random programs with loops and nested regions type-check and stay near", () => {
    fc.assert(
      fc.property(Programs.codes, fc.nat({ max: 1000 }), fc.constantFrom(...policies), (code, seed, policy) => {
        const before = Programs.programOf(code)
        const after = Precision.apply(before, policy)
        expect(Program.check(after)).toBe(null)
        expect(after.outputs.map((o) => o.type.dtype)).toEqual(before.outputs.map((o) => o.type.dtype))
        const [exact, found] = [before, after].map((p) => Evaluate.runUnsafe(p, Programs.valuesOf(seed)))
        // Sums of these programs cancel, hence relative to the largest element; casts in the program itself round anyway.
        expect(M.difference(exact!, found!)).toBeLessThan(300 * DType.epsilonOf(policy.matmul))
      }),
      { numRuns: 150 }
    )
  })

  const optimizer = Optimizer.make(sgd())
  const steps = [Precision.f32, ...policies].map((precision) => M.stepOf({ batch: 4, optimizer, precision }))
  it("loss and update are near those of f32", () => {
    // Some draws have rows of almost equal elements, whose norm is nothing but rounding: hence most of them, and not each.
    const errors: ReadonlyArray<Array<number>> = policies.map(() => [])
    for (let seed = 1; seed <= 40; seed++) {
      const given = [...M.start(M.params, seed), ...M.dataOf(4, seed), ...M.scalars({ rate: 1, seed })]
      const stored = (policy: Precision.Precision) =>
        given.map((x, i) =>
          i < leaves.length ? { ...x, dtype: policy.master, data: x.data.map((v) => DType.store(policy.master, v)) } : x
        )
      const [exact, ...others] = steps.map((s, i) =>
        Evaluate.runUnsafe(s.program, stored([Precision.f32, ...policies][i]!))
      )
      others.forEach((found, i) => {
        const round = DType.epsilonOf(policies[i]!.matmul)
        const [a, b] = [M.metricsOf(steps[0]!, exact!), M.metricsOf(steps[i + 1]!, found)]
        expect(Math.abs(a["loss"]! - b["loss"]!)).toBeLessThan(40 * round * (1 + a["loss"]!))
        // The whole update as one vector: its error against its length.
        let [error, length] = [0, 0]
        leaves.forEach((leaf, k) => {
          const old = given[k]!.data
          const x = Host.reorder(exact![k]!, leaf.param.axes).data
          const y = Host.reorder(found[k]!, leaf.param.axes).data
          x.forEach((v, j) => {
            error += (v - y[j]!) ** 2
            length += (v - old[j]!) ** 2
          })
        })
        errors[i]!.push(Math.sqrt(error / length) / round)
      })
    }
    for (const [i, all] of errors.entries()) {
      const sorted = all.toSorted((a, b) => a - b)
      expect(sorted[20]!, policies[i]!.name).toBeLessThan(6)
      expect(sorted[36]!, policies[i]!.name).toBeLessThan(30)
    }
  })

  it("statistics of norms are f32: a large common offset does not drown the differences", () => {
    // Values near 256 differ by steps of 2 in bf16; the mean must not be rounded to such a step.
    const x = { axes: Axis.list({ row: 1, embed: 4 }), dtype: "f32" as const }
    const p = Program.traceUnsafe(
      { x, w: { axes: Axis.list({ embed: 4, mlp: 4 }), dtype: "f32" as const } },
      (i: any) =>
        T.layerNorm(T.rename(T.contract(i.x, i.w, "embed") as any, "mlp", "embed") as any, "embed" as never, 1e-5)
    )
    const identity = Host.make(
      Axis.list({ embed: 4, mlp: 4 }),
      "f32",
      Array.from({ length: 16 }, (_, k) => (k % 5 === 0 ? 1 : 0))
    )
    const given = [Host.make(x.axes, "f32", [256, 256, 256, 258]), identity]
    const [exact] = Evaluate.runUnsafe(p, given)
    const [found] = Evaluate.runUnsafe(Precision.apply(p, Precision.bf16), given)
    expect(Host.distance(exact!, found!)).toBeLessThan(2 * DType.epsilonOf("bf16"))
  })
})

describe("loss scale", () => {
  it("follows Megatron's scaler", () => {
    const precision = { ...Precision.f16, lossScale: { ...Precision.lossScale, growthInterval: 3 } }
    let state = Precision.initialLossScale(precision)
    expect(state.scale).toBe(2 ** 32)
    const scales = [false, false, true, true, true, false, false, false, true, true, true, true, true, true].map(
      (finite) => {
        state = Precision.nextLossScale(precision, state, finite)
        return Math.log2(state.scale)
      }
    )
    // The first overflow is borne, the second is not; three good steps double and restore the patience.
    expect(scales).toEqual([32, 31, 31, 31, 32, 32, 31, 30, 30, 30, 31, 31, 31, 32])
  })
  it("never falls below the minimum, and stays 1 without scaling", () => {
    let state = Precision.initialLossScale(Precision.f16)
    for (let i = 0; i < 100; i++) state = Precision.nextLossScale(Precision.f16, state, false)
    expect(state.scale).toBe(1)
    expect(Precision.nextLossScale(Precision.f32, Precision.initialLossScale(Precision.f32), false).scale).toBe(1)
  })
})
