import { assert, describe, it } from "@effect/vitest"
import * as Axis from "@tessera/core/Axis"
import { threefry } from "@tessera/core/primitives/threefry"
import * as Random from "@tessera/core/Random"
import * as T from "@tessera/core/Tensor"
import * as fc from "fast-check"
import * as Counterexample from "./counterexample.ts"
import type { Draw, Drawing } from "./randomLaw.ts"
import * as Law from "./randomLaw.ts"

const word = fc.integer({ min: 0, max: 2 ** 32 - 1 })
const draws: fc.Arbitrary<Draw> = fc.record({
  seed: word,
  examples: fc.uniqueArray(fc.nat(1000), { minLength: 1, maxLength: 9 }),
  sizes: fc.record({ seq: fc.integer({ min: 2, max: 7 }), embed: fc.integer({ min: 2, max: 5 }) }),
  path: fc.array(fc.constantFrom("blocks", "attention", "drop"), { maxLength: 3 }),
  layer: fc.option(fc.nat(20))
})

const find = (problem: (d: Draw) => string | null, runs = 200) =>
  Counterexample.find(draws, problem, { runs }, (d) => JSON.stringify(d))

const drawings: Readonly<Record<string, Drawing>> = {
  bits: Random.bits,
  uniform: Random.uniform,
  normal: Random.normal,
  keep: (key, axes) => Random.keep(key, axes, 0.3)
}

describe("Threefry-2x32-20 has its published answers", () => {
  const hex = ([a, b]: readonly [number, number]) =>
    `${a.toString(16).padStart(8, "0")} ${b.toString(16).padStart(8, "0")}`
  it("zeros", () => assert.strictEqual(hex(threefry(0, 0, 0, 0)), "6b200159 99ba4efe"))
  it("ones", () => {
    const all = 0xffffffff
    assert.strictEqual(hex(threefry(all, all, all, all)), "1cb996fc bb002be7")
  })
  it("digits of pi", () => {
    assert.strictEqual(hex(threefry(0x13198a2e, 0x03707344, 0x243f6a88, 0x85a308d3)), "c4923a9c 483df7a0")
  })
})

describe.each(Object.entries(drawings))("%s", (_, drawing) => {
  it("depend on no memory order", () => assert.isNull(find(Law.orderProblem(drawing))))
  it("depend on no slicing of the batch", () => assert.isNull(find(Law.sliceProblem(drawing))))
})

describe("streams", () => {
  it("of other seeds, paths, layers and examples are others", () => {
    assert.isNull(find(Law.separationProblem(Random.bits)))
  })
  it("are uniform in [0, 1)", () => {
    const { data } = Law.draw(Random.uniform, large)
    assert.isNull(Law.momentsProblem(data, 1 / 2, 1 / 12, 1 / 80))
    assert.isTrue(data.every((v) => v >= 0 && v < 1))
  })
  it("are normal", () => assert.isNull(Law.momentsProblem(Law.draw(Random.normal, large).data, 0, 1, 3)))
  it("keep the share that they should", () => {
    const { data } = Law.draw((key, axes) => Random.keep(key, axes, 0.3), large)
    assert.isNull(Law.momentsProblem(data, 0.7, 0.21, 0.7 * 0.3 ** 4 + 0.3 * 0.7 ** 4))
  })
  it("of neighbours are uncorrelated", () => {
    const { data } = Law.draw(Random.normal, large)
    const products = data.subarray(1).map((v, i) => v * data[i]!)
    assert.isNull(Law.momentsProblem(products, 0, 1, 9))
  })
})

const large: Draw = {
  seed: 5,
  examples: Array.from({ length: 20 }, (_, i) => 3 * i),
  sizes: { seq: 40, embed: 50 },
  path: ["init"],
  layer: 2
}

describe("the law notices", () => {
  it("bits by the place in the batch instead of the example", () => {
    const local: Drawing = (key, axes) => Random.bits({ ...key, example: null }, axes)
    assert.isNotNull(find(Law.sliceProblem(local)))
  })
  it("bits by the place in memory", () => {
    const inMemory: Drawing = (key, axes) => {
      const numbered = axes.map((a, i) => (a.name === "batch" ? a : Axis.make(`axis${i}`, a.size)))
      const bits = Random.bits(key, numbered)
      return axes.reduce((x, a, i) => (a.name === "batch" ? x : T.rename(x, `axis${i}`, a.name)), bits)
    }
    assert.isNotNull(find(Law.orderProblem(inMemory)))
  })
  it("streams that forget their path", () => {
    const forgetful: Drawing = (key, axes) => Random.bits(Random.make(key.seed, key.example), axes)
    assert.isNotNull(find(Law.separationProblem(forgetful)))
  })
  it("numbers that are not centred", () => {
    const shifted = Law.draw(Random.uniform, large).data.map((v) => v * 0.98)
    assert.isNotNull(Law.momentsProblem(shifted, 1 / 2, 1 / 12, 1 / 80))
  })
})
