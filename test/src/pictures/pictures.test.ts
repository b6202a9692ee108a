import { assert, describe, it } from "@effect/vitest"
import type { AttentionWeights } from "@tessera/cli/pictures/AttentionPicture"
import { attentionPicture, patchMap, rollout } from "@tessera/cli/pictures/AttentionPicture"
import * as Glyphs from "@tessera/cli/pictures/Glyphs"
import { historyOf } from "@tessera/cli/pictures/History"
import { svgToPng } from "@tessera/cli/pictures/Render"
import * as Report from "@tessera/cli/pictures/Report"
import { sampleGrid } from "@tessera/cli/pictures/SampleGrid"
import { niceRange, numberText, smooth, thin, ticks } from "@tessera/cli/pictures/Scale"
import * as Svg from "@tessera/cli/pictures/Svg"
import * as Effect from "effect/Effect"
import * as fc from "fast-check"

const pngSize = (png: Uint8Array) => {
  assert.deepEqual(
    [...png.subarray(1, 4)],
    Array.from("PNG", (letter) => letter.charCodeAt(0))
  )
  const view = new DataView(png.buffer, png.byteOffset)
  return [view.getUint32(16), view.getUint32(20)]
}

const image = (width: number, height: number) => ({
  width,
  height,
  data: Uint8Array.from({ length: width * height * 3 }, (_, i) => (i * 7) & 255)
})

const history = {
  steps: Array.from({ length: 500 }, (_, i) => ({ step: i + 1, loss: 2 / (i + 1) ** 0.3, accuracy: i / 600 })),
  evaluations: [100, 300, 500].map((step) => ({ step, loss: 1.2 - step / 1000, accuracy: step / 700 }))
}

describe("the axes", () => {
  it("have round ticks within their range", () =>
    fc.assert(
      fc.property(
        fc.double({ min: -1e6, max: 1e6, noNaN: true }),
        fc.double({ min: 1e-3, max: 1e6, noNaN: true }),
        fc.integer({ min: 2, max: 12 }),
        (low, size, target) => {
          const high = low + size
          const all = ticks(low, high, target)
          assert.isTrue(all.every((tick) => tick >= low - size * 1e-6 && tick <= high + size * 1e-6))
          assert.isAtMost(all.length, target + 2)
          const [from, to] = niceRange(low, high, target)
          assert.isTrue(from <= low + size * 1e-6 && to >= high - size * 1e-6)
        }
      )
    ))

  it("write numbers briefly", () => {
    assert.deepEqual([0, 0.25, 1.5, 12_345, 2e6, 3e-5, 100, 0.4742].map(numberText), [
      "0",
      "0.25",
      "1.5",
      "12.3k",
      "2M",
      "3e-5",
      "100",
      "0.4742"
    ])
  })

  it("thin curves without losing their extremes or their end", () =>
    fc.assert(
      fc.property(
        fc.array(fc.double({ noNaN: true, min: -1e3, max: 1e3 }), { minLength: 1, maxLength: 400 }),
        fc.integer({ min: 4, max: 50 }),
        (ys, limit) => {
          const points = ys.map((y, x) => ({ x, y }))
          const few = thin(points, limit)
          assert.isAtMost(few.length, Math.max(limit + 2, 1))
          const values = few.map(({ y }) => y)
          assert.strictEqual(Math.max(...values), Math.max(...ys))
          assert.strictEqual(Math.min(...values), Math.min(...ys))
          assert.deepEqual(few.at(-1), points.at(-1))
          const average = smooth(points, 9)
          assert.isTrue(average.every(({ y }) => y >= Math.min(...ys) - 1e-9 && y <= Math.max(...ys) + 1e-9))
        }
      )
    ))
})

