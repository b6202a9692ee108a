/** What ranks of one machine hear when one of them fails, ends, stays away, or brings something else. */
import { assert, it } from "@effect/vitest"
import { CollectiveError } from "@tessera/core/Errors"
import type * as Mesh from "@tessera/core/Mesh"
import { Backend } from "@tessera/core/services/Backend"
import type { CollectivesService, Operation } from "@tessera/core/services/Collectives"
import { Collectives } from "@tessera/core/services/Collectives"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as LocalCollectives from "@tessera/cpu/LocalCollectives"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { exits } from "./localRanks.ts"

const mesh: Mesh.Mesh = [["data", 3]]

const sum = (count: number, line = "a line"): Operation => ({
  kind: "allReduce",
  meshAxis: "data",
  by: "sum",
  shift: 0,
  operands: [{ dtype: "f32", count }],
  line
})

/** A sum over all ranks of what has `count` elements. */
const reduce = (service: CollectivesService, count = 4, line?: string) =>
  Effect.scoped(
    Effect.gen(function* () {
      const backend = yield* Backend
      const buffer = yield* backend.allocate({ axes: [{ name: "x", size: count, logical: count }], dtype: "f32" })
      yield* backend.write(buffer, new Uint8Array(Float32Array.from({ length: count }, () => service.rank + 1).buffer))
      const span = yield* backend.span(buffer)
      yield* service.run(sum(count, line), [span], [span])
      return [...new Float32Array((yield* backend.read(buffer)).buffer)]
    })
  )

const onRanks = <A, E>(
  effect: (service: CollectivesService) => Effect.Effect<A, E, Backend>,
  options: Parameters<typeof exits>[2] = {}
) =>
  exits(mesh, () => Effect.flatMap(Collectives, effect), options).pipe(
    Effect.provide(CpuBackend.layerWith({ threads: 1, memory: "shared" }))
  )

const errorOf = (exit: Exit.Exit<unknown, unknown>): CollectiveError => {
  assert.isTrue(Exit.isFailure(exit))
  const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : null
  assert.instanceOf(error, CollectiveError)
  return error as CollectiveError
}

it.live("sums, and all hear what any of them says", () =>
  Effect.gen(function* () {
    const found = yield* onRanks((service) =>
      Effect.gen(function* () {
        const total = yield* reduce(service)
        return [total, yield* service.any(service.rank === 1), yield* service.any(false)] as const
      })
    )
    for (const exit of found) assert.deepStrictEqual(exit, Exit.succeed([[6, 6, 6, 6], true, false] as const))
  })
)

it.live("a rank that fails is named with its reason, whatever the others wait for", () =>
  Effect.gen(function* () {
    const found = yield* onRanks((service) =>
      service.rank === 2 ? Effect.fail(new Error("the disk is full")) : Effect.forever(reduce(service))
    )
    for (const exit of found.slice(0, 2)) {
      const error = errorOf(exit)
      assert.strictEqual(error.reason, "RankLost")
      assert.match(error.message, /^allReduce over "data", RankLost at rank [01]: rank [0-2] has failed: .*\(a line\)$/)
    }
    assert.isTrue(found.slice(0, 2).some((exit) => errorOf(exit).message.includes("the disk is full")))
  })
)

it.live("a rank that has ended is not waited for", () =>
  Effect.gen(function* () {
    const found = yield* onRanks((service) => (service.rank === 0 ? Effect.void : Effect.asVoid(reduce(service))))
    assert.match(errorOf(found[1]!).message, /rank 0 has ended/)
  })
)

it.live("a rank that stays away is named after the timeout", () =>
  Effect.gen(function* () {
    const found = yield* onRanks(
      (service) => (service.rank === 0 ? Effect.sleep("1500 millis") : Effect.asVoid(reduce(service))),
      { timeout: "500 millis" }
    )
    const late = found.slice(1).map(errorOf)
    assert.isTrue(late.some((e) => e.reason === "Timeout" && /rank 0 did not come within 500ms/.test(e.message)))
  })
)

it.live("ranks that bring another shape, or another collective of the same shape, are named", () =>
  Effect.gen(function* () {
    const shapes = yield* onRanks((service) => reduce(service, service.rank === 1 ? 5 : 4))
    for (const exit of shapes) {
      const error = errorOf(exit)
      assert.strictEqual(error.reason, "ShapeDisagreement")
      assert.deepStrictEqual(error.ranks, [1])
      assert.include(error.message, "rank 1 brings allReduce sum of 5 f32; rank 0 brings allReduce sum of 4 f32")
    }
    const lines = yield* onRanks((service) => reduce(service, 4, service.rank === 1 ? "layer 3" : "layer 4"))
    for (const exit of lines) assert.strictEqual(errorOf(exit).reason, "ShapeDisagreement")
  })
)

it.live("ranks agree on words, or all hear who has another one", () =>
  Effect.gen(function* () {
    const found = yield* onRanks((service) =>
      Effect.andThen(service.agree("the seed", "7"), service.agree("the program", service.rank === 2 ? "b" : "a"))
    )
    for (const exit of found) {
      const error = errorOf(exit)
      assert.strictEqual(error.reason, "Disagreement")
      assert.deepStrictEqual(error.ranks, [2])
      assert.include(error.message, "agreement on the program")
    }
  })
)

it.live("interruption ends a collective for all, and nothing is left that writes", () =>
  Effect.gen(function* () {
    const found = yield* onRanks((service) =>
      Effect.gen(function* () {
        if (service.rank !== 0) return yield* Effect.andThen(Effect.sleep("300 millis"), reduce(service))
        const fiber = yield* Effect.forkChild(reduce(service))
        yield* Effect.sleep("100 millis")
        yield* Fiber.interrupt(fiber)
        return []
      })
    )
    for (const exit of found.slice(1)) assert.include(errorOf(exit).message, "rank 0 has failed: it was interrupted")
  })
)

it.live("a place that is taken is refused", () =>
  Effect.gen(function* () {
    const found = yield* exits([["data", 2]], () => Effect.void, { rank: 0, timeout: "300 millis" })
    assert.isTrue(
      found.some((exit) => Exit.isFailure(exit) && errorOf(exit).message.includes("another process is this rank"))
    )
  })
)

it.live("ranks that count otherwise do not meet", () =>
  Effect.gen(function* () {
    const folder = yield* Effect.acquireRelease(
      Effect.promise(() => mkdtemp(join(tmpdir(), "tessera-ranks-"))),
      (path) => Effect.promise(() => rm(path, { recursive: true }))
    )
    const join2 = (rank: number, count: number) =>
      Effect.exit(
        Effect.scoped(
          Layer.build(
            LocalCollectives.layer({
              control: join(folder, "control"),
              rank,
              mesh: [["data", count]],
              timeout: "300 millis"
            })
          )
        )
      )
    const [first, second] = yield* Effect.all([join2(0, 2), Effect.delay(join2(1, 3), "50 millis")], {
      concurrency: 2
    })
    assert.strictEqual(errorOf(first!).reason, "Timeout")
    assert.include(errorOf(second!).message, "belongs to other ranks")
  })
)
