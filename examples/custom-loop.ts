/**
 * A training loop of your own: regression with a loss written by hand, an evaluation every 20 steps, early stopping, and the best parameters back.
 *
 * Forty noisy points of a curve are few: the model soon learns the noise, the validation loss rises, and the loop stops.
 *
 * Command: node examples/custom-loop.ts
 */
import { Axis, Backend, Init, Module, Optimizer, Schedule, Tensor as T, Trainer } from "@tessera/core"
import { adamw } from "@tessera/core/optimizers/adamw"
import * as Tasks from "@tessera/core/Tasks"
import { CpuBackend } from "@tessera/cpu"
import { Random } from "@tessera/data"
import * as Effect from "effect/Effect"
import * as Ref from "effect/Ref"
import * as Stream from "effect/Stream"

const hidden = 64
const model = Module.make(
  {
    first: Module.param({ coordinate: 1, hidden }, Init.normal(4)),
    firstBias: Module.param({ hidden }, Init.normal(2), { decay: false }),
    second: Module.param({ hidden, inner: hidden }, Init.fanIn("hidden")),
    third: Module.param({ inner: hidden }, Init.fanIn("inner"))
  },
  (p, x: T.Tensor<"batch" | "coordinate">) => {
    const waves = T.sin(T.add(T.contract(x, p.first, "coordinate"), p.firstBias))
    return T.contract(T.gelu(T.contract(waves, p.second, "hidden")), p.third, "inner") // [batch]
  }
)

const batchSize = 40

/** The squared error. Sums, not means: totals and weights add up over microbatches, quotients would not. */
const squaredError = (params: Module.Tensors<typeof model.params>, given: Given, call: Module.Call) => {
  const error = T.sub(model.apply(params, given.x, call), given.y)
  return {
    total: T.sum(T.mul(T.mul(error, error), given.weights), "batch"),
    weight: T.sum(given.weights, "batch")
  }
}

type Given = {
  readonly x: T.Tensor<"batch" | "coordinate">
  readonly y: T.Tensor<"batch">
  readonly weights: T.Tensor<"batch">
}

const types = {
  examples: { axes: Axis.list({ batch: batchSize }), dtype: "u32" },
  weights: { axes: Axis.list({ batch: batchSize }), dtype: "f32" },
  x: { axes: Axis.list({ batch: batchSize, coordinate: 1 }), dtype: "f32" },
  y: { axes: Axis.list({ batch: batchSize }), dtype: "f32" }
} as const

const task = {
  params: model.params,
  batch: types,
  loss: (params, given, call) => squaredError(params, given as unknown as Given, call),
  metrics: (params, given, call) => squaredError(params, given as unknown as Given, call)
} satisfies Tasks.Task<typeof model.params, typeof types>

const bytes = (values: ReadonlyArray<number>) => new Uint8Array(Float32Array.from(values).buffer)

/** `batchSize` points of the curve with noise, another set for every number. */
const points = (set: number): Trainer.DataBatch => {
  const random = Random.make(Random.purposes.augment, 7, set, 0)
  const x = Array.from({ length: batchSize }, () => random.between(-1, 1))
  return {
    arrays: {
      x: bytes(x),
      y: bytes(x.map((v) => Math.sin(5 * v) + 0.3 * random.normal())),
      weights: bytes(x.map(() => 1)),
      examples: new Uint8Array(Uint32Array.from(x.keys()).buffer)
    },
    samples: batchSize,
    skipped: 0,
    epoch: 0,
    cursor: null
  }
}

const program = Effect.gen(function* () {
  const backend = yield* Backend
  const training = yield* Trainer.make({ ...task, optimizer: Optimizer.make(adamw()) })
  yield* Trainer.initialise(training, 1)
  const evaluator = yield* Tasks.evaluator(task)
  const parameters = yield* Trainer.parameters(training)
  const validate = Effect.map(
    evaluator.run(parameters, Stream.make(points(1))),
    (sums) => sums["total"]! / sums["weight"]!
  )

  const patience = 5
  const best = yield* Ref.make({ loss: Infinity, step: 0, bytes: [] as ReadonlyArray<Uint8Array> })

  /** Evaluates, remembers the best parameters on the host, says whether patience is over. */
  const isOver = Effect.fnUntraced(function* (step: number, trained: number) {
    const loss = yield* validate
    const known = yield* Ref.get(best)
    console.log(
      `step ${step}: training ${trained.toFixed(3)}, validation ${loss.toFixed(3)}${loss < known.loss ? " *" : ""}`
    )
    if (loss < known.loss) {
      yield* Ref.set(best, { loss, step, bytes: yield* Effect.forEach(parameters, backend.read) })
      return false
    }
    return step >= known.step + 20 * patience
  })

  yield* Trainer.steps(training, {
    run: "curve",
    data: {
      batches: () =>
        Stream.map(
          Stream.iterate(0, (n) => n + 1),
          () => points(0)
        )
    },
    schedule: Schedule.constant(6e-4),
    totalSteps: 2000,
    seed: 1
  }).pipe(
    Stream.filter(({ step }) => step % 20 === 0),
    Stream.takeUntilEffect(({ loss, step }) => isOver(step, loss)),
    Stream.runDrain
  )

  const { bytes: kept, loss, step } = yield* Ref.get(best)
  yield* Effect.forEach(kept, (content, i) => backend.write(parameters[i]!, content))
  console.log(
    `stopped; the parameters of step ${step} are back: validation ${(yield* validate).toFixed(3)} = ${loss.toFixed(3)}`
  )
})

await Effect.runPromise(
  program.pipe(Effect.scoped, Effect.provide(CpuBackend.layerWith({ threads: 1, onProgress: console.error })))
)
