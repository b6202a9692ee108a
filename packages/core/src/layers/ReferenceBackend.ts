/** The evaluator as a backend: exact and slow, for comparison. Runs only when asked for. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { DeviceError } from "../Errors.ts"
import * as Evaluate from "../Evaluate.ts"
import * as Host from "../HostArray.ts"
import type { TensorType } from "../Node.ts"
import { bytesOf } from "../Node.ts"
import * as Program from "../Program.ts"
import type { Buffer } from "../services/Backend.ts"
import { Backend } from "../services/Backend.ts"

interface ReferenceBuffer extends Buffer {
  value: Host.HostArray | null
}

const holding = (buffer: Buffer): Effect.Effect<ReferenceBuffer, DeviceError> =>
  "value" in buffer
    ? Effect.succeed(buffer as ReferenceBuffer)
    : Effect.fail(
        new DeviceError({
          backend: "reference",
          reason: "WrongBuffer",
          detail: "a buffer of another backend was given"
        })
      )

const make = (type: TensorType, value: Host.HostArray | null): ReferenceBuffer => ({
  type,
  bytes: bytesOf(type),
  value
})

export const layer: Layer.Layer<Backend> = Layer.succeed(Backend, {
  name: "reference",
  description: "reference evaluator, float64, one thread",
  compile: (program, options = {}) => {
    const donor = new Map((options.donated ?? []).map(([from, to]) => [to, from]))
    const run = Effect.fnUntraced(function* (inputs: ReadonlyArray<Buffer>) {
      const held: Array<ReferenceBuffer> = []
      for (const b of inputs) held.push(yield* holding(b))
      const values = held.map((b) => b.value ?? Host.fromBytes(b.type.axes, b.type.dtype, new Uint8Array(b.bytes)))
      const results = yield* Effect.try({
        try: () => Evaluate.runUnsafe(program, values),
        catch: (error) => new DeviceError({ backend: "reference", reason: "LaunchFailed", detail: String(error) })
      })
      return program.outputs.map((o, i) => {
        const from = donor.get(i)
        const value = Host.reorder(results[i]!, from === undefined ? o.type.axes : held[from]!.type.axes)
        if (from === undefined) return make(o.type, value)
        held[from]!.value = value
        return held[from]!
      })
    })
    return Effect.succeed({
      run,
      profile: (inputs: ReadonlyArray<Buffer>) => Effect.as(run(inputs), []),
      cost: Program.cost(program),
      arenaBytes: 0,
      outputBytes: program.outputs.reduce((n, o) => n + bytesOf(o.type), 0),
      launches: program.equations.length
    })
  },
  allocate: (type) => Effect.sync(() => make(type, null)),
  write: (buffer, bytes) =>
    Effect.map(holding(buffer), (b) => {
      b.value = Host.fromBytes(b.type.axes, b.type.dtype, bytes)
    }),
  read: (buffer) =>
    Effect.map(holding(buffer), (b) =>
      b.value === null ? new Uint8Array(b.bytes) : Host.toBytes(Host.reorder(b.value, b.type.axes))
    )
})
