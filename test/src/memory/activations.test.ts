/** What layers keep for their backward pass: by formula, and never more than the textbook's. */
import * as Activations from "@tessera/core/Activations"
import * as Distribute from "@tessera/core/Distribute"
import * as Gradient from "@tessera/core/Gradient"
import * as Module from "@tessera/core/Module"
import * as Optimizer from "@tessera/core/Optimizer"
import { sgd } from "@tessera/core/optimizers/sgd"
import * as Precision from "@tessera/core/Precision"
import { decomposeExcept } from "@tessera/core/primitives/composite"
import * as Recompute from "@tessera/core/Recompute"
import { simplifyBody } from "@tessera/core/Simplify"
import { prepare } from "@tessera/core/step/Prepared"
import type { Choices } from "@tessera/core/Strategy"
import * as Strategy from "@tessera/core/Strategy"
import * as Tasks from "@tessera/core/Tasks"
import * as Vit from "@tessera/models/Vit"
import * as VitConfig from "@tessera/models/VitConfig"
import * as Result from "effect/Result"
import * as fc from "fast-check"
import { describe, expect, it } from "vitest"

interface Sizes {
  readonly b: number
  /** Patches along one side; the sequence has one token more. */
  readonly side: number
  readonly a: number
  readonly headDim: number
  readonly mlp: number
  readonly layers: number
  readonly dropout: number
}

const sizes: fc.Arbitrary<Sizes> = fc.record({
  b: fc.constantFrom(4, 8),
  side: fc.integer({ min: 1, max: 4 }),
  a: fc.constantFrom(2, 4),
  headDim: fc.constantFrom(4, 8, 16),
  mlp: fc.constantFrom(16, 32, 64),
  layers: fc.constantFrom(2, 4, 6),
  dropout: fc.constantFrom(0, 0.1)
})

const sequence = ({ side }: Sizes) => side * side + 1

const configOf = (n: Sizes, precision: Precision.Precision, choices: Omit<Choices, "mesh"> & Partial<Choices> = {}) => {
  const model = VitConfig.make({
    imageSize: { height: 4 * n.side, width: 4 * n.side },
    patch: 4,
    channels: 1,
    hidden: n.a * n.headDim,
    mlp: n.mlp,
    heads: n.a,
    layers: n.layers,
    dropout: n.dropout,
    attentionDropout: n.dropout,
    head: { kind: "linear", classes: 3, kernel: "normal", bias: 0 }
  })
  const side = 4 * n.side
  const task = Tasks.classification(Vit.classifier(model), {
    batchSize: n.b,
    height: side,
    width: side,
    channels: 1,
    classes: 3
  })
  return { ...task, precision, optimizer: Optimizer.make(sgd()), strategy: Strategy.make({ mesh: [], ...choices }) }
}

/** The stacks of the program of one rank. */
const stacks = (n: Sizes, precision: Precision.Precision, choices: Omit<Choices, "mesh"> & Partial<Choices> = {}) => {
  const made = Result.getOrThrow(Distribute.step(configOf(n, precision, choices)))
  if (made.kind !== "spread") throw new Error("not spread")
  return Activations.of(made.local.program)
}

/**
 * What our kernels need of a layer, in bytes, `w` bytes a value: inputs of both norms, their outputs and the sum between them (5), queries, keys, values,
 * attention's result (4), and the MLP twice, before and after its activation. Of every row of both norms the mean and the deviation, of every row of
 * scores the logarithm of its sum, in f32. Masks of dropout are made again.
 */
const ours = (n: Sizes, w: number): number => {
  const { a, b, headDim, mlp } = n
  const [s, h] = [sequence(n), a * headDim]
  return w * s * b * (8 * h + 2 * mlp) + 16 * s * b + 4 * a * s * b
}

/** With 16-bit values, for an MLP of width 4h. @source arXiv:2205.05198, table 2 */
const textbook = ({ a, b, headDim, side }: Sizes, t = 1) => {
  const [s, h] = [side * side + 1, a * headDim]
  return {
    none: s * b * h * (10 + 24 / t + (5 * a * s) / (h * t)),
    sequence: (s * b * h * (34 + (5 * a * s) / h)) / t,
    selective: 34 * s * b * h,
    full: 2 * s * b * h
  }
}

