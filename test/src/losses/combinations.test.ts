/** What gathering and local losses do to gradients: four combinations, as ranks by hand find them. */
import { RecipeError } from "@tessera/core/Errors"
import * as T from "@tessera/core/Tensor"
import * as Contrastive from "@tessera/models/losses/contrastive"
import * as fc from "fast-check"
import { describe, expect, it } from "vitest"
import type { Learned } from "./byHand.ts"
import * as ByHand from "./byHand.ts"
import type { Case, Loss } from "./combinations.ts"
import { apart, cases, combinations, gap, ours, towersOf } from "./combinations.ts"

const exact = 1e-12
const [whole, local, ownSlice, biased] = combinations
const some: Case = { ranks: 3, each: 2, embed: 4, logScale: 2, seed: 7 }

const scaled = ({ loss, logScale, u, v }: Learned, towers: number): Learned => {
  const by = (m: Learned["u"]) => m.map((row) => row.map((value) => value * towers))
  return { loss, logScale, u: by(u), v: by(v) }
}

describe("combinations of localLoss and gatherWithGrad", () => {
  it("give the gradients that ranks find, on random towers, ranks and scales", () => {
    fc.assert(
      fc.property(cases, (c) => {
        expect(gap(Contrastive.loss, c)).toBeLessThan(exact)
      }),
      { numRuns: 80 }
    )
  })

  it("with gradients through the gather: exactly those of one process; without, on own slices: towers 1 / ranks of them, the scale exact", () => {
    fc.assert(
      fc.property(cases, (c) => {
        const towers = towersOf(c)
        const { ranks } = c
        const truth = ByHand.truth(towers)
        for (const combination of [whole, local]) {
          expect(apart(ours(Contrastive.loss, towers, combination), truth)).toBeLessThan(exact)
        }
        const third = ours(Contrastive.loss, towers, { ...ownSlice, ranks })
        expect(apart(third, scaled(truth, 1 / ranks))).toBeLessThan(exact)
      }),
      { numRuns: 60 }
    )
  })

  it("the biased one keeps the direction roughly and half of the size; the scale stays exact", () => {
    const [truth, found] = [
      ByHand.truth(towersOf(some)),
      ours(Contrastive.loss, towersOf(some), { ...biased, allowBiased: true })
    ]
    const [a, b] = [truth, found].map(({ u, v }) => [...u.flat(), ...v.flat()]) as [Array<number>, Array<number>]
    const inner = (x: Array<number>, y: Array<number>) => x.reduce((sum, value, i) => sum + value * y[i]!, 0)
    const cosine = inner(a, b) / Math.sqrt(inner(a, a) * inner(b, b))
    expect(cosine).toBeGreaterThan(0.8)
    expect(cosine).toBeLessThan(0.9999)
    expect(Math.sqrt(inner(b, b) / inner(a, a))).toBeCloseTo(0.5, 1)
    expect(found.logScale).toBeCloseTo(truth.logScale, 12)
    expect(found.loss).toBeCloseTo(truth.loss, 12)
  })

  it("all are one on one rank", () => {
    for (const combination of combinations) {
      const found = ours(Contrastive.loss, towersOf(some), { ...combination, ranks: 1 })
      expect(apart(found, ByHand.truth(towersOf(some)))).toBeLessThan(exact)
    }
  })
})

