import { assert, describe, it } from "@effect/vitest"
import { Source, Tar, WebDataset } from "@tessera/data"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as fc from "fast-check"
import { readdir, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { gunzipSync } from "node:zlib"
import { bytesOf, fixture, reasonOf, shared, temporaryFolder } from "./sharedData.ts"

const damaged = (name: string, bytes: Uint8Array) =>
  Effect.gen(function* () {
    const file = join(yield* temporaryFolder, name)
    yield* Effect.promise(() => writeFile(file, bytes))
    return file
  })

describe("damaged archives", () => {
  it.effect("an archive cut anywhere before its end marker is refused, with the file and the byte", () =>
    Effect.gen(function* () {
      const whole = new Uint8Array(gunzipSync(yield* bytesOf(fixture("webdataset/sample.tgz"))))
      const members = yield* Tar.index(yield* damaged("whole.tar", whole))
      const last = members.at(-1)!
      const end = last.offset + Math.ceil(last.size / 512) * 512
      const folder = yield* temporaryFolder
      yield* Effect.promise(() =>
        fc.assert(
          fc.asyncProperty(fc.integer({ min: 1, max: end }), (length) =>
            Effect.runPromise(
              Effect.gen(function* () {
                const file = join(folder, "cut.tar")
                yield* Effect.promise(() => writeFile(file, whole.subarray(0, length)))
                const reason = yield* reasonOf(Tar.index(file))
                assert.strictEqual(reason._tag, "TarCorrupt")
                assert.include(reason.message, "cut.tar: corrupt archive at byte")
              })
            )
          ),
          { numRuns: 40 }
        )
      )
    })
  )
  it.effect("a changed header byte is found by its checksum", () =>
    Effect.gen(function* () {
      const bytes = (yield* bytesOf(shared("tiny-imagenet-10/tiny-imagenet-val-000000.tar"))).slice()
      const second = (yield* Tar.index(shared("tiny-imagenet-10/tiny-imagenet-val-000000.tar")))[1]!
      bytes[second.offset - 512 + 3]! ^= 1
      const reason = yield* reasonOf(Source.open(yield* damaged("flipped.tar", bytes)))
      assert.strictEqual(reason._tag, "TarCorrupt")
      assert.include(reason.message, `at byte ${second.offset - 512}: expected a tar header, found checksum`)
    })
  )
  it.effect("a file that is no archive", () =>
    Effect.gen(function* () {
      const reason = yield* reasonOf(Source.open(yield* damaged("text.tar", new Uint8Array(2048).fill(97))))
      assert.include(reason.message, "no checksum")
    })
  )
  it.effect("a cut or damaged gzip stream leaves nothing behind", () =>
    Effect.gen(function* () {
      const whole = yield* bytesOf(shared("cifar10/cifar10-train-000000.tar.gz"))
      const cacheFolder = yield* temporaryFolder
      const broken = whole.slice()
      broken.fill(0, 300_000, 300_100)
      for (const bytes of [whole.subarray(0, 400_000), broken]) {
        const file = yield* damaged("x.tar.gz", bytes)
        const reason = yield* reasonOf(Source.open(file, { cacheFolder }))
        assert.strictEqual(reason._tag, "TarCorrupt")
        assert.include(reason.message, "x.tar.gz")
        const streamed = yield* reasonOf(Stream.runDrain(Tar.entries(file)))
        assert.strictEqual(streamed._tag, "TarCorrupt")
      }
      assert.deepStrictEqual(yield* Effect.promise(() => readdir(cacheFolder)), [])
    })
  )
  it.effect("an archive without samples", () =>
    Effect.gen(function* () {
      const reason = yield* reasonOf(Source.open(yield* damaged("none.tar", new Uint8Array(10240))))
      assert.strictEqual(reason._tag, "EmptySource")
    })
  )
})

describe("underful samples", () => {
  it.effect("name the shard, the sample, the expected and the present extensions", () =>
    Effect.gen(function* () {
      const reason = yield* reasonOf(Source.open(fixture("webdataset/mpdata.tar")))
      assert.strictEqual(reason._tag, "MissingComponent")
      assert.include(reason.message, `mpdata.tar: Underful sample detected: "000000" has no jpg or jpeg or png`)
      assert.include(reason.message, "present: mp")
    })
  )
  it.effect("are counted when skipped", () =>
    Effect.gen(function* () {
      const found = yield* WebDataset.locate([fixture("webdataset/mpdata.tar")], { require: ["jpg"], missing: "skip" })
      assert.deepStrictEqual([found.samples.length, found.skippedCount], [0, 100])
    })
  )
})
