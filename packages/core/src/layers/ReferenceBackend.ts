/** The evaluator as a backend: exact and slow, for comparison. Runs only when asked for. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { CompileError, DeviceError } from "../Errors.ts"
import * as Evaluate from "../Evaluate.ts"
import * as Host from "../HostArray.ts"
import type { TensorType } from "../Node.ts"
import { bytesOf } from "../Node.ts"
import * as Program from "../Program.ts"
import { peakOf } from "../plan/Peak.ts"
import type { Buffer, Outline } from "../services/Backend.ts"
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

/** The evaluator plans no memory. */
const outline = (program: Program.Body): Outline => ({
  arenaBytes: 0,
  peak: peakOf([], () => "compute"),
  outputBytes: program.outputs.reduce((n, o) => n + bytesOf(o.type), 0),
  launches: program.equations.length
})

const bytesIn = (b: ReferenceBuffer): Uint8Array =>
  b.value === null ? new Uint8Array(b.bytes) : Host.toBytes(Host.reorder(b.value, b.type.axes))

/** The first equation that needs other ranks, as text, or null. */
const collectiveOf = (body: Program.Body): string | null => {
  for (const e of body.equations) {
    const { meaning } = e.primitive
    if (meaning.kind === "collective") return Program.line(e)
    if (meaning.kind !== "region") continue
    for (const b of meaning.bodies(e.params)) {
      const found = collectiveOf(b)
      if (found !== null) return found
    }
  }
  return null
}

export const layer: Layer.Layer<Backend> = Layer.succeed(Backend, {
  name: "reference",
  description: "reference evaluator, float64, one thread",
  compile: (program, options = {}) => {
    const together = collectiveOf(program)
    if (together !== null) {
      const detail = `${together} needs several ranks at once; Simulate.step runs them in lockstep`
      return Effect.fail(new CompileError({ backend: "reference", reason: "MeshMismatch", detail }))
    }
    const donor = new Map((options.donated ?? []).map(([from, to]) => [to, from]))
    const places = new Map((options.bound ?? []).map((output, i) => [output, i]))
    const run = Effect.fnUntraced(function* (inputs: ReadonlyArray<Buffer>, bound: ReadonlyArray<Buffer> = []) {
      const held: Array<ReferenceBuffer> = []
      const given: Array<ReferenceBuffer> = []
      for (const b of bound) given.push(yield* holding(b))
      for (const b of inputs) held.push(yield* holding(b))
      const values = held.map((b) => b.value ?? Host.fromBytes(b.type.axes, b.type.dtype, new Uint8Array(b.bytes)))
      const results = yield* Effect.try({
        try: () => Evaluate.runUnsafe(program, values),
        catch: (error) => new DeviceError({ backend: "reference", reason: "LaunchFailed", detail: String(error) })
      })
      return program.outputs.map((o, i) => {
        const from = donor.get(i)
        const place = from === undefined ? given[places.get(i) ?? -1] : held[from]!
        const value = Host.reorder(results[i]!, place === undefined ? o.type.axes : place.type.axes)
        if (place === undefined) return make(o.type, value)
        place.value = value
        return place
      })
    })
    return Effect.succeed({
      run,
      profile: (inputs: ReadonlyArray<Buffer>, bound?: ReadonlyArray<Buffer>) => Effect.as(run(inputs, bound), []),
      cost: Program.cost(program),
      ...outline(program)
    })
  },
  outline: (program) => Effect.succeed(outline(program)),
  workspace: Effect.succeed({ bytes: 0 }),
  allocate: (type) => Effect.sync(() => make(type, null)),
  write: (buffer, bytes) =>
    Effect.map(holding(buffer), (b) => {
      b.value = Host.fromBytes(b.type.axes, b.type.dtype, bytes)
    }),
  read: (buffer) => Effect.map(holding(buffer), bytesIn),
  span: (buffer) =>
    Effect.map(holding(buffer), (b) => ({
      address: 0n,
      bytes: b.bytes,
      read: () => bytesIn(b),
      write: (bytes) => {
        b.value = Host.fromBytes(b.type.axes, b.type.dtype, bytes)
      }
    }))
})
