/** Programs on native kernels: foreign calls off the main thread, collectives between them. */
import { CompileError, DeviceError } from "@tessera/core/Errors"
import * as Axis from "@tessera/core/Axis"
import type * as Program from "@tessera/core/Program"
import type { CompileOptions } from "@tessera/core/services/Backend"
import { Backend } from "@tessera/core/services/Backend"
import { Collectives } from "@tessera/core/services/Collectives"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Semaphore from "effect/Semaphore"
import { availableParallelism } from "node:os"
import * as CpuPlan from "./CpuPlan.ts"
import * as Execution from "./Execution.ts"
import { type CpuBuffer, type Machine, owned, settle, spanOf, wrong } from "./Machine.ts"
import * as Memory from "./Memory.ts"
import * as NativeLibrary from "./NativeLibrary.ts"

export interface CpuOptions extends NativeLibrary.LibraryOptions {
  /** Threads of the pool; all cores unless given. */
  readonly threads?: number
  readonly memory?: Memory.Kind
}

const planned = (program: Program.Body, place: CpuPlan.Place, options: CompileOptions) =>
  Effect.try({
    try: () => CpuPlan.make(program, place, options),
    catch: (e) =>
      e instanceof CompileError
        ? e
        : new CompileError({
            backend: "cpu",
            reason: "SourceRejected",
            detail: e instanceof Error ? (e.stack ?? e.message) : String(e)
          })
  })

const make = Effect.fn("CpuBackend.make")(function* (options: CpuOptions) {
  const library = yield* NativeLibrary.load(options)
  const threads = options.threads ?? availableParallelism()
  const kind = Memory.kinds[options.memory ?? "private"]
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

  const memory = Memory.make(machine, kind)

  const compile = Effect.fn("CpuBackend.compile")(function* <I, O>(
    program: Program.Program<I, O>,
    options: CompileOptions = {}
  ) {
    const collectives = yield* Collectives
    const plan = yield* planned(program, collectives, options)
    const { bound = [] } = options
    const arena = yield* memory.arena(plan.arenaBytes, options)
    const outputs: Array<CpuBuffer | null> = []
    for (const [i, { donated }] of plan.outputs.entries())
      outputs.push(donated === null && !bound.includes(i) ? yield* memory.allocate(program.outputs[i]!.type) : null)
    return Execution.make({ machine, collectives, program, plan, arena, outputs, bound })
  })

  return Backend.of({
    name: "cpu",
    description: `native kernels, ${library.isa}, ${threads} thread${threads === 1 ? "" : "s"}`,
    compile,
    outline: (program, options = {}) =>
      Effect.gen(function* () {
        const plan = yield* planned(program, yield* Collectives, options)
        return CpuPlan.outline(program, plan, options)
      }),
    workspace: memory.workspace,
    allocate: memory.allocate,
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
