/** Runs the program of one rank on every rank of a mesh at once, each with native kernels and operands right before inaccessible pages. */
import * as Host from "@tessera/core/HostArray"
import type * as Mesh from "@tessera/core/Mesh"
import type { Body, Lockstep } from "@tessera/core/Node"
import * as Program from "@tessera/core/Program"
import type { CompileOptions } from "@tessera/core/services/Backend"
import { Backend } from "@tessera/core/services/Backend"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as LocalRanks from "./localRanks.ts"

export interface OnRanks {
  /** One array per rank in, one out. */
  readonly run: (
    body: Body,
    inputs: ReadonlyArray<Lockstep>,
    mesh: Mesh.Mesh,
    options?: CompileOptions
  ) => Promise<ReadonlyArray<Lockstep>>
  readonly close: () => Promise<void>
}

/** Fibers that meet in JavaScript, or ranks that read each other's memory. */
export type Kind = "simulated" | "local"

export const onRanks = (kind: Kind, options: CpuBackend.CpuOptions = {}): OnRanks => {
  const all = kind === "simulated" ? LocalRanks.simulated : LocalRanks.all
  const runtime = ManagedRuntime.make(CpuBackend.layerWith({ threads: 2, memory: "guarded", ...options }))
  const one = (body: Body, inputs: ReadonlyArray<Host.HostArray>, compile: CompileOptions) =>
    Effect.scoped(
      Effect.gen(function* () {
        const backend = yield* Backend
        const executable = yield* backend.compile(Program.make([...body.inputs], [...body.outputs]), compile)
        const buffers = yield* Effect.forEach(inputs, (a, i) =>
          Effect.gen(function* () {
            const { type } = body.inputs[i]!
            const buffer = yield* backend.allocate(type)
            yield* backend.write(buffer, Host.toBytes(Host.reorder(a, type.axes)))
            return buffer
          })
        )
        const outputs = yield* executable.run(buffers)
        return yield* Effect.forEach(outputs, (o) =>
          Effect.map(backend.read(o), (bytes) => Host.fromBytes(o.type.axes, o.type.dtype, bytes))
        )
      })
    )
  return {
    run: async (body, inputs, mesh, compile = {}) => {
      const results = await runtime.runPromise(
        all(mesh, (rank) =>
          one(
            body,
            inputs.map((x) => x[rank]!),
            compile
          )
        )
      )
      return body.outputs.map((_, i) => results.map((r) => r[i]!))
    },
    close: () => runtime.dispose()
  }
}
