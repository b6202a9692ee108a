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
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Queue from "effect/Queue"
import * as Ref from "effect/Ref"
import type * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Axis from "./Axis.ts"
import { CheckpointError, NotFound } from "./CheckpointError.ts"
import type { Kind, Metric } from "./CheckpointManifest.ts"
import * as CheckpointMatch from "./CheckpointMatch.ts"
import type { CollectiveError, CompileError, DeviceError, PartitionError, ProgramError, RecipeError } from "./Errors.ts"
import { TrainError } from "./Errors.ts"
import * as Host from "./HostArray.ts"
import * as Module from "./Module.ts"
import * as Mesh from "./Mesh.ts"
import type { TensorType } from "./Node.ts"
import { bytesOf } from "./Node.ts"
import * as Optimizer from "./Optimizer.ts"
import * as Precision from "./Precision.ts"
import * as Program from "./Program.ts"
import * as StepRunner from "./runner/StepRunner.ts"
import type { Schedule } from "./Schedule.ts"
import type { Buffer } from "./services/Backend.ts"
import { Backend } from "./services/Backend.ts"
import type { CheckpointReader, SavedCheckpoint, TensorRecord } from "./services/CheckpointStore.ts"
import { CheckpointStore } from "./services/CheckpointStore.ts"
import { Collectives, type CollectivesService, single } from "./services/Collectives.ts"
import type { StepReport } from "./services/Tracker.ts"
import type * as Step from "./Step.ts"

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
  /** "all", unless given: the arrays have the rows of all ranks. "own": those of this rank's part of the axis `batch`, see `rowsOf`. */
  readonly rows?: "all" | "own"
}

/** Which of how many equal runs of a batch's rows this rank works on; null where its step does not cut batches into runs of rows. */
export const rowsOf = ({ runner }: Training): { readonly index: number; readonly count: number } | null => {
  const { mesh, rank } = runner.collectives
  const axes = new Set<string>()
  for (const { layout, local, type } of runner.batch) {
    const whole = type.axes.find((a) => a.name === "batch")?.size
    const own = local.axes.find((a) => a.name === "batch")?.size
    const cut = [...layout].filter(([, placement]) => placement !== "whole")
    if (cut.some(([, placement]) => placement !== "split:batch") || whole === undefined) return null
    if (type.axes.some(({ name, size }) => name !== "batch" && local.axes.find((a) => a.name === name)?.size !== size))
      return null
    if (whole !== own) for (const [meshAxis] of cut) axes.add(meshAxis)
  }
  const [meshAxis, ...more] = [...axes]
  if (meshAxis === undefined || more.length > 0) return null
  return { index: Mesh.coordinate(mesh, rank, meshAxis), count: Mesh.countOf(mesh, meshAxis) }
}

