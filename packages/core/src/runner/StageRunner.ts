/** A step of one stage of a pipeline: its ticks in order, messages to the stages beside it, then the update that all ranks do together. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Axis from "../Axis.ts"
import type { Pipelined } from "../Distribute.ts"
import type { CompileError, DeviceError } from "../Errors.ts"
import type { Layout } from "../Layout.ts"
import * as Layouts from "../Layout.ts"
import * as Mesh from "../Mesh.ts"
import type { AnyTensor, TensorType } from "../Node.ts"
import { build, input } from "../Node.ts"
import type { PipelineStep } from "../pipeline/PipelineStep.ts"
import type { ChunkPrograms, Slot } from "../pipeline/StageProgram.ts"
import * as StageProgram from "../pipeline/StageProgram.ts"
import type { Tick } from "../pipeline/Ticks.ts"
import { mergeP, sliceP, splitP } from "../primitives/axes.ts"
import * as Program from "../Program.ts"
import { Backend, type Buffer, type Executable } from "../services/Backend.ts"
import { Collectives, type CollectivesService } from "../services/Collectives.ts"
import type { BatchTypes } from "../step/Config.ts"
import { isType } from "../step/Config.ts"
import * as Tree from "../Tree.ts"
import { readMetrics, writeScalars } from "./SpreadRunner.ts"
import type { Held, Part, StepRunner } from "./StepRunner.ts"

interface ChunkRunner extends ChunkPrograms {
  readonly run: { readonly forward: Executable; readonly backward: Executable }
  /** Memory for microbatches between their forward and their backward pass, as many as there are at once. */
  readonly free: Array<Kept>
  /** What comes back from the chunk after. */
  readonly cotangents: ReadonlyArray<Buffer>
}

/** What a chunk keeps of one microbatch. */
interface Kept {
  readonly received: ReadonlyArray<Buffer>
  readonly residuals: ReadonlyArray<Buffer>
}

/** The memory of a stage. */
interface Memory {
  readonly held: ReadonlyArray<Held>
  readonly sums: ReadonlyArray<Buffer>
  readonly gradients: ReadonlyArray<Buffer>
  /** Learning rate, step, seed, loss scale. */
  readonly scalars: ReadonlyArray<Buffer>
  readonly chunks: ReadonlyArray<ChunkRunner>
}

/** Leaves of the batch by microbatch. */
type Microbatches = ReadonlyArray<ReadonlyArray<Buffer>>

export const make = Effect.fnUntraced(function* (
  distributed: Pipelined,
  batchTypes: BatchTypes
): Effect.fn.Return<StepRunner, CompileError | DeviceError, Backend | Scope.Scope> {
  const { step } = distributed
  const backend = yield* Backend
  const collectives = yield* Collectives
  const stage = Math.floor(collectives.rank / Mesh.rankCount(step.inner))
  const memory = yield* memoryOf(step, stage)
  const program = Program.withBody(step.updateProgram, step.update.body)
  const count = memory.held.length
  const update = yield* backend.compile(program, { donated: memory.held.map((_, i) => [i, i] as const) })
  const [, shape] = Tree.flatten<TensorType, BatchTypes>(batchTypes, isType)
  const batch = batchParts(step, Tree.paths(shape))
  const deal = yield* dealer(batch, step.microbatches)
  const metrics = Tree.paths(program.outTree)
    .slice(count)
    .map((path) => path.slice("metrics/".length))
  return {
    distributed,
    storage: step.storage,
    held: memory.held,
    batch,
    metrics,
    digest: Program.fingerprint(
      [step.update.body, ...step.chunks.flatMap((c) => [c.forward.body, c.backward.body])].map(Program.digest).join()
    ),
    run: (given, scalars) =>
      Effect.gen(function* () {
        yield* writeScalars(memory.scalars, scalars)
        for (const b of [...memory.sums, ...memory.gradients]) yield* backend.write(b, new Uint8Array(b.bytes))
        yield* ticks(step, stage, memory, yield* deal(given))
        const [learningRate, number, , lossScale] = memory.scalars as readonly [Buffer, Buffer, Buffer, Buffer]
        const ends = [learningRate, number, lossScale, ...memory.sums, ...memory.gradients]
        const outputs = yield* update.run([...memory.held.map((h) => h.buffer), ...ends])
        return yield* readMetrics(metrics, outputs.slice(count))
      }).pipe(Effect.provideService(Backend, backend), Effect.provideService(Collectives, collectives))
  }
})

