/** What may fail and what is needed, for every public Effect and Stream: documented types, held by the type check. Nothing here runs. */
import type { CheckpointError } from "@tessera/core/CheckpointError"
import type {
  CollectiveError,
  CompileError,
  DeviceError,
  PartitionError,
  ProgramError,
  RecipeError,
  TrainError
} from "@tessera/core/Errors"
import type * as MetricsTracker from "@tessera/core/layers/MetricsTracker"
import type * as ReferenceBackend from "@tessera/core/layers/ReferenceBackend"
import type { Backend, Executable } from "@tessera/core/services/Backend"
import type { CheckpointReader, CheckpointStore, SavedCheckpoint } from "@tessera/core/services/CheckpointStore"
import type { StepReport, Tracker } from "@tessera/core/services/Tracker"
import type * as Tasks from "@tessera/core/Tasks"
import type * as Trainer from "@tessera/core/Trainer"
import type * as CpuBackend from "@tessera/cpu/CpuBackend"
import type { Augmenter } from "@tessera/data/Augmenter"
import type { DataError } from "@tessera/data/Errors"
import type * as Loader from "@tessera/data/Loader"
import type * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"

type Equals<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
type Same<A, B> = [A, B] extends [B, A] ? true : false
/** Compiles only for true. */
type Holds<T extends true> = T

/** Exactly this error and these needs. */
type Fails<X, E, R> =
  X extends Effect.Effect<any, infer E1, infer R1>
    ? Both<Same<E1, E>, Same<R1, R>>
    : X extends Stream.Stream<any, infer E2, infer R2>
      ? Both<Same<E2, E>, Same<R2, R>>
      : X extends Layer.Layer<any, infer E3, infer R3>
        ? Both<Same<E3, E>, Same<R3, R>>
        : false
type Both<A extends boolean, B extends boolean> = A extends true ? B : false

/** The result of a function, or the value itself. */
type Of<F> = F extends (...args: any) => infer X ? X : F
type On<S extends { readonly Service: object }, K extends keyof S["Service"]> = Of<S["Service"][K]>

// The instruments themselves: an error or a need too many, too few or of another kind is seen.
export type Instruments = [
  Holds<Fails<Effect.Effect<1, DeviceError, Backend>, DeviceError, Backend>>,
  Holds<Equals<Fails<Effect.Effect<1, DeviceError, Backend>, never, Backend>, false>>,
  Holds<Equals<Fails<Effect.Effect<1, DeviceError, Backend>, DeviceError, never>, false>>,
  Holds<Equals<Fails<Effect.Effect<1, never, Backend>, DeviceError, Backend>, false>>,
  Holds<Equals<Fails<Effect.Effect<1, DeviceError, Backend>, DeviceError | TrainError, Backend>, false>>,
  Holds<Equals<Fails<Effect.Effect<1, unknown, never>, DeviceError, never>, false>>,
  Holds<Equals<Fails<Effect.Effect<1, any, never>, never, never>, false>>
]

export type OfTheBackend = [
  Holds<Fails<On<typeof Backend, "compile">, CompileError | DeviceError, Scope.Scope>>,
  Holds<Fails<On<typeof Backend, "allocate">, DeviceError, Scope.Scope>>,
  Holds<Fails<On<typeof Backend, "write">, DeviceError, never>>,
  Holds<Fails<On<typeof Backend, "read">, DeviceError, never>>,
  Holds<Fails<Of<Executable["run"]>, DeviceError | CollectiveError, never>>,
  Holds<Fails<Of<Executable["profile"]>, DeviceError | CollectiveError, never>>,
  Holds<Fails<typeof ReferenceBackend.layer, never, never>>,
  Holds<Fails<typeof CpuBackend.layer, CompileError, never>>
]

