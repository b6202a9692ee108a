import { assert, it } from "@effect/vitest"
import * as MemoryCheckpoints from "@tessera/core/layers/MemoryCheckpoints"
import { CheckpointStore } from "@tessera/core/services/CheckpointStore"
import * as Effect from "effect/Effect"
import { axes, bytesFor, checkpointOf, stepOf, tensorsOf } from "./samples.ts"

const withStore = <A, E>(use: (store: CheckpointStore["Service"]) => Effect.Effect<A, E>) =>
  Effect.flatMap(CheckpointStore, use).pipe(Effect.provide(MemoryCheckpoints.layer))

const none = (effect: Effect.Effect<unknown, { readonly reason: { readonly _tag: string } }>) =>
  Effect.map(Effect.flip(effect), ({ reason }) => assert.strictEqual(reason._tag, "NotFound"))

it.effect("keeps what was saved, and gives boxes of it in any order of axes", () =>
  withStore((store) =>
    Effect.gen(function* () {
      yield* none(Effect.scoped(store.open("latest")))
      const saved = yield* store.save(checkpointOf(3, 0.5))
      yield* store.save(checkpointOf(4, 0.25))
      yield* none(Effect.scoped(store.open({ step: 5 })))
      const reader = yield* store.open({ path: saved.path })
      assert.strictEqual(yield* stepOf(reader), 3)
      assert.deepEqual(reader.manifest.state, checkpointOf(3, 0.5).state)
      assert.strictEqual((yield* store.open("latest")).manifest.step, 4)
      assert.deepEqual(
        (yield* store.list).map(({ complete, metric, step }) => [step, complete, metric?.value]),
        [
          [3, true, 0.5],
          [4, true, 0.25]
        ]
      )
      assert.deepEqual(yield* store.inspect(saved.path), reader.manifest)
    }).pipe(Effect.scoped)
  )
)

it.effect("joins what ranks bring, and refuses ranks that have diverged", () =>
  withStore((store) =>
    Effect.gen(function* () {
      const all = bytesFor(1, 1, 24)
      const part = (rank: number, data: Uint8Array) =>
        store.savePart({
          step: 1,
          token: "run",
          part: `rank-${rank}`,
          tensors: [
            {
              name: "w",
              kind: "parameter",
              dtype: "u8",
              axes: axes({ embed: 6, heads: 4 }),
              slice: { offsets: { embed: 3 * rank }, sizes: { embed: 3 } },
              data
            }
          ]
        })
      const [first, second] = [yield* part(0, all.slice(0, 12)), yield* part(1, all.slice(12))]
      yield* store.commit({ step: 1, token: "run", state: null, parts: [first, second] })
      const reader = yield* store.open({ step: 1 })
      assert.deepEqual(yield* reader.read("w"), all)
      assert.deepEqual(yield* reader.read("w", { offsets: { embed: 2 }, sizes: { embed: 2 } }), all.slice(8, 16))
      const column = yield* reader.read("w", { offsets: { heads: 1 }, sizes: { heads: 1 }, order: ["heads", "embed"] })
      assert.deepEqual(
        [...column],
        [1, 5, 9, 13, 17, 21].map((k) => all[k])
      )
      const other = yield* part(0, all.slice(12))
      const torn = yield* Effect.flip(store.commit({ step: 1, token: "run", state: null, parts: [first, other] }))
      assert.match(torn.message, /the ranks have diverged/)
    }).pipe(Effect.scoped)
  )
)

it.effect("is another store every time, and holds what JSON can", () =>
  Effect.gen(function* () {
    const kept = yield* withStore((store) =>
      Effect.as(store.save({ step: 1, state: null, tensors: tensorsOf(1) }), store)
    )
    yield* none(withStore((store) => Effect.scoped(store.open("latest"))))
    const wrong = yield* Effect.flip(kept.save({ step: 2, state: { x: Number.NaN }, tensors: [] }))
    assert.match(wrong.message, /state\.x is NaN/)
  })
)