describe("the letters", () => {
  it("cover what pictures say", () => {
    const needed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789%.:,-_/()"
    const box = Glyphs.text("\u2603", { x: 0, y: 0, size: 12, color: "#000" })
    for (const letter of needed) {
      const drawn = Glyphs.text(letter, { x: 0, y: 0, size: 12, color: "#000" })
      assert.include(drawn, "<path")
      assert.notStrictEqual(drawn, box)
    }
    assert.strictEqual(Glyphs.measure("", 12), 0)
    assert.isAbove(Glyphs.measure("mm", 12), Glyphs.measure("m", 12))
    assert.strictEqual(Glyphs.measure("é", 12), Glyphs.measure("e", 12))
  })

  it("shorten to a width", () =>
    fc.assert(
      fc.property(fc.string({ maxLength: 40 }), fc.integer({ min: 20, max: 200 }), (text, width) => {
        assert.isAtMost(Glyphs.measure(Glyphs.shorten(text, 12, width), 12), width)
      })
    ))
})

describe("the curves", () => {
  it.effect("are drawn in both themes, also without data", () =>
    Effect.gen(function* () {
      for (const theme of ["auto", "light"] as const) {
        for (const data of [
          history,
          { steps: [], evaluations: [] },
          { steps: [{ step: 1, loss: NaN }], evaluations: [] }
        ]) {
          const svg = Svg.runCurves(data, { theme })
          assert.notInclude(svg, "NaN")
          assert.notInclude(svg, "undefined")
          const [width] = pngSize(yield* svgToPng("curves", svg))
          assert.isAbove(width!, 400)
        }
      }
      const svg = Svg.runCurves(history)
      for (const text of ["Loss", "Accuracy", "train", "validation", "step", "top-1 accuracy", "best 71.4%"])
        assert.include(svg, text)
      assert.notMatch(svg.replace("http://www.w3.org/2000/svg", ""), /https?:/)
    })
  )

  it("escape what they are called", () => {
    const chart = { title: "<script>&", xLabel: "x", yLabel: "y", series: [] }
    assert.notInclude(Svg.charts([chart]), "<script>")
  })
})

describe("the history", () => {
  it("takes the steps and one kind of evaluation", () => {
    const common = { time: 0, run: "r", epoch: 1, samples: 10, seconds: 1 }
    const step = { totalSteps: 9, learningRate: 0.1, gradientNorm: 1, dataSeconds: 0, skippedSamples: 0 }
    const found = historyOf([
      { kind: "step", ...common, ...step, step: 1, loss: 2 },
      { kind: "evaluation", ...common, step: 1, name: "validation", loss: 3 },
      { kind: "evaluation", ...common, step: 1, name: "retrieval" },
      { kind: "event", time: 0, run: "r", step: 1, name: "checkpoint", message: "saved" }
    ])
    assert.deepEqual(
      found.steps.map(({ loss }) => loss),
      [2]
    )
    assert.deepEqual(
      found.evaluations.map(({ loss }) => loss),
      [3]
    )
  })
})

