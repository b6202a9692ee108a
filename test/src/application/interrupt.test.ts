/** Steps do not hold the event loop, end within a kernel when interrupted, and never outlive the memory that they write. */
import { assert, describe, it } from "@effect/vitest"
import { Backend } from "@tessera/core/services/Backend"
import type { Buffer, Executable } from "@tessera/core/services/Backend"
import type { StepReport } from "@tessera/core/services/Tracker"
import * as Step from "@tessera/core/Step"
import * as Trainer from "@tessera/core/Trainer"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Ref from "effect/Ref"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { execFile } from "node:child_process"
import { fileURLToPath } from "node:url"
import * as Trainings from "./trainings.ts"

const small: Trainings.Sizes = { batch: 8, hidden: 32, layers: 2 }
/** A few hundred milliseconds a step on one thread. */
const long: Trainings.Sizes = { batch: 256, hidden: 192, layers: 6 }

/** A compiled step and its inputs. */
const prepare = Effect.fnUntraced(function* (sizes: Trainings.Sizes) {
  const backend = yield* Backend
  const { donated, program } = yield* Effect.fromResult(Step.make(Trainings.config(sizes)))
  const executable = yield* backend.compile(program, { donated })
  const training = yield* Trainer.make(Trainings.config(sizes))
  yield* Trainer.initialise(training, 1)
  const held = training.runner.held.map(({ buffer }) => buffer)
  const rest: Array<Buffer> = []
  for (const input of program.inputs.slice(held.length)) {
    const buffer = yield* backend.allocate(input.type)
    yield* backend.write(buffer, new Uint8Array(buffer.bytes))
    rest.push(buffer)
  }
  return { executable, held, inputs: [...held, ...rest] }
})

const milliseconds = Effect.sync(() => performance.now())

/** Duration of one undisturbed run. */
const timed = Effect.fnUntraced(function* (executable: Executable, inputs: ReadonlyArray<Buffer>) {
  const began = yield* milliseconds
  yield* executable.run(inputs)
  return (yield* milliseconds) - began
})

/** The longest time in which a timer of 5 ms did not fire, while an effect runs. */
const longestGap = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<number, E, R> =>
  Effect.gen(function* () {
    let [last, longest] = [performance.now(), 0]
    const tick = () => {
      const now = performance.now()
      longest = Math.max(longest, now - last)
      last = now
    }
    yield* Effect.acquireUseRelease(
      Effect.sync(() => setInterval(tick, 5)),
      () => effect,
      (timer) => Effect.sync(() => clearInterval(timer))
    )
    tick()
    return longest
  })

const onOneThread = Effect.provide(CpuBackend.layerWith({ threads: 1 }))

