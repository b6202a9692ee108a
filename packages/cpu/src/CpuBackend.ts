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
import * as Scope from "effect/Scope"
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

interface CpuBuffer extends Buffer {
  readonly address: bigint
}

const wrong = (detail: string) => new DeviceError({ backend: "cpu", reason: "WrongBuffer", detail })

const owned = (buffer: Buffer): Effect.Effect<CpuBuffer, DeviceError> =>
  "address" in buffer
    ? Effect.succeed(buffer as CpuBuffer)
    : Effect.fail(wrong("a buffer of another backend was given"))

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
    (p) => Effect.sync(() => library.poolDestroy(p))
  )

  const memory = (bytes: number): Effect.Effect<{ readonly address: bigint }, DeviceError, Scope.Scope> => {
    const size = Math.max(64, bytes)
    return Effect.map(
      Effect.acquireRelease(
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
            : Effect.succeed(address)
        }),
        (address) => Effect.sync(() => library.memoryDestroy(address, size, kind))
      ),
      (address) => ({ address })
    )
  }
  const allocate = (type: TensorType): Effect.Effect<CpuBuffer, DeviceError, Scope.Scope> =>
    Effect.map(memory(bytesOf(type)), (m) => ({ type, bytes: bytesOf(type), ...m }))

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
    const execute = (
      inputs: ReadonlyArray<Buffer>,
      profile: Float64Array | null
    ): Effect.Effect<ReadonlyArray<Buffer>, DeviceError> =>
      Effect.gen(function* () {
        if (inputs.length !== inputCount)
          return yield* wrong(`the program takes ${inputCount} inputs, found ${inputs.length}`)
        const bindings = new BigInt64Array(1 + inputCount + outputs.length)
        bindings[0] = arena.address
        const given: Array<CpuBuffer> = []
        for (let i = 0; i < inputCount; i++) {
          const b = yield* owned(inputs[i]!)
          const expected = program.inputs[i]!.type
          if (b.type.dtype !== expected.dtype || b.bytes !== bytesOf(expected)) {
            return yield* wrong(
              `input ${i} is ${b.type.dtype}${Axis.print(b.type.axes)}, expected ${expected.dtype}${Axis.print(expected.axes)}`
            )
          }
          bindings[1 + i] = b.address
          given.push(b)
        }
        outputs.forEach((o, i) => {
          if (o !== null) bindings[1 + inputCount + i] = o.address
        })
        const cancel = new Int32Array(1)
        const error = BigInt64Array.of(-1n)
        // Uninterruptible while the library may still write; interruption sets the flag and waits for the current kernel.
        const status = yield* Effect.callback<number, DeviceError>((resume) => {
          const done = library.run({ pool, plan: words, bindings, cancel, profile, error })
          done.then(
            (s) => resume(Effect.succeed(s)),
            (e: unknown) =>
              resume(Effect.fail(new DeviceError({ backend: "cpu", reason: "LaunchFailed", detail: String(e) })))
          )
          return Effect.promise(() => {
            cancel[0] = 1
            return done.then(
              () => {},
              () => {}
            )
          })
        })
        if (status !== 0) return yield* statusText(status, equations[Number(error[0])])
        return program.outputs.map((_, i) => outputs[i] ?? given[plan.outputs[i]!.donated!]!)
      })
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
      Effect.flatMap(owned(buffer), (b) =>
        bytes.byteLength === b.bytes
          ? Effect.sync(() => (b.bytes === 0 ? undefined : library.write(b.address, bytes, b.bytes)))
          : Effect.fail(
              wrong(
                `${bytes.byteLength} bytes were given for ${b.type.dtype}${Axis.print(b.type.axes)}, which needs ${b.bytes}`
              )
            )
      ),
    read: (buffer) =>
      Effect.map(owned(buffer), (b) => {
        const bytes = new Uint8Array(b.bytes)
        if (b.bytes > 0) library.read(bytes, b.address, b.bytes)
        return bytes
      })
  })
})

export const layerWith = (options: CpuOptions): Layer.Layer<Backend, CompileError> =>
  Layer.effect(Backend, make(options))

/** All cores, the best instruction set, private memory. */
export const layer: Layer.Layer<Backend, CompileError> = layerWith({})