const memoryOf = Effect.fnUntraced(function* (step: PipelineStep, stage: number) {
  const backend = yield* Backend
  const all = (types: ReadonlyArray<TensorType>) => Effect.forEach(types, (t) => backend.allocate(t))
  const held: Array<Held> = []
  for (const [i, { kind, name }] of step.storage.physical.entries()) {
    const local = step.update.body.inputs[i]!.type
    const { type } = step.updateProgram.inputs[i]!
    held.push({ name, kind, type, layout: step.update.inputLayouts[i]!, local, buffer: yield* backend.allocate(local) })
  }
  const chunks: Array<ChunkRunner> = []
  for (const [i, own] of StageProgram.programsOf(step, stage).entries()) {
    const { outputs, program } = own.forward
    const residuals = outputs.flatMap((s, k) => (s.kind === "residual" ? [k] : []))
    const forward = yield* backend.compile(program, { donated: accumulated(own.forward), bound: residuals })
    const backward = yield* backend.compile(own.backward.program, { donated: accumulated(own.backward) })
    const free: Array<Kept> = []
    for (let k = 0; k < mostAlive(step.ticks[stage]!, i); k++) {
      const types = residuals.map((r) => program.outputs[r]!.type)
      free.push({ received: yield* all(own.received), residuals: yield* all(types) })
    }
    chunks.push({ ...own, run: { forward, backward }, free, cotangents: yield* all(own.returned) })
  }
  const totals = StageProgram.totalsOf(step)
  const memory: Memory = {
    held,
    sums: yield* all(totals.sums),
    gradients: yield* all(totals.gradients),
    scalars: yield* all(step.inputs.slice(-4)),
    chunks
  }
  return memory
})

/** Sums that are added up where they stand. */
const accumulated = ({ inputs, outputs }: StageProgram.StageProgram): ReadonlyArray<readonly [number, number]> =>
  outputs.flatMap((slot, output) => {
    if (slot.kind !== "sum" && slot.kind !== "gradient") return []
    const from = inputs.findIndex((s) => StageProgram.nameOf(s) === StageProgram.nameOf(slot))
    return [[from, output] as const]
  })

/** Microbatches of a chunk that are between their two passes at one time. */
const mostAlive = (own: ReadonlyArray<Tick>, chunk: number): number => {
  let [now, most] = [0, 0]
  for (const t of own) {
    if (t.chunk !== chunk) continue
    now += t.pass === "forward" ? 1 : -1
    most = Math.max(most, now)
  }
  return most
}

/** How the leaves of a batch lie on the ranks: as the chunks that read them say. */
const batchParts = (step: PipelineStep, names: ReadonlyArray<string>): ReadonlyArray<Part> => {
  const { held, parameters } = step.counts
  const none = Layouts.whole(step.mesh)
  return names.map((name, i) => {
    const type = step.inputs[held + i]!
    const inner = step.chunks.flatMap(({ chunk, forward }) => {
      const at = chunk.given.findIndex((g) => g.index === parameters + i)
      return at < 0 ? [] : [forward.inputLayouts[chunk.boundary + at]!]
    })[0]
    const layout: Layout = inner === undefined ? none : new Map([...none, ...inner])
    return { name, type, layout, local: Layouts.localType(type, layout, step.mesh, `batch.${name}`) }
  })
}

/** Cuts a rank's part of a batch into microbatches: those of number m are the examples whose number leaves the rest m. */
const dealer = Effect.fnUntraced(function* (batch: ReadonlyArray<Part>, count: number) {
  const backend = yield* Backend
  const dealt = batch.map(({ local }) => count > 1 && Axis.has(local.axes, "batch"))
  const cut = batch.flatMap(({ local }, i) => (dealt[i] ? [input(local)] : []))
  const program = Program.make(
    cut,
    cut.flatMap((x) => Array.from({ length: count }, (_, m) => microbatch(x, m, count)))
  )
  const executable = yield* backend.compile(program)
  return Effect.fnUntraced(function* (given: ReadonlyArray<Buffer>) {
    const parts = yield* executable.run(given.filter((_, i) => dealt[i]))
    let at = 0
    const own = given.map((buffer, i) => {
      if (!dealt[i]) return Array.from({ length: count }, () => buffer)
      at += count
      return parts.slice(at - count, at)
    })
    return Array.from({ length: count }, (_, m) => own.map((leaf) => leaf[m]!)) as Microbatches
  })
})

