import * as Gradient from "@tessera/core/Gradient"
import type { AnyTensor, Body, Primitive, Tensor } from "@tessera/core/Node"
import { build, input } from "@tessera/core/Node"
import type { RecomputeParams, ScanParams } from "@tessera/core/primitives/control"
import { recomputeP, scanP } from "@tessera/core/primitives/control"
import * as Program from "@tessera/core/Program"
import * as Recompute from "@tessera/core/Recompute"
import * as T from "@tessera/core/Tensor"
import { recomputeCounterexample, recomputeIsInvisible } from "@tessera/core/testing"
import { describe, it } from "vitest"
import { layered, tagger, towers } from "./models.ts"
import type { Rewrite } from "./rewriting.ts"
import { replacing } from "./rewriting.ts"
import { expectSmall } from "./screen.ts"

describe("gradients do not depend on what runs again", () => {
  it.each([layered(0.25), towers, tagger])("$name", (subject) => recomputeIsInvisible(subject))
})

/** A region whose second run is not quite the first one. */
const region = (again: (body: Body) => Body): Primitive<"recompute", RecomputeParams> => ({
  ...recomputeP,
  vjp: {
    kind: "long",
    differentiate: (inputs, p) => ({
      outputs: build(
        recomputeP,
        inputs,
        p,
        p.body.outputs.map((o) => o.role)
      ),
      pullback: (cotangents) => {
        const back = Gradient.vjp(
          again(p.body),
          cotangents.map((c) => c !== null)
        )
        const given = [...inputs, ...cotangents.filter((c) => c !== null)]
        return back.spread(
          build(
            recomputeP,
            given,
            { body: back.body },
            back.body.outputs.map((o) => o.role)
          )
        )
      }
    })
  }
})

/** The usual pass with another region. */
const withRegion = (again: (body: Body) => Body): typeof Recompute.apply => {
  const broken = region(again)
  const change: Rewrite = (e, inputs) =>
    build(
      broken,
      inputs,
      e.params,
      e.outputs.map((o) => o.role)
    )
  return (body, policy) => replacing("recompute", change)(Recompute.apply(body, policy))
}

const word = (n: number) => T.constant(n, "u32") as AnyTensor as Tensor<never, "int">

/** Random bits are drawn anew instead of once more. */
const redrawn = withRegion(
  replacing("randomBits", (e, [seed, ...rest]) =>
    build(e.primitive, [T.add(seed as Tensor<never, "int">, word(1)), ...rest], e.params, "compute")
  )
)

/** What a region begins with is kept in 16 bits. */
const compressed = withRegion((body) => {
  const inside = body.inputs.map((x) => input(x.type, x.role))
  const narrow = inside.map((x) =>
    x.type.dtype === "f32" && x.role === "compute" ? T.cast(T.cast(x as Tensor<string>, "bf16"), "f32") : x
  )
  return Program.body(inside, Program.inline(body, narrow))
})

/** The layers of one chunk run again from the value with which the chunk ended. */
const fromTheEnd = withRegion((body) => {
  const inside = body.inputs.map((x) => input(x.type, x.role))
  const [end] = Program.inline(body, inside)
  return Program.body(inside, Program.inline(body, [end!, ...inside.slice(1)]))
})

/** Of the layers that are not kept the first is left out. */
const oneTooFew: typeof Recompute.apply = (body, policy) =>
  Recompute.apply(
    replacing("scan", (e, inputs) => {
      const p = e.params as ScanParams
      if (policy.kind !== "full" || p.axis !== "layers" || p.size < 2) return null
      const later = inputs.map((x, i) =>
        i < p.carried || i >= p.carried + p.each
          ? x
          : build(
              T.slice(x as Tensor<"layers">, "layers", { to: "layers", start: 1, size: p.size - 1 }).equation!
                .primitive,
              [x],
              { axis: "layers", to: "layers", start: 1, size: p.size - 1 },
              x.role
            )[0]!
      )
      return build(
        scanP,
        later,
        { ...p, size: p.size - 1 },
        e.outputs.map((o) => o.role)
      )
    })(body),
    policy
  )

describe("the law catches", () => {
  const find = (implementation: typeof Recompute.apply) =>
    recomputeCounterexample(layered(0.25), { implementation, seed: 5 })
  it("a second run that draws other random bits", () =>
    expectSmall(find(redrawn), "layers=1,", "recompute full uniform\n", "in scan over layers"))
  it("a second run from rounded values", () => expectSmall(find(compressed), "layers=1,", "recompute full uniform\n"))
  it("a second run from where the first one ended", () =>
    expectSmall(find(fromTheEnd), "layers=1,", "recompute full uniform\n"))
  it("a layer that is left out", () => expectSmall(find(oneTooFew), "layers=2,", "recompute full"))
})
