import { assert, describe, it } from "@effect/vitest"
import { ImageFolder, Order, Shards, Source, Tar, WebDataset } from "@tessera/data"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as fc from "fast-check"
import { mkdir, readFile, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { gzipSync } from "node:zlib"
import { bytesOf, fixture, mnistFolder, reasonOf, shared, temporaryFolder } from "./sharedData.ts"

describe("shard patterns", () => {
  const table: ReadonlyArray<readonly [string, number]> = [
    ["shard.tar", 1],
    ["shard_{000..000}.tar", 1],
    ["shard_{000..009}.tar", 10],
    ["shard_{000..009}_{000..009}.tar", 100],
    ["a.tar::b_{000..009}.tar", 11],
    ["a_{000..009}.tar::b_{000..009}.tar", 20],
    ["{a.tar}", 1],
    ["{a.tar,b.tar}", 2],
    ["imagenet-train-{000000..000146}.tar", 147]
  ]
  for (const [pattern, count] of table) {
    it(`${pattern} is ${count}`, () => assert.strictEqual(Shards.expand(pattern).length, count))
  }
  it("keeps zero padding and order", () => {
    assert.deepStrictEqual(Shards.expand("{08..11}"), ["08", "09", "10", "11"])
    assert.strictEqual(Shards.expand("t-{000000..000146}.tar").at(-1), "t-000146.tar")
  })
  it.effect("an absent or empty shard is named", () =>
    Effect.gen(function* () {
      const folder = yield* temporaryFolder
      const absent = yield* reasonOf(Source.open(join(folder, "x-{0..1}.tar")))
      assert.strictEqual(absent._tag, "ShardUnavailable")
      assert.include(absent.message, "x-0.tar")
      yield* Effect.promise(() => writeFile(join(folder, "empty.tar"), ""))
      const empty = yield* reasonOf(Source.open(join(folder, "empty.tar")))
      assert.strictEqual(empty._tag, "ShardUnavailable")
      assert.include(empty.message, "0 bytes")
    })
  )
})

describe("counts of real archives", () => {
  const images: ReadonlyArray<readonly [string, number, number | null]> = [
    ["cifar10/cifar10-test-{000000..000003}.tar", 10_000, 10],
    ["cifar10/cifar10-train-{000000..000001}.tar.gz", 5_000, 10],
    ["tiny-imagenet-10/tiny-imagenet-train-{000000..000004}.tar", 5_000, 10],
    ["tiny-imagenet-10/tiny-imagenet-val-000000.tar", 500, 10],
    ["imagenet-sample/imagenet-original-{000000..000002}.tar", 158, 1000],
    ["imagenet-sample/imagenet-144px-{000000..000003}.tar", 1_000, 1000],
    ["emoji-clip/emoji-google-{000000..000003}.tar", 1_906, null],
    ["flickr8k-mini/flickr8k-{train-{000000..000003},val-000000}.tar", 800, null],
    ["easy-vqa/easy-vqa-train-{000000..000003}.tar", 4_000, null],
    ["fixtures/webdataset/sample.tgz", 90, null]
  ]
  for (const [pattern, count, classCount] of images) {
    it.effect(`${pattern}: ${count}`, () =>
      Effect.gen(function* () {
        const source = yield* Source.open(`shards:${shared(pattern)}`)
        assert.strictEqual(source.count, count)
        assert.strictEqual(source.classes?.length ?? null, classCount)
      })
    )
  }
  const archives: ReadonlyArray<readonly [string, number, string]> = [
    ["mpdata.tar", 100, "mp"],
    ["compressed.tar", 3, "txt"],
    ["testgz.tar", 1_000, "txt"]
  ]
  for (const [name, count, extension] of archives) {
    it.effect(`${name}: ${count} samples with ${extension}`, () =>
      Effect.gen(function* () {
        const source = yield* WebDataset.open([fixture(`webdataset/${name}`)])
        assert.strictEqual(source.count, count)
        assert.deepStrictEqual([...(yield* source.get(count - 1)).components.keys()], [extension])
      })
    )
  }
  it.effect("a gzipped member arrives unpacked", () =>
    Effect.gen(function* () {
      const source = yield* WebDataset.open([fixture("webdataset/compressed.tar")])
      const sample = yield* source.get(0)
      assert.strictEqual(sample.key, "compressed/0001")
      assert.strictEqual(Buffer.from(sample.components.get("txt")!).toString(), "hello\n")
    })
  )
  it.effect("the CIFAR test set has 1,000 samples of each class, with labels that fit their keys", () =>
    Effect.gen(function* () {
      const source = yield* Source.open(shared("cifar10/cifar10-test-{000000..000003}.tar"))
      const counts = new Int32Array(10)
      yield* Effect.forEach(
        Array.from({ length: source.count }, (_, index) => index),
        (index) =>
          Effect.map(source.get(index), (sample) => {
            counts[sample.label!]! += 1
            if (!sample.key.startsWith(source.classes![sample.label!]!))
              assert.fail(`${sample.key} has label ${sample.label}`)
          }),
        { concurrency: 4, discard: true }
      )
      assert.deepStrictEqual(
        [...counts],
        Array.from({ length: 10 }, () => 1000)
      )
    })
  )
  it.effect("text and json arrive with the image", () =>
    Effect.gen(function* () {
      const source = yield* Source.open(shared("flickr8k-mini/flickr8k-val-000000.tar"))
      const sample = yield* source.get(3)
      assert.strictEqual(sample.text?.trim(), (sample.json as { captions: ReadonlyArray<string> }).captions[0])
    })
  )
})

describe("tar", () => {
  it.effect("the index agrees with reading the whole archive", () =>
    Effect.gen(function* () {
      const file = shared("emoji-clip/emoji-google-000003.tar")
      const members = yield* Tar.index(file)
      const entries = yield* Stream.runCollect(Tar.entries(file))
      const archive = yield* bytesOf(file)
      assert.deepStrictEqual(
        members.map((member) => member.name),
        entries.map((entry) => entry.name)
      )
      for (const [at, member] of members.entries()) {
        assert.strictEqual(
          Buffer.compare(archive.subarray(member.offset, member.offset + member.size), entries[at]!.bytes),
          0
        )
      }
    })
  )
  it.effect("a gzipped archive is read by its magic bytes, not its name", () =>
    Effect.gen(function* () {
      assert.strictEqual((yield* Stream.runCollect(Tar.entries(fixture("webdataset/sample.tgz")))).length, 180)
      const folder = yield* temporaryFolder
      const disguised = join(folder, "plain-name.tar")
      const plain = yield* bytesOf(shared("tiny-imagenet-10/tiny-imagenet-val-000000.tar"))
      yield* Effect.promise(() => writeFile(disguised, gzipSync(plain)))
      const source = yield* Source.open(disguised, { cacheFolder: join(folder, "cache") })
      assert.strictEqual(source.count, 500)
      const unpacked = yield* Tar.plain(disguised, join(folder, "cache"))
      assert.strictEqual(Buffer.compare(yield* bytesOf(unpacked), plain), 0)
    })
  )
})

describe("idx", () => {
  for (const [split, count] of [
    ["train", 60_000],
    ["test", 10_000]
  ] as const) {
    it.effect(`MNIST ${split}: ${count}`, () =>
      Effect.gen(function* () {
        const source = yield* Source.open(`idx:${mnistFolder}`, { split })
        assert.strictEqual(source.count, count)
        assert.strictEqual(source.classes?.length, 10)
        const sample = yield* source.get(0)
        assert.strictEqual(sample.label, split === "train" ? 5 : 7)
        assert.deepInclude(sample.image, { _tag: "Raw", height: 28, width: 28, channels: 1 })
      })
    )
  }
  const stored = (name: string) => Effect.promise(() => readFile(join(mnistFolder, "data", name)))
  const written = (files: Record<string, Uint8Array>) =>
    Effect.gen(function* () {
      const folder = yield* temporaryFolder
      for (const [name, bytes] of Object.entries(files))
        yield* Effect.promise(() => writeFile(join(folder, name), bytes))
      return folder
    })
  it.effect("gzipped files are the same set", () =>
    Effect.gen(function* () {
      const folder = yield* written({
        "t10k-images-idx3-ubyte.gz": gzipSync(yield* stored("t10k-images-idx3-ubyte")),
        "t10k-labels-idx1-ubyte.gz": gzipSync(yield* stored("t10k-labels-idx1-ubyte"))
      })
      const source = yield* Source.open(`idx:${folder}`, { split: "test" })
      assert.strictEqual(source.digest, (yield* Source.open(`idx:${mnistFolder}`, { split: "test" })).digest)
    })
  )
  it.effect("wrong magic, wrong counts and cut files are told apart", () =>
    Effect.gen(function* () {
      const images = yield* stored("t10k-images-idx3-ubyte")
      const labels = yield* stored("t10k-labels-idx1-ubyte")
      const message = (imageBytes: Uint8Array, labelBytes: Uint8Array) =>
        Effect.gen(function* () {
          const folder = yield* written({ "t10k-images-idx3-ubyte": imageBytes, "t10k-labels-idx1-ubyte": labelBytes })
          return (yield* reasonOf(Source.open(`idx:${folder}`, { split: "test" }))).message
        })
      const header = (magic: number, ...sizes: ReadonlyArray<number>) => {
        const bytes = Buffer.alloc(4 + 4 * sizes.length)
        for (const [at, word] of [magic, ...sizes].entries()) bytes.writeUInt32BE(word, 4 * at)
        return bytes
      }
      assert.include(yield* message(labels, labels), "magic number 0x00000801; expected 0x00000803")
      assert.include(yield* message(images.subarray(0, 5000), labels), "holds 4984")
      assert.include(yield* message(images, Buffer.concat([header(0x801, 3), new Uint8Array(3)])), "holds 3 labels")
      assert.include(yield* message(images.subarray(0, 10), labels), "expected an idx header of 16")
      assert.include((yield* reasonOf(Source.open("idx:/nowhere"))).message, "no such file")
    })
  )
})

describe("image folders", () => {
  it.effect("one class per subfolder by name, with fractions", () =>
    Effect.gen(function* () {
      const folder = yield* temporaryFolder
      const image = yield* bytesOf(fixture("images/2x2_fdcce6.png"))
      for (const name of ["zebra", "ant", "Bee"]) {
        yield* Effect.promise(() => mkdir(join(folder, name)))
        for (const file of ["b.png", "a.png", "c.png", ".hidden"]) {
          yield* Effect.promise(() => writeFile(join(folder, name, file), file === ".hidden" ? "" : image))
        }
      }
      const source = yield* Source.open(`folder:${folder}`)
      assert.deepStrictEqual(source.classes, ["Bee", "ant", "zebra"])
      assert.strictEqual(source.count, 9)
      assert.deepInclude(yield* source.get(3), { key: join("ant", "a.png"), label: 1 })
      const less = yield* ImageFolder.open(folder, { classesFraction: 0.5, perClassFraction: 0.3 })
      assert.deepStrictEqual(less.classes, ["Bee", "ant"])
      assert.strictEqual(less.count, 2)
      assert.notStrictEqual(less.digest, source.digest)
      assert.strictEqual((yield* reasonOf(ImageFolder.open(folder, { classesFraction: 0 })))._tag, "BadRequest")
      assert.strictEqual((yield* reasonOf(Source.open(`folder:${join(folder, "ant")}`)))._tag, "EmptySource")
    })
  )
})

describe("sources", () => {
  it.effect("an unknown form is answered with the known ones", () =>
    Effect.map(reasonOf(Source.open("parquet:x")), (reason) => assert.include(reason.message, `"idx:FOLDER"`))
  )
  it("parts cover every sample once", () =>
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 1000 }), fc.integer({ min: 1, max: 40 }), (count, parts) => {
        const ranges = Array.from({ length: parts }, (_, index) => Order.part(count, index, parts))
        assert.strictEqual(ranges[0]!.start, 0)
        assert.strictEqual(ranges.at(-1)!.end, count)
        for (const [index, range] of ranges.entries()) {
          assert.strictEqual(range.start, Math.floor((count * index) / parts))
          if (index > 0) assert.strictEqual(range.start, ranges[index - 1]!.end)
        }
      })
    ))
})
