/**
 * Training as a Stream: one report a step. What else happens (evaluation, checkpoints, tracking) is put on the stream with `every` and `Stream.tap`.
 *
 * ```ts
 * const training = yield* Trainer.make(task)
 * yield* Trainer.initialise(training, seed)
 * yield* Trainer.steps(training, { data, schedule, totalSteps, seed, run: "first" }).pipe(
 *   Trainer.every(100, Trainer.save(training)),
 *   Stream.runForEach(tracker.report))
 * ```
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Ref from "effect/Ref"
import type * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { CheckpointError } from "./CheckpointError.ts"
import type { Kind, Metric } from "./CheckpointManifest.ts"
import * as CheckpointMatch from "./CheckpointMatch.ts"
import type { CollectiveError, CompileError, DeviceError, PartitionError, ProgramError, RecipeError } from "./Errors.ts"
import { TrainError } from "./Errors.ts"
import * as Host from "./HostArray.ts"
import * as Module from "./Module.ts"
import type { TensorType } from "./Node.ts"
import * as Optimizer from "./Optimizer.ts"
import * as Precision from "./Precision.ts"
import type { Schedule } from "./Schedule.ts"
import type { Buffer, Executable } from "./services/Backend.ts"
import { Backend } from "./services/Backend.ts"
import type { CheckpointReader, SavedCheckpoint } from "./services/CheckpointStore.ts"
import { CheckpointStore } from "./services/CheckpointStore.ts"
import type { StepReport } from "./services/Tracker.ts"
import * as Step from "./Step.ts"
import * as Tree from "./Tree.ts"

/** One batch on the host. */
export interface DataBatch {
  /** Bytes by path of the batch's leaf, in the memory order of its type. */
  readonly arrays: Readonly<Record<string, Uint8Array>>
  readonly samples: number
  /** Samples of this batch that could not be read. */
  readonly skipped: number
  /** Passes over the data at the end of this batch, with a fraction. */
  readonly epoch: number
  /** The place after this batch: training that goes on from it sees the batch that would have followed. */
  readonly cursor: Schema.Json
}

/** Where batches come from. null is the beginning. */
export interface Data<E = never, R = never> {
  readonly batches: (from: Schema.Json | null) => Stream.Stream<DataBatch, E, R>
}

/** A tensor that lives from step to step, and its name in checkpoints. */
export interface Held {
  readonly name: string
  readonly kind: Kind
  readonly buffer: Buffer
}

/** How far a run is: with the held tensors all that decides how it goes on. */
export interface Position {
  /** Steps done. */
  readonly step: number
  readonly cursor: Schema.Json | null
  readonly epoch: number
  readonly skipped: number
  readonly lossScale: Precision.LossScaleState
}

/** A compiled step and what it works on. Lives as long as its scope. */
export interface Training {
  readonly program: Step.StepProgram
  readonly executable: Executable
  readonly params: Module.ParamTree
  readonly optimizer: Optimizer.Optimizer
  readonly precision: Precision.Precision
  readonly held: ReadonlyArray<Held>
  readonly batch: ReadonlyArray<{ readonly name: string; readonly type: TensorType }>
  readonly metrics: ReadonlyArray<string>
  readonly position: Ref.Ref<Position>
}

const start = (precision: Precision.Precision): Position => ({
  step: 0,
  cursor: null,
  epoch: 0,
  skipped: 0,
  lossScale: Precision.initialLossScale(precision)
})

const kinds: Readonly<Record<string, Kind>> = { params: "parameter", optimizer: "optimizer", ema: "ema" }

