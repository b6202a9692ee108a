/** Simplification keeps meaning and types, applies once, and finds what it should. */
import * as Axis from "@tessera/core/Axis"
import * as Evaluate from "@tessera/core/Evaluate"
import type { Body } from "@tessera/core/Node"
import { build } from "@tessera/core/Node"
import * as Optimizer from "@tessera/core/Optimizer"
import * as Program from "@tessera/core/Program"
import * as Simplify from "@tessera/core/Simplify"
import * as T from "@tessera/core/Tensor"
import { placeP } from "@tessera/core/primitives/emit"
import { renameP } from "@tessera/core/primitives/axes"
import { adamw } from "@tessera/core/optimizers/adamw"
import * as fc from "fast-check"
import { describe, expect, it } from "vitest"
import * as M from "./models.ts"
import { A, codes, N, programOf, typeX, valuesOf } from "./programs.ts"

type Any = any

/** What is wrong with a simplifier on one program, or null. */
const complaint = (
  simplify: (p: Program.Program) => Program.Program,
  program: Program.Program,
  seed: number
): string | null => {
  const after = simplify(program)
  const problem = Program.check(after)
  if (problem !== null) return problem
  if (after.inputs !== program.inputs) return "other inputs"
  for (let i = 0; i < program.outputs.length; i++) {
    const [x, y] = [program.outputs[i]!, after.outputs[i]!]
    if (!Axis.equal(x.type.axes, y.type.axes) || x.type.dtype !== y.type.dtype || x.role !== y.role)
      return `output ${i} has another type`
  }
  const gap = M.difference(Evaluate.runUnsafe(program, valuesOf(seed)), Evaluate.runUnsafe(after, valuesOf(seed)))
  if (!(gap < 1e-9)) return `differs by ${gap}`
  if (Program.print(simplify(after)) !== Program.print(after)) return "applied twice is not once"
  return count(after) <= count(program) ? null : "grew"
}

const count = (b: Body): number =>
  b.equations.reduce(
    (n, e) =>
      n +
      1 +
      (e.primitive.meaning.kind === "region"
        ? e.primitive.meaning.bodies(e.params).reduce((m, x) => m + count(x), 0)
        : 0),
    0
  )

const one = (f: (x: Any, y: Any) => Any) => {
  const p = Program.traceUnsafe({ x: typeX, y: typeX }, (i: Any) => f(i.x, i.y))
  return { before: p, after: Simplify.simplify(p) }
}
const names = (b: Body) => b.equations.map((e) => e.primitive.name)

