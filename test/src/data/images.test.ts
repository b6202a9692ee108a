import { assert, describe, it } from "@effect/vitest"
import { Augment, Decode, Image, Resample, SmallJpeg, Source, Tar, View } from "@tessera/data"
import * as Effect from "effect/Effect"
import * as fc from "fast-check"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { bytesOf, fixture, numberedSource, reasonOf, shared } from "./sharedData.ts"

const sample = (key: string, bytes: Uint8Array): Source.ImageSample => ({
  key,
  origin: key,
  image: Image.encoded(bytes),
  label: null
})
const decodeFile = (path: string, options: Decode.DecodeOptions) =>
  Effect.flatMap(bytesOf(path), (bytes) => Decode.decode(sample(path, bytes), options))
const first = (image: Image.RawImage) => [...image.data.subarray(0, image.channels)]
const noRandom = { bits: () => 0, unit: () => 0, between: (low: number) => low, below: () => 0, normal: () => 0 }

describe("decoding", () => {
  const damaged = new Set(["corrupt-header.jpg", "truncated.jpg", "truncated.png"])
  for (const name of readdirSync(fixture("images"))) {
    it.effect(`${name}${damaged.has(name) ? " fails, named" : ""}`, () =>
      Effect.gen(function* () {
        if (damaged.has(name)) {
          const reason = yield* reasonOf(decodeFile(fixture(`images/${name}`), { channels: 3 }))
          assert.strictEqual(reason._tag, "DecodeFailed")
          assert.include(reason.message, name)
          return
        }
        const colour = yield* decodeFile(fixture(`images/${name}`), { channels: 3 })
        const gray = yield* decodeFile(fixture(`images/${name}`), { channels: 1 })
        assert.strictEqual(colour.data.length, colour.height * colour.width * 3)
        assert.strictEqual(gray.data.length, colour.height * colour.width)
        assert.isAbove(new Set(colour.data).size, 1)
      })
    )
  }
  it.effect("lossless rewrites of a JPEG decode to the same pixels", () =>
    Effect.gen(function* () {
      const [plain, ...others] = yield* Effect.forEach(["", "-progressive", "-restart"], (kind) =>
        decodeFile(fixture(`images/Landscape_1${kind}.jpg`), { channels: 3 })
      )
      for (const other of others) assert.strictEqual(Buffer.compare(other.data, plain!.data), 0)
    })
  )
  it.effect("all eight EXIF orientations show the same landscape; ignored, four lie on their side", () =>
    Effect.gen(function* () {
      const upright = yield* decodeFile(fixture("images/Landscape_1.jpg"), { channels: 3 })
      for (let orientation = 1; orientation <= 8; orientation++) {
        const file = fixture(`images/Landscape_${orientation}.jpg`)
        const turned = yield* decodeFile(file, { channels: 3 })
        assert.deepStrictEqual([turned.height, turned.width], [450, 600])
        const difference =
          turned.data.reduce((sum, value, at) => sum + Math.abs(value - upright.data[at]!), 0) / turned.data.length
        assert.isBelow(difference, 25)
        const stored = yield* decodeFile(file, { channels: 3, orientation: "ignore" })
        assert.strictEqual(stored.height, orientation >= 5 ? 600 : 450)
      }
    })
  )
  it.effect("transparent pixels show the background", () =>
    Effect.gen(function* () {
      const file = fixture("images/tbgn2c16.png")
      assert.deepStrictEqual(first(yield* decodeFile(file, { channels: 3 })), [255, 255, 255])
      assert.deepStrictEqual(first(yield* decodeFile(file, { channels: 3, background: [10, 20, 30] })), [10, 20, 30])
    })
  )
  it.effect("16 bits keep their high byte", () =>
    Effect.map(decodeFile(fixture("images/Flag_of_the_Netherlands-16bit.png"), { channels: 3 }), (image) =>
      assert.deepStrictEqual(first(image), [174, 28, 40])
    )
  )
  it.effect("raw pixels are not decoded, only widened", () =>
    Effect.gen(function* () {
      const raw = yield* numberedSource(9).get(7)
      assert.strictEqual(yield* Decode.decode(raw, { channels: 1 }), raw.image)
      assert.deepStrictEqual(
        [...(yield* Decode.decode(raw, { channels: 3 })).data],
        Array.from({ length: 12 }, () => 7)
      )
    })
  )
})

interface Reference {
  readonly name: string
  readonly source: string
  readonly size: readonly [number, number]
  readonly resized: readonly [number, number]
}

