/** Evaluation equation by equation, in bodies of regions too, where somebody looks at the operands and may replace them. */
import * as Evaluate from "../Evaluate.ts"
import type { HostArray } from "../HostArray.ts"
import type { AnyTensor, Body, Equation, Lockstep } from "../Node.ts"

export interface Visitor {
  /** Before an equation runs: what it is given, and the how many-th time, from 0. Gives what it shall be given instead. */
  readonly before?: (
    equation: Equation,
    operands: ReadonlyArray<HostArray>,
    occurrence: number
  ) => ReadonlyArray<HostArray>
  /** After an equation has run; those inside of a region come before the region. */
  readonly after?: (equation: Equation, operands: ReadonlyArray<HostArray>, occurrence: number) => void
}

/** Values of the outputs on one device. */
export const walk = (body: Body, inputs: ReadonlyArray<HostArray>, visitor: Visitor): ReadonlyArray<HostArray> => {
  const times = new Map<Equation, number>()
  const run = (inner: Body, xs: ReadonlyArray<HostArray>): ReadonlyArray<HostArray> => {
    const env = new Map<AnyTensor, HostArray>(inner.inputs.map((x, i) => [x, xs[i]!]))
    for (const e of inner.equations) {
      const occurrence = times.get(e) ?? 0
      times.set(e, occurrence + 1)
      const given = e.inputs.map((x) => env.get(x)!)
      const operands = visitor.before?.(e, given, occurrence) ?? given
      const results = evaluate(e, operands, run)
      e.outputs.forEach((o, i) => env.set(o, results[i]!))
      visitor.after?.(e, operands, occurrence)
    }
    return inner.outputs.map((o) => env.get(o)!)
  }
  return run(body, inputs)
}

const evaluate = (
  e: Equation,
  operands: ReadonlyArray<HostArray>,
  run: (body: Body, xs: ReadonlyArray<HostArray>) => ReadonlyArray<HostArray>
): ReadonlyArray<HostArray> => {
  const { meaning } = e.primitive
  if (meaning.kind === "region") {
    const call = (body: Body, xs: ReadonlyArray<Lockstep>) =>
      run(
        body,
        xs.map((x) => x[0]!)
      ).map((x) => [x])
    const types = e.outputs.map((o) => o.type)
    return meaning
      .evaluate(
        operands.map((x) => [x]),
        e.params,
        call,
        types
      )
      .map((x) => x[0]!)
  }
  const alone: Body = { inputs: e.inputs, outputs: e.outputs, equations: [e] }
  return Evaluate.runUnsafe(alone, operands)
}