describe("Simplify", () => {
  it("keeps meaning, types and roles; twice is once", () => {
    fc.assert(
      fc.property(codes, fc.nat({ max: 1000 }), (code, seed) => {
        expect(complaint(Simplify.simplify, programOf(code), seed)).toBe(null)
      }),
      { numRuns: 300 }
    )
  })

  it("the law notices a simplifier that drops a factor, and one that changes an output's type", () => {
    const dropping = (p: Program.Program) =>
      Program.withBody(
        p,
        Program.map(p, (e, inputs) => (e.primitive.name === "mul" ? [inputs[0]!] : null))
      )
    expect(complaint(dropping, programOf([[5, 0, 0]]), 1)).toMatch(/differs|another type/)
    const narrowing = (p: Program.Program) =>
      Program.withBody(
        p,
        Program.body(
          p.inputs,
          p.outputs.map((o) => T.cast(o as Any, "bf16"))
        )
      )
    expect(complaint(narrowing, programOf([[0, 0, 1]]), 1)).toContain("another type")
  })

  it("applies its table", () => {
    expect(names(one((x) => T.scale(T.neg(T.neg(x)), 1)).after)).toEqual([])
    expect(names(one((x) => T.scale(T.scale(x, 3), 5)).after)).toEqual(["constant", "mul"])
    expect(names(one((x) => T.cast(T.cast(T.cast(x, "bf16"), "f32"), "bf16")).after)).toEqual(["cast"])
    // A narrowing is not undone by a widening.
    expect(names(one((x) => T.cast(T.cast(x, "bf16"), "f32")).after)).toEqual(["cast", "cast"])
    expect(
      names(one((x) => build(renameP, [T.rename(x, "a" as never, "c")], { from: "c", to: "d" }, "compute")[0]).after)
    ).toEqual(["rename"])
    expect(names(one((x) => T.slice(x, "a" as never, { to: "c", start: 0, size: A })).after)).toEqual(["rename"])
    expect(
      names(one((x) => T.sum(T.broadcast(T.sum(x, "b" as never), typeX.axes as Any), "b" as never)).after)
    ).toEqual(["sum", "constant", "mul"])
    expect(names(one(() => T.cast(T.constant(2), "bf16") as Any).after)).toEqual(["constant"])
    expect(names(one((x) => T.place(T.place(x, "gradient"), "compute")).after)).toEqual([])
    // A detour through another table is a choice of layout.
    expect(
      names(one((x) => build(placeP, [T.place(x, "gradient")], { role: "optimizer" }, "optimizer")[0]).after)
    ).toEqual(["place", "place"])
  })

  it("a product read only as f32 is not rounded on the way; one read twice is not computed twice", () => {
    const product = (x: Any, y: Any) =>
      T.contract(T.cast(x, "bf16") as Any, T.rename(T.cast(y, "bf16") as Any, "a", "c") as Any, "b")
    const { after } = one((x, y) => T.cast(product(x, y) as Any, "f32"))
    expect(names(after).filter((n) => n === "cast").length).toBe(2)
    expect(after.outputs[0]!.equation!.primitive.name).toBe("contract")
    const twice = one((x, y) => [T.cast(product(x, y) as Any, "f32"), T.neg(product(x, y) as Any)]).after
    expect(names(twice).filter((n) => n === "contract").length).toBe(1)
  })

  it("shares equal equations, but tells apart what JSON does not", () => {
    expect(names(one((x, y) => T.add(T.tanh(T.add(x, y)), T.tanh(T.add(x, y)))).after)).toEqual(["add", "tanh", "add"])
    const { after } = one(() => [
      T.constant(Infinity),
      T.constant(-Infinity),
      T.constant(NaN),
      T.constant(0),
      T.constant(-0),
      T.constant(Infinity)
    ])
    expect(after.equations.length).toBe(5)
  })

  it("one parameter used twice travels once", () => {
    const p = Program.traceUnsafe({ w: T.input(typeX, "parameter") as Any, x: typeX as Any }, (i: Any) =>
      T.add(T.mul(i.w, i.x) as Any, T.tanh(i.w) as Any)
    )
    expect(names(p).filter((n) => n === "place").length).toBe(2)
    expect(names(Simplify.simplify(p)).filter((n) => n === "place").length).toBe(1)
  })

  it("drops dead results, operands and carries of loops", () => {
    const { after, before } = one((x, y) => {
      const each = T.broadcast(y, [Axis.make("n", N), ...typeX.axes] as Any)
      return T.scan("n", { carried: [x, y], each: [each, each, each], fixed: [x, x, y] }, (s) => ({
        carried: [T.tanh(s.carried[0] as Any), T.add(s.carried[1] as Any, s.each[2] as Any)],
        stacked: [T.exp(s.each[0] as Any)],
        summed: [
          T.mul(s.fixed[0] as Any, T.mul(s.fixed[1] as Any, T.mul(s.each[0] as Any, s.each[1] as Any))),
          s.fixed[2]!
        ]
      })).summed[0]
    })
    expect(before.equations.at(-1)!.inputs.length).toBe(8)
    const loop = after.equations.find((e) => e.primitive.name === "scan")!
    expect(loop.params).toMatchObject({ carried: 0, each: 1, stacked: 0 })
    expect([loop.inputs.length, loop.outputs.length]).toEqual([2, 1])
    expect(M.difference(Evaluate.runUnsafe(before, valuesOf(3)), Evaluate.runUnsafe(after, valuesOf(3)))).toBeLessThan(
      1e-12
    )
  })

  it("a whole training step has nothing left to simplify", () => {
    const { program } = M.stepOf({
      batch: 4,
      optimizer: Optimizer.make(adamw(), { ema: { decay: 0.9 } }),
      microbatches: 2,
      recompute: { kind: "full" }
    })
    expect(count(Simplify.simplify(program))).toBe(count(program))
  })
})
