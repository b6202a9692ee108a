import { assert, describe, it } from "@effect/vitest"
import { Augment, Cursor, Image, Loader, MakeShards, Mix, Source } from "@tessera/data"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as fc from "fast-check"
import { execFile } from "node:child_process"
import { writeFile } from "node:fs/promises"
import { join } from "node:path"
import { promisify } from "node:util"
import { bytesOf, mnistFolder, native, numberedSource, reasonOf, shared, temporaryFolder } from "./sharedData.ts"

const tiny = Augment.pipeline({
  height: 2,
  width: 2,
  channels: 1,
  operations: [Augment.padCrop(2, 1), Augment.horizontalFlip()],
  normalization: { mean: [0], std: [1] }
})
const still = Augment.pipeline({
  height: 2,
  width: 2,
  channels: 1,
  operations: [],
  normalization: { mean: [0], std: [1] }
})
const cifar = Augment.pipeline({
  height: 32,
  width: 32,
  channels: 3,
  operations: [],
  normalization: Augment.cifarNormalization
})

const take = (loader: Loader.DataSource, count: number, from: Cursor.Cursor = loader.start) =>
  Stream.runCollect(Stream.take(loader.batches(from), count))
const collect = (loader: Loader.DataSource) => Stream.runCollect(loader.batches(loader.start))
const indicesOf = (batches: ReadonlyArray<Loader.Batch>) => batches.flatMap((batch) => [...batch.indices])
const imagesOf = (batches: ReadonlyArray<Loader.Batch>) => batches.flatMap((batch) => [...batch.images])
const run = <A, E>(effect: Effect.Effect<A, E, import("@tessera/data").Augmenter.Augmenter>) =>
  Effect.runPromise(native(effect))