describe("Pillow's bicubic resize and crop (CLIP)", () => {
  const { images } = JSON.parse(readFileSync(fixture("clip-preprocess/preprocess.json"), "utf8")) as {
    images: ReadonlyArray<Reference>
  }
  const stored = (source: string) =>
    Effect.gen(function* () {
      const [archive, name] = source.split(":")
      if (name === undefined) {
        const path = fixture(`images/${source}`)
        return yield* bytesOf(existsSync(path) ? path : fixture(`llava/${source}`))
      }
      const path = shared(`imagenet-sample/${archive}`)
      const member = (yield* Tar.index(path)).find((one) => one.name === name)!
      return (yield* bytesOf(path)).subarray(member.offset, member.offset + member.size)
    })
  assert.strictEqual(images.length, 10)
  for (const { name, resized, size, source } of images) {
    it.effect(name, () =>
      Effect.gen(function* () {
        const image = yield* Decode.decode(sample(name, yield* stored(source)), { channels: 3, orientation: "ignore" })
        assert.deepStrictEqual([image.width, image.height], [...size])
        const whole = View.toImage(Augment.run(image, [Augment.resizeShorter(224)], noRandom))
        assert.deepStrictEqual([whole.width, whole.height], [...resized])
        const found = View.toImage(Augment.run(whole, [Augment.centerCrop(224)], noRandom))
        const expected = yield* decodeFile(fixture(`clip-preprocess/${name}.png`), { channels: 3 })
        let largest = 0
        let sum = 0
        for (let at = 0; at < expected.data.length; at++) {
          const difference = Math.abs(found.data[at]! - expected.data[at]!)
          largest = Math.max(largest, difference)
          sum += difference
        }
        // Pillow resizes the four inks and then converts; here inks are converted when decoding.
        if (name.includes("CMYK")) assert.isBelow(sum / expected.data.length, 1)
        else assert.isAtMost(largest, 1)
      })
    )
  }
})

describe("resize", () => {
  const picture = (height: number, width: number, channels: 1 | 3, value: (at: number) => number) =>
    Image.raw(
      height,
      width,
      channels,
      Uint8Array.from({ length: height * width * channels }, (_, at) => value(at))
    )
  const side = fc.integer({ min: 1, max: 40 })
  it("keeps a flat picture flat, and its own size untouched", () =>
    fc.assert(
      fc.property(side, side, side, side, fc.nat(255), (height, width, toHeight, toWidth, level) => {
        const flat = picture(height, width, 3, () => level)
        for (const kind of ["bilinear", "bicubic"] as const) {
          assert.isTrue(
            Resample.resize(flat, { height: toHeight, width: toWidth }, kind).data.every((value) => value === level)
          )
          assert.strictEqual(Resample.resize(flat, { height, width }, kind), flat)
        }
      })
    ))
  it("of a box equals the resize of the cut box", () =>
    fc.assert(
      fc.property(side, side, side, side, (height, width, toHeight, toWidth) => {
        const image = picture(50, 45, 3, (at) => (at * 37) % 256)
        const box = { top: 3, left: 4, height, width }
        const direct = Resample.resize(image, { height: toHeight, width: toWidth }, "bicubic", box)
        const viaCut = Resample.resize(Resample.cut(image, box), { height: toHeight, width: toWidth }, "bicubic")
        assert.strictEqual(Buffer.compare(direct.data, viaCut.data), 0)
      })
    ))
})

describe("the decoder for small JPEGs", () => {
  /** An empty application segment sends a picture to sharp, with the same pixels. */
  const viaSharp = (bytes: Uint8Array) => Uint8Array.from([0xff, 0xd8, 0xff, 0xe2, 0, 4, 0, 0, ...bytes.subarray(2)])
  const stored = (archive: string, count: number) =>
    Effect.gen(function* () {
      const members = (yield* Tar.index(shared(archive))).filter((member) => member.name.endsWith("jpg"))
      const bytes = yield* bytesOf(shared(archive))
      return members.slice(0, count).map((member) => bytes.subarray(member.offset, member.offset + member.size))
    })
  for (const [archive, count] of [
    ["cifar10/cifar10-test-000001.tar", 300],
    ["tiny-imagenet-10/tiny-imagenet-val-000000.tar", 200]
  ] as const) {
    it.effect(`${archive}: sharp's pixels, exactly`, () =>
      Effect.gen(function* () {
        for (const bytes of yield* stored(archive, count)) {
          assert.isNotNull(SmallJpeg.decode(bytes))
          assert.isNull(SmallJpeg.decode(viaSharp(bytes)))
          const here = yield* Decode.decode(sample("here", bytes), { channels: 3 })
          const there = yield* Decode.decode(sample("there", viaSharp(bytes)), { channels: 3 })
          assert.strictEqual(Buffer.compare(here.data, there.data), 0)
        }
      })
    )
  }
  it.effect("leaves cut files to sharp, and survives any damage", () =>
    Effect.gen(function* () {
      const [picture] = yield* stored("cifar10/cifar10-test-000001.tar", 1)
      fc.assert(
        fc.property(fc.nat(picture!.length - 1), fc.nat(255), (at, value) => {
          assert.isNull(SmallJpeg.decode(picture!.subarray(0, at)))
          const damaged = picture!.slice()
          damaged[at] = value
          SmallJpeg.decode(damaged)
        }),
        { numRuns: 1000 }
      )
    })
  )
})
