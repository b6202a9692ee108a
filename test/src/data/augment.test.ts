import { assert, describe, it } from "@effect/vitest"
import { Augment, Augmenter, Color, Image, Mix, Policy, Random, View } from "@tessera/data"
import * as Effect from "effect/Effect"
import * as fc from "fast-check"
import { native, reasonOf } from "./sharedData.ts"

const random = (index = 0) => Random.make(Random.purposes.augment, 1, 2, index)
/** A picture whose pixels all differ where they can. */
const picture = (height: number, width: number, channels: 1 | 3 = 3, salt = 0) =>
  Image.raw(
    height,
    width,
    channels,
    Uint8Array.from({ length: height * width * channels }, (_, at) => (at * 73 + salt) % 256)
  )
const pixels = (view: View.View) => [...View.toImage(view).data]
const gray = (height: number, width: number, data: ReadonlyArray<number>) =>
  Image.raw(height, width, 1, Uint8Array.from(data))
const solid = (red: number, green: number, blue: number) => Image.raw(1, 1, 3, Uint8Array.of(red, green, blue))
const identityTable = (channels: number) => Float32Array.from({ length: 256 * channels }, (_, at) => at % 256)

/** Random chains of crops and flips. */
const windows = fc.record({
  height: fc.integer({ min: 1, max: 9 }),
  width: fc.integer({ min: 1, max: 9 }),
  channels: fc.constantFrom(1 as const, 3 as const),
  outside: fc.constantFrom("zero" as const, "reflect" as const),
  steps: fc.array(
    fc.oneof(
      fc.constant("flip" as const),
      fc.record({
        top: fc.integer({ min: -4, max: 5 }),
        left: fc.integer({ min: -4, max: 5 }),
        height: fc.integer({ min: 1, max: 9 }),
        width: fc.integer({ min: 1, max: 9 })
      })
    ),
    { maxLength: 4 }
  )
})

describe("views", () => {
  it("a chain of crops and flips equals doing them one by one, and writing equals copying", () =>
    fc.assert(
      fc.property(windows, ({ channels, height, outside, steps, width }) => {
        let lazy = View.of(picture(height, width, channels))
        let eager = picture(height, width, channels)
        for (const step of steps) {
          lazy = step === "flip" ? View.flip(lazy) : View.crop(lazy, step, outside)
          eager = View.toImage(step === "flip" ? View.flip(View.of(eager)) : View.crop(View.of(eager), step, outside))
        }
        assert.deepStrictEqual(pixels(lazy), [...eager.data])
        const out = new Float32Array(eager.data.length + 2).fill(-1)
        View.write(lazy, identityTable(channels), out, 1)
        assert.deepStrictEqual([...out], [-1, ...eager.data, -1])
      }),
      { numRuns: 500 }
    ))
  it("outside is black or mirrored without repeating the edge", () => {
    const row = View.of(gray(1, 3, [1, 2, 3]))
    const wide = { top: 0, left: -2, height: 1, width: 7 }
    assert.deepStrictEqual(pixels(View.crop(row, wide)), [0, 0, 1, 2, 3, 0, 0])
    assert.deepStrictEqual(pixels(View.crop(row, wide, "reflect")), [3, 2, 1, 2, 3, 2, 1])
  })
})

describe("operations", () => {
  const shapes = (operation: Augment.Operation, height: number, width: number) => {
    const { window } = operation.run(View.of(picture(height, width)), random())
    return [window.height, window.width]
  }
  it("end in the sizes they promise", () => {
    assert.deepStrictEqual(shapes(Augment.resizeShorter(32), 50, 80), [32, 51])
    assert.deepStrictEqual(shapes(Augment.resizeShorter(32), 80, 50), [51, 32])
    assert.deepStrictEqual(shapes(Augment.resizeSquare(24), 50, 80), [24, 24])
    assert.deepStrictEqual(shapes(Augment.centerCrop(24), 50, 80), [24, 24])
    assert.deepStrictEqual(shapes(Augment.padCrop(32, 4), 32, 32), [32, 32])
    assert.deepStrictEqual(shapes(Augment.randomResizedCrop(24), 1, 80), [24, 24])
  })
  it("random crops reach every offset", () => {
    const seen = new Set<string>()
    for (let index = 0; index < 2000; index++) {
      const { window } = Augment.padCrop(8, 2).run(View.of(picture(8, 8)), random(index))
      seen.add(`${window.top} ${window.left}`)
    }
    assert.strictEqual(seen.size, 25)
  })
  it("flips half of the time", () => {
    let flips = 0
    for (let index = 0; index < 4000; index++)
      flips += Augment.horizontalFlip().run(View.of(picture(2, 2)), random(index)).flipped ? 1 : 0
    assert.closeTo(flips, 2000, 160)
  })
  it("random resized crops keep the area and proportions asked for", () => {
    const marks = Image.raw(
      100,
      100,
      3,
      Uint8Array.from({ length: 30000 }, (_, at) => {
        const pixel = Math.floor(at / 3)
        return at % 3 === 0 ? Math.floor(pixel / 100) : at % 3 === 1 ? pixel % 100 : 0
      })
    )
    for (let index = 0; index < 300; index++) {
      const operation = Augment.randomResizedCrop(64, { scale: [0.25, 0.5], ratio: [3 / 4, 4 / 3] })
      const { data } = View.toImage(operation.run(View.of(marks), random(index)))
      const last = data.length - 3
      const height = ((data[last]! - data[0]!) * 64) / 63
      const width = ((data[last + 1]! - data[1]!) * 64) / 63
      assert.closeTo((height * width) / 10000, 0.375, 0.17)
      assert.isAbove(width / height, 0.66)
      assert.isBelow(width / height, 1.5)
    }
  })
})

