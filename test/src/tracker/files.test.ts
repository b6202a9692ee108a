import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as JsonlTracker from "@tessera/core/layers/JsonlTracker"
import * as TensorBoardTracker from "@tessera/core/layers/TensorBoardTracker"
import * as Trackers from "@tessera/core/layers/Trackers"
import * as TensorBoard from "@tessera/core/TensorBoard"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"
import * as fc from "fast-check"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { resolve } from "node:path"
import { evaluationReport, stepReport, withTracker } from "./reports.ts"

const shared = process.env["TESSERA_SHARED"] ?? resolve(import.meta.dirname, "../../../../shared/data")
const fixture = `${shared}/fixtures/tensorboard`

const temporary = Effect.flatMap(FileSystem.FileSystem, (fs) => fs.makeTempDirectoryScoped({ prefix: "tracker-" }))

const events = (bytes: Uint8Array) => {
  const { records, failure } = TensorBoard.decodeRecords(bytes)
  assert.isUndefined(failure)
  return records.map((record) => Result.getOrThrow(TensorBoard.decodeEvent(record)))
}

describe("the metrics file", () => {
  const read = (file: string) =>
    Effect.flatMap(FileSystem.FileSystem, (fs) => Stream.runCollect(JsonlTracker.readLines(fs, file)))

  it.effect("holds every report, and goes on where a resumed run goes on", () =>
    Effect.gen(function* () {
      const file = `${yield* temporary}/runs/metrics.jsonl`
      yield* withTracker(JsonlTracker.layer({ file }), (tracker) =>
        Effect.gen(function* () {
          for (let step = 1; step <= 6; step++) yield* tracker.report(stepReport(step))
          yield* tracker.report(stepReport(7, { loss: NaN }))
          yield* tracker.evaluation(evaluationReport(7))
          yield* tracker.event({ run: "vit-mnist", step: 7, name: "checkpoint", message: "saved", data: { bytes: 12 } })
        })
      )
      const first = yield* read(file)
      assert.deepEqual(
        first.map(({ step }) => step),
        [1, 2, 3, 4, 5, 6, 7, 7, 7]
      )
      assert.deepInclude(first[0], { kind: "step", loss: 2.3, accuracy: 0.001 })
      assert.deepInclude(first[6], { kind: "step", loss: NaN })
      assert.deepInclude(first[7], { kind: "evaluation", name: "validation", accuracy: 0.9721 })
      yield* withTracker(JsonlTracker.layer({ file, resumedStep: 4 }), (tracker) => tracker.report(stepReport(5)))
      assert.deepEqual(
        (yield* read(file)).map(({ step }) => step),
        [1, 2, 3, 4, 5]
      )
    }).pipe(Effect.provide(NodeServices.layer))
  )

  it.effect("loses at most the torn last line", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const file = `${yield* temporary}/metrics.jsonl`
      const lines = [1, 2, 3, 4].map((step) =>
        JsonlTracker.encodeLine({ kind: "step", time: step, ...stepReport(step, { run: "ü→run" }) })
      )
      const whole = new TextEncoder().encode(lines.join(""))
      const bytesBefore = (count: number) => new TextEncoder().encode(lines.slice(0, count).join("")).byteLength
      yield* Effect.promise(() =>
        fc.assert(
          fc.asyncProperty(fc.nat(whole.byteLength), (cut) =>
            Effect.gen(function* () {
              yield* fs.writeFile(file, whole.subarray(0, cut))
              yield* withTracker(JsonlTracker.layer({ file }), (tracker) => tracker.report(stepReport(9)))
              const found = (yield* read(file)).map(({ step }) => step)
              const complete = [1, 2, 3, 4].filter((count) => bytesBefore(count) - 1 <= cut).length
              assert.deepEqual(found, [...[1, 2, 3, 4].slice(0, complete), 9])
            }).pipe(Effect.provide(NodeServices.layer), Effect.runPromise)
          ),
          { numRuns: 50 }
        )
      )
    }).pipe(Effect.provide(NodeServices.layer))
  )

  it.effect("says where it cannot write", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* temporary
      yield* fs.writeFileString(`${folder}/file`, "")
      const inFile = JsonlTracker.layer({ file: `${folder}/file/metrics.jsonl` })
      const error = yield* Effect.flip(withTracker(inFile, () => Effect.void))
      assert.include(error.message, `the metrics file cannot write ${folder}/file/metrics.jsonl`)
    }).pipe(Effect.provide(NodeServices.layer))
  )
})

