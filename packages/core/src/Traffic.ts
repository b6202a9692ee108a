/** What the ranks of a program do together: every collective with how often it runs and the bytes that a rank puts on the wire. */
import * as Axis from "./Axis.ts"
import type { DType } from "./DType.ts"
import type { Body, Equation, Role } from "./Node.ts"
import { moves } from "./primitives/collective.ts"

/** Equations of one kind, mesh axis, storage type and purpose. */
export interface Traffic {
  readonly collective: string
  readonly meshAxis: string
  readonly dtype: DType
  /** What the results are for: gathered parameters, gradients, optimizer state, the computation itself. */
  readonly role: Role
  /** Runs in one pass through the program. */
  readonly count: number
  /** Tensors that travel, some together in one collective. */
  readonly tensors: number
  /** Bytes that a rank sends. */
  readonly bytes: number
}

/** Traffic of a program of one rank, most bytes first. Numbers (the sums of losses and norms) come last, as one line for each mesh axis. */
export const of = (body: Body): ReadonlyArray<Traffic> => {
  const lines = new Map<string, Traffic>()
  walk(body, 1, (e, times) => {
    const { meaning } = e.primitive
    if (meaning.kind !== "collective") return
    const [ins, outs] = [e.inputs.map((x) => x.type), e.outputs.map((x) => x.type)]
    const [first] = e.outputs
    const own = {
      collective: e.primitive.name,
      meshAxis: e.params.meshAxis as string,
      dtype: first!.type.dtype,
      role: first!.role
    }
    const number = outs.every((t) => Axis.count(t.axes) === 1)
    const key = `${own.collective} ${own.meshAxis} ${own.dtype} ${number ? "number" : own.role}`
    const known = lines.get(key) ?? { ...own, count: 0, tensors: 0, bytes: 0 }
    lines.set(key, {
      ...known,
      count: known.count + times,
      tensors: known.tensors + times * e.inputs.length,
      bytes: known.bytes + times * meaning.wire(ins, outs, e.params)
    })
  })
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