describe("training batches", () => {
  it.effect("an epoch shows every sample at most once, another epoch another order", () =>
    Effect.gen(function* () {
      const loader = yield* Loader.make({
        source: numberedSource(103),
        batchSize: 10,
        train: true,
        pipeline: tiny,
        seed: 1
      })
      assert.strictEqual(loader.stepsPerEpoch, 10)
      const batches = yield* take(loader, 20)
      const epochs = [indicesOf(batches.slice(0, 10)), indicesOf(batches.slice(10))]
      for (const epoch of epochs) assert.strictEqual(new Set(epoch).size, 100)
      assert.notDeepEqual(epochs[0], epochs[1])
      assert.deepInclude(batches[9]!.cursor, { epoch: 1, position: 0 })
      assert.deepInclude(batches[12]!.cursor, { epoch: 1, position: 30 })
      for (const batch of batches) {
        assert.deepStrictEqual(
          [...batch.labels],
          [...batch.indices].map((index) => index % 10)
        )
        assert.isTrue(batch.weights.every((weight) => weight === 1))
      }
    }).pipe(native)
  )

  it("resuming at any batch gives exactly the batches that would have followed, also after a second resume", () =>
    fc.assert(
      fc.asyncProperty(
        fc.record({
          count: fc.integer({ min: 1, max: 60 }),
          batch: fc.integer({ min: 1, max: 12 }),
          seed: fc.nat(),
          first: fc.nat(12),
          second: fc.nat(6)
        }),
        ({ batch, count, first, second, seed }) => {
          const options = {
            source: numberedSource(Math.max(count, batch)),
            batchSize: batch,
            train: true,
            pipeline: tiny,
            seed
          }
          return run(
            Effect.gen(function* () {
              const whole = yield* take(yield* Loader.make(options), first + second + 5)
              const cursorAt = (step: number, start: Cursor.Cursor, batches: ReadonlyArray<Loader.Batch>) =>
                step === 0 ? start : batches[step - 1]!.cursor
              const one = yield* Loader.make(options)
              const before = yield* take(one, first)
              const two = yield* Loader.make({ ...options, prefetch: 5 })
              const middle = yield* take(two, second, cursorAt(first, one.start, before))
              const three = yield* Loader.make({ ...options, prefetch: 1, cacheDecoded: false, decodeConcurrency: 1 })
              const rest = yield* take(three, 5, cursorAt(second, cursorAt(first, one.start, before), middle))
              const pieces = [...before, ...middle, ...rest]
              assert.deepStrictEqual(indicesOf(pieces), indicesOf(whole))
              assert.deepStrictEqual(imagesOf(pieces), imagesOf(whole))
              assert.deepStrictEqual(pieces.at(-1)!.cursor, whole.at(-1)!.cursor)
            })
          )
        }
      ),
      { numRuns: 40 }
    ))

  it.effect("resuming within an epoch with another batch size continues at the very next sample", () =>
    Effect.gen(function* () {
      const options = { source: numberedSource(60), train: true, pipeline: tiny, seed: 3 }
      const tens = yield* take(yield* Loader.make({ ...options, batchSize: 10 }), 6)
      const sixes = yield* take(yield* Loader.make({ ...options, batchSize: 6 }), 5, tens[2]!.cursor)
      assert.deepStrictEqual(indicesOf(sixes), indicesOf(tens.slice(3)))
    }).pipe(native)
  )

  it.effect("the ranks' rows together are the rows of one rank, mixed alike", () =>
    Effect.gen(function* () {
      const options = {
        source: numberedSource(50),
        batchSize: 12,
        train: true,
        pipeline: tiny,
        seed: 5,
        mix: Mix.cutmix({ classCount: 10, alpha: 1 })
      }
      const whole = yield* take(yield* Loader.make(options), 8)
      const ranks = yield* Effect.forEach([0, 1, 2], (index) =>
        Effect.flatMap(Loader.make({ ...options, rank: { index, count: 3 } }), (loader) => take(loader, 8))
      )
      for (const [step, batch] of whole.entries()) {
        const parts = ranks.map((batches) => batches[step]!)
        assert.deepStrictEqual(indicesOf(parts), [...batch.indices])
        assert.deepStrictEqual(imagesOf(parts), [...batch.images])
        assert.deepStrictEqual(
          parts.flatMap((part) => [...part.softLabels!]),
          [...batch.softLabels!]
        )
        for (const part of parts) assert.deepStrictEqual(part.cursor, batch.cursor)
      }
    }).pipe(native)
  )

  it.effect("refuses the cursor of other data, sizes that cannot work, and mixing an evaluation", () =>
    Effect.gen(function* () {
      const options = { source: numberedSource(20), batchSize: 5, train: true, pipeline: tiny, seed: 1 }
      const other = yield* Loader.make({ ...options, source: numberedSource(21) })
      const loader = yield* Loader.make(options)
      const mismatch = yield* reasonOf(take(loader, 1, other.start))
      assert.strictEqual(mismatch._tag, "CursorMismatch")
      const tooLarge = yield* reasonOf(Loader.make({ ...options, batchSize: 21 }))
      assert.include(tooLarge.message, "batchSize is 21; expected at most 20")
      const uneven = yield* reasonOf(Loader.make({ ...options, rank: { index: 0, count: 2 } }))
      assert.include(uneven.message, "a multiple of the number of ranks, 2")
      const mixed = yield* reasonOf(Loader.make({ ...options, train: false, mix: Mix.labelSmoothing(10, 0.1) }))
      assert.include(mixed.message, "only training batches are mixed")
    }).pipe(native)
  )

  it.effect("prefetch is bounded: an unread stream stops asking for samples", () =>
    Effect.gen(function* () {
      let asked = 0
      const plain = numberedSource(1000)
      const source = { ...plain, get: (index: number) => Effect.suspend(() => (asked++, plain.get(index))) }
      const loader = yield* Loader.make({ source, batchSize: 10, train: true, pipeline: tiny, seed: 1, prefetch: 2 })
      yield* loader.batches(loader.start).pipe(
        Stream.take(1),
        Stream.runForEach(() => Effect.promise(() => new Promise((resolve) => setTimeout(resolve, 50))))
      )
      assert.isBelow(asked, 100)
    }).pipe(native)
  )
})

describe("evaluation batches", () => {
  it.effect("every sample once, in order, the last batch filled up with weight 0", () =>
    Effect.gen(function* () {
      const loader = yield* Loader.make({
        source: numberedSource(23),
        batchSize: 10,
        train: false,
        pipeline: still,
        seed: 1
      })
      assert.strictEqual(loader.stepsPerEpoch, 3)
      const batches = yield* collect(loader)
      assert.deepStrictEqual(indicesOf(batches), [
        ...Array.from({ length: 23 }, (_, index) => index),
        ...Array.from({ length: 7 }, () => -1)
      ])
      assert.deepStrictEqual([...batches[2]!.weights], [1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
      assert.isTrue(batches[2]!.images.subarray(3 * 4).every((value) => value === 0))
      assert.strictEqual(batches[2]!.keys[2], "k22")
      assert.strictEqual(batches[2]!.cursor.position, 23)
    }).pipe(native)
  )
  it("over any number of ranks: equal steps, and the same samples once", () =>
    fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 50 }),
        fc.integer({ min: 1, max: 4 }),
        fc.integer({ min: 1, max: 5 }),
        (count, ranks, rows) =>
          run(
            Effect.gen(function* () {
              const all = yield* Effect.forEach(
                Array.from({ length: ranks }, (_, index) => index),
                (index) =>
                  Effect.flatMap(
                    Loader.make({
                      source: numberedSource(count),
                      batchSize: ranks * rows,
                      train: false,
                      pipeline: still,
                      seed: 1,
                      rank: { index, count: ranks }
                    }),
                    collect
                  )
              )
              assert.strictEqual(new Set(all.map((batches) => batches.length)).size, 1)
              const seen = all.flatMap((batches) =>
                batches.flatMap((batch) => [...batch.indices].filter((_, row) => batch.weights[row] === 1))
              )
              assert.deepStrictEqual(
                seen.toSorted((a, b) => a - b),
                Array.from({ length: count }, (_, index) => index)
              )
            })
          )
      ),
      { numRuns: 30 }
    ))
  it.effect("MNIST's test set: 10,000 samples, every one weighted once", () =>
    Effect.gen(function* () {
      const source = yield* Source.open(`idx:${mnistFolder}`, { split: "test" })
      const pipeline = Augment.pipeline({
        height: 28,
        width: 28,
        channels: 1,
        operations: [],
        normalization: Augment.mnistNormalization
      })
      const batches = yield* collect(yield* Loader.make({ source, batchSize: 256, train: false, pipeline, seed: 0 }))
      assert.strictEqual(batches.length, 40)
      assert.strictEqual(
        batches.reduce((sum, batch) => sum + batch.weights.reduce((a, b) => a + b), 0),
        10_000
      )
    }).pipe(native)
  )
})