const microbatch = (x: AnyTensor, index: number, count: number): AnyTensor => {
  const apart = build(splitP, [x], { axis: "batch", outer: "batch", inner: "micro", size: count }, "compute")
  const one = build(sliceP, apart, { axis: "micro", to: "micro", start: index, size: 1 }, "compute")
  return build(mergeP, one, { axis: "batch", outer: "batch", inner: "micro" }, "compute")[0]!
}

/** All passes of a stage, in the order of its schedule. */
const ticks = Effect.fnUntraced(function* (
  step: PipelineStep,
  stage: number,
  memory: Memory,
  microbatches: Microbatches
) {
  const collectives = yield* Collectives
  const mail = mailOf(step, collectives)
  const alive = new Map<string, Kept>()
  const last = step.chunks.length - 1
  const operand =
    (own: ChunkRunner, kept: Kept, m: number) =>
    (slot: Slot): Buffer => {
      switch (slot.kind) {
        case "boundary":
          return kept.received[slot.index]!
        case "cotangent":
          return own.cotangents[slot.index]!
        case "residual":
          return kept.residuals[slot.index]!
        case "parameter":
          return memory.held[slot.index]!.buffer
        case "batch":
          return microbatches[m]![slot.index]!
        case "seed":
          return memory.scalars[2]!
        case "lossScale":
          return memory.scalars[3]!
        case "sum":
          return memory.sums[slot.index]!
        case "gradient":
          return memory.gradients[slot.index]!
      }
    }
  const sent = (program: StageProgram.StageProgram, outputs: ReadonlyArray<Buffer>, kind: Slot["kind"]) =>
    outputs.filter((_, i) => program.outputs[i]!.kind === kind)
  for (const { chunk, microbatch: m, pass } of step.ticks[stage]!) {
    const own = memory.chunks[chunk]!
    const c = own.number
    if (pass === "forward") {
      const kept = own.free.pop()!
      alive.set(`${c} ${m}`, kept)
      if (c > 0) yield* mail.receive(c - 1, `forward ${c} ${m}`, kept.received)
      const { forward } = own
      const outputs = yield* own.run.forward.run(forward.inputs.map(operand(own, kept, m)), kept.residuals)
      if (c < last) yield* mail.send(c + 1, `forward ${c + 1} ${m}`, sent(forward, outputs, "boundary"))
      continue
    }
    const kept = alive.get(`${c} ${m}`)!
    if (c < last) yield* mail.receive(c + 1, `backward ${c} ${m}`, own.cotangents)
    const { backward } = own
    const outputs = yield* own.run.backward.run(backward.inputs.map(operand(own, kept, m)))
    if (c > 0) yield* mail.send(c - 1, `backward ${c - 1} ${m}`, sent(backward, outputs, "cotangent"))
    alive.delete(`${c} ${m}`)
    own.free.push(kept)
  }
})

/** Messages between chunks. A stage that holds both keeps them itself. */
const mailOf = (step: PipelineStep, collectives: CollectivesService) => {
  const inner = Mesh.rankCount(step.inner)
  const rankOf = (chunk: number) => (chunk % step.stages) * inner + (collectives.rank % inner)
  const own = new Map<string, ReadonlyArray<Uint8Array>>()
  const message = (chunk: number, tag: string) => ({ peer: rankOf(chunk), tag, line: `pipeline, ${tag}` })
  const spans = Effect.fnUntraced(function* (buffers: ReadonlyArray<Buffer>) {
    const backend = yield* Backend
    return yield* Effect.forEach(buffers, (b) => backend.span(b))
  })
  return {
    send: Effect.fnUntraced(function* (chunk: number, tag: string, buffers: ReadonlyArray<Buffer>) {
      const from = yield* spans(buffers)
      if (rankOf(chunk) !== collectives.rank) return yield* collectives.send(message(chunk, tag), from)
      own.set(
        tag,
        from.map((span) => span.read())
      )
    }),
    receive: Effect.fnUntraced(function* (chunk: number, tag: string, buffers: ReadonlyArray<Buffer>) {
      const to = yield* spans(buffers)
      if (rankOf(chunk) !== collectives.rank) return yield* collectives.receive(message(chunk, tag), to)
      to.forEach((span, i) => span.write(own.get(tag)![i]!))
      own.delete(tag)
    })
  }
}
