/** What the ranks of a step do together: every collective with how often it runs and the bytes that a rank puts on the wire. */
import * as Axis from "./Axis.ts"
import type { Distributed, Pipelined } from "./Distribute.ts"
import type { DType } from "./DType.ts"
import type { AnyTensor, Body, Equation, Role } from "./Node.ts"
import { bytesOf } from "./Node.ts"
import { moves } from "./primitives/collective.ts"

/** Equations of one kind, mesh axis, storage type and purpose. */
export interface Traffic {
  /** Name of the collective, or "send": of boundary values to the stages beside it. */
  readonly collective: string
  readonly meshAxis: string
  readonly dtype: DType
  /** What travels: gathered parameters, gradients, optimizer state (norms and reduced gradients), what is computed, or single numbers. */
  readonly what: Role | "numbers"
  /** Runs in one step. */
  readonly count: number
  /** Tensors that travel, some together in one collective. */
  readonly tensors: number
  /** Bytes that a rank sends. */
  readonly bytes: number
}

/** Traffic of one rank in one step; in a pipeline of a rank of a stage, stage 0 unless told otherwise. Most bytes first. */
export const of = (distributed: Distributed, stage = 0): ReadonlyArray<Traffic> =>
  distributed.kind === "spread" ? ofBody(distributed.local.program) : ofStage(distributed, stage)

/** Traffic of a program of one rank. */
export const ofBody = (body: Body): ReadonlyArray<Traffic> => summed(collectivesOf(body, 1))

const ofStage = ({ step }: Pipelined, stage: number): ReadonlyArray<Traffic> => {
  const { chunks, microbatches, pipeline, stages } = step
  const last = chunks.length - 1
  const send = (tensors: ReadonlyArray<AnyTensor>): ReadonlyArray<Traffic> =>
    stages === 1
      ? []
      : tensors.map((x) => ({
          collective: "send",
          meshAxis: pipeline.meshAxis,
          dtype: x.type.dtype,
          what: "compute",
          count: microbatches,
          tensors: microbatches,
          bytes: microbatches * bytesOf(x.type)
        }))
  const own = chunks.flatMap((c, i) => {
    if (i % stages !== stage) return []
    const back = c.backward.body.outputs.slice(0, c.differentiable.filter(Boolean).length)
    return [
      ...collectivesOf(c.forward.body, microbatches),
      ...collectivesOf(c.backward.body, microbatches),
      ...(i < last ? send(c.forward.body.outputs.slice(0, c.outputs)) : []),
      ...(i > 0 ? send(back) : [])
    ]
  })
  return summed([...own, ...collectivesOf(step.update.body, 1)])
}

const collectivesOf = (body: Body, times: number): ReadonlyArray<Traffic> => {
  const all: Array<Traffic> = []
  walk(body, times, (e, count) => {
    const { meaning } = e.primitive
    if (meaning.kind !== "collective") return
    const [ins, outs] = [e.inputs.map((x) => x.type), e.outputs.map((x) => x.type)]
    const [first] = e.outputs
    all.push({
      collective: e.primitive.name,
      meshAxis: e.params.meshAxis as string,
      dtype: first!.type.dtype,
      what: outs.every((t) => Axis.count(t.axes) === 1) ? "numbers" : first!.role,
      count,
      tensors: count * e.inputs.length,
      bytes: count * meaning.wire(ins, outs, e.params)
    })
  })
  return all
}

const summed = (all: ReadonlyArray<Traffic>): ReadonlyArray<Traffic> => {
  const lines = new Map<string, Traffic>()
  for (const t of all) {
    const key = `${t.collective} ${t.meshAxis} ${t.dtype} ${t.what}`
    const known = lines.get(key)
    const next =
      known === undefined
        ? t
        : { ...known, count: known.count + t.count, tensors: known.tensors + t.tensors, bytes: known.bytes + t.bytes }
    lines.set(key, next)
  }
  return [...lines.values()].sort((a, b) => b.bytes - a.bytes)
}

/** Every collective that moves something, with its repetitions. */
const walk = (body: Body, times: number, visit: (e: Equation, times: number) => void): void => {
  for (const e of body.equations) {
    if (moves(e.primitive)) visit(e, times)
    const { meaning } = e.primitive
    if (meaning.kind !== "region") continue
    const repeat = typeof e.params.size === "number" ? e.params.size : 1
    for (const b of meaning.bodies(e.params)) walk(b, times * repeat, visit)
  }
}
