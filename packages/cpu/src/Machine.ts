/** What one run of the native library needs, and what is at work in it. */
import * as Axis from "@tessera/core/Axis"
import { DeviceError } from "@tessera/core/Errors"
import type { Equation } from "@tessera/core/Node"
import type { Buffer } from "@tessera/core/services/Backend"
import type { Span } from "@tessera/core/services/Collectives"
import * as Effect from "effect/Effect"
import type * as Semaphore from "effect/Semaphore"
import type * as NativeLibrary from "./NativeLibrary.ts"

/** Native memory; `address` is 0 once it has been given back. */
export interface Block {
  address: bigint
}

export interface CpuBuffer extends Buffer, Block {}

/** Intermediates of one program, or of several in turn. */
export interface Arena {
  bytes: number
  readonly block: Block
}

/** A run that the library is at work on. */
export interface Running {
  readonly bindings: BigInt64Array
  readonly cancel: Int32Array
  /** Never rejects. */
  readonly done: Promise<void>
}

/** Same axes in the same memory order. */
export const sameMemory = (a: Axis.Axes, b: Axis.Axes): boolean =>
  a.length === b.length && a.every((x, i) => x.name === b[i]!.name && x.size === b[i]!.size)

export const wrong = (detail: string) => new DeviceError({ backend: "cpu", reason: "WrongBuffer", detail })

export const owned = (buffer: Buffer): CpuBuffer | DeviceError => {
  if (!("address" in buffer)) return wrong("a buffer of another backend was given")
  return buffer.address === 0n ? wrong("a buffer was given whose scope has closed") : (buffer as CpuBuffer)
}

const statusText = (status: number, equation: Equation | undefined): DeviceError => {
  const where =
    equation === undefined
      ? ""
      : ` at ${equation.primitive.name}${equation.outputs.length > 0 ? ` ${Axis.print(equation.outputs[0]!.type.axes)}` : ""}`
  if (status === 1)
    return new DeviceError({ backend: "cpu", reason: "Cancelled", detail: `the step was cancelled${where}` })
  if (status === 3)
    return new DeviceError({ backend: "cpu", reason: "OutOfMemory", detail: `no scratch memory${where}` })
  return new DeviceError({
    backend: "cpu",
    reason: "LaunchFailed",
    detail: `the library refused the plan (status ${status})${where}`
  })
}

/** A stretch of a block as ranks send and receive it. A block that is gone takes nothing any more. */
export const spanOf = (library: NativeLibrary.Library, block: Block, offset: number, bytes: number): Span => {
  const address = () => block.address + BigInt(offset)
  return {
    address: address(),
    bytes,
    read: () => {
      const to = new Uint8Array(bytes)
      if (bytes > 0 && block.address !== 0n) library.read(to, address(), bytes)
      return to
    },
    write: (from) => {
      if (bytes > 0 && block.address !== 0n) library.write(address(), from, bytes)
    }
  }
}

/** The native library with its threads. It does one run at a time. */
export interface Machine {
  readonly library: NativeLibrary.Library
  readonly pool: unknown
  /** Those that wait here hold no thread of libuv and can be interrupted at once. */
  readonly turn: Semaphore.Semaphore
  readonly running: Set<Running>
}

/** What a run works with. */
export interface Work {
  /** Addresses of everything, or what is wrong. Called when the turn has come: no scope can close between this and the start. */
  readonly bind: () => BigInt64Array | DeviceError
  readonly words: BigInt64Array
  readonly profile: Float64Array | null
  readonly equations: ReadonlyArray<Equation>
}

/** One foreign call. Interruption sets a flag and waits for the current kernel: nobody may free what the library still writes. */
export const execute = (
  machine: Machine,
  { bind, equations, profile, words }: Work
): Effect.Effect<void, DeviceError> =>
  Effect.callback<void, DeviceError>((resume) => {
    const { library, pool, running } = machine
    const bindings = bind()
    if (bindings instanceof DeviceError) return resume(Effect.fail(bindings))
    const cancel = new Int32Array(1)
    const error = BigInt64Array.of(-1n)
    const run: Running = {
      bindings,
      cancel,
      done: library.run({ pool, plan: words, bindings, cancel, profile, error }).then(
        (status) => {
          running.delete(run)
          resume(status === 0 ? Effect.void : Effect.fail(statusText(status, equations[Number(error[0])])))
        },
        (e: unknown) => {
          running.delete(run)
          resume(Effect.fail(new DeviceError({ backend: "cpu", reason: "LaunchFailed", detail: String(e) })))
        }
      )
    }
    running.add(run)
    return Effect.promise(() => {
      cancel[0] = 1
      return run.done
    })
  }).pipe(machine.turn.withPermit)

/** Cancels these runs and waits for the kernels that they are in: nothing is freed that the library still writes. */
export const settle = ({ running }: Machine, which: (run: Running) => boolean): Effect.Effect<void> => {
  const found = [...running].filter(which)
  for (const { cancel } of found) cancel[0] = 1
  return found.length === 0 ? Effect.void : Effect.promise(() => Promise.all(found.map(({ done }) => done)))
}