/** Where batches come from. null is the beginning. */
export interface Data<E = never, R = never> {
  readonly batches: (from: Schema.Json | null) => Stream.Stream<DataBatch, E, R>
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

/** A compiled step and what it works on, on one rank. Lives as long as its scope. */
export interface Training {
  readonly runner: StepRunner.StepRunner
  readonly params: Module.ParamTree
  /** As it treats declared parameters. */
  readonly optimizer: Optimizer.Optimizer
  readonly precision: Precision.Precision
  readonly position: Ref.Ref<Position>
  /** Why a step ended in its middle: what is held is then neither before nor after it. Null again after `initialise` and `restore`. */
  readonly torn: Ref.Ref<string | null>
}

const start = (precision: Precision.Precision): Position => ({
  step: 0,
  cursor: null,
  epoch: 0,
  skipped: 0,
  lossScale: Precision.initialLossScale(precision)
})

/**
 * Compiles the step for the rank that this is, and allocates what it keeps. Contents are undefined until `initialise` or `restore`. Fails with
 * `PartitionError` when the strategy's mesh is not that of the ranks at hand.
 */
export const make = Effect.fn("Trainer.make")(function* <P extends Module.ParamTree, const B extends Step.BatchTypes>(
  config: Step.Config<P, B>
): Effect.fn.Return<
  Training,
  ProgramError | RecipeError | PartitionError | CompileError | DeviceError,
  Backend | Scope.Scope
> {
  const runner = yield* StepRunner.make(config)
  const precision = config.precision ?? Precision.f32
  return {
    runner,
    params: config.params,
    optimizer: Precision.optimizerIn(config.optimizer, precision),
    precision,
    position: yield* Ref.make(start(precision)),
    torn: yield* Ref.make<string | null>(null)
  }
})

/** Refuses what a step left that ended in its middle. */
const sound = (training: Training): Effect.Effect<void, TrainError> =>
  Effect.gen(function* () {
    const torn = yield* Ref.get(training.torn)
    if (torn === null) return
    const { step } = yield* Ref.get(training.position)
    return yield* new TrainError({
      reason: "Torn",
      step: step + 1,
      detail: `the step ended in its middle (${torn}), so the tensors are neither those before it nor those after it; restore a checkpoint`
    })
  })

/** Parameters from the seed, the optimizer's state before the first step, step 0. The same whatever the mesh. */
export const initialise = Effect.fn("Trainer.initialise")(function* (training: Training, seed: number) {
  const { optimizer, params, runner } = training
  yield* runner.collectives.agree("the seed", String(seed))
  const plain = StepRunner.isPlain(runner)
  yield* Effect.scoped(
    Effect.gen(function* () {
      const from = yield* scalarBuffer({ axes: [], dtype: "u32" }, seed)
      const kinds = runner.storage.logical.map((h) => h.kind)
      const own = (parameter: boolean) =>
        plain ? buffersOf(training).filter((_, i) => (kinds[i] === "parameter") === parameter) : null
      const parameters = yield* filled(Module.init(params, optimizer.stored), [from], own(true))
      const state = yield* filled(Optimizer.initial(optimizer, params), parameters, own(false))
      if (!plain) yield* StepRunner.load(runner, yield* Effect.forEach([...parameters, ...state], downloaded))
    })
  )
  yield* Ref.set(training.position, start(training.precision))
  yield* Ref.set(training.torn, null)
})

/** Runs a program, its outputs straight into these buffers where there are any. */
const filled = Effect.fnUntraced(function* <I, O>(
  program: Program.Program<I, O>,
  inputs: ReadonlyArray<Buffer>,
  into: ReadonlyArray<Buffer> | null
) {
  const backend = yield* Backend
  const direct = program.outputs.flatMap((o, i) =>
    into !== null && Axis.print(o.type.axes) === Axis.print(into[i]!.type.axes) ? [i] : []
  )
  const executable = yield* alone(backend.compile(program, { bound: direct }))
  const outputs = yield* executable.run(
    inputs,
    direct.map((i) => into![i]!)
  )
  if (into === null) return outputs
  // The same names in another order of memory.
  for (const [i, x] of outputs.entries()) {
    if (direct.includes(i)) continue
    yield* backend.write(into[i]!, Host.toBytes(Host.reorder(yield* downloaded(x), into[i]!.type.axes)))
  }
  return into
})

/** Compiles what every rank does by itself. */
const alone = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.provideService(effect, Collectives, single)

const buffersOf = (training: Training): ReadonlyArray<Buffer> => training.runner.held.map(({ buffer }) => buffer)

const downloaded = (buffer: Buffer) =>
  Effect.flatMap(Backend, (backend) =>
    Effect.map(backend.read(buffer), (bytes) => Host.fromBytes(buffer.type.axes, buffer.type.dtype, bytes))
  )

const scalarBuffer = Effect.fnUntraced(function* (type: TensorType, value: number) {
  const backend = yield* Backend
  const buffer = yield* backend.allocate(type)
  yield* backend.write(buffer, Host.toBytes(Host.scalar(value, type.dtype)))
  return buffer
})

/**
 * The parameters as declared, in their order: averaged ones where there are and `averaged` asks for them. Those of the training itself where it holds
 * them so, else copies that live as long as the scope, for which all ranks come together.
 */
export const parameters = Effect.fn("Trainer.parameters")(function* (
  training: Training,
  averaged = true
): Effect.fn.Return<
  ReadonlyArray<Buffer>,
  CompileError | DeviceError | CollectiveError | TrainError,
  Backend | Scope.Scope
> {
  const backend = yield* Backend
  yield* sound(training)
  const { runner } = training
  const { logical } = runner.storage
  const averages = new Map(logical.flatMap((h, i) => (h.kind === "ema" ? [[h.name, i] as const] : [])))
  const wanted = logical.flatMap((h, i) =>
    h.kind === "parameter" ? [(averaged ? averages.get(h.name) : undefined) ?? i] : []
  )
  if (StepRunner.isPlain(runner)) return wanted.map((i) => runner.held[i]!.buffer)
  const arrays = yield* StepRunner.declared(runner)
  return yield* Effect.forEach(wanted, (i) =>
    Effect.gen(function* () {
      const { type } = logical[i]!
      const buffer = yield* backend.allocate(type)
      yield* backend.write(buffer, Host.toBytes(Host.reorder(arrays[i]!, type.axes)))
      return buffer
    })
  )
})

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
  /** Asked before every step. Where any rank says yes, all end before the same step. */
  readonly stop?: () => boolean
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
      yield* sound(training)
      const { batch: leaves, collectives } = training.runner
      const { mesh, rank } = collectives
      const { schedule, seed } = options
      const plan = [training.runner.digest, from, seed, totalSteps, [from.step, totalSteps].map(schedule.at)]
      yield* collectives.agree("the way ahead", Program.fingerprint(JSON.stringify(plan)))
      const free = yield* Queue.bounded<Slot>(slotCount)
      for (let i = 0; i < slotCount; i++) {
        const buffers: Array<Buffer> = []
        for (const { local } of leaves) buffers.push(yield* backend.allocate(local))
        yield* Queue.offer(free, { buffers })
      }
      const upload = Effect.fnUntraced(function* (batch: DataBatch) {
        const slot = yield* Queue.take(free)
        for (const [i, leaf] of leaves.entries()) {
          const bytes = batch.arrays[leaf.name]
          const isOwn = batch.rows === "own"
          const expected = bytesOf(isOwn ? leaf.local : leaf.type)
          if (bytes === undefined || bytes.byteLength !== expected)
            return yield* mismatch(from.step, leaf.name, expected, bytes)
          yield* backend.write(slot.buffers[i]!, isOwn ? inOrder(bytes, leaf) : ownPart(bytes, leaf, mesh, rank))
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
        if (yield* ahead(collectives, batch, options.stop?.() ?? false)) return yield* Cause.done()
        const waited = (yield* seconds) - began
        const report = yield* Effect.uninterruptible(
          Effect.gen(function* () {
            const done = yield* advance(training, options, batch, slot.buffers)
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

/** Whether to stop here. Ranks that were given other examples than the others would average what does not belong together. */
const ahead = (collectives: CollectivesService, batch: DataBatch, stop: boolean) =>
  Mesh.rankCount(collectives.mesh) === 1 ? Effect.succeed(stop) : collectives.any(stop, `batch ${batchWord(batch)}`)

/** By which ranks tell that they were given the same batch: its examples where it names them, else where the data stand. */
const batchWord = ({ arrays, cursor, rows }: DataBatch): string => {
  // Of their own rows ranks have different ones.
  const examples = rows === "own" ? [] : (arrays["examples"] ?? [])
  return `${JSON.stringify(cursor)} ${Program.fingerprint(examples.join())}`
}

/** Own rows in the memory order of the step. */
const inOrder = (bytes: Uint8Array, { local, type }: StepRunner.Part): Uint8Array => {
  const given = type.axes.map((a) => local.axes.find((o) => o.name === a.name)!)
  if (given.every((a, i) => a === local.axes[i])) return bytes
  return Host.toBytes(Host.reorder(Host.fromBytes(given, local.dtype, bytes), local.axes))
}

/** Of a whole batch what this rank works on. */
const ownPart = (bytes: Uint8Array, leaf: StepRunner.Part, mesh: Mesh.Mesh, rank: number): Uint8Array =>
  Axis.equal(leaf.type.axes, leaf.local.axes)
    ? bytes
    : Host.toBytes(StepRunner.partOf(Host.fromBytes(leaf.type.axes, leaf.type.dtype, bytes), leaf, mesh, rank))

const mismatch = (step: number, name: string, bytes: number, found: Uint8Array | undefined) =>
  new TrainError({
    reason: "BatchMismatch",
    step: step + 1,
    detail: `the step needs ${bytes} bytes of "${name}" in every batch, the data gave ${found === undefined ? "none" : found.byteLength}`
  })

/** One step; to be run without interruption, so that it is whole or not at all. */
const advance = <E, R>(
  training: Training,
  { run, schedule, seed, totalSteps }: StepsOptions<E, R>,
  batch: DataBatch,
  buffers: ReadonlyArray<Buffer>
) =>
  Effect.gen(function* () {
    const before = yield* Ref.get(training.position)
    const step = before.step + 1
    const learningRate = schedule.at(before.step)
    const scale = before.lossScale.scale
    const metrics = yield* training.runner
      .run(buffers, { learningRate, step, seed: stepSeed(seed, step), lossScale: scale })
      .pipe(Effect.tapError((error) => Ref.set(training.torn, error.message)))
    const finite = metrics["finite"] === 1
    if (!finite && Precision.isLowest(training.precision, before.lossScale))
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

/**
 * Saves everything that lives, as declared, and the position; it loads under any strategy. `run` is the caller's: recipe, model, seed. All ranks call it,
 * the first one writes.
 */
export const save = (
  training: Training,
  options: { readonly run?: Schema.Json; readonly metric?: Metric } = {}
): Effect.Effect<
  SavedCheckpoint,
  CheckpointError | CompileError | DeviceError | CollectiveError | TrainError,
  CheckpointStore | Backend
> =>
  Effect.gen(function* () {
    const store = yield* CheckpointStore
    const { any, rank } = training.runner.collectives
    yield* sound(training)
    const position = yield* Ref.get(training.position)
    const state = { position: { ...position }, digest: training.runner.digest, run: options.run ?? null }
    const tensors = yield* records(training)
    const write = store.save({
      step: position.step,
      state: state as unknown as Schema.Json,
      ...(options.metric === undefined ? {} : { metric: options.metric }),
      tensors
    })
    const written = rank === 0 ? yield* Effect.exit(write) : null
    // All learn whether it is there before anyone goes on.
    const failed = yield* any(written !== null && Exit.isFailure(written), `checkpoint of step ${position.step}`)
    if (written !== null) return yield* written
    const found = failed ? undefined : (yield* store.list).findLast((c) => c.step === position.step)
    if (found !== undefined) return { path: found.path, step: found.step, bytes: found.bytes }
    const wanted = `the checkpoint of step ${position.step}`
    const hint = failed ? "the first rank could not write it" : "the first rank wrote it where this one cannot read it"
    return yield* new CheckpointError({ path: store.folder, reason: new NotFound({ wanted, hint }) })
  }).pipe(Effect.withSpan("Trainer.save"))

/** Everything that lives, as declared. */
const records = Effect.fnUntraced(function* (training: Training) {
  const backend = yield* Backend
  const { runner } = training
  const { logical } = runner.storage
  const arrays = StepRunner.isPlain(runner) ? null : yield* StepRunner.declared(runner)
  return logical.map(({ kind, name, type }, i): TensorRecord => {
    const { axes, dtype } = arrays === null ? runner.held[i]!.buffer.type : type
    return {
      name,
      kind,
      dtype,
      axes: axes.map(({ name: axis, size }) => ({ name: axis, size })),
      // Reading own memory fails for a wrong buffer only: a defect.
      data:
        arrays === null
          ? Effect.orDie(backend.read(runner.held[i]!.buffer))
          : Host.toBytes(Host.reorder(arrays[i]!, axes))
    }
  })
})

/** Makes the training what it was at a checkpoint. Fails with `ManifestMismatch` when names, axes or types differ; nothing is changed then. */
export const restore = Effect.fn("Trainer.restore")(function* (training: Training, reader: CheckpointReader) {
  const backend = yield* Backend
  const { runner } = training
  const { logical } = runner.storage
  const plain = StepRunner.isPlain(runner)
  const types = logical.map(({ type }, i) => (plain ? runner.held[i]!.buffer.type : type))
  const expected = logical.map(({ kind, name }, i) => ({ name, kind, ...types[i]! }))
  yield* Effect.fromResult(CheckpointMatch.match(reader.path, reader.manifest, expected))
  const read = ({ kind, name }: { readonly kind: Kind; readonly name: string }, i: number) =>
    reader.read(name, { kind, order: types[i]!.axes.map((a) => a.name) })
  if (plain) for (const [i, h] of logical.entries()) yield* backend.write(runner.held[i]!.buffer, yield* read(h, i))
  else {
    const arrays = yield* Effect.forEach(logical, (h, i) =>
      Effect.map(read(h, i), (bytes) => Host.fromBytes(types[i]!.axes, types[i]!.dtype, bytes))
    )
    yield* StepRunner.load(runner, arrays)
  }
  const state = reader.manifest.state as unknown as SavedState
  const { manifest } = reader
  yield* runner.collectives.agree(
    "the checkpoint",
    `step ${manifest.step}, ${manifest.files.map((f) => f.sha256).join()}`
  )
  yield* Ref.set(training.position, state.position)
  yield* Ref.set(training.torn, null)
  return state
})
