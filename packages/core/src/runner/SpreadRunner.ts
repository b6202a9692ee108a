/** A step of which every rank runs the same program. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Spread } from "../Distribute.ts"
import type { CompileError, DeviceError } from "../Errors.ts"
import * as Host from "../HostArray.ts"
import * as Program from "../Program.ts"
import { Backend, type Buffer } from "../services/Backend.ts"
import type { Strategy } from "../Strategy.ts"
import * as Tree from "../Tree.ts"
import type { Held, Part, Scalars, Made } from "./StepRunner.ts"

export const make = Effect.fnUntraced(function* (
  spread: Spread,
  strategy: Strategy
): Effect.fn.Return<Made, CompileError | DeviceError, Backend | Scope.Scope> {
  const backend = yield* Backend
  const { local, step } = spread
  const { donated, program, storage } = step
  const executable = yield* backend.compile(local.program, {
    donated,
    prefetch: strategy.fsdp?.prefetch ?? 0
  })
  const names = Tree.paths(program.inTree)
  const part = (i: number, name: string): Part => ({
    name,
    type: program.inputs[i]!.type,
    layout: local.inputLayouts[i]!,
    local: local.program.inputs[i]!.type
  })
  const held: Array<Held> = []
  for (const [i, { kind, name }] of storage.physical.entries()) {
    const own = part(i, name)
    held.push({ ...own, kind, buffer: yield* backend.allocate(own.local) })
  }
  const count = held.length
  const scalars: Array<Buffer> = []
  for (const { type } of program.inputs.slice(-4)) scalars.push(yield* backend.allocate(type))
  const metrics = Tree.paths(program.outTree)
    .slice(count)
    .map((path) => path.slice("metrics/".length))
  return {
    distributed: spread,
    storage,
    held,
    batch: names.slice(count, -4).map((path, i) => part(count + i, path.slice("batch/".length))),
    metrics,
    digest: Program.digest(local.program),
    run: (batch, values) =>
      Effect.gen(function* () {
        yield* writeScalars(scalars, values)
        const outputs = yield* executable.run([...held.map((h) => h.buffer), ...batch, ...scalars])
        return yield* readMetrics(metrics, outputs.slice(count))
      }).pipe(Effect.provideService(Backend, backend))
  }
})

/** In the order of a step's inputs. */
export const writeScalars = Effect.fnUntraced(function* (buffers: ReadonlyArray<Buffer>, values: Scalars) {
  const backend = yield* Backend
  const order = [values.learningRate, values.step, values.seed, values.lossScale]
  for (const [i, buffer] of buffers.entries())
    yield* backend.write(buffer, Host.toBytes(Host.scalar(order[i]!, buffer.type.dtype)))
})

export const readMetrics = Effect.fnUntraced(function* (names: ReadonlyArray<string>, buffers: ReadonlyArray<Buffer>) {
  const backend = yield* Backend
  const metrics: Record<string, number> = {}
  for (const [i, name] of names.entries()) {
    const { axes, dtype } = buffers[i]!.type
    metrics[name] = Host.fromBytes(axes, dtype, yield* backend.read(buffers[i]!)).data[0]!
  }
  return metrics
})