declare class Broken {
  readonly _tag: "Broken"
}
declare class Disk {
  readonly disk: true
}
declare const training: Trainer.Training
declare const steps: typeof Trainer.steps
declare const every: typeof Trainer.every
export const streams = () => {
  const plain = steps(training, {} as Trainer.StepsOptions<never, never>)
  const withData = steps(training, {} as Trainer.StepsOptions<Broken, Disk>)
  const saving = every<StepReport, CheckpointError, CheckpointStore>(2, () => null as never)(withData)
  return { plain, withData, saving }
}
type Streams = ReturnType<typeof streams>

export type OfTheTrainer = [
  Holds<
    Fails<
      Of<typeof Trainer.make>,
      ProgramError | RecipeError | PartitionError | CompileError | DeviceError,
      Backend | Scope.Scope
    >
  >,
  Holds<Fails<Of<typeof Trainer.initialise>, CompileError | DeviceError | CollectiveError, Backend>>,
  Holds<Equals<Streams["plain"], Stream.Stream<StepReport, TrainError | DeviceError | CollectiveError, Backend>>>,
  Holds<
    Equals<
      Streams["withData"],
      Stream.Stream<StepReport, Broken | TrainError | DeviceError | CollectiveError, Disk | Backend>
    >
  >,
  Holds<
    Fails<
      Streams["saving"],
      Broken | TrainError | DeviceError | CollectiveError | CheckpointError,
      Disk | Backend | CheckpointStore
    >
  >,
  Holds<
    Equals<
      Of<typeof Trainer.save>,
      Effect.Effect<
        SavedCheckpoint,
        CheckpointError | CompileError | DeviceError | CollectiveError | TrainError,
        CheckpointStore | Backend
      >
    >
  >,
  Holds<Fails<Of<typeof Trainer.restore>, CheckpointError | DeviceError | CollectiveError, Backend>>,
  Holds<
    Fails<Of<typeof Tasks.evaluator>, ProgramError | RecipeError | CompileError | DeviceError, Backend | Scope.Scope>
  >
]

declare const evaluator: Tasks.Evaluator
export const evaluation = (batches: Stream.Stream<Trainer.DataBatch, Broken, Disk>) => evaluator.run([], batches)
export type OfAnEvaluation = Holds<
  Equals<ReturnType<typeof evaluation>, Effect.Effect<Tasks.Sums, Broken | DeviceError | CollectiveError, Disk>>
>

export type OfCheckpoints = [
  Holds<Fails<On<typeof CheckpointStore, "save">, CheckpointError, never>>,
  Holds<Fails<On<typeof CheckpointStore, "savePart">, CheckpointError, never>>,
  Holds<Fails<On<typeof CheckpointStore, "commit">, CheckpointError, never>>,
  Holds<Fails<On<typeof CheckpointStore, "open">, CheckpointError, Scope.Scope>>,
  Holds<Fails<On<typeof CheckpointStore, "list">, CheckpointError, never>>,
  Holds<Fails<On<typeof CheckpointStore, "verify">, CheckpointError, never>>,
  Holds<Fails<On<typeof CheckpointStore, "inspect">, CheckpointError, never>>,
  Holds<Fails<Of<CheckpointReader["read"]>, CheckpointError, never>>,
  Holds<Fails<Of<CheckpointReader["checkFrozen"]>, CheckpointError, never>>
]

export type OfTrackers = [
  Holds<Fails<On<typeof Tracker, "report">, never, never>>,
  Holds<Fails<On<typeof Tracker, "evaluation">, never, never>>,
  Holds<Fails<On<typeof Tracker, "event">, never, never>>,
  Holds<Equals<typeof MetricsTracker.layer, Layer.Layer<Tracker>>>
]

export type OfTheLoader = [
  Holds<Equals<Of<typeof Loader.make>, Effect.Effect<Loader.DataSource, DataError, Augmenter>>>,
  Holds<Equals<Of<Loader.DataSource["batches"]>, Stream.Stream<Loader.Batch, DataError>>>,
  Holds<Fails<On<typeof Augmenter, "applyAll">, DataError, never>>,
  Holds<Fails<typeof Augmenter.layerNative, never, never>>,
  Holds<Fails<Of<typeof Augmenter.layerWorkers>, never, never>>
]
