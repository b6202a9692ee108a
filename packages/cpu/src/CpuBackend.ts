/** Programs on native kernels: one foreign call a step, off the main thread. */
import * as Axis from "@tessera/core/Axis"
import { CompileError, DeviceError } from "@tessera/core/Errors"
import { fuse } from "@tessera/core/Fuse"
import type { Equation, TensorType } from "@tessera/core/Node"
import { bytesOf } from "@tessera/core/Node"
import * as Plan from "@tessera/core/Plan"
import { decomposeExcept } from "@tessera/core/primitives/composite"
import * as Program from "@tessera/core/Program"
import type { Buffer, CompileOptions, EquationProfile, Executable } from "@tessera/core/services/Backend"
import { Backend } from "@tessera/core/services/Backend"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { availableParallelism } from "node:os"
import * as Nest from "./emit/nest.ts"
import { isPointwise, isSource } from "./emit/pointwise.ts"
import { emit, kernels } from "./KernelTable.ts"
import * as NativeLibrary from "./NativeLibrary.ts"
import { encode, type Instruction } from "./Words.ts"

/** Where memory comes from. guarded: an inaccessible page behind every buffer and poisoned contents, for tests. */
export type MemoryKind = "private" | "shared" | "pinned" | "guarded"
const memoryKinds = { private: 0, shared: 1, pinned: 2, guarded: 3 } as const

export interface CpuOptions extends NativeLibrary.LibraryOptions {
  /** Threads of the pool; all cores unless given. */
  readonly threads?: number
  readonly memory?: MemoryKind
}

/** Native memory; `address` is 0 once it has been given back. */
interface Block {
  address: bigint
}

interface CpuBuffer extends Buffer, Block {}

/** A run that the library is at work on. */
interface Running {
  readonly bindings: BigInt64Array
  readonly cancel: Int32Array
  /** Never rejects. */
  readonly done: Promise<void>
}

/** Same axes in the same memory order. */
const sameMemory = (a: Axis.Axes, b: Axis.Axes): boolean =>
  a.length === b.length && a.every((x, i) => x.name === b[i]!.name && x.size === b[i]!.size)

const wrong = (detail: string) => new DeviceError({ backend: "cpu", reason: "WrongBuffer", detail })

