/** Where two runs of one program part: the first equation of the program for one device whose values ranks do not agree with. */
import * as Axis from "../Axis.ts"
import * as Evaluate from "../Evaluate.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import * as Layout from "../Layout.ts"
import type * as Mesh from "../Mesh.ts"
import type { AnyTensor, Body, Equation, Lockstep } from "../Node.ts"
import type { Lowered } from "../Partition.ts"
import { relative } from "./compare.ts"

/** A global value and what ranks make of it. */
export interface Difference {
  readonly equation: Equation
  readonly output: number
  /** Where it runs again and again, in which repetition, from 0. */
  readonly occurrence: number
  readonly layout: Layout.Layout
  readonly distance: number
  readonly expected: HostArray
  readonly found: HostArray
}

/** Values of every tensor, one for each time that it was computed. */
class Recording {
  readonly values = new Map<AnyTensor, Array<Lockstep>>()
  readonly order: Array<readonly [Equation, number]> = []
  readonly observe: Evaluate.Observer = (equation, results) => {
    let occurrence = 0
    equation.outputs.forEach((o, i) => {
      const all = this.values.get(o) ?? []
      occurrence = all.push(results[i]!) - 1
      this.values.set(o, all)
    })
    this.order.push([equation, occurrence])
  }
}

/** The first equation, in the order in which one device runs, of which some version on the ranks differs; null when none does. */
export const firstDifference = (
  global: { readonly body: Body; readonly inputs: ReadonlyArray<HostArray> },
  local: { readonly lowered: Lowered; readonly inputs: ReadonlyArray<Lockstep>; readonly mesh: Mesh.Mesh },
  tolerance: number
): Difference | null => {
  const [one, many] = [new Recording(), new Recording()]
  Evaluate.lockstep(
    global.body,
    global.inputs.map((x) => [x]),
    [],
    one.observe
  )
  Evaluate.lockstep(local.lowered.body, local.inputs, local.mesh, many.observe)
  for (const [equation, occurrence] of one.order) {
    for (const [output, o] of equation.outputs.entries()) {
      const expected = one.values.get(o)![occurrence]![0]!
      for (const { layout, tensor } of local.lowered.held.get(o) ?? []) {
        const value = many.values.get(tensor)?.[occurrence]
        if (value === undefined) continue
        const { array, disagreement } = Layout.collect(value, layout, local.mesh)
        const distance = Math.max(relative(expected, array), disagreement)
        if (distance > tolerance) return { equation, output, occurrence, layout, distance, expected, found: array }
      }
    }
  }
  return null
}

const numbers = (x: HostArray): string =>
  `[${Array.from(x.data.subarray(0, 8), (v) => Number(v.toPrecision(6))).join(", ")}${x.data.length > 8 ? ", ..." : ""}]`

/** On a few lines: the equation with its operands, the layout, both values. */
export const print = (d: Difference): string => {
  const { equation: e, expected } = d
  const type = (x: AnyTensor) => `${x.type.dtype}${Axis.print(x.type.axes)}`
  const params = e.primitive.meaning.kind === "region" ? "" : ` ${JSON.stringify(e.params)}`
  return [
    `first different: ${type(e.outputs[d.output]!)} = ${e.primitive.name}(${e.inputs.map(type).join(", ")})${params}`,
    `  held as: ${Layout.print(d.layout)}${d.occurrence > 0 ? `, repetition ${d.occurrence}` : ""}, differs by ${d.distance.toExponential(1)}`,
    `  one device: ${numbers(expected)}`,
    `  ranks:      ${numbers(Host.reorder(d.found, expected.axes))}`
  ].join("\n")
}