describe("the law notices", () => {
  const pairsLoss =
    (change: (pairs: Contrastive.Pairs<"embed">, o: Contrastive.Options) => Contrastive.Pairs<"embed">): Loss =>
    (pairs, options) =>
      Contrastive.loss(change(pairs, options), { ...options, gatherWithGrad: true })
  const slower = <A extends string>(x: T.Tensor<A>, factor: number): T.Tensor<A> => {
    const fixed = T.stopGradient(x)
    return T.add(fixed, T.scale(T.sub(x, fixed), factor)) as T.AnyTensor
  }
  const share = ({ gatherWithGrad, ranks }: Contrastive.Options) => (gatherWithGrad === true ? 1 : 1 / ranks!)

  it("a forgotten factor", () => {
    const forgotten = pairsLoss((pairs) => pairs)
    expect(gap(forgotten, some, [whole, local])).toBeLessThan(exact)
    expect(gap(forgotten, some, [ownSlice])).toBeGreaterThan(1e-2)
  })
  it("a scale that learns 1 / ranks as the towers do", () => {
    const divided = pairsLoss((pairs, options) => ({
      image: slower(pairs.image, share(options)),
      text: slower(pairs.text, share(options)),
      logScale: slower(pairs.logScale, share(options))
    }))
    expect(gap(divided, some, [ownSlice])).toBeGreaterThan(1e-3)
    const right = pairsLoss((pairs, options) => ({
      ...pairs,
      image: slower(pairs.image, share(options)),
      text: slower(pairs.text, share(options))
    }))
    expect(gap(right, some, [ownSlice])).toBeLessThan(exact)
  })
  it("columns of other ranks left out", () => {
    const blocks: Loss = ({ image, logScale, text }, { ranks }) => {
      const count = T.sizeOf(image, "batch")
      const other: T.Tensor<any> = T.rename(text, "batch", "otherBatch")
      const block = (axis: string): T.Tensor<any, "int"> =>
        T.div(T.iota(axis, count), T.constant(count / ranks!, "i32") as unknown as T.Tensor<never, "int">)
      const all: T.Tensor<any> = T.mul(T.contract(image as T.Tensor<any>, other, "embed"), T.exp(logScale))
      const own: T.Tensor<any> = T.select(T.equal(block("batch"), block("otherBatch")), all, T.constant(-Infinity))
      const seek = (axis: string, classes: string): T.AnyTensor =>
        T.sum(T.softmaxCrossEntropy(own, T.iota(axis, count), { classes }) as T.Tensor<any>, axis)
      const both = T.add(seek("batch", "otherBatch") as T.Tensor<never>, seek("otherBatch", "batch") as T.Tensor<never>)
      return { total: T.scale(both, 0.5), weight: T.constant(count) }
    }
    expect(gap(blocks, { ...some, ranks: 1, each: 6 }, [whole, local])).toBeLessThan(exact)
    expect(gap(blocks, some, [whole, local])).toBeGreaterThan(1e-2)
  })
  it("the unbiased loss where the biased one is meant, and the other way round", () => {
    expect(gap((pairs) => Contrastive.loss(pairs), some, [biased])).toBeGreaterThan(1e-2)
    const always: Loss = (pairs) => Contrastive.loss(pairs, { ...biased, allowBiased: true })
    expect(gap(always, some, [local])).toBeGreaterThan(1e-2)
  })
  it("a gather over all ranks of the mesh instead of those of its data axes", () => {
    const towers = towersOf(some)
    const world = ByHand.learned(towers, { ...local, ranks: some.ranks, copies: 2 })
    expect(apart(ours(Contrastive.loss, towers, local), world)).toBeGreaterThan(1e-2)
  })
})

describe("options that do not go together", () => {
  const traced = (options: Contrastive.Options): string => {
    try {
      ours(Contrastive.loss, towersOf(some), options)
      return "accepted"
    } catch (error) {
      return error instanceof RecipeError ? `${error.key}: ${error.message}` : String(error)
    }
  }
  it("are refused by name, with the reason and what is right", () => {
    const biasedError =
      "loss.gatherWithGrad: loss.gatherWithGrad: false with localLoss makes the gradient biased: an example learns from what it seeks, not from those that seek it; set gatherWithGrad: true, exact at the same memory; to reproduce a run that was made so, add allowBiased: true"
    expect(traced({ gatherWithGrad: false })).toBe(biasedError)
    expect(traced({ gatherWithGrad: false, ranks: 4 })).toBe(biasedError)
    expect(traced({ gatherWithGrad: false, ranks: 4, allowBiased: false })).toBe(biasedError)
    expect(traced({ gatherWithGrad: false, ranks: 4, allowBiased: true })).toBe("accepted")
    expect(traced({ gatherWithGrad: false, localLoss: false })).toMatch(/^loss.ranks: .*1 \/ ranks of the truth/)
    expect(traced({ ranks: 0 })).toMatch(/^loss.ranks: .*0 is no number of ranks/)
    expect(traced({ ranks: 1.5 })).toMatch(/^loss.ranks/)
  })
})
