import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, describe, it } from "@effect/vitest"
import type { CheckpointError } from "@tessera/core/CheckpointError"
import { match } from "@tessera/core/CheckpointMatch"
import { expired } from "@tessera/core/CheckpointRetention"
import type { FileCheckpointsOptions } from "@tessera/core/layers/FileCheckpoints"
import * as FileCheckpoints from "@tessera/core/layers/FileCheckpoints"
import type { TensorRecord } from "@tessera/core/services/CheckpointStore"
import { CheckpointStore } from "@tessera/core/services/CheckpointStore"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as fc from "fast-check"
import { crashAfter } from "./crashingFileSystem.ts"
import { axes, bytesFor, checkpointOf, manifestFile, stepOf, tensorsOf } from "./samples.ts"

/** Runs with a store on a folder, as a process of its own would. */
const withStore = <A, E>(
  options: FileCheckpointsOptions,
  use: (store: CheckpointStore["Service"]) => Effect.Effect<A, E, Scope.Scope>,
  fs?: FileSystem.FileSystem
) =>
  Effect.gen(function* () {
    const inner = fs ?? (yield* FileSystem.FileSystem)
    const layer = FileCheckpoints.layer(options).pipe(Layer.provide(Layer.succeed(FileSystem.FileSystem, inner)))
    return yield* Effect.flatMap(CheckpointStore, use).pipe(Effect.scoped, Effect.provide(layer))
  })

const latestStep = (options: FileCheckpointsOptions) =>
  withStore(options, (store) => Effect.flatMap(store.open("latest"), stepOf))

const temporary = Effect.flatMap(FileSystem.FileSystem, (fs) => fs.makeTempDirectoryScoped({ prefix: "checkpoints-" }))

const quietly = Effect.provideService(References.MinimumLogLevel, "Error")

const reasonOf = (error: CheckpointError) => error.reason._tag

const inNode = <A, E>(effect: Effect.Effect<A, E, FileSystem.FileSystem | Scope.Scope>) =>
  effect.pipe(Effect.provide(NodeFileSystem.layer), quietly)