describe("colour, by Pillow's numbers", () => {
  it("neutral factors change nothing", () => {
    const image = picture(9, 7)
    for (const change of [Color.brightness, Color.contrast, Color.saturation, Color.sharpness]) {
      assert.deepStrictEqual(change(image, 1).data, image.data)
    }
    assert.deepStrictEqual(Color.posterize(image, 8).data, image.data)
    assert.deepStrictEqual(Color.solarize(image, 256).data, image.data)
    assert.deepStrictEqual(Color.rotate(image, 0).data, image.data)
    assert.deepStrictEqual(Color.invert(Color.invert(image)).data, image.data)
  })
  it("known values", () => {
    assert.deepStrictEqual([...Color.brightness(solid(100, 200, 10), 1.5).data], [150, 255, 15])
    assert.deepStrictEqual([...Color.saturation(solid(100, 200, 10), 0).data], [148, 148, 148])
    assert.deepStrictEqual([...Color.contrast(gray(1, 2, [10, 21]), 0).data], [16, 16])
    assert.deepStrictEqual([...Color.contrast(gray(1, 2, [100, 200]), 0.5).data], [125, 175])
    assert.deepStrictEqual([...Color.posterize(gray(1, 2, [255, 77]), 4).data], [240, 64])
    assert.deepStrictEqual([...Color.solarize(gray(1, 2, [127, 128]), 128).data], [127, 127])
    assert.deepStrictEqual([...Color.autoContrast(gray(1, 3, [50, 75, 101])).data], [0, 125, 255])
    assert.deepStrictEqual(
      [...Color.sharpness(gray(3, 3, [0, 0, 0, 0, 130, 0, 0, 0, 0]), 0).data],
      [0, 0, 0, 0, 50, 0, 0, 0, 0]
    )
  })
  it("hue turns by thirds from red to green to blue, and gray has none", () => {
    assert.deepStrictEqual([...Color.hue(solid(255, 0, 0), 1 / 3).data], [0, 255, 0])
    // Pillow's hue has 255 steps in a byte of 256 values, so a turn backwards is one step off.
    assert.deepStrictEqual([...Color.hue(solid(255, 0, 0), -1 / 3).data], [6, 0, 255])
    assert.deepStrictEqual([...Color.hue(solid(90, 90, 90), 0.3).data], [90, 90, 90])
  })
  it("equalize flattens a histogram", () => {
    const narrow = Image.raw(
      32,
      32,
      1,
      Uint8Array.from({ length: 1024 }, (_, at) => 100 + (at % 8))
    )
    const { data } = Color.equalize(narrow)
    assert.strictEqual(Math.min(...data), 0)
    assert.isAbove(Math.max(...data), 220)
  })
  it("geometry moves pixels the way it says", () => {
    const image = gray(2, 3, [1, 2, 3, 4, 5, 6])
    assert.deepStrictEqual([...Color.affine(image, [1, 0, 1, 0, 1, 0]).data], [2, 3, 0, 5, 6, 0])
    assert.deepStrictEqual([...Color.rotate(image, 180).data], [6, 5, 4, 3, 2, 1])
    assert.deepStrictEqual([...Color.rotate(gray(2, 2, [1, 2, 3, 4]), 90).data], [2, 4, 1, 3])
  })
})

const full = Augment.pipeline({
  height: 24,
  width: 24,
  channels: 3,
  operations: [
    Augment.randomResizedCrop(24),
    Augment.horizontalFlip(),
    Augment.colorJitter({ brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 }),
    Policy.randAugment(2, 9),
    Policy.autoAugmentImagenet()
  ],
  normalization: Augment.imagenetNormalization,
  after: [Augment.randomErasing({ probability: 0.5, fill: "noise" })]
})

