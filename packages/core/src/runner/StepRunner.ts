/** A training step on one rank: what lives there, and what one step does with it. The same on one device and among many. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Kind } from "../CheckpointManifest.ts"
import type { Distributed } from "../Distribute.ts"
import * as Distribute from "../Distribute.ts"
import type { CollectiveError, CompileError, DeviceError, ProgramError, RecipeError } from "../Errors.ts"
import { MeshMismatch, PartitionError } from "../Errors.ts"
import * as Axis from "../Axis.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import type { Layout } from "../Layout.ts"
import * as Layouts from "../Layout.ts"
import * as Mesh from "../Mesh.ts"
import type * as Module from "../Module.ts"
import type { TensorType } from "../Node.ts"
import { input } from "../Node.ts"
import { lower } from "../Partition.ts"
import * as Program from "../Program.ts"
import type { Backend, Buffer } from "../services/Backend.ts"
import { Backend as BackendService } from "../services/Backend.ts"
import { Collectives, type CollectivesService } from "../services/Collectives.ts"
import type * as Step from "../Step.ts"
import type { Storage } from "../step/Storage.ts"
import * as Storages from "../step/Storage.ts"
import * as Strategy from "../Strategy.ts"
import * as Spread from "./SpreadRunner.ts"
import * as Stage from "./StageRunner.ts"

/** What changes from step to step. */
export interface Scalars {
  readonly learningRate: number
  /** Number of this update, from 1. */
  readonly step: number
  readonly seed: number
  readonly lossScale: number
}

/** A tensor of which ranks hold parts. */
export interface Part {
  readonly name: string
  /** Of all ranks together. */
  readonly type: TensorType
  readonly layout: Layout
  /** Of this rank. */
  readonly local: TensorType
}

/** One that lives from step to step, by its name as it is stored. */
export interface Held extends Part {
  readonly kind: Kind
  readonly buffer: Buffer
}

/** What `make` adds to what a way of running gives. */
export type Made = Omit<StepRunner, "collectives">

export interface StepRunner {
  readonly distributed: Distributed
  readonly storage: Storage
  readonly held: ReadonlyArray<Held>
  readonly batch: ReadonlyArray<Part>
  readonly metrics: ReadonlyArray<string>
  /** Of everything that ranks run, in its order. */
  readonly digest: string
  /** The ranks among which it was made: what it holds means something among them only. */
  readonly collectives: CollectivesService
  /** One step on this rank's part of a batch; changes what is held. Gives the metrics of the whole batch, the same on every rank. */
  readonly run: (
    batch: ReadonlyArray<Buffer>,
    scalars: Scalars
  ) => Effect.Effect<Readonly<Record<string, number>>, DeviceError | CollectiveError>
}

/**
 * Compiles the step of a configuration for the rank that this is and allocates what it keeps, contents undefined. Fails with `PartitionError`
 * `MeshMismatch` when the strategy's mesh is not that of the ranks at hand.
 */
export const make = Effect.fn("StepRunner.make")(function* <
  P extends Module.ParamTree,
  const B extends Step.BatchTypes
>(
  config: Step.Config<P, B>
): Effect.fn.Return<
  StepRunner,
  ProgramError | RecipeError | PartitionError | CompileError | DeviceError,
  Backend | Scope.Scope
> {
  const { strategy = Strategy.single } = config
  const collectives = yield* Collectives
  if (!sameMesh(strategy.mesh, collectives.mesh)) {
    const [wanted, found] = [Mesh.print(strategy.mesh), Mesh.print(collectives.mesh)]
    const hint = `start ${Mesh.rankCount(strategy.mesh)} ranks with that mesh, or take a strategy for ${found}`
    return yield* new PartitionError({
      reason: new MeshMismatch({ problem: `the strategy is for ${wanted}, the ranks are ${found}`, hint })
    })
  }
  const distributed = yield* Effect.fromResult(Distribute.step(config))
  const made =
    distributed.kind === "spread" ? yield* Spread.make(distributed, strategy) : yield* Stage.make(distributed)
  // What a strategy changes in order only is not in the programs.
  const digest = Program.fingerprint(JSON.stringify([made.digest, strategy]))
  return { ...made, digest, collectives }
})

const sameMesh = (a: Mesh.Mesh, b: Mesh.Mesh): boolean =>
  a.length === b.length && a.every(([name, count], i) => b[i]![0] === name && b[i]![1] === count)

