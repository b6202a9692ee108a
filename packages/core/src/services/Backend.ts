import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { CollectiveError, CompileError, DeviceError } from "../Errors.ts"
import type { Cost, Equation, TensorType } from "../Node.ts"
import type { Peak } from "../plan/Peak.ts"
import type { Program } from "../Program.ts"
import type { Span } from "./Collectives.ts"

/** Memory of a backend that holds one tensor. Its content changes when an executable it was donated to has run. */
export interface Buffer {
  readonly type: TensorType
  readonly bytes: number
}

/** Time of one equation in the last profiled run. */
export interface EquationProfile {
  readonly equation: Equation
  readonly nanoseconds: number
}

/**
 * A compiled program. Outputs that were donated an input stand in that input's buffer; all others stand in memory of the executable, which
 * lives as long as its Scope and is overwritten by the next run: download what you keep.
 */
export interface Executable extends Outline {
  /**
   * Inputs in the program's order; then memory for the outputs that were compiled as `bound`, in their order. Runs off the main thread; interruption
   * waits for the step to be abandoned between two kernels. Fails with `CollectiveError` when the program does something together with ranks that fail.
   */
  readonly run: (
    inputs: ReadonlyArray<Buffer>,
    bound?: ReadonlyArray<Buffer>
  ) => Effect.Effect<ReadonlyArray<Buffer>, DeviceError | CollectiveError>
  readonly profile: (
    inputs: ReadonlyArray<Buffer>,
    bound?: ReadonlyArray<Buffer>
  ) => Effect.Effect<ReadonlyArray<EquationProfile>, DeviceError | CollectiveError>
  readonly cost: Cost
}

/** Memory for intermediates that programs share which never run at the same time; it grows to what the largest needs. */
export interface Workspace {
  readonly bytes: number
}

/** What a program will need and do, known before anything is allocated. */
export interface Outline {
  /** Bytes of intermediates at the worst moment, and of gaps between them. */
  readonly arenaBytes: number
  /** Those intermediates by what they are for. */
  readonly peak: Peak
  /** Bytes of outputs that have memory of their own. */
  readonly outputBytes: number
  readonly launches: number
}

export interface CompileOptions {
  /** [input, output]: the output may overwrite the input. */
  readonly donated?: ReadonlyArray<readonly [input: number, output: number]>
  /** Outputs whose memory is given at every run; they are donated nothing. */
  readonly bound?: ReadonlyArray<number>
  /** Gathers of parameters that are under way before their turn. */
  readonly prefetch?: number
  /** Where intermediates stand; memory of the executable's own unless given. */
  readonly workspace?: Workspace
}

/** What runs programs. Layers: Reference (the evaluator), Cpu (native kernels). */
export class Backend extends Context.Service<
  Backend,
  {
    readonly name: string
    /** One line for people: instruction set, threads, device. */
    readonly description: string
    /**
     * Programs of one rank run among the ranks that `Collectives` gives here. Fails with `CompileError` `MeshMismatch` when those are not the ranks that
     * the program is for.
     */
    readonly compile: <I, O>(
      program: Program<I, O>,
      options?: CompileOptions
    ) => Effect.Effect<Executable, CompileError | DeviceError, Scope.Scope>
    /** As `compile`, but stops before memory is taken. */
    readonly outline: <I, O>(program: Program<I, O>, options?: CompileOptions) => Effect.Effect<Outline, CompileError>
    readonly workspace: Effect.Effect<Workspace, DeviceError, Scope.Scope>
    /** Uninitialised memory for a tensor. */
    readonly allocate: (type: TensorType) => Effect.Effect<Buffer, DeviceError, Scope.Scope>
    /** Copies elements (as stored bytes, in the type's memory order) into a buffer. */
    readonly write: (buffer: Buffer, bytes: Uint8Array) => Effect.Effect<void, DeviceError>
    /** A copy of a buffer's bytes, in the type's memory order. */
    readonly read: (buffer: Buffer) => Effect.Effect<Uint8Array, DeviceError>
    /** A buffer's memory as ranks send and receive it. */
    readonly span: (buffer: Buffer) => Effect.Effect<Span, DeviceError>
  }
>()("@tessera/core/Backend") {}