describe("bytes that a layer keeps", () => {
  const runs = { numRuns: 25 }

  it("are those of the formula without recomputation, in f32 and bf16", () => {
    fc.assert(
      fc.property(sizes, (n) => {
        for (const [precision, w] of [
          [Precision.f32, 4],
          [Precision.bf16, 2]
        ] as const) {
          const [stack, ...rest] = stacks(n, precision)
          expect(rest).toEqual([])
          expect([stack!.size, stack!.bytes]).toEqual([n.layers, ours(n, w)])
        }
      }),
      runs
    )
  })

  it("never exceed the textbook's, for an MLP of width 4h", () => {
    fc.assert(
      fc.property(sizes, (sized) => {
        const n = { ...sized, mlp: 4 * sized.a * sized.headDim }
        const book = textbook(n)
        const kept = (kind: "none" | "selective" | "full") =>
          stacks(n, Precision.bf16, { recompute: { kind } })[0]!.bytes
        expect(kept("none")).toBeLessThanOrEqual(book.none)
        expect(kept("selective")).toBeLessThanOrEqual(book.selective)
        expect(kept("full")).toBe(book.full)
      }),
      runs
    )
  })

  it("are those of every group of layers, or of the rest, when recomputation says so", () => {
    const n: Sizes = { b: 4, side: 2, a: 2, headDim: 8, mlp: 32, layers: 6, dropout: 0 }
    const one = 2 * sequence(n) * n.b * n.a * n.headDim
    const [uniform] = stacks(n, Precision.bf16, { recompute: { kind: "full", method: "uniform", layers: 3 } })
    expect([uniform!.size, uniform!.bytes]).toEqual([2, one])
    const block = stacks(n, Precision.bf16, { recompute: { kind: "full", method: "block", layers: 4 } })
    expect(block.map((s) => [s.size, s.bytes])).toEqual([
      [4, one],
      [2, ours(n, 2)]
    ])
  })

  it("shrink with tensor and sequence parallelism, and stay below the textbook's", () => {
    const n: Sizes = { b: 4, side: 3, a: 4, headDim: 8, mlp: 128, layers: 2, dropout: 0 }
    for (const t of [2, 4]) {
      const book = textbook(n, t)
      const mesh = [["tensor", t]] as const
      expect(stacks(n, Precision.bf16, { mesh })[0]!.bytes).toBeLessThan(book.none)
      const s = Math.ceil(sequence(n) / t) * t
      const split = stacks(n, Precision.bf16, { mesh, sequence: true })[0]!.bytes
      // The sequence is stored padded.
      expect(split * t).toBe((ours(n, 2) / sequence(n)) * s)
      expect(split).toBeLessThan((book.sequence / sequence(n)) * s)
    }
  })
})

/** The stacks of a layer whose attention has no kernel: scores are there in full. */
const decomposed = (n: Sizes, recompute: Recompute.Policy) => {
  const { body, params } = prepare(configOf(n, Precision.bf16))
  const plain = decomposeExcept(Recompute.apply(body, recompute), (e) => !e.primitive.name.startsWith("attention"))
  const wrt = Module.leaves(params).map((_, i) => i)
  return Activations.of(simplifyBody(Gradient.valueAndGrad(plain, wrt)))[0]!
}

describe("attention without a kernel", () => {
  it("keeps scores of every pair of tokens, unless it is recomputed", () => {
    fc.assert(
      fc.property(sizes, (n) => {
        const pairs = n.b * n.a * sequence(n) ** 2
        const scores = (recompute: Recompute.Policy) =>
          decomposed(n, recompute).kept.filter((t) => t.axes.reduce((c, x) => c * x.size, 1) === pairs).length
        const same = stacks(n, Precision.bf16, { recompute: { kind: "selective" } })[0]!.bytes
        expect(scores(Recompute.none)).toBeGreaterThan(0)
        expect(scores(Recompute.selective)).toBe(0)
        expect(decomposed(n, Recompute.selective).bytes).toBe(same)
        expect(decomposed(n, Recompute.none).bytes).toBeGreaterThan(same + 2 * pairs)
      }),
      { numRuns: 10 }
    )
  })
})
