import { assert, describe, it } from "@effect/vitest"
import { DaliIndex, Tar, WebDataset } from "@tessera/data"
import * as Effect from "effect/Effect"
import { readFile, writeFile } from "node:fs/promises"
import { fixture, reasonOf, shared, temporaryFolder } from "./sharedData.ts"

const indexes: ReadonlyArray<readonly [string, string, number]> = [
  ["emoji-clip/emoji-google-000003.tar", "dali-index/emoji-google-000003.idx", 406],
  ["imagenet-sample/imagenet-original-000002.tar", "dali-index/imagenet-original-000002.idx", 38]
]

describe("DALI index", () => {
  for (const [archive, index, count] of indexes) {
    it.effect(`${archive}: byte for byte`, () =>
      Effect.gen(function* () {
        const stored = yield* Effect.promise(() => readFile(fixture(index), "utf8"))
        assert.strictEqual(yield* DaliIndex.write(archive, yield* Tar.index(shared(archive))), stored)
        const samples = yield* DaliIndex.read(index, stored)
        assert.strictEqual(samples.length, count)
        assert.deepStrictEqual(
          samples,
          DaliIndex.group(yield* Tar.index(shared(archive))).map((sample) => sample.components)
        )
      })
    )
  }

  const errors: ReadonlyArray<readonly [string, string]> = [
    ["", "no version signature found"],
    ["v0.1", "Unsupported version of the index file (v0.1)."],
    ["v1.1", "no sample count found"],
    ["v1.1 -1", "sample count must be positive"],
    ["v1.1 1\n", "no extensions provided for the sample"],
    ["v1.1 1\njpg", "Could not find all necessary component parameters"],
    ["v1.1 1\njpg 1 0", "tar offset is not a multiple of tar block size"]
  ]
  for (const [content, expected] of errors) {
    it.effect(`${JSON.stringify(content)}: ${expected}`, () =>
      Effect.map(reasonOf(DaliIndex.read("bad.idx", content)), (reason) => {
        assert.include(reason.message, expected)
        assert.include(reason.message, `Malformed index file at "bad.idx"`)
      })
    )
  }
  it.effect("an offset beyond an empty archive", () =>
    Effect.gen(function* () {
      const samples = yield* DaliIndex.read("far.idx", "v1.1 1\njpg 51200 1")
      const reason = yield* reasonOf(DaliIndex.checkBounds("far.idx", samples, 10240))
      assert.include(reason.message, "line 1 - offset is outside of the archive file")
    })
  )
  it.effect("another number of index files than archives", () =>
    Effect.map(reasonOf(DaliIndex.checkCounts(["a.tar", "b.tar", "c.tar"], ["test.idx"])), (reason) =>
      assert.include(
        reason.message,
        "The number of index files, if any, must match the number of archives in the dataset"
      )
    )
  )
  it.effect("an unknown missing_component_behavior", () =>
    Effect.gen(function* () {
      const reason = yield* reasonOf(DaliIndex.missingBehaviour("SomethingInvalid"))
      assert.include(reason.message, "Invalid value for missing_component_behavior")
      assert.strictEqual(yield* DaliIndex.missingBehaviour("Skip"), "skip")
      assert.strictEqual(yield* DaliIndex.missingBehaviour(""), "empty")
    })
  )

  const file = (name: string, offset = 512) => ({ name, offset, size: 1 })
  it.effect("an archive without samples, a name with a space", () =>
    Effect.gen(function* () {
      assert.include((yield* reasonOf(DaliIndex.write("x.tar", []))).message, "Webdataset Tar File empty")
      assert.include((yield* reasonOf(DaliIndex.write("x.tar", [file("a b.jpg")]))).message, "contains a space")
    })
  )
  it("keys end at the first dot after the last slash; only neighbours are grouped; hidden files are left out", () => {
    assert.deepStrictEqual(DaliIndex.splitName("a.b/c.seg.png"), { base: "a.b/c", extension: "seg.png" })
    const groups = DaliIndex.group([
      file("a.jpg"),
      file(".hidden"),
      file("a.seg.png"),
      file("b.jpg"),
      file("d/.x"),
      file("a.cls")
    ])
    assert.deepStrictEqual(
      groups.map((one) => [one.base, one.components.map((c) => c.extension)]),
      [
        ["a", ["jpg", "seg.png"]],
        ["b", ["jpg"]],
        ["a", ["cls"]]
      ]
    )
  })
  it.effect("eighty samples of three files are 81 lines of 12 fields", () =>
    Effect.gen(function* () {
      const members = Array.from({ length: 80 }, (_, index) =>
        ["cls", "jpg", "txt"].map((extension, at) =>
          file(`sample${String(index).padStart(6, "0")}.${extension}`, 512 * (6 * index + 2 * at + 1))
        )
      ).flat()
      const lines = (yield* DaliIndex.write("s.tar", members)).trimEnd().split("\n")
      assert.strictEqual(lines.length, 81)
      assert.strictEqual(lines[80]!.split(" ").length, 12)
      assert.deepStrictEqual([lines[80]!.split(" ")[0], lines[80]!.split(" ")[3]], ["cls", "sample000079.cls"])
    })
  )
  it.effect("shards open by their index files as by their headers, and a wrong index is named", () =>
    Effect.gen(function* () {
      const folder = yield* temporaryFolder
      const files = [2, 3].map((shard) => shared(`cifar10/cifar10-test-00000${shard}.tar`))
      const indexFiles = yield* WebDataset.writeIndexes(files, folder)
      assert.deepStrictEqual(
        indexFiles.map((file) => file.slice(folder.length + 1)),
        ["idx_0.txt", "idx_1.txt"]
      )
      const scanned = yield* WebDataset.openImages(files)
      const indexed = yield* WebDataset.openImages(files, { indexFiles })
      assert.strictEqual(indexed.digest, scanned.digest)
      assert.deepStrictEqual(yield* indexed.get(4999), yield* scanned.get(4999))
      assert.include(
        (yield* reasonOf(WebDataset.openImages(files, { indexFiles: indexFiles.slice(1) }))).message,
        "must match the number of archives"
      )
      yield* Effect.promise(() => writeFile(indexFiles[1]!, "v1.1 1\njpg 51200000 1"))
      assert.include(
        (yield* reasonOf(WebDataset.openImages(files, { indexFiles }))).message,
        "offset is outside of the archive file"
      )
    })
  )
})
