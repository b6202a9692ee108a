/** The dynamic loss scale: equal to Megatron-LM's own, and what an overflow does to a step. */
import * as Axis from "@tessera/core/Axis"
import * as Host from "@tessera/core/HostArray"
import * as Optimizer from "@tessera/core/Optimizer"
import { adamw } from "@tessera/core/optimizers/adamw"
import * as Precision from "@tessera/core/Precision"
import * as Schedule from "@tessera/core/Schedule"
import { Backend } from "@tessera/core/services/Backend"
import * as Tasks from "@tessera/core/Tasks"
import * as Dice from "@tessera/core/testing/Dice"
import * as Trainer from "@tessera/core/Trainer"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Vit from "@tessera/models/Vit"
import * as VitConfig from "@tessera/models/VitConfig"
import * as Effect from "effect/Effect"
import * as Ref from "effect/Ref"
import * as Stream from "effect/Stream"
import * as fc from "fast-check"
import { describe, expect, it } from "vitest"
// Made by megatronTrace.py from Megatron-LM's grad_scaler.py.
import traces from "./megatronTrace.json" with { type: "json" }

const policy = (settings: Precision.LossScale): Precision.Precision => ({ ...Precision.f16, lossScale: settings })

/** The scale after every step. */
const scales = (
  settings: Precision.LossScale,
  overflows: ReadonlySet<number>,
  steps: number
): ReadonlyArray<number> => {
  const precision = policy(settings)
  let state = Precision.initialLossScale(precision)
  return Array.from({ length: steps }, (_, step) => {
    state = Precision.nextLossScale(precision, state, !overflows.has(step))
    return state.scale
  })
}

/**
 * The same from lengths of runs, without a state that goes from step to step: finite steps in a row grow the scale once every interval; overflows are
 * numbered from the last growth on, and all from number `hysteresis` lower it.
 */
const byRuns = (
  settings: Precision.LossScale,
  overflows: ReadonlySet<number>,
  steps: number
): ReadonlyArray<number> => {
  const { backoff, growth, growthInterval, hysteresis, initial, minimum } = settings
  const factors = new Map<number, "up" | "down">()
  const bad = [...overflows].filter((step) => step < steps).toSorted((a, b) => a - b)
  let number = 0
  ;[-1, ...bad].forEach((from, i) => {
    if (from >= 0 && ++number >= hysteresis) factors.set(from, "down")
    const length = (bad[i] ?? steps) - from - 1
    const grown = Math.floor(length / growthInterval)
    for (let g = 1; g <= grown; g++) factors.set(from + g * growthInterval, "up")
    if (grown > 0) number = 0
  })
  let scale = initial
  return Array.from({ length: steps }, (_, step) => {
    const factor = factors.get(step)
    if (factor === "up") scale *= growth
    if (factor === "down") scale = Math.max(minimum, scale * backoff)
    return scale
  })
}

const settings: fc.Arbitrary<Precision.LossScale> = fc.record({
  initial: fc.constantFrom(2 ** 32, 2 ** 16, 8),
  growthInterval: fc.constantFrom(1, 2, 17, 100, 1000),
  growth: fc.constantFrom(2, 4),
  backoff: fc.constantFrom(0.5, 0.25),
  hysteresis: fc.constantFrom(1, 2, 3, 5),
  minimum: fc.constantFrom(1, 4)
})

/** Overflows alone and in bursts, longer than any hysteresis too. */
const overflows = (steps: number): fc.Arbitrary<ReadonlySet<number>> =>
  fc
    .array(fc.tuple(fc.nat(steps - 1), fc.oneof(fc.constant(1), fc.integer({ min: 2, max: 8 }), fc.nat(60))), {
      maxLength: 40
    })
    .map((bursts) => new Set(bursts.flatMap(([at, length]) => Array.from({ length }, (_, i) => at + i))))

describe("the loss scale", () => {
  it(`equals ${traces.length} traces of 3,000 steps that Megatron-LM's scaler gave`, () => {
    expect(traces.map((t) => t.steps)).toEqual(traces.map(() => 3000))
    for (const { changes, overflows: bad, settings: own, steps } of traces) {
      const found = scales(own, new Set(bad), steps)
      const before = [own.initial, ...found]
      const seen = found.flatMap((scale, i) => (scale === before[i] ? [] : [[i + 1, scale]]))
      expect(seen).toEqual(changes)
    }
    // Both ways, and down to the minimum.
    expect(Math.max(...traces.flatMap((t) => t.changes.map(([, scale]) => scale!)))).toBeGreaterThan(2 ** 32)
    expect(traces.some((t) => t.changes.some(([, scale]) => scale === 1))).toBe(true)
  })

  it("equals what the lengths of runs say, for any settings and overflows", () => {
    fc.assert(
      fc.property(settings, overflows(3000), (own, bad) => {
        expect(scales(own, bad, 3000)).toEqual(byRuns(own, bad, 3000))
      }),
      { numRuns: 150 }
    )
  })
})

