/** What losses over pairs say, by plain loops: weights, absent examples, hits, large logits, storage types. */
import * as Axis from "@tessera/core/Axis"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Gradient from "@tessera/core/Gradient"
import type { HostArray } from "@tessera/core/HostArray"
import * as Host from "@tessera/core/HostArray"
import * as Precision from "@tessera/core/Precision"
import * as Program from "@tessera/core/Program"
import * as Dice from "@tessera/core/testing/Dice"
import { relative } from "@tessera/core/testing/compare"
import * as T from "@tessera/core/Tensor"
import * as Contrastive from "@tessera/models/losses/contrastive"
import * as fc from "fast-check"
import * as Result from "effect/Result"
import { afterAll, describe, expect, it } from "vitest"
import { onCpu } from "../backend/onCpu.ts"
import type { Compare, Pairs } from "./towers.ts"
import { compares } from "./towers.ts"

interface Values {
  readonly image: ReadonlyArray<ReadonlyArray<number>>
  readonly text: ReadonlyArray<ReadonlyArray<number>>
  readonly weights: ReadonlyArray<number>
  readonly logScale: number
  readonly bias: number
}

const width = 3

const draw = (seed: number, count: number, logScale: number): Values => {
  const dice = Dice.make(seed + 1)
  const unit = () => {
    const raw = Array.from({ length: width }, () => 2 * dice.next() - 1)
    const length = Math.sqrt(raw.reduce((sum, v) => sum + v * v, 0))
    return raw.map((v) => v / length)
  }
  const rows = () => Array.from({ length: count }, unit)
  const weights = Array.from({ length: count }, () => (dice.chance(0.3) ? 0 : dice.chance(0.5) ? 1 : 3 * dice.next()))
  return { image: rows(), text: rows(), weights, logScale, bias: -10 * dice.next() }
}

const arrays = ({ bias, image, logScale, text, weights }: Values): ReadonlyArray<HostArray> => {
  const batch = image.length
  const array = (axes: Axis.Axes, values: ReadonlyArray<number>): HostArray => ({
    axes,
    dtype: "f32",
    data: Float64Array.from(values)
  })
  const features = Axis.list({ batch, joint: width })
  return [
    array(features, image.flat()),
    array(features, text.flat()),
    array([], [logScale]),
    array([], [bias]),
    array(Axis.list({ batch }), weights)
  ]
}

/** total, weight, metrics; then the gradients of features, scale and bias. */
const programOf = (compare: Compare, values: Values) => {
  const program = Program.traceUnsafe(
    Object.fromEntries(
      arrays(values).map(({ axes, dtype }, i) => [
        ["image", "text", "logScale", "bias", "weights"][i]!,
        { axes, dtype }
      ])
    ),
    (pairs) => {
      const { metrics = {}, total, weight } = compare(pairs as unknown as Pairs)
      return [total, weight, ...Object.values(metrics)]
    }
  )
  return Gradient.valueAndGrad(program, [0, 1, 2, 3])
}

const run = (compare: Compare, values: Values) => Evaluate.runUnsafe(programOf(compare, values), arrays(values))

const softplus = (x: number) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)))

/** Loss and hits as the definitions say. */
const byLoops = ({ bias, image, logScale, text, weights }: Values) => {
  const present = weights.flatMap((w, i) => (w > 0 ? [i] : []))
  const logit = (i: number, j: number) =>
    Math.exp(logScale) * image[i]!.reduce((sum, v, k) => sum + v * text[j]![k]!, 0)
  let [contrastive, sigmoid, imageToText, textToImage, owedScale, owedBias] = [0, 0, 0, 0, 0, 0]
  const lost = (all: ReadonlyArray<number>, own: number) => {
    const top = Math.max(...all)
    return top + Math.log(all.reduce((sum, l) => sum + Math.exp(l - top), 0)) - own
  }
  for (const i of present) {
    const [row, column, own] = [present.map((j) => logit(i, j)), present.map((j) => logit(j, i)), logit(i, i)]
    contrastive += (weights[i]! * (lost(row, own) + lost(column, own))) / 2
    imageToText += own === Math.max(...row) ? weights[i]! : 0
    textToImage += own === Math.max(...column) ? weights[i]! : 0
    for (const j of present) {
      const [share, x] = [(weights[i]! + weights[j]!) / 2, logit(i, j) + bias]
      sigmoid += share * softplus(i === j ? -x : x)
      const owed = share * (i === j ? -1 / (1 + Math.exp(x)) : 1 / (1 + Math.exp(-x)))
      owedScale += owed * logit(i, j)
      owedBias += owed
    }
  }
  return {
    contrastive,
    sigmoid,
    owedScale,
    owedBias,
    imageToText,
    textToImage,
    weight: weights.reduce((sum, w) => sum + w, 0)
  }
}

