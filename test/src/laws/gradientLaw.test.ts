import { assert, describe, it } from "@effect/vitest"
import * as Gradient from "@tessera/core/Gradient"
import type { AnyPrimitive, AnyTensor, Pullback } from "@tessera/core/Node"
import { input } from "@tessera/core/Node"
import { all } from "@tessera/core/primitives/all"
import type { PrimitiveName } from "@tessera/core/primitives/all"
import * as Program from "@tessera/core/Program"
import * as T from "@tessera/core/Tensor"
import type { Tensor } from "@tessera/core/Tensor"
import type { Example } from "@tessera/core/testing/Programs"
import { forward } from "@tessera/core/testing/Programs"
import type { Sample } from "../samples/Sample.ts"
import { bodyOf, print } from "../samples/Sample.ts"
import { names, smoothSamples } from "../samples/samples.ts"
import * as Counterexample from "./counterexample.ts"
import * as Law from "./gradientLaw.ts"
import { refusal } from "./typeLaw.ts"

type F = Tensor<string>

const law = (name: PrimitiveName, problem: (s: Sample) => string | null, runs: number) =>
  Counterexample.find(smoothSamples[name], problem, { runs }, print)

const program = ({ body }: Example) => Program.print(body)

const without = names.filter((name) => all[name].vjp.kind === "none")
const differentiable = names.filter((name) => all[name].vjp.kind !== "none")
const withBackward = ["norm", "attention", "gelu", "crossEntropy", "sigmoidCrossEntropy"] as const

describe("derivatives agree with difference quotients", () => {
  it.each(differentiable)("%s", (name) => assert.isNull(law(name, Law.derivativeProblem(), 100)))
})

describe("transposes agree with inner products", () => {
  const linear = names.filter((name) => {
    const { partition } = all[name]
    return partition.kind === "byName" && (partition.linear !== undefined || name === "concat" || name === "cast")
  })
  it.each(linear)("%s", (name) => assert.isNull(law(name, Law.transposeProblem(), 100)))
})

describe("an operation's own backward is the derivative of its decomposition", () => {
  it.each(withBackward)("%s", (name) => assert.isNull(law(name, Law.decompositionProblem(), 200)))
})

describe("regions", () => {
  it("a scan is what its written-out form is", () => {
    assert.isNull(law("scan", Law.scanProblem(), 200))
  })
  it("recomputing changes no bit", () => {
    assert.isNull(Counterexample.find(forward, Law.recomputeProblem(), { runs: 200 }, program))
  })
})

describe("what has no derivative says so", () => {
  it.each(without.filter((name) => name !== "constant" && name !== "iota"))("%s", (name) => {
    const problem = (s: Sample): string | null => {
      const body = bodyOf(s)
      const present = body.outputs.map((_, i) => i === 0)
      const error = refusal(() => Gradient.vjp(body, present))
      return error?.tag === "NotDifferentiable" && error.message.includes(name) ? null : `${error?.message}`
    }
    assert.isNull(law(name, problem, 10))
  })
  it("stopGradient gives nothing back", () => {
    const x = input({ axes: [], dtype: "f32" }) as Tensor<never>
    const gradient = Gradient.linearize(Program.body([x], [T.stopGradient(x)])).pullback([T.constant(1)])
    assert.deepStrictEqual(gradient, [null])
  })
})

describe("the law notices", () => {
  const noticed = (
    name: PrimitiveName,
    vjp: AnyPrimitive["vjp"],
    problem: (p: AnyPrimitive) => (s: Sample) => string | null
  ) => assert.isNotNull(law(name, problem({ ...all[name], vjp } as AnyPrimitive), 200))
  const short = (pullback: Extract<AnyPrimitive["vjp"], { readonly kind: "short" }>["pullback"]) =>
    ({ kind: "short", pullback }) as const

  it("a product that returns the wrong factor", () => {
    const pullback = all.mul.vjp.kind === "short" ? all.mul.vjp.pullback : () => []
    noticed(
      "mul",
      short((c, [x, y], o, p) => pullback(c, [y!, x!], o, p)),
      Law.derivativeProblem
    )
  })
  it("a slope that is off by a millionth of itself, tenfold", () => {
    noticed(
      "tanh",
      short(([c], [x]) => [T.scale(T.mul(c as F, slopeOfTanh(x as F)), 1.00001)]),
      Law.derivativeProblem
    )
  })
  it("a cotangent without the operand's axes", () => {
    noticed(
      "broadcast",
      short(([c]) => [c!]),
      Law.derivativeProblem
    )
  })
  it("a transpose with another sign", () => {
    noticed(
      "neg",
      short(([c]) => [c!]),
      Law.transposeProblem
    )
    noticed(
      "sub",
      short(([c]) => [c!, c!]),
      Law.transposeProblem
    )
  })
  it("a backward of another formula", () => {
    const vjp = short(([c], [x]) => [T.mul(c as F, T.shift(T.scale(x as F, 0.5), 0.5))])
    noticed("gelu", vjp, Law.decompositionProblem)
  })
  it("a scan whose backward runs the wrong way", () => {
    const own = all.scan.vjp
    const differentiate = (xs: ReadonlyArray<AnyTensor>, p: { readonly reverse: boolean }) => {
      if (own.kind !== "long") throw new Error("scan has the long form")
      const [outputs, pullback]: readonly [ReadonlyArray<AnyTensor>, Pullback] = [
        own.differentiate(xs, p as never).outputs,
        own.differentiate(xs, { ...p, reverse: !p.reverse } as never).pullback
      ]
      return { outputs, pullback }
    }
    noticed("scan", { kind: "long", differentiate }, Law.scanProblem)
  })
  it("a region whose backward forgets a factor", () => {
    const own = all.recompute.vjp
    const vjp: AnyPrimitive["vjp"] = {
      kind: "long",
      differentiate: (xs, p) => {
        if (own.kind !== "long") throw new Error("recompute has the long form")
        const { outputs, pullback } = own.differentiate(xs, p)
        return { outputs, pullback: (c) => pullback(c).map((g) => (g === null ? null : T.scale(g as F, 1 + 1e-15))) }
      }
    }
    const broken = { ...all.recompute, vjp } as AnyPrimitive
    assert.isNotNull(Counterexample.find(forward, Law.recomputeProblem(broken), { runs: 200 }, program))
  })
})

const slopeOfTanh = (x: F): F => {
  const t = T.tanh(x)
  return T.shift(T.neg(T.mul(t, t)), 1)
}