const [batch, classes] = [4, 5]
const config = VitConfig.make({
  imageSize: { height: 4, width: 4 },
  patch: 2,
  channels: 1,
  hidden: 8,
  mlp: 8,
  heads: 2,
  layers: 2,
  head: { kind: "linear", classes, kernel: "normal", bias: 0 }
})
const task = Tasks.classification(Vit.classifier(config), {
  batchSize: batch,
  height: 4,
  width: 4,
  channels: 1,
  classes
})

/** The same batch again and again: what goes down is the loss of examples that were seen. */
const dataOf = (fill: (value: number) => number): Trainer.Data => ({
  batches: () => {
    const dice = Dice.make(3)
    const floats = (n: number) => Float64Array.from({ length: n }, () => 2 * dice.next() - 1)
    const bytes = (dtype: "f32" | "i32" | "u32", values: ArrayLike<number>) =>
      Host.toBytes(Host.make(Axis.list({ i: values.length }), dtype, Array.from(values)))
    const arrays = {
      examples: bytes("u32", [0, 1, 2, 3]),
      weights: bytes("f32", [1, 1, 1, 1]),
      images: bytes("f32", floats(batch * 16).map(fill)),
      labels: bytes("i32", [0, 1, 2, 3])
    }
    const one: Trainer.DataBatch = { arrays, samples: batch, skipped: 0, epoch: 0, cursor: null }
    return Stream.fromIterable(Array.from({ length: 100 }, () => one))
  }
})

describe("training in f16", () => {
  it("skips steps that overflow, bit for bit, until the scale fits; then it learns", async () => {
    const steps = 60
    const run = Effect.gen(function* () {
      const backend = yield* Backend
      const training = yield* Trainer.make({
        ...task,
        precision: Precision.f16,
        optimizer: Optimizer.make(adamw(), { decay: 0.1 })
      })
      yield* Trainer.initialise(training, 1)
      const contents = Effect.forEach(training.runner.held, ({ buffer }) =>
        Effect.map(backend.read(buffer), (bytes) => Buffer.from(bytes).toString("base64"))
      )
      const history = [yield* contents]
      const positions = [yield* Ref.get(training.position)]
      const losses: Array<number> = []
      yield* Trainer.steps(training, {
        run: "f16",
        data: dataOf((v) => v),
        schedule: Schedule.constant(0.01),
        totalSteps: steps,
        seed: 1,
        onStep: (report) =>
          Effect.gen(function* () {
            losses.push(report.loss)
            history.push(yield* contents)
            positions.push(yield* Ref.get(training.position))
          }).pipe(Effect.provideService(Backend, backend), Effect.orDie)
      }).pipe(Stream.runDrain)
      return { history, positions, losses, names: training.runner.held.map((h) => `${h.kind} ${h.name}`) }
    })
    const { history, losses, names, positions } = await Effect.runPromise(
      Effect.provide(Effect.scoped(run), CpuBackend.layerWith({ threads: 1 }))
    )
    // A step was skipped when the count of good steps began anew.
    const skipped = positions.slice(1).map(({ lossScale }) => lossScale.good === 0)
    const count = skipped.filter(Boolean).length
    // 2^32 times a gradient of about 1 is far beyond 65504.
    expect(count).toBeGreaterThan(10)
    skipped.forEach((skip, i) => {
      if (skip) expect(history[i + 1]).toEqual(history[i])
      else
        expect(history[i + 1]!.filter((x, k) => x === history[i]![k] && names[k]!.startsWith("parameter"))).toEqual([])
    })
    // The scale is the one that these overflows give.
    const bad = new Set(skipped.flatMap((skip, i) => (skip ? [i] : [])))
    expect(positions.slice(1).map((p) => p.lossScale.scale)).toEqual(scales(Precision.lossScale, bad, steps))
    expect(positions.at(-1)!.lossScale.scale).toBe(2 ** (32 - count + 1))
    // The loss of the first step is finite and stays what it was while nothing changes.
    expect(new Set(losses.slice(0, count + 1)).size).toBe(1)
    expect(losses.at(-1)!).toBeLessThan(0.2 * losses[0]!)
  })

  it("ends by name where the scale is as low as it may be and the step still is not finite", async () => {
    const run = Effect.gen(function* () {
      const training = yield* Trainer.make({
        ...task,
        precision: policy({ ...Precision.lossScale, initial: 4 }),
        optimizer: Optimizer.make(adamw())
      })
      yield* Trainer.initialise(training, 1)
      const options = {
        run: "f16",
        data: dataOf(() => Infinity),
        schedule: Schedule.constant(0.01),
        totalSteps: 60,
        seed: 1
      }
      const error = yield* Effect.flip(Stream.runDrain(Trainer.steps(training, options)))
      return { error, position: yield* Ref.get(training.position) }
    })
    const { error, position } = await Effect.runPromise(
      Effect.provide(Effect.scoped(run), CpuBackend.layerWith({ threads: 1 }))
    )
    // The first is borne, the second and the third halve 4 to 1.
    expect(position.lossScale).toEqual({ scale: 1, good: 0, patience: -1 })
    expect(error).toMatchObject({ _tag: "TrainError", reason: "LossNotFinite", step: 4 })
  })
})
