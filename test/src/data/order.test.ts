import { assert, describe, it } from "@effect/vitest"
import { Cursor, Order, Random } from "@tessera/data"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as fc from "fast-check"
import { reasonOf } from "./sharedData.ts"

describe("threefry", () => {
  // Random123's kat_vectors, threefry2x32 with 20 rounds.
  const known: ReadonlyArray<readonly [number, number, number, number, number, number]> = [
    [0, 0, 0, 0, 0x6b200159, 0x99ba4efe],
    [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x1cb996fc, 0xbb002be7],
    [0x13198a2e, 0x03707344, 0x243f6a88, 0x85a308d3, 0xc4923a9c, 0x483df7a0]
  ]
  for (const [key0, key1, counter0, counter1, first, second] of known) {
    it(`key ${key0.toString(16)} gives ${first.toString(16)}`, () => {
      const out = new Uint32Array(2)
      Random.threefry(key0, key1, counter0, counter1, out)
      assert.deepStrictEqual([...out], [first, second])
    })
  }
})

describe("draws", () => {
  it("every word of the key counts, and nothing else", () =>
    fc.assert(
      fc.property(fc.nat(), fc.nat(1e6), fc.nat(), (seed, epoch, index) => {
        const first = (a: number, b: number, c: number, d: number) => Random.make(a, b, c, d).bits()
        const one = first(2, seed, epoch, index)
        assert.strictEqual(first(2, seed, epoch, index), one)
        const others = [
          first(3, seed, epoch, index),
          first(2, seed + 1, epoch, index),
          first(2, seed, epoch + 1, index),
          first(2, seed, epoch, index + 1)
        ]
        assert.isFalse(others.includes(one))
      })
    ))
  it("uniform, whole, normal and beta numbers have their moments", () => {
    const random = Random.make(Random.purposes.augment, 7, 0, 0)
    const count = 40_000
    const moments = (draw: () => number) => {
      const values = Float64Array.from({ length: count }, draw)
      const mean = values.reduce((sum, value) => sum + value, 0) / count
      return [mean, values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / count] as const
    }
    const near = (draw: () => number, mean: number, variance: number) => {
      const [foundMean, foundVariance] = moments(draw)
      assert.closeTo(foundMean, mean, 5 * Math.sqrt(variance / count))
      assert.closeTo(foundVariance, variance, 0.05 * variance)
    }
    near(random.unit, 1 / 2, 1 / 12)
    near(() => random.below(9), 4, 80 / 12)
    near(random.normal, 0, 1)
    near(() => Random.beta(random, 0.2), 0.5, 1 / (4 * (2 * 0.2 + 1)))
    near(() => Random.beta(random, 1), 0.5, 1 / 12)
  })
})

describe("the order of an epoch", () => {
  it("is a permutation, and a pure function of seed and epoch", () =>
    fc.assert(
      fc.property(fc.nat(), fc.nat(50), fc.integer({ min: 0, max: 3000 }), (seed, epoch, count) => {
        const order = Order.shuffled(seed, epoch, count)
        const again = Order.shuffled(seed, epoch, count)
        const seen = new Uint8Array(count)
        for (let position = 0; position < count; position++) {
          seen[order.at(position)]! += 1
          assert.strictEqual(order.at(position), again.at(position))
        }
        assert.isTrue(seen.every((times) => times === 1))
      })
    ))
  it("differs between epochs and seeds", () => {
    const list = (seed: number, epoch: number) =>
      Array.from({ length: 100 }, (_, position) => Order.shuffled(seed, epoch, 100).at(position)).join()
    assert.strictEqual(new Set([list(1, 0), list(1, 1), list(2, 0), list(2, 1)]).size, 4)
  })
  it("gives every order of three the same chance", () => {
    const times = new Map<string, number>()
    for (let seed = 0; seed < 6000; seed++) {
      const order = Order.shuffled(seed, 0, 3)
      const name = `${order.at(0)}${order.at(1)}${order.at(2)}`
      times.set(name, (times.get(name) ?? 0) + 1)
    }
    assert.strictEqual(times.size, 6)
    for (const count of times.values()) assert.closeTo(count, 1000, 150)
  })
})

describe("cursor", () => {
  const source = { name: "s", digest: "d1", count: 10 }
  it.effect("survives JSON", () =>
    Effect.gen(function* () {
      const cursor: Cursor.Cursor = { seed: 3, epoch: 2, position: 7, sourceDigest: "d1" }
      const codec = Schema.fromJsonString(Cursor.Cursor)
      const text = yield* Schema.encodeEffect(codec)(cursor)
      assert.deepStrictEqual(yield* Schema.decodeEffect(codec)(text), cursor)
      assert.strictEqual((yield* Effect.result(Schema.decodeEffect(codec)(text.replace("7", "-7"))))._tag, "Failure")
    })
  )
  it.effect("of other data, another seed, or beyond the end is refused", () =>
    Effect.gen(function* () {
      const refused = (cursor: Cursor.Cursor) =>
        Effect.map(reasonOf(Cursor.check(cursor, source, 3)), (reason) => reason.message)
      const good = Cursor.start(3, "d1")
      assert.deepStrictEqual(yield* Cursor.check(good, source, 3), good)
      assert.include(yield* refused({ ...good, sourceDigest: "d2" }), "source digest d2, this source has d1")
      assert.include(yield* refused({ ...good, seed: 4 }), "seed 4")
      assert.include(yield* refused({ ...good, position: 11 }), "at most 10")
    })
  )
})
