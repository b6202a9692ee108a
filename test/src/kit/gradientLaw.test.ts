import * as Axis from "@tessera/core/Axis"
import * as Gradient from "@tessera/core/Gradient"
import * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import type { AnyPrimitive, AnyTensor, Body, Equation, Tensor } from "@tessera/core/Node"
import { build } from "@tessera/core/Node"
import * as Program from "@tessera/core/Program"
import * as T from "@tessera/core/Tensor"
import { experiment, gradientCounterexample, gradientIsCorrect } from "@tessera/core/testing"
import { describe, expect, it } from "vitest"
import { layered, tagger, towers } from "./models.ts"
import { expectSmall } from "./screen.ts"

type F = Tensor<string>

describe("gradients are difference quotients", () => {
  it.each([layered(0.25), towers, tagger])("$name", (subject) => gradientIsCorrect(subject))

  it("kinks are passed over, and what is stopped counts as constant", () => {
    const examples = Axis.list({ batch: 4 })
    gradientIsCorrect(
      experiment({
        params: { weight: Module.param({ pixel: 3 }, Init.ones) },
        batch: {
          examples: { axes: examples, dtype: "u32" },
          image: { axes: Axis.list({ batch: 4, pixel: 3 }), dtype: "f32" }
        },
        loss: (p, b) => {
          const x = T.relu(T.contract(b.image as Tensor<"batch" | "pixel">, p.weight, "pixel"))
          const total = T.sum(T.mul(T.maximum(x, T.constant(0.1)), T.stopGradient(T.exp(x))), "batch")
          return { total, weight: T.constant(4) }
        }
      })
    )
  })
})

type Pull = (
  results: ReadonlyArray<AnyTensor | null>,
  cotangents: ReadonlyArray<AnyTensor>,
  inputs: ReadonlyArray<AnyTensor>,
  outputs: ReadonlyArray<AnyTensor>
) => ReadonlyArray<AnyTensor | null>

/** The same primitive with another derivative. */
const withDerivative = (primitive: AnyPrimitive, pull: Pull): AnyPrimitive => {
  const { vjp } = primitive
  if (vjp.kind === "short")
    return {
      ...primitive,
      vjp: { kind: "short", pullback: (c, x, y, p) => pull(vjp.pullback(c, x, y, p), c, x, y) }
    }
  if (vjp.kind !== "long") throw new Error(`${primitive.name} takes the derivative of its decomposition`)
  return {
    ...primitive,
    vjp: {
      kind: "long",
      differentiate: (inputs, p) => {
        const { outputs, pullback } = vjp.differentiate(inputs, p)
        return { outputs, pullback: (c) => pull(pullback(c), c as ReadonlyArray<AnyTensor>, inputs, outputs) }
      }
    }
  }
}

/** Differentiates with a wrong rule for one primitive. */
const faulty =
  (name: string, pull: Pull): typeof Gradient.valueAndGrad =>
  (body, wrt) =>
    Gradient.valueAndGrad(
      Program.map(body, (e, inputs) =>
        e.primitive.name === name
          ? build(
              withDerivative(e.primitive, pull),
              inputs,
              e.params,
              e.outputs.map((o) => o.role)
            )
          : null
      ),
      wrt
    )

const wrongSign = faulty("tanh", (results) => results.map((x) => T.neg(x as F)))

/** A bias gets what comes back to the first example only. */
const noReduction = faulty("add", (results, [c], inputs) =>
  results.map((x, i) => {
    const [axis, ...more] = c!.type.axes.filter((a) => !Axis.has(inputs[i]!.type.axes, a.name))
    if (axis === undefined || more.length > 0) return x
    const first = T.slice(c as Tensor<"axis">, axis.name as "axis", { to: "first", start: 0, size: 1 })
    return T.sum(first, "first")
  })
)

const wrongConstant = faulty("norm", ([x, ...rest]) => [T.scale(x as F, 1.25), ...rest])

/** Of several uses of a value only the last one counts. */
const lastUseOnly: typeof Gradient.valueAndGrad = (body, wrt) => {
  const once = (from: Body): Body => {
    const last = new Map<AnyTensor, Equation>()
    for (const e of from.equations) for (const x of e.inputs) last.set(x, e)
    const outputs = Program.inline(from, from.inputs, (e, inputs) => {
      const { meaning } = e.primitive
      const params =
        meaning.kind === "region" ? meaning.withBodies(e.params, meaning.bodies(e.params).map(once)) : e.params
      const given = inputs.map((x, i) =>
        last.get(e.inputs[i]!) === e || x.type.dtype !== "f32" || x.role !== "compute" ? x : T.stopGradient(x as F)
      )
      return build(
        e.primitive,
        given,
        params,
        e.outputs.map((o) => o.role)
      )
    })
    return Program.body(from.inputs, outputs)
  }
  return Gradient.valueAndGrad(once(body), wrt)
}

describe("the law catches", () => {
  const find = (implementation: typeof Gradient.valueAndGrad, subject = layered(0.25)) =>
    gradientCounterexample(subject, { implementation, seed: 9 })
  const plainest = ["sizes: batch=2, embed=2, layers=1, mlp=2\n", "in scan over layers"]

  it("a wrong sign", () => expectSmall(find(wrongSign), ...plainest, "= tanh(", "operand 0 is wrong"))
  it("a broadcast that is not added up", () =>
    expectSmall(find(noReduction), "batch=2, embed=2", "= add(", "operand 1 is wrong"))
  it("a wrong constant", () => expectSmall(find(wrongConstant), ...plainest, "= norm(", "operand 0 is wrong"))
  it("a value whose uses are not added up", () =>
    expectSmall(find(lastUseOnly, towers), "batch=2, embed=2\n", "what comes back to this value is not"))
})

it("a loss that is finite nowhere is no success", () => {
  const found = gradientCounterexample(
    experiment({
      params: { weight: Module.param({ pixel: 2 }, Init.ones) },
      batch: { examples: { axes: Axis.list({ batch: 2 }), dtype: "u32" } },
      loss: (p) => ({ total: T.sum(T.log(T.neg(T.exp(p.weight))), "pixel"), weight: T.constant(2) })
    }),
    { runs: 3 }
  )
  expect(found?.message).toMatch(/none of \d+ cases could be judged; the loss is not finite/)
})
