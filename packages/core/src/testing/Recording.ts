/** Every value of a run, in the order in which it was computed. */
import type * as Evaluate from "../Evaluate.ts"
import type { AnyTensor, Body, Equation, Lockstep } from "../Node.ts"

export interface Recorded {
  readonly equation: Equation
  readonly output: number
  /** Where the equation runs again and again, in which repetition, from 0. */
  readonly occurrence: number
  readonly value: Lockstep
}

export class Recording {
  readonly all: Array<Recorded> = []
  private readonly byTensor = new Map<AnyTensor, Array<Lockstep>>()

  readonly observe: Evaluate.Observer = (equation, results) => {
    for (const [output, tensor] of equation.outputs.entries()) {
      const known = this.byTensor.get(tensor) ?? []
      const value = results[output]!
      const occurrence = known.push(value) - 1
      this.byTensor.set(tensor, known)
      this.all.push({ equation, output, occurrence, value })
    }
  }

  /** The values of a tensor, one for each time that it was computed. */
  of(tensor: AnyTensor): ReadonlyArray<Lockstep> {
    return this.byTensor.get(tensor) ?? []
  }

  /** Every tensor with its values. */
  get tensors(): Iterable<readonly [AnyTensor, ReadonlyArray<Lockstep>]> {
    return this.byTensor
  }
}

/**
 * The equations of a program, in bodies of regions too, that depend on an input. What composites consist of does not stand in the program, and what is
 * made of constants alone depends on sizes, which may well differ.
 */
export const equationsOf = (body: Body): ReadonlySet<Equation> => {
  const found = new Set<Equation>()
  const bodies = [body]
  while (bodies.length > 0) {
    const { equations, inputs } = bodies.pop()!
    const open = new Set<AnyTensor>(inputs)
    for (const e of equations) {
      if (!e.inputs.some((x) => open.has(x))) continue
      found.add(e)
      for (const o of e.outputs) open.add(o)
      if (e.primitive.meaning.kind === "region") bodies.push(...e.primitive.meaning.bodies(e.params))
    }
  }
  return found
}