describe("bad samples", () => {
  const withBad = (count: number, bad: ReadonlyArray<number>): Source.Source<Source.ImageSample> => {
    const plain = numberedSource(count)
    return Source.map(plain, (sample) =>
      bad.includes(Number(sample.key.slice(1)))
        ? { ...sample, image: Image.encoded(Uint8Array.of(0xff, 0xd8, 1)) }
        : sample
    )
  }
  const base = { batchSize: 10, pipeline: still, seed: 1 }
  it.effect("fail by default, named", () =>
    Effect.gen(function* () {
      const reason = yield* reasonOf(
        Effect.flatMap(Loader.make({ ...base, source: withBad(30, [17]), train: false }), collect)
      )
      assert.strictEqual(reason._tag, "DecodeFailed")
      assert.include(reason.message, `memory: sample "k17" does not decode`)
    }).pipe(native)
  )
  it.effect("skipped when training: replaced by the next of the order, counted, cursors unchanged", () =>
    Effect.gen(function* () {
      const good = yield* take(yield* Loader.make({ ...base, source: numberedSource(30), train: true }), 6)
      const skipping = yield* take(
        yield* Loader.make({ ...base, source: withBad(30, [4, 17]), train: true, onBadSample: "skip" }),
        6
      )
      assert.deepStrictEqual(
        skipping.map((batch) => batch.cursor),
        good.map((batch) => batch.cursor)
      )
      assert.strictEqual(
        skipping.reduce((sum, batch) => sum + batch.skipped, 0),
        4
      )
      const order = indicesOf(good)
      for (const [position, index] of indicesOf(skipping).entries()) {
        const epochStart = Math.floor(position / 30) * 30
        let expected = position
        while ([4, 17].includes(order[expected]!)) expected = epochStart + ((expected + 1 - epochStart) % 30)
        assert.strictEqual(index, order[expected])
      }
    }).pipe(native)
  )
  it.effect("skipped when evaluating: weight 0", () =>
    Effect.gen(function* () {
      const batches = yield* collect(
        yield* Loader.make({ ...base, source: withBad(20, [3]), train: false, onBadSample: "skip" })
      )
      assert.deepStrictEqual([...batches[0]!.weights], [1, 1, 1, 0, 1, 1, 1, 1, 1, 1])
      assert.deepStrictEqual(
        [...batches[0]!.images.subarray(0, 24)].map((value) => Math.round(value * 255)),
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0, 4, 4, 4, 4, 5, 5, 5, 5]
      )
      assert.deepStrictEqual(
        batches.map((batch) => batch.skipped),
        [1, 0]
      )
    }).pipe(native)
  )
  it.effect("nothing but bad samples ends in the error", () =>
    Effect.map(
      reasonOf(
        Effect.flatMap(
          Loader.make({
            ...base,
            source: withBad(
              10,
              Array.from({ length: 10 }, (_, i) => i)
            ),
            train: true,
            onBadSample: "skip"
          }),
          (loader) => take(loader, 1)
        )
      ),
      (reason) => assert.strictEqual(reason._tag, "DecodeFailed")
    ).pipe(native)
  )
  it.effect("a label beyond the classes is named with the legal range", () =>
    Effect.gen(function* () {
      const reason = yield* reasonOf(
        Effect.flatMap(Loader.make({ ...base, source: numberedSource(30), train: false, classCount: 7 }), collect)
      )
      assert.strictEqual(reason._tag, "LabelOutOfRange")
      assert.include(reason.message, `sample "k7" has label "7"; expected a whole number from 0 to 6 (7 classes)`)
    }).pipe(native)
  )
})

