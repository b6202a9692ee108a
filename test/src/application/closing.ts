/** Closes the scope of a running step 50 times, at random moments, in memory that faults when it is touched after its end. */
import * as Trainer from "@tessera/core/Trainer"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as NativeLibrary from "@tessera/cpu/NativeLibrary"
import type { Backend } from "@tessera/core/services/Backend"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Trainings from "./trainings.ts"

const sizes: Trainings.Sizes = { batch: 32, hidden: 64, layers: 2 }
let seed = 7
const random = () => (seed = Math.imul(seed ^ (seed >>> 15), 0x2c1b3c6d) >>> 0) / 2 ** 32

const layer = CpuBackend.layerWith({ threads: 2, memory: "guarded" })

/** A training that runs in `scope`, on a backend that ends with it or on one that lives on. */
const start = Effect.fnUntraced(function* (scope: Scope.Scope, lasting: Context.Context<Backend>, i: number) {
  const backend = i % 4 < 2 ? yield* Layer.buildWithScope(Layer.fresh(layer), scope) : lasting
  return yield* Effect.gen(function* () {
    const training = yield* Trainer.make(Trainings.config(sizes)).pipe(Scope.provide(scope))
    yield* Trainer.initialise(training, i)
    const steps = Trainings.steps(training, sizes, { run: "closing", totalSteps: 1000 })
    return yield* Effect.forkDetach(Effect.exit(Stream.runDrain(steps)))
  }).pipe(Effect.provideContext(backend))
})

const program = Effect.gen(function* () {
  const lasting = yield* Layer.build(layer)
  let [closed, atWork] = [0, 0]
  for (let i = 0; i < 50; i++) {
    const scope = yield* Scope.make()
    const fiber = yield* start(scope, lasting, i)
    yield* Effect.sleep(random() * 30)
    if (fiber.pollUnsafe() === undefined) atWork++
    const close = Scope.close(scope, Exit.void)
    // Half of them are interrupted at the same moment.
    if (i % 2 === 0) yield* close
    else yield* Effect.all([close, Fiber.interrupt(fiber)], { concurrency: 2 })
    yield* Fiber.await(fiber)
    closed++
  }
  return { closed, atWork }
}).pipe(Effect.scoped)

const library = await Effect.runPromise(NativeLibrary.load())
const { atWork, closed } = await Effect.runPromise(program)
console.log(`${closed} closed, ${atWork} of them at work, ${library.memoryLive()} bytes left`)
