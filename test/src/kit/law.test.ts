import * as Axis from "@tessera/core/Axis"
import * as DType from "@tessera/core/DType"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Program from "@tessera/core/Program"
import { Arbitraries, Programs } from "@tessera/core/testing"
import type { Problem, Verdict } from "@tessera/core/testing/Law"
import * as Law from "@tessera/core/testing/Law"
import * as fc from "fast-check"
import { describe, expect, it } from "vitest"

const law: Law.Law<number> = { name: "small", cases: fc.nat(1000), show: (n) => [`number: ${n}`] }
const tooLarge = (n: number, where: () => ReadonlyArray<string> = () => ["here"]): Problem => ({
  what: `${n} is too large`,
  where
})
const below =
  (limit: number) =>
  (n: number): Verdict =>
    n < limit ? null : tooLarge(n)

describe("a law", () => {
  it("that holds finds nothing", () => {
    expect(Law.counterexample(law, () => null, {}, 20)).toBe(null)
    expect(() => Law.assert(null)).not.toThrow()
  })
  it("that does not hold gives the smallest case, and what draws it again", async () => {
    const found = Law.counterexample(law, below(123), { seed: 5 }, 50)!
    expect(found).toBeInstanceOf(Law.LawBroken)
    expect(found.smallest).toBe(123)
    expect(found.message.split("\n").slice(0, 4)).toEqual([
      "small does not hold",
      "  123 is too large",
      "  number: 123",
      "  here"
    ])
    expect(found.message).toContain("again: { seed: 5 }")
    expect(Law.counterexample(law, below(123), { seed: found.seed }, 50)!.message).toBe(found.message)
    const later = await Law.counterexampleLater(law, (n) => Promise.resolve(below(123)(n)), { seed: 5 }, 50)
    expect(later!.message).toBe(found.message)
    expect(() => Law.assert(found)).toThrow(found)
  })
  it("judges every case once, and looks for the place in the smallest only", () => {
    const [judged, places] = [new Map<number, number>(), [] as Array<number>]
    const verdict = (n: number): Verdict => {
      judged.set(n, (judged.get(n) ?? 0) + 1)
      const where = () => [`place ${places.push(n)}`]
      return n < 10 ? null : tooLarge(n, where)
    }
    Law.counterexample({ ...law, cases: fc.nat(12) }, verdict, { seed: 1 }, 200)
    expect(judged.size).toBeGreaterThan(4)
    expect(Math.max(...judged.values())).toBe(1)
    expect(places).toEqual([10])
  })
  it("of which no case can be judged does not hold", () => {
    const advice = "look elsewhere"
    const found = Law.counterexample({ ...law, advice }, () => "skip", { runs: 2 }, 50)
    expect(found!.message).toMatch(/^small: none of \d+ cases could be judged; look elsewhere$/)
  })
  it("passes on errors that it knows nothing of", () => {
    const broken = () => {
      throw new TypeError("a bug in a hook")
    }
    expect(() => Law.counterexample(law, broken, {}, 5)).toThrow("a bug in a hook")
  })
  it("prints no line that is longer than a screen is wide", () => {
    const verdict = (n: number): Verdict => tooLarge(n, () => ["x".repeat(500)])
    const { message } = Law.counterexample(law, verdict, {}, 5)!
    expect(Math.max(...message.split("\n").map((line) => line.length))).toBe(150)
  })
})

describe("arbitraries", () => {
  it("shapes have some of the axes, and arrays hold what their types can", () => {
    const cases = fc
      .tuple(Arbitraries.shape(["batch", "embed", "seq"], 4), Arbitraries.dtype)
      .chain(([axes, dtype]) => Arbitraries.array({ axes, dtype }))
    fc.assert(
      fc.property(cases, ({ axes, data, dtype }) => {
        expect(data.length).toBe(Axis.count(axes))
        expect(new Set(Axis.names(axes)).size).toBe(axes.length)
        expect(data.every((v) => Object.is(DType.store(dtype, v), v))).toBe(true)
      })
    )
  })
  it("meshes stay within the number of ranks, and shrink towards two ranks of data", () => {
    const [mesh] = fc.check(
      fc.property(Arbitraries.mesh(16), (m) => {
        expect(m.reduce((n, [, count]) => n * count, 1)).toBeLessThanOrEqual(16)
        return !m.some(([name]) => name === "data")
      }),
      { seed: 3, numRuns: 200 }
    ).counterexample!
    expect(mesh).toEqual([["data", 2]])
  })
  it("values of a list shrink to the first that fails", () => {
    const found = fc.check(
      fc.property(Arbitraries.among(10, 20, 30, 40), (n) => n < 20),
      { seed: 1 }
    )
    expect(found.counterexample).toEqual([20])
  })
  it("microbatches divide the batch", () => {
    expect(new Set(fc.sample(Arbitraries.microbatchesOf(12), 200))).toEqual(new Set([2, 3, 4, 6, 12]))
    expect(fc.sample(Arbitraries.microbatchesOf(1), 3)).toEqual([1, 1, 1])
  })
  it("random programs are well typed and run", () => {
    fc.assert(
      fc.property(Programs.all, ({ arrays, body }) => {
        expect(Program.check(body)).toBe(null)
        expect(Evaluate.runUnsafe(body, arrays).length).toBe(body.outputs.length)
      })
    )
  })
})
