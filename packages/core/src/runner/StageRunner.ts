/** A step of one stage of a pipeline: its ticks in order, messages to the stages beside it, then the update that all ranks do together. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Pipelined } from "../Distribute.ts"
import type { CompileError, DeviceError } from "../Errors.ts"
import * as Mesh from "../Mesh.ts"
import type { TensorType } from "../Node.ts"
import type { PipelineStep } from "../pipeline/PipelineStep.ts"
import type { ChunkPrograms, Slot } from "../pipeline/StageProgram.ts"
import * as StageProgram from "../pipeline/StageProgram.ts"
import * as Program from "../Program.ts"
import { Backend, type Buffer, type Executable } from "../services/Backend.ts"
import { Collectives, type CollectivesService } from "../services/Collectives.ts"
import * as Tree from "../Tree.ts"
import { readMetrics, writeScalars } from "./SpreadRunner.ts"
import * as StageNeeds from "./StageNeeds.ts"
import type { Held, Made } from "./StepRunner.ts"

interface ChunkRunner extends ChunkPrograms {
  readonly run: { readonly forward: Executable; readonly backward: Executable }
  /** Memory for microbatches between their forward and their backward pass, as many as there are at once. */
  readonly slots: ReadonlyArray<Kept>
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
  distributed: Pipelined
): Effect.fn.Return<Made, CompileError | DeviceError, Backend | Scope.Scope> {
  const { step } = distributed
  const backend = yield* Backend
  const collectives = yield* Collectives
  const stage = Math.floor(collectives.rank / Mesh.rankCount(step.inner))
  const needs = StageNeeds.of(step, stage)
  // Programs run one after another in one work space.
  const workspace = yield* backend.workspace
  const compiled = ({ options, program }: StageNeeds.Job) => backend.compile(program, { ...options, workspace })
  const memory = yield* memoryOf(step, needs, compiled)
  const update = yield* compiled(needs.update)
  const deal = dealer(needs, yield* compiled(needs.deal), step.microbatches)
  const count = memory.held.length
  const metrics = Tree.paths(needs.update.program.outTree)
    .slice(count)
    .map((path) => path.slice("metrics/".length))
  return {
    distributed,
    storage: step.storage,
    held: memory.held,
    batch: needs.batch,
    metrics,
    digest: Program.fingerprint(
      [
        ...[step.update.body, ...step.chunks.flatMap((c) => [c.forward.body, c.backward.body])].map(Program.digest),
        JSON.stringify(step.ticks)
      ].join()
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

const memoryOf = Effect.fnUntraced(function* (
  step: PipelineStep,
  { chunks: wanted, totals }: StageNeeds.StageNeeds,
  compiled: (job: StageNeeds.Job) => Effect.Effect<Executable, CompileError | DeviceError, Scope.Scope>
) {
  const backend = yield* Backend
  const all = (types: ReadonlyArray<TensorType>) => Effect.forEach(types, (t) => backend.allocate(t))
  const held: Array<Held> = []
  for (const [i, { kind, name }] of step.storage.physical.entries()) {
    const local = step.update.body.inputs[i]!.type
    const { type } = step.updateProgram.inputs[i]!
    held.push({ name, kind, type, layout: step.update.inputLayouts[i]!, local, buffer: yield* backend.allocate(local) })
  }
  const chunks: Array<ChunkRunner> = []
  for (const { alive, backward, forward, programs, residuals } of wanted) {
    const run = { forward: yield* compiled(forward), backward: yield* compiled(backward) }
    const slots: Array<Kept> = []
    for (let k = 0; k < alive; k++)
      slots.push({ received: yield* all(programs.received), residuals: yield* all(residuals) })
    chunks.push({ ...programs, run, slots, cotangents: yield* all(programs.returned) })
  }
  const memory: Memory = {
    held,
    sums: yield* all(totals.sums),
    gradients: yield* all(totals.gradients),
    scalars: yield* all(step.inputs.slice(-4)),
    chunks
  }
  return memory
})

/** Cuts a rank's part of a batch into microbatches: those of number m are the examples whose number leaves the rest m. */
const dealer = ({ dealt }: StageNeeds.StageNeeds, executable: Executable, count: number) =>
  Effect.fnUntraced(function* (given: ReadonlyArray<Buffer>) {
    const parts = yield* executable.run(given.filter((_, i) => dealt[i]))
    let at = 0
    const own = given.map((buffer, i) => {
      if (!dealt[i]) return Array.from({ length: count }, () => buffer)
      at += count
      return parts.slice(at - count, at)
    })
    return Array.from({ length: count }, (_, m) => own.map((leaf) => leaf[m]!)) as Microbatches
  })

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
  // An earlier step may have ended with some of them in use.
  const free = memory.chunks.map((chunk) => [...chunk.slots])
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
      const kept = free[chunk]!.pop()!
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
    free[chunk]!.push(kept)
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