/** Compiles the step and allocates what it keeps. Contents are undefined until `initialise` or `restore`. */
export const make = Effect.fn("Trainer.make")(function* <P extends Module.ParamTree, const B extends Step.BatchTypes>(
  config: Step.Config<P, B>
): Effect.fn.Return<
  Training,
  ProgramError | RecipeError | PartitionError | CompileError | DeviceError,
  Backend | Scope.Scope
> {
  const backend = yield* Backend
  const step = yield* Effect.fromResult(Step.make(config))
  const { program } = step
  const executable = yield* backend.compile(program, { donated: step.donated })
  const names = Tree.paths(program.inTree)
  const count = step.donated.length
  const held: Array<Held> = []
  for (const [i, path] of names.slice(0, count).entries()) {
    const [group, ...rest] = path.split("/")
    const buffer = yield* backend.allocate(program.inputs[i]!.type)
    held.push({ name: rest.join("/"), kind: kinds[group!]!, buffer })
  }
  const precision = config.precision ?? Precision.f32
  return {
    program: step as Step.StepProgram,
    executable,
    params: config.params,
    optimizer: Precision.optimizerIn(config.optimizer, precision),
    precision,
    held,
    batch: names
      .slice(count, -4)
      .map((path, i) => ({ name: path.slice("batch/".length), type: program.inputs[count + i]!.type })),
    metrics: Tree.paths(program.outTree)
      .slice(count)
      .map((path) => path.slice("metrics/".length)),
    position: yield* Ref.make(start(precision))
  }
})

/** Parameters from the seed, the optimizer's state before the first step, step 0. */
export const initialise = Effect.fn("Trainer.initialise")(function* (training: Training, seed: number) {
  const backend = yield* Backend
  yield* Effect.scoped(
    Effect.gen(function* () {
      const from = yield* scalarBuffer({ axes: [], dtype: "u32" }, seed)
      const fill = yield* backend.compile(Module.init(training.params, training.optimizer.stored))
      yield* copy(yield* fill.run([from]), ofKind(training, ["parameter"]))
    })
  )
  yield* Effect.scoped(
    Effect.gen(function* () {
      const first = yield* backend.compile(Optimizer.initial(training.optimizer, training.params))
      const results = yield* first.run(ofKind(training, ["parameter"]))
      yield* copy(results, ofKind(training, ["optimizer", "ema"]))
    })
  )
  yield* Ref.set(training.position, start(training.precision))
})

const ofKind = (training: Training, wanted: ReadonlyArray<Kind>): ReadonlyArray<Buffer> =>
  training.held.filter(({ kind }) => wanted.includes(kind)).map(({ buffer }) => buffer)

/** Copies contents through the host, matching axes by name. */
const copy = Effect.fnUntraced(function* (from: ReadonlyArray<Buffer>, to: ReadonlyArray<Buffer>) {
  const backend = yield* Backend
  for (const [i, source] of from.entries()) {
    const target = to[i]!
    const bytes = yield* backend.read(source)
    const same = source.type.axes.every((a, k) => a.name === target.type.axes[k]!.name)
    const { axes, dtype } = source.type
    yield* backend.write(
      target,
      same ? bytes : Host.toBytes(Host.reorder(Host.fromBytes(axes, dtype, bytes), target.type.axes))
    )
  }
})

const scalarBuffer = Effect.fnUntraced(function* (type: TensorType, value: number) {
  const backend = yield* Backend
  const buffer = yield* backend.allocate(type)
  yield* backend.write(buffer, Host.toBytes(Host.scalar(value, type.dtype)))
  return buffer
})

/** The buffers of the parameters in declaration order: averaged ones where there are and `averaged` asks for them. */
export const parameters = (training: Training, averaged = true): ReadonlyArray<Buffer> => {
  const averages = new Map(training.held.filter((h) => h.kind === "ema").map((h) => [h.name, h.buffer]))
  return training.held
    .filter((h) => h.kind === "parameter")
    .map((h) => (averaged ? averages.get(h.name) : undefined) ?? h.buffer)
}

export interface StepsOptions<E, R> {
  /** Name of the run in reports. */
  readonly run: string
  readonly data: Data<E, R>
  readonly schedule: Schedule
  /** The stream ends when this many steps are done, those before a resume included. */
  readonly totalSteps: number
  readonly seed: number
  /** Called with every report before an interruption may come in between: what is saved then was also reported. The stream gives the same report. */
  readonly onStep?: (report: StepReport) => Effect.Effect<void>
}

interface Slot {
  readonly buffers: ReadonlyArray<Buffer>
}

/** Batches on the device at once: one in work, one being filled. */
const slotCount = 2

