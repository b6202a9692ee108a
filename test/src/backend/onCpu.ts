/** Runs bodies on the native backend, operands right before inaccessible pages, results as arrays of doubles. */
import * as Host from "@tessera/core/HostArray"
import type { Body } from "@tessera/core/Node"
import * as Program from "@tessera/core/Program"
import { Backend } from "@tessera/core/services/Backend"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"

export interface OnCpu {
  readonly run: (body: Body, arrays: ReadonlyArray<Host.HostArray>) => Promise<ReadonlyArray<Host.HostArray>>
  readonly close: () => Promise<void>
}

export const onCpu = (options: CpuBackend.CpuOptions = {}): OnCpu => {
  const runtime = ManagedRuntime.make(CpuBackend.layerWith({ threads: 2, memory: "guarded", ...options }))
  const one = (body: Body, arrays: ReadonlyArray<Host.HostArray>) =>
    Effect.scoped(
      Effect.gen(function* () {
        const backend = yield* Backend
        const executable = yield* backend.compile(Program.make([...body.inputs], [...body.outputs]))
        const buffers = yield* Effect.forEach(arrays, (a, i) =>
          Effect.gen(function* () {
            const type = body.inputs[i]!.type
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
  return { run: (body, arrays) => runtime.runPromise(one(body, arrays)), close: () => runtime.dispose() }
}