describe("real shards", () => {
  const pattern = shared("cifar10/cifar10-test-000000.tar")
  it.effect("the memory cache, the prefetch and the concurrency change nothing", () =>
    Effect.gen(function* () {
      const all = yield* Source.open(pattern)
      const source = Source.select(
        all,
        Array.from({ length: 64 }, (_, index) => index * 7)
      )
      const options = { source, batchSize: 16, train: true, pipeline: cifar, seed: 9 }
      const plain = yield* take(
        yield* Loader.make({ ...options, cacheDecoded: false, decodeConcurrency: 1, prefetch: 1 }),
        9
      )
      const cached = yield* take(yield* Loader.make({ ...options, decodeConcurrency: 8 }), 9)
      const halfCached = yield* take(yield* Loader.make({ ...options, cacheBytes: 30 * 3072 }), 9)
      for (const other of [cached, halfCached]) {
        assert.deepStrictEqual(
          other.map((batch) => batch.keys),
          plain.map((batch) => batch.keys)
        )
        for (const [step, batch] of other.entries()) {
          assert.strictEqual(
            Buffer.compare(Buffer.from(batch.images.buffer), Buffer.from(plain[step]!.images.buffer)),
            0
          )
        }
      }
    }).pipe(native)
  )
})

describe("writing shards", () => {
  it.effect("bounded by count and bytes, every sample once, equal bytes every time, readable by tar", () =>
    Effect.gen(function* () {
      const folder = yield* temporaryFolder
      const all = yield* Source.open(shared("imagenet-sample/imagenet-original-000002.tar"))
      const files = yield* MakeShards.make({ source: all, folder, prefix: "imagenet-train", maxCount: 10 })
      assert.strictEqual(files.length, Math.ceil(all.count / 10))
      assert.strictEqual(files[0], join(folder, "imagenet-train-000000.tar"))
      const written = yield* Source.open(join(folder, "imagenet-train-{000000..000003}.tar"))
      assert.strictEqual(written.count, all.count)
      assert.deepStrictEqual(written.classes, all.classes)
      const seen = new Set<number>()
      for (let index = 0; index < written.count; index++) {
        const sample = yield* written.get(index)
        assert.match(sample.key, /^\d{7}$/)
        const original = yield* all.get(Number(sample.key))
        assert.deepStrictEqual(
          [sample.label, sample.image, sample.json],
          [original.label, original.image, original.json]
        )
        seen.add(Number(sample.key))
      }
      assert.strictEqual(seen.size, all.count)
      const listed = yield* Effect.promise(() => promisify(execFile)("tar", ["tf", files[0]!]))
      assert.deepStrictEqual(
        listed.stdout
          .split("\n")
          .slice(0, 3)
          .map((name) => name.slice(8)),
        ["cls", "jpg", "json"]
      )
      const again = yield* MakeShards.make({
        source: all,
        folder: join(folder, "again"),
        prefix: "imagenet-train",
        maxCount: 10
      })
      assert.strictEqual(Buffer.compare(yield* bytesOf(again[1]!), yield* bytesOf(files[1]!)), 0)
      const small = yield* MakeShards.make({
        source: all,
        folder: join(folder, "small"),
        prefix: "x",
        maxBytes: 300_000,
        seed: null,
        keys: "stem"
      })
      assert.isAbove(small.length, 4)
    })
  )
  it.effect("raw pixels become PNG and come back unchanged", () =>
    Effect.gen(function* () {
      const folder = yield* temporaryFolder
      const source = numberedSource(12)
      const [file] = yield* MakeShards.make({ source, folder, prefix: "raw" })
      const written = yield* Source.open(file!)
      const batches = yield* collect(
        yield* Loader.make({ source: written, batchSize: 12, train: false, pipeline: still, seed: 0 })
      )
      const order = batches[0]!.keys.map(Number)
      assert.deepStrictEqual(
        order.toSorted((a, b) => a - b),
        Array.from({ length: 12 }, (_, index) => index)
      )
      assert.deepStrictEqual(
        [...batches[0]!.images].map((value) => Math.round(value * 255)),
        order.flatMap((index) => [index, index, index, index])
      )
      yield* Effect.promise(() => writeFile(join(folder, "classes.txt"), "only\n"))
      const reason = yield* reasonOf(
        Effect.flatMap(Source.open(file!), (again) => Effect.forEach(order, (_, index) => again.get(index)))
      )
      assert.strictEqual(reason._tag, "LabelOutOfRange")
    }).pipe(native)
  )
})