/** The same elements under other axes: their order, or layers cut into the runs of stages. */
const under = (x: HostArray, axes: Axis.Axes): HostArray =>
  Axis.equal(x.axes, axes) ? Host.reorder(x, axes) : { ...x, axes }

/** This rank's part of a whole array, in the memory order in which it is held. */
export const partOf = (x: HostArray, { layout, local, type }: Part, mesh: Mesh.Mesh, rank: number): HostArray =>
  Host.reorder(Layouts.part(under(x, type.axes), layout, mesh, rank), local.axes)

/** Writes this rank's parts of whole arrays, one for each tensor that lives, as declared. */
export const load = Effect.fn("StepRunner.load")(function* (runner: StepRunner, arrays: ReadonlyArray<HostArray>) {
  const backend = yield* BackendService
  const { mesh, rank } = runner.collectives
  const stored = Storages.store(runner.storage, arrays)
  for (const [i, held] of runner.held.entries())
    yield* backend.write(held.buffer, Host.toBytes(partOf(stored[i]!, held, mesh, rank)))
})

/** Whether a rank holds every tensor as it is declared. */
export const isPlain = ({ held, storage }: StepRunner): boolean =>
  storage.units === null &&
  held.every(({ local }, i) => {
    const { axes, dtype } = storage.logical[i]!.type
    return local.dtype === dtype && Axis.equal(local.axes, axes)
  })

/** Everything that lives, as declared; all ranks come together for it. */
export const declared = Effect.fn("StepRunner.declared")(function* (
  runner: StepRunner
): Effect.fn.Return<ReadonlyArray<HostArray>, CompileError | DeviceError | CollectiveError, Backend> {
  const { mesh } = runner.collectives
  const own = yield* parts(runner)
  if (Mesh.rankCount(mesh) === 1) return whole(runner, [own], Mesh.single).arrays
  return yield* Effect.scoped(
    Effect.gen(function* () {
      const backend = yield* BackendService
      const executable = yield* Effect.provideService(
        backend.compile(gathering(runner, mesh)),
        Collectives,
        runner.collectives
      )
      const gathered = yield* executable.run(runner.held.map((h) => h.buffer))
      const arrays = yield* Effect.forEach(gathered, (b) =>
        Effect.map(backend.read(b), (bytes) => Host.fromBytes(b.type.axes, b.type.dtype, bytes))
      )
      return Storages.load(runner.storage, asStored(runner, arrays))
    })
  )
})

/** From what a rank holds to whole tensors. */
const gathering = (runner: StepRunner, mesh: Mesh.Mesh): Program.Program => {
  const inputs = runner.held.map(({ type }) => input(type))
  const whole = Layouts.whole(mesh)
  const { body } = lower(
    Program.body(inputs, inputs),
    { ...Strategy.single, mesh },
    { padded: true, inputs: runner.held.map((h) => h.layout), outputs: () => whole }
  )
  return Program.make([...body.inputs], [...body.outputs]) as Program.Program
}

/** What this rank holds. */
export const parts = Effect.fn("StepRunner.parts")(function* (runner: StepRunner) {
  const backend = yield* BackendService
  return yield* Effect.forEach(runner.held, ({ buffer }) =>
    Effect.map(backend.read(buffer), (bytes) => Host.fromBytes(buffer.type.axes, buffer.type.dtype, bytes))
  )
})

export interface Whole {
  /** One array for each tensor that lives, as declared. */
  readonly arrays: ReadonlyArray<HostArray>
  /** The largest difference between ranks that should hold the same. */
  readonly disagreement: number
}

/** What all ranks hold together, from the `parts` of each. */
export const whole = (runner: StepRunner, parts: ReadonlyArray<ReadonlyArray<HostArray>>, mesh: Mesh.Mesh): Whole => {
  const all = runner.held.map((held, i) =>
    Layouts.collect(
      parts.map((own) => own[i]!),
      held.layout,
      mesh
    )
  )
  const stored = asStored(
    runner,
    all.map(({ array }) => array)
  )
  return {
    arrays: Storages.load(runner.storage, stored),
    disagreement: all.reduce((worst, x) => Math.max(worst, x.disagreement), 0)
  }
}

const asStored = ({ held, storage }: StepRunner, arrays: ReadonlyArray<HostArray>): ReadonlyArray<HostArray> =>
  arrays.map((x, i) => under(Host.reorder(x, held[i]!.type.axes), storage.physical[i]!.type.axes))