describe("the checkpoint store", () => {
  it.effect("gives back what was saved, and its state", () =>
    Effect.gen(function* () {
      const folder = yield* temporary
      yield* withStore({ folder }, (store) =>
        Effect.gen(function* () {
          const none = yield* Effect.flip(store.open("latest"))
          assert.strictEqual(reasonOf(none), "NotFound")
          const saved = yield* store.save(checkpointOf(123, 0.5))
          assert.strictEqual(saved.path, `${folder}/step-00000123`)
          const reader = yield* store.open("latest")
          assert.strictEqual(yield* stepOf(reader), 123)
          assert.deepEqual(reader.manifest.state, checkpointOf(123).state)
          assert.deepEqual(reader.manifest.metric, { name: "validation/loss", value: 0.5 })
          assert.deepEqual(yield* store.verify(saved.path), reader.manifest)
          assert.deepEqual(yield* store.inspect(saved.path), reader.manifest)
          const columns = yield* reader.read("blocks/query", {
            offsets: { embed: 2 },
            sizes: { embed: 3 },
            order: ["heads", "embed"]
          })
          const all = new Uint32Array(bytesFor(123, 1, 48).buffer)
          const expected = [0, 1].flatMap((head) => [2, 3, 4].map((row) => all[row * 2 + head]!))
          assert.deepEqual([...new Uint32Array(columns.buffer)], expected)
          const misspelt = yield* Effect.flip(reader.read("blocks/qury"))
          assert.match(misspelt.message, /nearest name is "blocks\/query"/)
          const otherStep = yield* Effect.flip(store.open({ step: 7 }))
          assert.match(otherStep.message, /step 7 was not found; the folder holds steps 123/)
        })
      )
    }).pipe(inNode)
  )

  it.effect("leaves the old or the new checkpoint wherever the process stops", () =>
    Effect.gen(function* () {
      const inner = yield* FileSystem.FileSystem
      const outcomes = new Set<number>()
      for (let limit = 0; ; limit++) {
        const folder = yield* temporary
        const options = { folder, keepLast: 1 }
        yield* withStore(options, (store) => store.save(checkpointOf(1)))
        const crash = crashAfter(inner, limit)
        const attempt = yield* Effect.result(withStore(options, (store) => store.save(checkpointOf(2)), crash.fs))
        const step = yield* latestStep(options)
        outcomes.add(step)
        if (attempt._tag === "Success") assert.strictEqual(step, 2)
        const left = yield* inner.readDirectory(folder)
        assert.isTrue(
          left.every((name) => name.startsWith("step-")),
          `after ${limit} changes: ${left.join(" ")}`
        )
        if (crash.operations() <= limit) break
      }
      assert.deepEqual(
        [...outcomes].toSorted((a, b) => a - b),
        [1, 2]
      )
    }).pipe(inNode)
  )

  it.effect("keeps a checkpoint of the same step while it is being replaced", () =>
    Effect.gen(function* () {
      const inner = yield* FileSystem.FileSystem
      for (let limit = 0; ; limit++) {
        const folder = yield* temporary
        yield* withStore({ folder }, (store) => store.save(checkpointOf(5, 1)))
        const crash = crashAfter(inner, limit)
        yield* Effect.result(withStore({ folder }, (store) => store.save(checkpointOf(5, 2)), crash.fs))
        assert.strictEqual(yield* latestStep({ folder }), 5)
        if (crash.operations() <= limit) break
      }
    }).pipe(inNode)
  )

  it.effect("notices any changed byte and falls back", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* temporary
      const options = { folder, keepLast: 5 }
      yield* withStore(options, (store) => Effect.andThen(store.save(checkpointOf(1)), store.save(checkpointOf(2))))
      const newest = `${folder}/step-00000002`
      const names = (yield* fs.readDirectory(newest)).toSorted()
      const contents = new Map<string, Uint8Array>()
      for (const name of names) contents.set(name, new Uint8Array(yield* fs.readFile(`${newest}/${name}`)))
      const change = fc.record({
        file: fc.constantFrom(...names),
        at: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        bits: fc.integer({ min: 1, max: 255 })
      })
      yield* Effect.promise(() =>
        fc.assert(
          fc.asyncProperty(change, ({ file, at, bits }) =>
            Effect.gen(function* () {
              const good = contents.get(file)!
              const bad = good.slice()
              bad[Math.floor(at * bad.length)]! ^= bits
              yield* fs.writeFile(`${newest}/${file}`, bad)
              yield* Effect.addFinalizer(() => Effect.ignore(fs.writeFile(`${newest}/${file}`, good)))
              const [step, skipped] = yield* withStore(options, (store) =>
                Effect.gen(function* () {
                  const reader = yield* store.open("latest")
                  const direct = yield* Effect.flip(store.open({ step: 2 }))
                  assert.include(["ChecksumMismatch", "Truncated"], reasonOf(direct))
                  return [yield* stepOf(reader), reader.skipped] as const
                })
              )
              assert.strictEqual(step, 1)
              assert.strictEqual(skipped.length, 1)
              assert.include(skipped[0]!.error.message, "step-00000002")
              assert.include(skipped[0]!.error.message, file)
            }).pipe(Effect.scoped, quietly, Effect.provide(NodeFileSystem.layer), Effect.runPromise)
          ),
          { numRuns: 60 }
        )
      )
      for (const name of names) {
        yield* fs.writeFile(`${newest}/${name}`, contents.get(name)!.slice(0, -1))
        assert.strictEqual(yield* latestStep(options), 1)
        yield* fs.remove(`${newest}/${name}`)
        assert.strictEqual(yield* latestStep(options), 1)
        yield* fs.writeFile(`${newest}/${name}`, contents.get(name)!)
      }
      assert.strictEqual(yield* latestStep(options), 2)
      yield* fs.remove(`${folder}/step-00000001/${manifestFile}`)
      yield* fs.truncate(`${newest}/${manifestFile}`, 100)
      const none = yield* Effect.flip(latestStep(options))
      assert.match(none.message, /all are damaged.*step-00000002.*step-00000001/)
    }).pipe(inNode)
  )

  it.effect("keeps the newest and the best", () =>
    Effect.gen(function* () {
      const folder = yield* temporary
      const keepBest = { metric: "validation/loss", mode: "min", count: 1 } as const
      yield* withStore({ folder, keepLast: 2, keepBest }, (store) =>
        Effect.gen(function* () {
          for (const [step, loss] of [
            [1, 0.9],
            [2, 0.2],
            [3, 0.5],
            [4, NaN],
            [5, 0.3]
          ] as const) {
            yield* store.save(checkpointOf(step, loss))
          }
          const kept = yield* store.list
          assert.deepEqual(
            kept.map(({ step }) => step),
            [2, 4, 5]
          )
          assert.deepEqual(
            kept.map(({ metric }) => metric?.value),
            [0.2, undefined, 0.3]
          )
          assert.isTrue(kept.every(({ complete, bytes }) => complete && bytes > 0))
        })
      )
    }).pipe(inNode)
  )

  it("retention never takes the newest complete, the best or the one just saved", () =>
    fc.assert(
      fc.property(
        fc.uniqueArray(
          fc.record({ step: fc.nat(50), complete: fc.boolean(), loss: fc.option(fc.double({ noNaN: true })) }),
          {
            selector: ({ step }) => step,
            minLength: 1
          }
        ),
        fc.nat(4),
        fc.constantFrom("min" as const, "max" as const),
        fc.nat(3),
        (raw, keepLast, mode, count) => {
          const all = raw.map(({ step, complete, loss }) => ({
            step,
            complete,
            ...(loss === null ? {} : { metric: { name: "loss", value: loss } })
          }))
          const saved = all[0]!.step
          const gone = expired(all, { keepLast, keepBest: { metric: "loss", mode, count } }, saved)
          const stays = all.filter((one) => !gone.includes(one))
          const complete = all.filter((one) => one.complete)
          assert.isTrue(gone.every((one) => one.complete && one.step !== saved))
          if (complete.length === 0) return
          const newest = Math.max(...complete.map(({ step }) => step))
          assert.isTrue(stays.some(({ step }) => step === newest))
          const values = complete.flatMap(({ metric }) => metric?.value ?? [])
          if (values.length === 0) return
          const best = mode === "min" ? Math.min(...values) : Math.max(...values)
          assert.isTrue(stays.some((one) => one.complete && one.metric?.value === best))
        }
      )
    ))

  it.effect("says how much space was missing, and keeps what was there", () =>
    Effect.gen(function* () {
      const inner = yield* FileSystem.FileSystem
      const folder = yield* temporary
      yield* withStore({ folder }, (store) => store.save(checkpointOf(1)))
      const full = crashAfter(inner, 4, "ENOSPC")
      const error = yield* Effect.flip(withStore({ folder }, (store) => store.save(checkpointOf(2)), full.fs))
      assert.strictEqual(reasonOf(error), "WriteFailed")
      assert.include(error.message, `writing to ${folder}`)
      assert.match(error.message, /no space left on the device \(the checkpoint needs 81 bytes\)/)
      assert.strictEqual(yield* latestStep({ folder }), 1)
    }).pipe(inNode)
  )

  it.live("leaves nothing behind when a save is interrupted", () =>
    Effect.gen(function* () {
      const folder = yield* temporary
      const [first] = tensorsOf(1)
      const slow: TensorRecord = { ...first!, name: "slow", data: Effect.never }
      const left = yield* withStore({ folder }, (store) =>
        Effect.gen(function* () {
          yield* store.save(checkpointOf(1))
          yield* Effect.timeoutOption(store.save({ step: 2, tensors: [first!, slow], state: null }), "30 millis")
          return yield* Effect.flatMap(FileSystem.FileSystem, (fs) => fs.readDirectory(folder))
        }).pipe(Effect.provide(NodeFileSystem.layer))
      )
      assert.deepEqual(left, ["step-00000001"])
    }).pipe(Effect.scoped, inNode)
  )

  it.effect("refuses what is no checkpoint", () =>
    Effect.gen(function* () {
      const folder = yield* temporary
      const [first] = tensorsOf(1)
      const save = (tensors: ReadonlyArray<TensorRecord>, state: never = {} as never) =>
        withStore({ folder }, (store) => store.save({ step: 1, tensors, state })).pipe(
          Effect.flip,
          Effect.map((error) => error.message)
        )
      assert.match(yield* save([{ ...first!, data: new Uint8Array(47) }]), /needs 48 bytes, 47 were given/)
      assert.match(yield* save([first!, { ...first!, data: new Uint8Array(48) }]), /diverged/)
      assert.match(
        yield* save([{ ...first!, slice: { sizes: { heads: 1 } }, data: new Uint8Array(24) }]),
        /hold 6 of 12 elements/
      )
      assert.match(yield* save([first!], { a: [1, { b: NaN }] } as never), /state\.a\[1\]\.b is NaN/)
      assert.match(yield* save([first!], { a: undefined } as never), /state\.a is of type undefined/)
      const halfStep = withStore({ folder }, (store) => store.save({ ...checkpointOf(1), step: 1.5 }))
      assert.match((yield* Effect.flip(halfStep)).message, /1\.5 is not a whole number/)
      const part = { step: 1, token: "../run", part: "rank-0", tensors: [] }
      const outside = withStore({ folder }, (store) => store.savePart(part))
      assert.match((yield* Effect.flip(outside)).message, /"\.\.\/run": only letters/)
      assert.deepEqual(yield* Effect.flatMap(FileSystem.FileSystem, (fs) => fs.readDirectory(folder)), [])
    }).pipe(inNode)
  )

  it.effect("splits large sets over files", () =>
    Effect.gen(function* () {
      const folder = yield* temporary
      yield* withStore({ folder, maxFileBytes: 50 }, (store) =>
        Effect.gen(function* () {
          yield* store.save(checkpointOf(1))
          const reader = yield* store.open("latest")
          assert.strictEqual(yield* stepOf(reader), 1)
          const names = reader.manifest.files.map(({ name }) => name)
          assert.include(names, "parameter-00002.safetensors")
        })
      )
    }).pipe(inNode)
  )

  it.effect("loads any mesh's slices as any other mesh's", () =>
    Effect.gen(function* () {
      const cut = (size: number) =>
        fc.uniqueArray(fc.integer({ min: 1, max: Math.max(1, size - 1) }), { maxLength: 3 }).map((points) => {
          const ends = [0, ...points.filter((p) => p < size).toSorted((a, b) => a - b), size]
          return ends.slice(1).map((end, i) => [ends[i]!, end - ends[i]!] as const)
        })
      const mesh = fc.tuple(fc.integer({ min: 1, max: 6 }), fc.integer({ min: 1, max: 6 })).chain(([embed, heads]) =>
        fc.record({
          embed: fc.constant(embed),
          heads: fc.constant(heads),
          saved: fc.tuple(cut(embed), cut(heads)),
          loaded: fc.tuple(cut(embed), cut(heads))
        })
      )
      yield* Effect.promise(() =>
        fc.assert(
          fc.asyncProperty(mesh, ({ embed, heads, saved, loaded }) =>
            Effect.gen(function* () {
              const folder = yield* temporary
              const all = bytesFor(1, 9, embed * heads)
              const boxes = ([rows, columns]: typeof saved) =>
                rows.flatMap(([row, rowCount]) =>
                  columns.map(([column, columnCount]) => ({
                    offsets: { embed: row, heads: column },
                    sizes: { embed: rowCount, heads: columnCount }
                  }))
                )
              const part = ({ offsets, sizes }: ReturnType<typeof boxes>[number]) =>
                Uint8Array.from({ length: sizes.embed * sizes.heads }, (_, i) => {
                  const row = offsets.embed + Math.floor(i / sizes.heads)
                  return all[row * heads + offsets.heads + (i % sizes.heads)]!
                })
              yield* withStore({ folder }, (store) =>
                Effect.gen(function* () {
                  const parts = yield* Effect.forEach(boxes(saved), (slice, rank) =>
                    store.savePart({
                      step: 1,
                      token: "run",
                      part: `rank-${rank}`,
                      tensors: [
                        {
                          name: "w",
                          kind: "parameter",
                          dtype: "u8",
                          axes: axes({ embed, heads }),
                          slice,
                          data: part(slice)
                        }
                      ]
                    })
                  )
                  yield* store.commit({ step: 1, token: "run", state: null, parts })
                  const reader = yield* store.open("latest")
                  assert.deepEqual(yield* reader.read("w"), all)
                  for (const slice of boxes(loaded)) assert.deepEqual(yield* reader.read("w", slice), part(slice))
                })
              )
            }).pipe(Effect.scoped, Effect.provide(NodeFileSystem.layer), Effect.runPromise)
          ),
          { numRuns: 40 }
        )
      )
    }).pipe(inNode)
  )

  it.effect("names frozen tensors by their hash", () =>
    Effect.gen(function* () {
      const folder = yield* temporary
      const data = bytesFor(1, 5, 8)
      const tower: TensorRecord = {
        name: "vision/scale",
        kind: "frozen",
        dtype: "f32",
        axes: axes({ embed: 2 }),
        data,
        frozen: { source: "vit-b-16.safetensors" }
      }
      yield* withStore({ folder }, (store) =>
        Effect.gen(function* () {
          yield* store.save({ ...checkpointOf(1), tensors: [...tensorsOf(1), tower] })
          const reader = yield* store.open("latest")
          assert.match((yield* Effect.flip(reader.read("vision/scale"))).message, /load it from vit-b-16\.safetensors/)
          yield* reader.checkFrozen("vision/scale", data)
          const other = yield* Effect.flip(reader.checkFrozen("vision/scale", new Uint8Array(8)))
          assert.strictEqual(reasonOf(other), "ChecksumMismatch")
        })
      )
    }).pipe(inNode)
  )

  it.effect("compares a checkpoint with a model", () =>
    Effect.gen(function* () {
      const folder = yield* temporary
      const manifest = yield* withStore({ folder }, (store) =>
        Effect.andThen(
          store.save(checkpointOf(1)),
          Effect.map(store.open("latest"), (reader) => reader.manifest)
        )
      )
      const model = tensorsOf(1).map(({ name, kind, dtype, axes: all }) => ({
        name,
        kind,
        dtype,
        axes: all.toReversed()
      }))
      assert.isTrue(Result.isSuccess(match("p", manifest, model)))
      assert.isTrue(
        Result.isSuccess(
          match(
            "p",
            manifest,
            model.filter(({ kind }) => kind === "parameter"),
            ["parameter"]
          )
        )
      )
      const other = model.map((tensor) =>
        tensor.name === "scale"
          ? { ...tensor, name: "scales" }
          : tensor.name === "mask"
            ? { ...tensor, axes: axes({ seq: 6 }) }
            : tensor
      )
      const mismatch = match("runs/a/step-00000001", manifest, other)
      if (mismatch._tag === "Success") return assert.fail("accepted")
      const text = mismatch.failure.message
      assert.match(text, /missing: scales \(nearest in the checkpoint: scale\)/)
      assert.match(text, /unexpected: scale\n/)
      assert.match(text, /mask \(state\) is bool \[seq 5\], the model expects bool \[seq 6\]/)
    }).pipe(inNode)
  )

  it.effect("does not pass over a checkpoint of another version", () =>
    Effect.gen(function* () {
      const { createHash } = yield* Effect.promise(() => import("node:crypto"))
      const fs = yield* FileSystem.FileSystem
      const folder = yield* temporary
      yield* withStore({ folder }, (store) => Effect.andThen(store.save(checkpointOf(1)), store.save(checkpointOf(2))))
      const path = `${folder}/step-00000002/${manifestFile}`
      const { checksum: _, ...body } = JSON.parse(yield* fs.readFileString(path)) as Record<string, unknown>
      const later = { ...body, schemaVersion: 9, tessera: "9.9.9" }
      const checksum = createHash("sha256").update(JSON.stringify(later)).digest("hex")
      yield* fs.writeFileString(path, `${JSON.stringify({ checksum, ...later }, null, 1)}\n`)
      const error = yield* Effect.flip(latestStep({ folder }))
      assert.strictEqual(reasonOf(error), "VersionMismatch")
      assert.match(error.message, /written by Tessera 9\.9\.9/)
    }).pipe(inNode)
  )
})
