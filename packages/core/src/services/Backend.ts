import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { CompileError, DeviceError } from "../Errors.ts"
import type { Cost, Equation, TensorType } from "../Node.ts"
import type { Program } from "../Program.ts"

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
export interface Executable {
  /** Inputs in the program's order. Runs off the main thread; interruption waits for the step to be abandoned between two kernels. */
  readonly run: (inputs: ReadonlyArray<Buffer>) => Effect.Effect<ReadonlyArray<Buffer>, DeviceError>
  readonly profile: (inputs: ReadonlyArray<Buffer>) => Effect.Effect<ReadonlyArray<EquationProfile>, DeviceError>
  readonly cost: Cost
  /** Bytes of intermediates at the worst moment, besides inputs and outputs. */
  readonly arenaBytes: number
  readonly outputBytes: number
  /** Number of kernels launched by one run. */
  readonly launches: number
}

export interface CompileOptions {
  /** [input, output]: the output may overwrite the input. */
  readonly donated?: ReadonlyArray<readonly [input: number, output: number]>
}

/** What runs programs. Layers: Reference (the evaluator), Cpu (native kernels). */
export class Backend extends Context.Service<
  Backend,
  {
    readonly name: string
    /** One line for people: instruction set, threads, device. */
    readonly description: string
    readonly compile: <I, O>(
      program: Program<I, O>,
      options?: CompileOptions
    ) => Effect.Effect<Executable, CompileError | DeviceError, Scope.Scope>
    /** Uninitialised memory for a tensor. */
    readonly allocate: (type: TensorType) => Effect.Effect<Buffer, DeviceError, Scope.Scope>
    /** Copies elements (as stored bytes, in the type's memory order) into a buffer. */
    readonly write: (buffer: Buffer, bytes: Uint8Array) => Effect.Effect<void, DeviceError>
    /** A copy of a buffer's bytes, in the type's memory order. */
    readonly read: (buffer: Buffer) => Effect.Effect<Uint8Array, DeviceError>
  }
>()("@tessera/core/Backend") {}
