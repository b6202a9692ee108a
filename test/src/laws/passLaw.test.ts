import { assert, describe, it } from "@effect/vitest"
import * as Evaluate from "@tessera/core/Evaluate"
import type { Body, Tensor } from "@tessera/core/Node"
import { build } from "@tessera/core/Node"
import { all } from "@tessera/core/primitives/all"
import { decomposeExcept } from "@tessera/core/primitives/composite"
import * as Program from "@tessera/core/Program"
import { simplifyBody } from "@tessera/core/Simplify"
import * as T from "@tessera/core/Tensor"
import * as fc from "fast-check"
import { models } from "../programs/models.ts"
import { all as programs } from "@tessera/core/testing/Programs"
import type { Pass } from "./passLaw.ts"
import { counterexample, passLaw, passProblem } from "./passLaw.ts"

describe("the corpus", () => {
  it("is sound, and its values are finite", () => {
    for (const { arrays, body, name } of [...models, ...fc.sample(programs, 100)]) {
      assert.isNull(Program.check(body), name)
      for (const a of Evaluate.runUnsafe(body, arrays)) assert.isTrue(a.data.every(Number.isFinite), name)
    }
  })
  it("contains the regions", () => {
    const found = new Set<string>()
    const walk = (b: Body): void => {
      for (const { params, primitive } of b.equations) {
        found.add(primitive.name)
        if (primitive.meaning.kind === "region") primitive.meaning.bodies(params).forEach(walk)
      }
    }
    for (const { body } of [...models, ...fc.sample(programs, 100)]) walk(body)
    assert.includeMembers(
      [...found],
      ["scan", "recompute", "attention", "attentionBackward", "norm", "adamw", "randomBits"]
    )
  })
})

describe("passes", () => {
  passLaw("rewriting nothing", (b) => Program.map(b, () => null), { idempotent: true })
  passLaw("opening all composites", (b) => decomposeExcept(b, () => false), { idempotent: true })
  passLaw("opening all but attention", (b) => decomposeExcept(b, (e) => e.primitive.name.startsWith("attention")), {
    idempotent: true
  })
  passLaw("simplifying", simplifyBody, { idempotent: true })
  passLaw("opening, then simplifying", (b) => simplifyBody(decomposeExcept(b, () => false)), { idempotent: true })
})

describe("the law notices", () => {
  const rewrite =
    (name: string, to: (x: Tensor<string>) => Tensor<string>): Pass =>
    (b) =>
      Program.map(b, (e, [x]) => (e.primitive.name === name ? [to(x as Tensor<string>)] : null))

  it("a dropped equation", () => {
    assert.isNotNull(
      counterexample(
        rewrite("tanh", (x) => x),
        { idempotent: false }
      )
    )
  })
  it("an equation dropped inside regions only", () => {
    const inRegions: Pass = (b) =>
      Program.map(b, (e, inputs) => {
        const { meaning } = e.primitive
        if (meaning.kind !== "region") return null
        const bodies = meaning.bodies(e.params).map(rewrite("tanh", (x) => x))
        return build(
          e.primitive,
          inputs,
          meaning.withBodies(e.params, bodies),
          e.outputs.map((o) => o.role)
        )
      })
    assert.isNotNull(counterexample(inRegions, { idempotent: false }))
  })
  it("another storage type", () => {
    const narrow: Pass = (b) =>
      Program.body(
        b.inputs,
        b.outputs.map((x) => T.cast(x as Tensor<string>, "bf16"))
      )
    assert.isNotNull(passProblem(narrow, { idempotent: false })(models[0]!))
  })
  it("an output with another role, an output less, a swapped input", () => {
    const placed: Pass = (b) =>
      Program.body(
        b.inputs,
        b.outputs.map((x) => T.place(x, "optimizer"))
      )
    const fewer: Pass = (b) => Program.body(b.inputs, b.outputs.slice(1))
    const swapped: Pass = (b) => Program.body(b.inputs.toReversed(), b.outputs)
    for (const pass of [placed, fewer, swapped]) assert.isNotNull(passProblem(pass, { idempotent: false })(models[0]!))
  })
  it("a rule that its result breaks", () => {
    const type: (typeof all.neg)["type"] = ([t]) => [{ ...t!, dtype: "bf16" }]
    const broken = { ...all.neg, type }
    const wrong: Pass = (b) =>
      Program.body(
        b.inputs,
        b.outputs
          .map((x) => T.neg(T.neg(x as Tensor<string>)))
          .map((x) => {
            const [out] = build(all.neg, [x], {}, "compute")
            return { ...out!, equation: { ...out!.equation!, primitive: broken } }
          })
      )
    assert.isNotNull(passProblem(wrong, { idempotent: false })(models[0]!))
  })
  it("a pass that goes on for ever", () => {
    const growing = rewrite("tanh", (x) => T.neg(T.tanh(T.neg(x))))
    assert.isNull(counterexample(growing, { idempotent: false }))
    assert.isNotNull(counterexample(growing, { idempotent: true }))
  })
})