const owned = (buffer: Buffer): CpuBuffer | DeviceError => {
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

/** The passes of this backend before planning. */
export const prepare = (program: Program.Body): Program.Body =>
  fuse(
    decomposeExcept(program, (name) => kernels.has(name)),
    {
      pointwise: isPointwise,
      source: isSource,
      operands: 24,
      equations: 96,
      gemm: true
    }
  )

const make = Effect.fn("CpuBackend.make")(function* (options: CpuOptions) {
  const library = yield* NativeLibrary.load(options)
  const threads = options.threads ?? availableParallelism()
  const kind = memoryKinds[options.memory ?? "private"]
  const running = new Set<Running>()
  /** Cancels these runs and waits for the kernels that they are in: nothing is freed that the library still writes. */
  const settle = (which: (run: Running) => boolean): Effect.Effect<void> => {
    const found = [...running].filter(which)
    for (const { cancel } of found) cancel[0] = 1
    return found.length === 0 ? Effect.void : Effect.promise(() => Promise.all(found.map(({ done }) => done)))
  }
  const pool = yield* Effect.acquireRelease(
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
        : Effect.succeed(p)
    }),
    (p) =>
      Effect.andThen(
        settle(() => true),
        Effect.sync(() => library.poolDestroy(p))
      )
  )
  // The library does one run at a time; those that wait here hold no thread of libuv and can be interrupted at once.
  const turn = yield* Semaphore.make(1)

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
            settle((run) => run.bindings.includes(address)),
            Effect.sync(() => library.memoryDestroy(address, size, kind))
          )
        })
    )
  }
  const allocate = (type: TensorType): Effect.Effect<CpuBuffer, DeviceError, Scope.Scope> =>
    Effect.map(memory(bytesOf(type)), (block) => Object.assign(block, { type, bytes: bytesOf(type) }))

  const compile = Effect.fn("CpuBackend.compile")(function* <I, O>(
    program: Program.Program<I, O>,
    { donated = [] }: CompileOptions = {}
  ) {
    const prepared = yield* Effect.try({
      try: () => {
        const body = prepare(program)
        return Plan.make<Instruction>(body, {
          emit,
          copy: Nest.copy,
          accumulate: Nest.accumulate,
          zero: (to, emission) => Nest.fill(to, 0, emission),
          donated
        })
      },
      catch: (e) =>
        e instanceof CompileError
          ? e
          : new CompileError({
              backend: "cpu",
              reason: "SourceRejected",
              detail: e instanceof Error ? (e.stack ?? e.message) : String(e)
            })
    })
    const plan = prepared
    const arena = yield* memory(plan.arenaBytes)
    // Binding 0 is the arena, then inputs, then outputs that have memory of their own.
    const inputCount = program.inputs.length
    const inputTypes = program.inputs.map(({ type }) => ({ ...type, bytes: bytesOf(type) }))
    const outputs: Array<CpuBuffer | null> = []
    for (let i = 0; i < plan.outputs.length; i++) {
      outputs.push(plan.outputs[i]!.donated === null ? yield* allocate(program.outputs[i]!.type) : null)
    }
    const words = encode(
      plan.launches.map((l) => ({ instruction: l.payload, equation: l.equation })),
      (id) => {
        const b = plan.buffers[id]!
        if (b.kind === "arena") return { binding: 0, offset: b.offset }
        return { binding: b.kind === "input" ? 1 + b.index : 1 + inputCount + b.index, offset: 0 }
      }
    )
    const equations = plan.equations
    /** Addresses of everything that a run works on, or what is wrong with an input. */
    const bind = (inputs: ReadonlyArray<Buffer>): BigInt64Array | DeviceError => {
      if (inputs.length !== inputCount) return wrong(`the program takes ${inputCount} inputs, found ${inputs.length}`)
      if (arena.address === 0n) return wrong("the scope of the program has closed")
      const bindings = new BigInt64Array(1 + inputCount + outputs.length)
      bindings[0] = arena.address
      for (const [i, buffer] of inputs.entries()) {
        const found = owned(buffer)
        if (found instanceof DeviceError) return found
        const expected = inputTypes[i]!
        if (found.type.dtype !== expected.dtype || !sameMemory(found.type.axes, expected.axes)) {
          return wrong(
            `input ${i} is ${found.type.dtype}${Axis.print(found.type.axes)}, expected ${expected.dtype}${Axis.print(expected.axes)}`
          )
        }
        bindings[1 + i] = found.address
      }
      for (const [i, output] of outputs.entries()) {
        if (output === null) continue
        if (output.address === 0n) return wrong("the scope of the program has closed")
        bindings[1 + inputCount + i] = output.address
      }
      // What the run writes must be nothing else that it reads: a later kernel would read the new value.
      const readers = new Map<bigint, number>()
      for (let b = 1; b <= inputCount; b++) readers.set(bindings[b]!, (readers.get(bindings[b]!) ?? 0) + 1)
      for (const [i, { donated: from }] of plan.outputs.entries()) {
        if (from === null && readers.has(bindings[1 + inputCount + i]!))
          return wrong(`the memory of output ${i} was given as an input of the same program`)
        if (from !== null && readers.get(bindings[1 + from]!)! > 1)
          return wrong(`input ${from}, which the program overwrites, was given as another input, too`)
      }
      return bindings
    }
    const execute = (
      inputs: ReadonlyArray<Buffer>,
      profile: Float64Array | null
    ): Effect.Effect<ReadonlyArray<Buffer>, DeviceError> =>
      // Binding and starting are one synchronous act: no scope can close between them.
      Effect.callback<ReadonlyArray<Buffer>, DeviceError>((resume) => {
        const bindings = bind(inputs)
        if (bindings instanceof DeviceError) return resume(Effect.fail(bindings))
        const cancel = new Int32Array(1)
        const error = BigInt64Array.of(-1n)
        const run: Running = {
          bindings,
          cancel,
          done: library.run({ pool, plan: words, bindings, cancel, profile, error }).then(
            (status) => {
              running.delete(run)
              resume(
                status === 0
                  ? Effect.succeed(outputs.map((output, i) => output ?? inputs[plan.outputs[i]!.donated!]!))
                  : Effect.fail(statusText(status, equations[Number(error[0])]))
              )
            },
            (e: unknown) => {
              running.delete(run)
              resume(Effect.fail(new DeviceError({ backend: "cpu", reason: "LaunchFailed", detail: String(e) })))
            }
          )
        }
        running.add(run)
        // Interruption sets the flag and waits for the current kernel: nobody may free what the library still writes.
        return Effect.promise(() => {
          cancel[0] = 1
          return run.done
        })
      }).pipe(turn.withPermit)
    const executable: Executable = {
      run: (inputs) => execute(inputs, null),
      profile: (inputs) => {
        const times = new Float64Array(equations.length + 1)
        return Effect.map(execute(inputs, times), () =>
          equations
            .map((equation, i): EquationProfile => ({ equation, nanoseconds: times[i]! }))
            .filter((p) => p.nanoseconds > 0)
        )
      },
      cost: Program.cost(program),
      arenaBytes: plan.arenaBytes,
      outputBytes: outputs.reduce((n, o) => n + (o?.bytes ?? 0), 0),
      launches: plan.launches.length
    }
    return executable
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
      })
  })
})

export const layerWith = (options: CpuOptions): Layer.Layer<Backend, CompileError> =>
  Layer.effect(Backend, make(options))

/** All cores, the best instruction set, private memory. */
export const layer: Layer.Layer<Backend, CompileError> = layerWith({})