describe("a running step", () => {
  it.live("leaves the event loop free", () =>
    Effect.gen(function* () {
      const { executable, inputs } = yield* prepare(long)
      const shares: Array<number> = []
      for (let i = 0; i < 4; i++) {
        let step = 0
        const gap = yield* longestGap(
          Effect.map(timed(executable, inputs), (took) => {
            step = took
          })
        )
        assert.isAbove(step, 100, "the step is long enough to tell")
        shares.push(gap / step)
      }
      // The machine may stop the whole process now and then; a held loop would show in every run.
      assert.isBelow(Math.min(...shares), 0.5)
    }).pipe(Effect.scoped, onOneThread)
  )

  it.live("ends within about a kernel when it is interrupted, and its buffers stay usable", () =>
    Effect.gen(function* () {
      const backend = yield* Backend
      const { executable, held, inputs } = yield* prepare(long)
      const before: Array<Uint8Array> = []
      for (const buffer of held) before.push(yield* backend.read(buffer))
      const restore = Effect.forEach(held, (buffer, i) => backend.write(buffer, before[i]!), { discard: true })
      const whole = yield* timed(executable, inputs)
      const expected = yield* backend.read(held[0]!)
      const waits: Array<number> = []
      for (const part of [0.1, 0.3, 0.5, 0.2, 0.4]) {
        yield* restore
        const fiber = yield* Effect.forkChild(executable.run(inputs))
        yield* Effect.sleep(whole * part)
        const began = yield* milliseconds
        yield* Fiber.interrupt(fiber)
        waits.push((yield* milliseconds) - began)
        assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
      }
      assert.isBelow(Math.min(...waits), whole / 4)
      yield* restore
      yield* executable.run(inputs)
      assert.deepStrictEqual(yield* backend.read(held[0]!), expected, "as if nothing had been interrupted")
    }).pipe(Effect.scoped, onOneThread)
  )

  it.live("makes another one wait that can be interrupted at once", () =>
    Effect.gen(function* () {
      const { executable, inputs } = yield* prepare(long)
      const working = yield* Effect.forkChild(executable.run(inputs))
      const waiting = yield* Effect.forkChild(executable.run(inputs))
      yield* Effect.sleep("10 millis")
      yield* Fiber.interrupt(waiting)
      assert.isUndefined(working.pollUnsafe(), "the first is still at work")
      yield* Fiber.join(working)
    }).pipe(Effect.scoped, onOneThread)
  )

  it.live("is cancelled when its scope closes, and refuses to start afterwards", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const { executable, inputs } = yield* prepare(long).pipe(Scope.provide(scope))
      const fiber = yield* Effect.forkChild(Effect.result(executable.run(inputs)))
      yield* Effect.sleep("20 millis")
      yield* Scope.close(scope, Exit.void)
      for (const result of [yield* Fiber.join(fiber), yield* Effect.result(executable.run(inputs))]) {
        assert.strictEqual(result._tag, "Failure")
        if (result._tag === "Failure") assert.include(["Cancelled", "WrongBuffer"], result.failure.reason)
      }
      const backend = yield* Backend
      const read = yield* Effect.result(backend.read(inputs[0]!))
      assert.strictEqual(read._tag === "Failure" ? read.failure.reason : "read", "WrongBuffer")
    }).pipe(onOneThread)
  )

  it.live(
    "closes its scope at any moment without a crash",
    () =>
      Effect.gen(function* () {
        const file = fileURLToPath(new URL("./closing.ts", import.meta.url))
        const { code, output } = yield* Effect.callback<{ code: unknown; output: string }>((resume) => {
          const child = execFile(process.execPath, [file], { timeout: 100_000 }, (error, stdout, stderr) =>
            resume(Effect.succeed({ code: error === null ? 0 : (error.signal ?? error.code), output: stdout + stderr }))
          )
          return Effect.sync(() => void child.kill())
        })
        assert.strictEqual(code, 0, output)
        assert.match(output, /50 closed, [1-9]\d* of them at work, 0 bytes left/)
      }),
    110_000
  )
})

describe("a training", () => {
  const totalSteps = 12
  const losses = Effect.fnUntraced(function* (interrupts: number) {
    const training = yield* Trainer.make(Trainings.config(small))
    yield* Trainer.initialise(training, 5)
    const seen: Array<StepReport> = []
    const onStep = (report: StepReport) => Effect.sync(() => void seen.push(report))
    const train = Stream.runDrain(Trainings.steps(training, small, { run: "interrupted", totalSteps, onStep }))
    for (let i = 0; i < interrupts; i++) {
      const fiber = yield* Effect.forkChild(train)
      const goal = seen.length + 1
      while (seen.length < goal && seen.length < totalSteps) yield* Effect.sleep(0)
      // Some interrupts hit the step in work, some the upload, some the first moment.
      if (i % 3 === 1) yield* Effect.sleep("1 millis")
      yield* Fiber.interrupt(fiber)
      assert.strictEqual((yield* Ref.get(training.position)).step, seen.length)
    }
    yield* train
    return seen.map(({ loss }) => loss)
  }, Effect.scoped)

  it.live("goes on after interruptions as if there had been none", () =>
    Effect.gen(function* () {
      const whole = yield* losses(0)
      assert.strictEqual(whole.length, totalSteps)
      assert.isAbove(new Set(whole).size, totalSteps - 2, "the losses tell steps apart")
      assert.deepStrictEqual(yield* losses(5), whole)
    }).pipe(Effect.provide(CpuBackend.layerWith({ threads: 2, memory: "guarded" })))
  )
})