describe("TensorBoard's event files", () => {
  it.skipIf(!existsSync(fixture))("are read as their writer meant them", () => {
    const expected = JSON.parse(readFileSync(`${fixture}/expected.json`, "utf8")) as {
      readonly file_version: string
      readonly scalars: ReadonlyArray<{ step: number; tag: string; value: number; wall_time: number }>
      readonly crc32c_vectors: Readonly<Record<string, string>>
    }
    const name = readdirSync(fixture).find((one) => one.startsWith("events.out"))!
    const bytes = new Uint8Array(readFileSync(`${fixture}/${name}`))
    const found = events(bytes)
    assert.strictEqual(found[0]!.fileVersion, expected.file_version)
    const scalars = found.flatMap(({ step, wallTime, scalars: all = [] }) =>
      all.map(({ tag, value }) => ({ step, tag, value, wall_time: wallTime }))
    )
    assert.deepEqual(scalars, [...expected.scalars])
    // Writing the same events again gives the same bytes.
    const again = found.map((event) => TensorBoard.encodeRecord(TensorBoard.encodeEvent(event)))
    assert.strictEqual(Buffer.compare(Buffer.concat(again), bytes), 0)
    const crc = (data: Uint8Array) => `0x${TensorBoard.crc32c(data).toString(16)}`
    const text = (data: string) => crc(new TextEncoder().encode(data))
    const { abcd, "123456789": digits, "32 zero bytes": zeros } = expected.crc32c_vectors
    assert.deepEqual([text("abcd"), text("123456789"), crc(new Uint8Array(32))], [abcd, digits, zeros])
  })

  it("have the checksum of the standard", () => {
    assert.strictEqual(TensorBoard.crc32c(new TextEncoder().encode("123456789")), 0xe3069283)
  })

  it("come back as they were written, and no changed byte passes", () =>
    fc.assert(
      fc.property(
        fc.array(
          fc.record({
            wallTime: fc.double({ noNaN: true }),
            step: fc.maxSafeNat(),
            scalars: fc.array(fc.record({ tag: fc.string(), value: fc.float({ noNaN: true }) }), {
              minLength: 1,
              maxLength: 4
            })
          }),
          { minLength: 1, maxLength: 5 }
        ),
        fc.nat(),
        fc.integer({ min: 1, max: 255 }),
        (written, at, bits) => {
          const bytes = Buffer.concat(written.map((event) => TensorBoard.encodeRecord(TensorBoard.encodeEvent(event))))
          assert.deepEqual(events(bytes), written)
          const bad = Uint8Array.from(bytes)
          bad[at % bad.length]! ^= bits
          assert.isDefined(TensorBoard.decodeRecords(bad).failure)
          const cut = TensorBoard.decodeRecords(bytes.subarray(0, bytes.length - 1))
          assert.strictEqual(cut.failure?.problem, "Truncated")
          assert.strictEqual(cut.records.length, written.length - 1)
        }
      )
    ))

  it.effect("are written beside the metrics file", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* temporary
      const both = Trackers.combine([
        TensorBoardTracker.layer({ folder, resumedStep: 10 }),
        JsonlTracker.layer({ file: `${folder}/metrics.jsonl` })
      ])
      yield* withTracker(both, (tracker) =>
        Effect.andThen(tracker.report(stepReport(11, { lossScale: 1024 })), tracker.evaluation(evaluationReport(11)))
      )
      const names = yield* fs.readDirectory(folder)
      assert.strictEqual(names.length, 2)
      const file = names.find((name) => name.includes("tfevents"))!
      const [version, start, step, evaluation] = events(yield* fs.readFile(`${folder}/${file}`))
      assert.strictEqual(version!.fileVersion, "brain.Event:2")
      assert.deepInclude(start!, { step: 11, start: true })
      assert.strictEqual(step!.step, 11)
      const tags = step!.scalars!.map(({ tag }) => tag)
      assert.includeMembers(tags, ["train/loss", "train/accuracy", "train/learning_rate", "train/images_per_second"])
      assert.deepInclude(step!.scalars!, { tag: "train/loss_scale", value: 1024 })
      assert.deepInclude(evaluation!.scalars!, { tag: "validation/topFive", value: Math.fround(0.999) })
    }).pipe(Effect.provide(NodeServices.layer))
  )
})