const cases = fc.record({
  seed: fc.nat({ max: 1000 }),
  count: fc.integer({ min: 1, max: 7 }),
  logScale: fc.constantFrom(0, 1, Math.log(100), Math.log(3000))
})

const near = (found: number, expected: number) =>
  expect(Math.abs(found - expected)).toBeLessThanOrEqual(1e-11 * Math.max(1, Math.abs(expected)))

describe("values", () => {
  it.each(Object.entries(compares))("weights, hits and large logits: %s", (name, compare: Compare) => {
    fc.assert(
      fc.property(cases, ({ count, logScale, seed }) => {
        const values = draw(seed, count, logScale)
        const expected = byLoops(values)
        const [total, weight, ...rest] = run(compare, values).map((x) => x.data[0]!)
        near(total!, name === "sigmoid" ? expected.sigmoid : expected.contrastive)
        near(weight!, expected.weight)
        if (name === "sigmoid") {
          near(rest[2]!, expected.owedScale)
          near(rest[3]!, expected.owedBias)
          return
        }
        near(rest[0]!, expected.imageToText)
        near(rest[1]!, expected.textToImage)
      }),
      { numRuns: 40 }
    )
  })

  it("without weights everything counts 1", () => {
    const values = { ...draw(3, 5, 1), weights: [1, 1, 1, 1, 1] }
    for (const compare of Object.values<Compare>(compares)) {
      const bare: Compare = ({ weights: _weights, ...pairs }) => compare(pairs)
      run(bare, values).forEach((x, i) => expect(relative(x, run(compare, values)[i]!)).toBeLessThan(1e-13))
    }
  })
})

/** Differences between a batch, and the same batch with absent examples in between. */
const padding = (compare: Compare, seed: number): number => {
  const [few, more] = [draw(seed, 4, 2), draw(seed + 1, 6, 2)]
  const at = [0, 2, 3, 5]
  const spread = <A>(xs: ReadonlyArray<A>, all: ReadonlyArray<A>) =>
    all.map((x, i) => (at.includes(i) ? xs[at.indexOf(i)]! : x))
  const padded: Values = {
    ...few,
    image: spread(few.image, more.image),
    text: spread(few.text, more.text),
    weights: spread(few.weights, [0, 0, 0, 0, 0, 0])
  }
  const pick = (x: HostArray): HostArray =>
    Axis.has(x.axes, "batch")
      ? Host.stack(
          at.map((i) => Host.at(x, "batch", i)),
          Axis.make("batch", at.length),
          { axes: Axis.list({ joint: width }), dtype: "f32" }
        )
      : x
  const [found, expected] = [run(compare, padded), run(compare, few)]
  const absent = found
    .filter((x) => Axis.has(x.axes, "batch"))
    .flatMap((x) => [1, 4].flatMap((i) => [...Host.at(x, "batch", i).data].map(Math.abs)))
  return Math.max(...absent, ...found.map((x, i) => relative(pick(x), expected[i]!)))
}