describe("augmenter", () => {
  it.effect("depends on seed, epoch and sample only: not on the order or the company", () =>
    Effect.gen(function* () {
      const augmenter = yield* Augmenter.Augmenter
      const size = 24 * 24 * 3
      const request = (index: number, epoch = 2) => ({
        image: picture(30, 40, 3, index),
        at: { seed: 1, epoch, index },
        key: "",
        origin: ""
      })
      const together = new Float32Array(4 * size)
      yield* augmenter.applyAll([request(5), request(6), request(7), request(5)], full, together)
      const row = (at: number) => Buffer.from(together.buffer, at * size * 4, size * 4)
      for (const [at, index] of [
        [1, 6],
        [0, 5],
        [2, 7]
      ] as const) {
        const alone = yield* Augmenter.apply(request(index).image, full, request(index).at)
        assert.strictEqual(Buffer.compare(row(at), Buffer.from(alone.buffer)), 0)
      }
      assert.strictEqual(Buffer.compare(row(0), row(3)), 0)
      const later = yield* Augmenter.apply(request(5).image, full, request(5, 3).at)
      assert.notStrictEqual(Buffer.compare(row(0), Buffer.from(later.buffer)), 0)
    }).pipe(native)
  )
  it.effect("normalises as (pixel / 255 - mean) / std", () =>
    Effect.gen(function* () {
      const plain = Augment.pipeline({
        height: 1,
        width: 1,
        channels: 3,
        operations: [],
        normalization: Augment.clipNormalization
      })
      const found = yield* Augmenter.apply(solid(0, 128, 255), plain, { seed: 0, epoch: 0, index: 0 })
      const { mean, std } = Augment.clipNormalization
      for (const [channel, value] of [0, 128, 255].entries())
        assert.closeTo(found[channel]!, (value / 255 - mean[channel]!) / std[channel]!, 1e-6)
    }).pipe(native)
  )
  it.effect("names a sample of the wrong shape", () =>
    Effect.map(
      reasonOf(Augmenter.apply(picture(30, 40), { ...full, operations: [] }, { seed: 0, epoch: 0, index: 0 })),
      (reason) => {
        assert.strictEqual(reason._tag, "ShapeMismatch")
        assert.include(reason.message, "30x40x3 after the pipeline's operations, expected 24x24x3")
      }
    ).pipe(native)
  )
})

describe("worker threads", () => {
  const requests = Array.from({ length: 30 }, (_, index) => ({
    image: picture(120, 130, 3, index),
    at: { seed: 1, epoch: 2, index },
    key: `k${index}`,
    origin: "memory"
  }))
  const applied = (pipeline: Augment.Pipeline) =>
    Effect.gen(function* () {
      const augmenter = yield* Augmenter.Augmenter
      const out = augmenter.allocate(requests.length * 24 * 24 * 3)
      yield* augmenter.applyAll(requests, pipeline, out)
      return out
    })
  const threads = Effect.provide(Augmenter.Augmenter.layerWorkers(2))
  it.effect("give the numbers of this thread", () =>
    Effect.gen(function* () {
      const withThreads = yield* threads(applied(full))
      const without = yield* native(applied(full))
      assert.instanceOf(withThreads.buffer, SharedArrayBuffer)
      assert.strictEqual(Buffer.compare(Buffer.from(withThreads.buffer), Buffer.from(without.buffer)), 0)
    })
  )
  it.effect("name a sample of the wrong shape, and an operation that cannot be sent", () =>
    Effect.gen(function* () {
      const shape = yield* reasonOf(threads(applied({ ...full, operations: [] })))
      assert.strictEqual(shape._tag, "ShapeMismatch")
      assert.include(shape.message, "120x130x3")
      const own = Augment.onImage("own", (image) => image)
      assert.include(
        (yield* reasonOf(threads(applied({ ...full, operations: [own] })))).message,
        `operation "own" is one of your own`
      )
    })
  )
})

describe("mixing", () => {
  const shape = { height: 8, width: 8, channels: 1 as const }
  const batch = (rows: number) => Float32Array.from({ length: rows * 64 }, (_, at) => Math.floor(at / 64))
  const draws = (index: number) => Random.make(Random.purposes.mix, 1, 0, index)
  it("mixup keeps the part it reports", () => {
    const images = batch(5)
    const part = Mix.mixup({ classCount: 10, alpha: 0.4 }).run(images, 5, shape, draws(0))
    assert.closeTo(images[0]!, 1 - part, 1e-6)
    assert.closeTo(images[64]!, part, 1e-6)
    assert.closeTo(images[3 * 64]!, 3 * part + 2 * (1 - part), 1e-6)
    assert.strictEqual(images[4 * 64], 4)
  })
  it("cutmix keeps the part of the pixels it reports", () => {
    for (let index = 0; index < 50; index++) {
      const images = batch(2)
      const part = Mix.cutmix({ classCount: 10, alpha: 1 }).run(images, 2, shape, draws(index))
      assert.closeTo(images.subarray(0, 64).filter((value) => value === 0).length / 64, part, 1e-9)
    }
  })
  it("soft labels sum to one and follow the part and the smoothing", () => {
    const soft = Mix.softLabels(Int32Array.of(2, 0, 1), 0.75, { classCount: 4, smoothing: 0.1 })
    for (let row = 0; row < 3; row++)
      assert.closeTo(
        soft.subarray(row * 4, row * 4 + 4).reduce((a, b) => a + b),
        1,
        1e-6
      )
    assert.closeTo(soft[2]!, 0.025 + 0.9 * 0.75, 1e-6)
    assert.closeTo(soft[0]!, 0.025 + 0.9 * 0.25, 1e-6)
    assert.closeTo(soft[8 + 1]!, 0.025 + 0.9, 1e-6)
  })
})