describe("attention rollout", () => {
  const weights = fc
    .record({
      layers: fc.integer({ min: 1, max: 3 }),
      heads: fc.integer({ min: 1, max: 3 }),
      seq: fc.integer({ min: 1, max: 6 })
    })
    .chain((size) =>
      fc
        .array(fc.double({ min: 0.01, max: 1, noNaN: true }), {
          minLength: size.layers * size.heads * size.seq ** 2,
          maxLength: size.layers * size.heads * size.seq ** 2
        })
        .map((raw): AttentionWeights => {
          const { seq } = size
          const data = raw.map((value, i) => {
            const row = Math.floor(i / seq) * seq
            return value / raw.slice(row, row + seq).reduce((a, b) => a + b, 0)
          })
          return { ...size, data }
        })
    )

  it("keeps rows that sum to one", () =>
    fc.assert(
      fc.property(weights, (attention) => {
        const { seq } = attention
        const out = rollout(attention)
        for (let row = 0; row < seq; row++) {
          const sum = out.subarray(row * seq, (row + 1) * seq).reduce((a, b) => a + b, 0)
          assert.closeTo(sum, 1, 1e-9)
        }
      })
    ))

  it("is the product of the layers, the last on the left", () => {
    const data = [0.5, 0.5, 0, 1, 1, 0, 0.25, 0.75]
    // Each layer: (attention + identity) / 2.
    const [a, b] = [
      [0.75, 0.25, 0, 1],
      [1, 0, 0.125, 0.875]
    ] as const
    const product = [
      b[0] * a[0] + b[1] * a[2],
      b[0] * a[1] + b[1] * a[3],
      b[2] * a[0] + b[3] * a[2],
      b[2] * a[1] + b[3] * a[3]
    ]
    assert.deepEqual([...rollout({ layers: 2, heads: 1, seq: 2, data })], product)
  })

  it("gives the class token's view of the patches", () => {
    const data = [0.2, 0.8, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    const map = patchMap({ layers: 1, heads: 1, seq: 5, data }, { rows: 2, columns: 2 })
    assert.deepEqual(Array.from(map.data), [0.4, 0, 0, 0])
  })

  it.effect("is drawn beside the image", () =>
    Effect.gen(function* () {
      const map = { rows: 3, columns: 4, data: Array.from({ length: 12 }, (_, i) => i) }
      const [width, height] = pngSize(yield* attentionPicture(image(40, 30), map))
      assert.deepEqual([width, height], [2 * (40 + 2 * 280 + 18), 2 * (52 + 210 + 34 + 14)])
      const flat = yield* attentionPicture(image(5, 9), { rows: 1, columns: 1, data: [3] }, { imageSize: 64, scale: 1 })
      assert.isAbove(pngSize(flat)[0]!, 80)
    })
  )
})

describe("the sample grid", () => {
  it.effect("takes pixels and files, labels or none, any number", () =>
    Effect.gen(function* () {
      const file = yield* svgToPng("test", `<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"/>`)
      const samples = [
        { image: image(32, 32), label: "a cat & <a dog>", predicted: "a cat & <a dog>", confidence: 0.93 },
        { image: file, label: "ship", predicted: "an extraordinarily long label for a ship", confidence: 2 },
        { image: image(300, 10), predicted: "unknown" }
      ]
      const [width, height] = pngSize(yield* sampleGrid(samples, { imageSize: 64, scale: 1 }))
      assert.isAbove(width!, 3 * 64)
      assert.isBelow(height!, 3 * 64)
      pngSize(yield* sampleGrid([]))
      const bad = yield* Effect.flip(sampleGrid([{ image: new Uint8Array([1, 2, 3]), predicted: "x" }]))
      assert.match(bad.message, /^the sample grid could not be drawn: /)
    })
  )
})

describe("the report", () => {
  it.effect("is one file that fetches nothing", () =>
    Effect.gen(function* () {
      const png = yield* sampleGrid([{ image: image(8, 8), predicted: "x" }], { imageSize: 32 })
      const html = Report.report({
        title: "Run <1>",
        summary: "A & B",
        date: "2024-01-02",
        results: { steps: 12_000, seconds: 3723, imagesPerSecond: 411.26, validationAccuracy: 0.9721, trainLoss: 0.1 },
        history,
        pictures: [{ title: "Predictions", png, caption: "first" }],
        configuration: Report.factsOf({ optimizer: { learningRate: 3e-4, betas: [0.9, 0.95] }, seed: null }),
        machine: yield* Report.machineFacts({ Tessera: "0.1.0" })
      })
      assert.notMatch(html.replaceAll("http://www.w3.org/2000/svg", ""), /https?:|<script|@import|url\((?!#)/)
      for (const text of [
        "Run &lt;1&gt;",
        "A &amp; B",
        "97.2%",
        "1 h 2 min",
        "12,000",
        "411.3 images/s",
        "optimizer.betas",
        "0.9, 0.95",
        "Processor",
        "data:image/png;base64,",
        "prefers-color-scheme:dark"
      ]) {
        assert.include(html, text)
      }
    })
  )
})