/** Another seed every step. @source the finalizer of MurmurHash3 (Appleby), applied to seed and step */
export const stepSeed = (seed: number, step: number): number => {
  let h = (seed ^ Math.imul(step, 0x9e3779b1)) >>> 0
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

const seconds = Effect.map(Clock.currentTimeNanos, (nanos) => Number(nanos) / 1e9)

/**
 * Goes on from the position until `totalSteps`. While a step runs, the next batch is made and uploaded. Interruption waits for the step in work, so
 * the position and the tensors always agree and can be saved. Fails with `TrainError` `LossNotFinite` when a loss is not finite and no loss scale can
 * fall, and `NoWeight` when no example of a batch counts: tensors and position are then those before that step. Ends early when the data end.
 */
export const steps = <E, R>(
  training: Training,
  options: StepsOptions<E, R>
): Stream.Stream<StepReport, E | TrainError | DeviceError | CollectiveError, R | Backend> =>
  Stream.unwrap(
    Effect.gen(function* () {
      const backend = yield* Backend
      const { data, totalSteps } = options
      const from = yield* Ref.get(training.position)
      const scalars: Array<Buffer> = []
      for (const dtype of ["f32", "f32", "u32", "f32"] as const)
        scalars.push(yield* backend.allocate({ axes: [], dtype }))
      const free = yield* Queue.bounded<Slot>(slotCount)
      for (let i = 0; i < slotCount; i++) {
        const buffers: Array<Buffer> = []
        for (const { type } of training.batch) buffers.push(yield* backend.allocate(type))
        yield* Queue.offer(free, { buffers })
      }
      const upload = Effect.fnUntraced(function* (batch: DataBatch) {
        const slot = yield* Queue.take(free)
        for (const [i, { name }] of training.batch.entries()) {
          const bytes = batch.arrays[name]
          if (bytes === undefined || bytes.byteLength !== slot.buffers[i]!.bytes)
            return yield* mismatch(from.step, name, slot.buffers[i]!.bytes, bytes)
          yield* backend.write(slot.buffers[i]!, bytes)
        }
        return { slot, batch }
      })
      const batches = data
        .batches(from.cursor)
        .pipe(
          Stream.take(Math.max(0, totalSteps - from.step)),
          Stream.mapEffect(upload),
          Stream.buffer({ capacity: 1 })
        )
      const pull = yield* Stream.toPull(batches)
      const ready: Array<Effect.Success<ReturnType<typeof upload>>> = []
      const next = Effect.gen(function* () {
        const began = yield* seconds
        if (ready.length === 0) ready.push(...(yield* pull))
        const { batch, slot } = ready.shift()!
        const waited = (yield* seconds) - began
        const report = yield* Effect.uninterruptible(
          Effect.gen(function* () {
            const done = yield* advance(training, options, batch, [...slot.buffers, ...scalars])
            const full: StepReport = { ...done, seconds: (yield* seconds) - began, dataSeconds: waited }
            if (options.onStep !== undefined) yield* options.onStep(full)
            return full
          })
        )
        yield* Queue.offer(free, slot)
        // A fiber gives way by itself only every 2048 operations: without this no timer and no signal would be served.
        yield* Effect.yieldNow
        return [report] as const
      })
      return Stream.fromPull(Effect.succeed(next))
    })
  )

const mismatch = (step: number, name: string, bytes: number, found: Uint8Array | undefined) =>
  new TrainError({
    reason: "BatchMismatch",
    step: step + 1,
    detail: `the step needs ${bytes} bytes of "${name}" in every batch, the data gave ${found === undefined ? "none" : found.byteLength}`
  })

/** One step; to be run without interruption, so that it is whole or not at all. `inputs` are the batch and the four scalars. */
const advance = <E, R>(
  training: Training,
  { run, schedule, seed, totalSteps }: StepsOptions<E, R>,
  batch: DataBatch,
  inputs: ReadonlyArray<Buffer>
) =>
  Effect.gen(function* () {
    const backend = yield* Backend
    const before = yield* Ref.get(training.position)
    const step = before.step + 1
    const learningRate = schedule.at(before.step)
    const values = [learningRate, step, stepSeed(seed, step), before.lossScale.scale]
    for (const [i, buffer] of inputs.slice(-4).entries())
      yield* backend.write(buffer, Host.toBytes(Host.scalar(values[i]!, buffer.type.dtype)))
    const outputs = yield* training.executable.run([...training.held.map((h) => h.buffer), ...inputs])
    const metrics: Record<string, number> = {}
    for (const [i, name] of training.metrics.entries()) {
      const { axes, dtype } = outputs[training.held.length + i]!.type
      const bytes = yield* backend.read(outputs[training.held.length + i]!)
      metrics[name] = Host.fromBytes(axes, dtype, bytes).data[0]!
    }
    const finite = metrics["finite"] === 1
    if (!finite && training.precision.lossScale === null)
      return yield* new TrainError({ reason: "LossNotFinite", step, detail: notFinite(metrics, learningRate) })
    if (metrics["weight"] === 0)
      return yield* new TrainError({
        reason: "NoWeight",
        step,
        detail:
          "no example of the batch counts (all weights are 0); nothing was changed. Look at the labels and filters of the data"
      })
    const lossScale = Precision.nextLossScale(training.precision, before.lossScale, finite)
    const skipped = before.skipped + batch.skipped
    yield* Ref.set(training.position, { step, cursor: batch.cursor, epoch: batch.epoch, skipped, lossScale })
    const { correct, weight } = metrics
    return {
      run,
      step,
      totalSteps,
      epoch: batch.epoch,
      loss: metrics["loss"]!,
      learningRate,
      gradientNorm: metrics["gradientNorm"]!,
      ...(correct === undefined || weight === undefined ? {} : { accuracy: weight === 0 ? 0 : correct / weight }),
      samples: batch.samples,
      skippedSamples: skipped,
      ...(training.precision.lossScale === null ? {} : { lossScale: before.lossScale.scale })
    }
  }).pipe(Effect.withSpan("Trainer.step", { attributes: { run } }))

const notFinite = (metrics: Readonly<Record<string, number>>, learningRate: number): string =>
  `the loss is ${metrics["loss"]} and the norm of the gradients ${metrics["gradientNorm"]} at learning rate ${learningRate}; parameters are those before this step (lower the learning rate, clip gradients, or look at the data)`

/** Runs an effect after every n-th step. */
export const every =
  <A extends { readonly step: number }, E2, R2>(n: number, effect: (report: A) => Effect.Effect<unknown, E2, R2>) =>
  <E, R>(stream: Stream.Stream<A, E, R>): Stream.Stream<A, E | E2, R | R2> =>
    Stream.tap(stream, (report) => (report.step % n === 0 ? effect(report) : Effect.void))

/** What a checkpoint's state says of the run, beside what the caller adds. */
export interface SavedState {
  readonly position: Position
  readonly digest: string
  readonly run: Schema.Json
}

/** Saves all held tensors and the position. `run` is the caller's: recipe, model, seed. */
export const save = (
  training: Training,
  options: { readonly run?: Schema.Json; readonly metric?: Metric } = {}
): Effect.Effect<SavedCheckpoint, CheckpointError, CheckpointStore | Backend> =>
  Effect.gen(function* () {
    const backend = yield* Backend
    const store = yield* CheckpointStore
    const position = yield* Ref.get(training.position)
    const state = { position: { ...position }, digest: training.program.digest, run: options.run ?? null }
    return yield* store.save({
      step: position.step,
      state: state as unknown as Schema.Json,
      ...(options.metric === undefined ? {} : { metric: options.metric }),
      tensors: training.held.map(({ buffer, kind, name }) => ({
        name,
        kind,
        dtype: buffer.type.dtype,
        axes: buffer.type.axes.map(({ name: axis, size }) => ({ name: axis, size })),
        // Reading own memory fails for a wrong buffer only: a defect.
        data: Effect.orDie(backend.read(buffer))
      }))
    })
  }).pipe(Effect.withSpan("Trainer.save"))

/** Makes the training what it was at a checkpoint. Fails with `ManifestMismatch` when names, axes or types differ; nothing is changed then. */
export const restore = Effect.fn("Trainer.restore")(function* (training: Training, reader: CheckpointReader) {
  const backend = yield* Backend
  const expected = training.held.map(({ buffer, kind, name }) => ({
    name,
    kind,
    dtype: buffer.type.dtype,
    axes: buffer.type.axes
  }))
  yield* Effect.fromResult(CheckpointMatch.match(reader.path, reader.manifest, expected))
  for (const { buffer, kind, name } of training.held) {
    const order = buffer.type.axes.map((a) => a.name)
    yield* backend.write(buffer, yield* reader.read(name, { kind, order }))
  }
  const state = reader.manifest.state as unknown as SavedState
  yield* Ref.set(training.position, state.position)
  return state
})
