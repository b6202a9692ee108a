import { assert, describe, it } from "@effect/vitest"
import * as Axis from "@tessera/core/Axis"
import type { AnyPrimitive } from "@tessera/core/Node"
import { input } from "@tessera/core/Node"
import { all } from "@tessera/core/primitives/all"
import type { PrimitiveName } from "@tessera/core/primitives/all"
import * as T from "@tessera/core/Tensor"
import type { Tensor } from "@tessera/core/Tensor"
import type { Sample } from "../samples/Sample.ts"
import { print } from "../samples/Sample.ts"
import { names, samples } from "../samples/samples.ts"
import * as Counterexample from "./counterexample.ts"
import * as Law from "./typeLaw.ts"

const law = (name: PrimitiveName, problem: (s: Sample) => string | null, runs: number) =>
  Counterexample.find(samples[name], problem, { runs }, print)

describe("every primitive is known by its own name", () => {
  it.each(names)("%s", (name) => assert.strictEqual(all[name].name, name))
  it("has samples", () => assert.sameMembers([...names], Object.keys(all)))
})

describe("results have the promised type", () => {
  it.each(names)("%s", (name) => assert.isNull(law(name, Law.typeProblem(), 200)))
})

describe("memory order is no meaning", () => {
  it.each(names)("%s", (name) => assert.isNull(law(name, Law.orderProblem(), 60)))
})

describe("illegal operands are refused", () => {
  it.each(names)("%s: sizes", (name) => assert.isNull(law(name, Law.sizeProblem(), 60)))
  it.each(names)("%s: axis names", (name) => assert.isNull(law(name, Law.nameProblem(), 60)))
  it.each(names)("%s: storage types", (name) => assert.isNull(law(name, Law.dtypeProblem(), 60)))
})

describe("the surface refuses", () => {
  const x = input({ axes: Axis.list({ batch: 2, seq: 3 }), dtype: "f32" }) as Tensor<"batch" | "seq">
  const long = input({ axes: Axis.list({ seq: 5 }), dtype: "f32" }) as Tensor<"seq">
  const labels = input({ axes: Axis.list({ batch: 4 }), dtype: "i32" }) as Tensor<"batch", "int">
  const cases: ReadonlyArray<readonly [name: string, make: () => unknown, tag: string, ...says: Array<string>]> = [
    ["sizes that differ", () => T.add(x, long), "AxisMismatch", '"seq"', "3", "5"],
    ["an absent axis", () => T.sum(x as Tensor<any>, "embed"), "UnknownAxis", '"embed"', "batch, seq"],
    ["half a contraction", () => T.contract(x as Tensor<any>, long, "batch"), "UnknownAxis", '"batch"'],
    ["a name that exists", () => T.rename(x, "batch", "seq"), "UnknownAxis", '"seq"'],
    [
      "another storage type",
      () => T.add(x, T.cast(T.sum(x, "batch"), "bf16") as Tensor<"seq">),
      "DTypeMismatch",
      "f32",
      "bf16"
    ],
    [
      "a remainder",
      () => T.split(x, "seq", { outer: "a", inner: "b", size: 2 }),
      "InvalidOperation",
      '"seq"',
      "3",
      "2"
    ],
    ["a cut beyond the end", () => T.slice(x, "seq", { to: "a", start: 2, size: 2 }), "InvalidOperation", "4", "3"],
    ["padding into less", () => T.pad(x, "seq", { to: "a", start: 2, size: 4 }), "InvalidOperation", "3", "2", "4"],
    ["a missing target axis", () => T.broadcast(x, Axis.list({ batch: 2 })), "UnknownAxis", '"seq"'],
    [
      "nothing to choose from",
      () => T.argmax(T.slice(x, "seq", { to: "a", start: 0, size: 0 }), "a"),
      "InvalidOperation",
      '"a"'
    ],
    [
      "labels of other rows",
      () => T.softmaxCrossEntropy(x, labels, { classes: "seq" }),
      "InvalidOperation",
      "batch=4",
      "batch=2"
    ],
    [
      "full smoothing",
      () => T.softmaxCrossEntropy(x, labels, { classes: "seq", smoothing: 1 }),
      "InvalidOperation",
      "1"
    ],
    [
      "weights of another axis",
      () => T.layerNorm(x, "seq", 1e-5, T.sum(x, "seq") as Tensor<any>),
      "InvalidOperation",
      '"seq"',
      "batch=2"
    ],
    ["a negative size", () => Axis.make("seq", -1), "InvalidOperation", '"seq"', "-1"]
  ]
  for (const [name, make, tag, ...says] of cases) {
    it(name, () => {
      const error = Law.refusal(make)
      assert.strictEqual(error?.tag, tag)
      for (const part of says) assert.include(error!.message, part)
    })
  }
})

describe("the law notices", () => {
  const noticed = (
    name: PrimitiveName,
    broken: AnyPrimitive,
    problem: (p: AnyPrimitive) => (s: Sample) => string | null
  ) => assert.isNotNull(law(name, problem(broken), 300))

  it("a sum that keeps its axis", () => {
    noticed("sum", { ...all.sum, type: ([t]) => [t!] }, Law.typeProblem)
  })
  it("a sum that drops another axis", () => {
    noticed("sum", { ...all.sum, type: ([t]) => [{ axes: [], dtype: t!.dtype }] }, Law.typeProblem)
  })
  it("a cut with the wrong length", () => {
    const type: AnyPrimitive["type"] = ([t]) => [t!]
    noticed("slice", { ...all.slice, type }, Law.typeProblem)
  })
  it("a composite that promises another storage type", () => {
    const type: AnyPrimitive["type"] = (types, p) =>
      all.gelu.type(types, p).map((t) => ({ ...t, dtype: "f32" as const }))
    noticed("gelu", { ...all.gelu, type }, Law.typeProblem)
  })
  it("a meaning that depends on memory order", () => {
    const evaluate = ([x]: ReadonlyArray<Parameters<typeof print>[0]["arrays"][number]>) => [
      { ...x!, data: x!.data.map((v, i) => v + i) }
    ]
    noticed("neg", { ...all.neg, meaning: { kind: "core", evaluate } }, Law.orderProblem)
  })
  it("rules that accept anything", () => {
    const type: AnyPrimitive["type"] = ([t]) => [t!]
    noticed("add", { ...all.add, type }, Law.sizeProblem)
    noticed("sum", { ...all.sum, type }, Law.nameProblem)
    noticed("mul", { ...all.mul, type }, Law.dtypeProblem)
  })
})
