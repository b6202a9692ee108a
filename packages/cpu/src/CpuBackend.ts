/** Programs on native kernels: foreign calls off the main thread, collectives between them. */
import { CompileError, DeviceError } from "@tessera/core/Errors"
import * as Axis from "@tessera/core/Axis"
import type { TensorType } from "@tessera/core/Node"
import { bytesOf } from "@tessera/core/Node"
import type * as Program from "@tessera/core/Program"
import type { CompileOptions } from "@tessera/core/services/Backend"
import { Backend } from "@tessera/core/services/Backend"
import { Collectives } from "@tessera/core/services/Collectives"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { availableParallelism } from "node:os"
import * as CpuPlan from "./CpuPlan.ts"
import * as Execution from "./Execution.ts"
import { type Block, type CpuBuffer, type Machine, owned, settle, spanOf, wrong } from "./Machine.ts"
import * as NativeLibrary from "./NativeLibrary.ts"

/** Where memory comes from. guarded: an inaccessible page behind every buffer and poisoned contents, for tests. */
export type MemoryKind = "private" | "shared" | "pinned" | "guarded"
const memoryKinds = { private: 0, shared: 1, pinned: 2, guarded: 3 } as const

export interface CpuOptions extends NativeLibrary.LibraryOptions {
  /** Threads of the pool; all cores unless given. */
  readonly threads?: number
  readonly memory?: MemoryKind
}

const make = Effect.fn("CpuBackend.make")(function* (options: CpuOptions) {
  const library = yield* NativeLibrary.load(options)
  const threads = options.threads ?? availableParallelism()
  const kind = memoryKinds[options.memory ?? "private"]
  const turn = yield* Semaphore.make(1)
  const machine = yield* Effect.acquireRelease(
    Effect.suspend(() => {
      const p = library.poolCreate(threads)
      return p === null
        ? Effect.fail(
            new CompileError({
              backend: "cpu",
              reason: "UnsupportedPlatform",
              detail: `cannot start ${threads} threads`
            })
          )
        : Effect.succeed<Machine>({ library, pool: p, turn, running: new Set() })
    }),
    (m) =>
      Effect.andThen(
        settle(m, () => true),
        Effect.sync(() => library.poolDestroy(m.pool))
      )
  )

  const memory = (bytes: number): Effect.Effect<Block, DeviceError, Scope.Scope> => {
    const size = Math.max(64, bytes)
    return Effect.acquireRelease(
      Effect.suspend(() => {
        const address = library.memoryCreate(size, kind)
        return address === null
          ? Effect.fail(
              new DeviceError({
                backend: "cpu",
                reason: "OutOfMemory",
                detail: `cannot get ${size} bytes (${(size / 2 ** 20).toFixed(0)} MiB)`
              })
            )
          : Effect.succeed<Block>({ address })
      }),
      (block) =>
        Effect.suspend(() => {
          const { address } = block
          block.address = 0n
          return Effect.andThen(
            settle(machine, (run) => run.bindings.includes(address)),
            Effect.sync(() => library.memoryDestroy(address, size, kind))
          )
        })
    )
  }
  const allocate = (type: TensorType): Effect.Effect<CpuBuffer, DeviceError, Scope.Scope> =>
    Effect.map(memory(bytesOf(type)), (block) => Object.assign(block, { type, bytes: bytesOf(type) }))

  const compile = Effect.fn("CpuBackend.compile")(function* <I, O>(
    program: Program.Program<I, O>,
    options: CompileOptions = {}
  ) {
    const collectives = yield* Collectives
    const plan = yield* Effect.try({
      try: () => CpuPlan.make(program, collectives, options),
      catch: (e) =>
        e instanceof CompileError
          ? e
          : new CompileError({
              backend: "cpu",
              reason: "SourceRejected",
              detail: e instanceof Error ? (e.stack ?? e.message) : String(e)
            })
    })
    const { bound = [] } = options
    const arena = yield* memory(plan.arenaBytes)
    const outputs: Array<CpuBuffer | null> = []
    for (const [i, { donated }] of plan.outputs.entries())
      outputs.push(donated === null && !bound.includes(i) ? yield* allocate(program.outputs[i]!.type) : null)
    return Execution.make({ machine, collectives, program, plan, arena, outputs, bound })
  })

  return Backend.of({
    name: "cpu",
    description: `native kernels, ${library.isa}, ${threads} thread${threads === 1 ? "" : "s"}`,
    compile,
    allocate,
    write: (buffer, bytes) =>
      Effect.suspend(() => {
        const found = owned(buffer)
        if (found instanceof DeviceError) return Effect.fail(found)
        if (bytes.byteLength !== found.bytes)
          return Effect.fail(
            wrong(
              `${bytes.byteLength} bytes were given for ${found.type.dtype}${Axis.print(found.type.axes)}, which needs ${found.bytes}`
            )
          )
        if (found.bytes > 0) library.write(found.address, bytes, found.bytes)
        return Effect.void
      }),
    read: (buffer) =>
      Effect.suspend(() => {
        const found = owned(buffer)
        if (found instanceof DeviceError) return Effect.fail(found)
        const bytes = new Uint8Array(found.bytes)
        if (found.bytes > 0) library.read(bytes, found.address, found.bytes)
        return Effect.succeed(bytes)
      }),
    span: (buffer) =>
      Effect.suspend(() => {
        const found = owned(buffer)
        return found instanceof DeviceError
          ? Effect.fail(found)
          : Effect.succeed(spanOf(library, found, 0, found.bytes))
      })
  })
})

export const layerWith = (options: CpuOptions): Layer.Layer<Backend, CompileError> =>
  Layer.effect(Backend, make(options))

/** All cores, the best instruction set, private memory. */
export const layer: Layer.Layer<Backend, CompileError> = layerWith({})