describe("examples of weight 0", () => {
  it.each(Object.entries(compares))("are as if they were not there: %s", (_name, compare: Compare) => {
    for (const seed of [1, 2, 3, 4, 5]) expect(padding(compare, seed)).toBeLessThan(1e-13)
  })
  it("the law notices absent examples that are still sought among", () => {
    const weighed: Compare = ({ weights, ...pairs }) => {
      const other = T.rename(pairs.text, "batch", "otherBatch") as T.Tensor<any>
      const logits = T.mul(
        T.contract(pairs.image as T.Tensor<any>, other, "joint"),
        T.exp(pairs.logScale)
      ) as T.Tensor<any>
      const each = T.softmaxCrossEntropy(logits, T.iota("batch", T.sizeOf(pairs.image, "batch")), {
        classes: "otherBatch"
      })
      return {
        total: T.sum(T.mul(each as T.Tensor<any>, weights!), "batch") as T.AnyTensor,
        weight: T.sum(weights!, "batch")
      }
    }
    expect(padding(weighed, 1)).toBeGreaterThan(1e-3)
  })
})

describe("storage types", () => {
  const cpu = onCpu()
  afterAll(() => cpu.close())

  it.each(Object.entries(compares))("f32 on the native backend agrees: %s", async (_name, compare: Compare) => {
    const values = { ...draw(9, 33, Math.log(100)), bias: -10 }
    const body = programOf(compare, values)
    const rounded = arrays(values).map((x) => Host.make(x.axes, x.dtype, x.data))
    const [found, expected] = [await cpu.run(body, rounded), Evaluate.runUnsafe(body, rounded)]
    // A logit of 100 has an absolute error of 1e-5.
    found.forEach((x, i) => expect(relative(x, expected[i]!)).toBeLessThan(3e-5))
  })

  it("f32 keeps the digits of pairs that are almost surely apart", async () => {
    const axes = Axis.list({ batch: 64 })
    const type = { axes, dtype: "f32" as const }
    const body = Program.traceUnsafe({ x: type, t: type }, ({ t, x }) => [
      T.sigmoidCrossEntropy(x as T.Tensor<"batch">, t as T.Tensor<"batch">)
    ])
    const logits = Array.from({ length: 64 }, (_, i) => Math.fround(-2 - i / 3))
    const zeros = logits.map(() => 0)
    const [each] = await cpu.run(body, [Host.make(axes, "f32", logits), Host.make(axes, "f32", zeros)])
    // log(1 + e) alone is wrong by a part in a thousand at -10, and 0 at -17.
    logits.forEach((x, i) => expect(each!.data[i]! / softplus(x)).toBeCloseTo(1, 6))
  })

  it.each(Object.entries(compares))("similarities are f32 whatever activations are: %s", (_name, compare: Compare) => {
    const features = { axes: Axis.list({ batch: 8, joint: width }), dtype: "f32" as const }
    const scalar = { axes: [], dtype: "f32" as const }
    const program = Program.traceUnsafe(
      {
        image: features,
        text: features,
        logScale: scalar,
        bias: scalar,
        weights: { ...scalar, axes: Axis.list({ batch: 8 }) }
      },
      (pairs) => Object.values(compare(pairs as unknown as Pairs))[0] as T.AnyTensor
    )
    const { equations } = Precision.apply(program, Precision.bf16)
    const types = equations.map((e) => {
      const { axes, dtype } = e.outputs[0]!.type
      return `${Axis.has(axes, "joint") ? "features" : axes.length === 2 ? "similarities" : "others"} ${dtype}`
    })
    expect(new Set(types.filter((t) => t.startsWith("features")))).toContain("features bf16")
    expect(types.filter((t) => t === "similarities f32").length).toBeGreaterThan(1)
    expect(types.filter((t) => /^(similarities|others) (bf16|f16)/.test(t))).toEqual([])
  })
})

describe("views that do not match", () => {
  it("are refused with both", () => {
    const type = (sizes: Readonly<Record<string, number>>) => ({ axes: Axis.list(sizes), dtype: "f32" as const })
    const made = Program.trace(
      { image: type({ batch: 2, joint: 3 }), text: type({ batch: 2, embed: 3 }), logScale: type({}) },
      (pairs) => Contrastive.loss(pairs as any).total
    )
    expect(Result.isFailure(made) && made.failure.message).toMatch(
      /contrastive loss: images have \[batch=2, joint=3\], texts \[batch=2, embed=3\]; both need "batch"/
    )
  })
})
