/** Where two runs of one program part: the first equation, in the order in which one device runs, whose value the other run does not have. */
import * as Evaluate from "../Evaluate.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import * as Layout from "../Layout.ts"
import type * as Mesh from "../Mesh.ts"
import type { Body, Equation, Lockstep } from "../Node.ts"
import type { Lowered } from "../Partition.ts"
import { relative } from "./compare.ts"
import * as Excerpt from "./Excerpt.ts"
import type { Recorded } from "./Recording.ts"
import { equationsOf, Recording } from "./Recording.ts"
import type { Sighting } from "./Sighting.ts"
import * as Sightings from "./Sighting.ts"

/** A value and what the other run makes of it. */
export interface Difference {
  readonly equation: Equation
  readonly output: number
  /** Where it runs again and again, in which repetition, from 0. */
  readonly occurrence: number
  /** How the other run holds it, where that is known. */
  readonly layout: Layout.Layout | null
  readonly distance: number
  readonly expected: HostArray
  /** Null where the other run has no value of this kind. */
  readonly found: HostArray | null
}

/** A program with its inputs. */
export interface Run {
  readonly body: Body
  readonly inputs: ReadonlyArray<HostArray>
}

/** Runs a program on one device and keeps every value. */
export const record = ({ body, inputs }: Run): Recording => {
  const recording = new Recording()
  Evaluate.lockstep(
    body,
    inputs.map((x) => [x]),
    [],
    recording.observe
  )
  return recording
}

/**
 * The values of a program's own equations, in the order in which they were computed. Those of regions come after all others: what they are made of is
 * compared by itself, and what they keep for later differs where a region is cut or runs again.
 */
const valuesOf = (body: Body, run: Recording): ReadonlyArray<Recorded> => {
  const own = equationsOf(body)
  const isRegion = ({ equation }: Recorded) => equation.primitive.meaning.kind === "region"
  const all = run.all.filter(({ equation }) => own.has(equation))
  return [...all.filter((x) => !isRegion(x)), ...all.filter(isRegion)]
}

/**
 * Of a program that was spread over ranks: compares each value with every version of it that ranks are known to hold; where none is known, it has to
 * be there in some layout.
 */
export const onRanks = (
  global: Run,
  local: { readonly lowered: Lowered; readonly inputs: ReadonlyArray<Lockstep>; readonly mesh: Mesh.Mesh },
  tolerance: number
): Difference | null => {
  const [one, many] = [record(global), new Recording()]
  Evaluate.lockstep(local.lowered.body, local.inputs, local.mesh, many.observe)
  const index = Sightings.index(Sightings.ofRun(local.lowered.body, many, local.mesh))
  for (const value of valuesOf(global.body, one)) {
    const { equation, occurrence, output } = value
    const [tensor, expected] = [equation.outputs[output]!, value.value[0]!]
    // What stands in several places of the program, such as a layer that runs again, is known of one of them only.
    const versions = (local.lowered.held.get(tensor) ?? []).filter(
      (v) => many.of(v.tensor).length === one.of(tensor).length
    )
    for (const { layout, tensor: own } of versions) {
      const { array, disagreement } = Layout.collect(many.of(own)[occurrence]!, layout, local.mesh)
      const found = { ...array, axes: array.axes.map((a) => expected.axes.find((e) => e.name === a.name) ?? a) }
      const distance = Math.max(relative(expected, found), disagreement)
      if (distance > tolerance) return { equation, output, occurrence, layout, distance, expected, found }
    }
    const absent = versions.length === 0 ? absence(value, index, tolerance) : null
    if (absent !== null) return absent
  }
  return null
}

/** The difference where a value is nowhere to be found. */
const absence = (value: Recorded, index: Sightings.Index, allowed: number): Difference | null => {
  const expected = value.value[0]!
  const nearest = Sightings.nearest(expected, value.equation.primitive.name, index, allowed)
  if (nearest !== null && nearest.distance <= allowed) return null
  const { equation, occurrence, output } = value
  const [distance, found] = nearest === null ? [Infinity, null] : [nearest.distance, nearest.array]
  return { equation, output, occurrence, layout: null, distance, expected, found }
}

/** How far a value may be off: the same for all, or one bound for each. */
export type Tolerance = number | ((value: Recorded) => number)

export interface Comparison {
  /** The values of the truth, where they are known already. */
  readonly run?: Recording
  /** Which values the other run should have; all unless given. */
  readonly relevant?: (value: Recorded) => boolean
}

/** Of programs that have nothing but values in common: the first value that the other run has nowhere. */
export const byValue = (
  truth: Run,
  sightings: ReadonlyArray<Sighting>,
  tolerance: Tolerance,
  { relevant = () => true, run = record(truth) }: Comparison = {}
): Difference | null => {
  const index = Sightings.index(sightings)
  for (const value of valuesOf(truth.body, run)) {
    if (!relevant(value)) continue
    const absent = absence(value, index, typeof tolerance === "number" ? tolerance : tolerance(value))
    if (absent !== null) return absent
  }
  return null
}

/** Of one program on other inputs: the first value that differs in any bit. */
export const onInputs = (
  body: Body,
  inputs: ReadonlyArray<HostArray>,
  others: ReadonlyArray<HostArray>
): Difference | null => {
  const [one, two] = [record({ body, inputs }), record({ body, inputs: others })]
  for (const { equation, occurrence, output, value } of valuesOf(body, one)) {
    const [expected, found] = [value[0]!, two.of(equation.outputs[output]!)[occurrence]![0]!]
    if (Host.distance(expected, found) === 0) continue
    const distance = relative(expected, found)
    return { equation, output, occurrence, layout: null, distance, expected, found }
  }
  return null
}

/** What the two sides are called. */
export interface Sides {
  readonly expected: string
  readonly found: string
}

const numbers = (x: HostArray): string =>
  `[${Array.from(x.data.subarray(0, 8), (v) => Number(v.toPrecision(6))).join(", ")}${x.data.length > 8 ? ", ..." : ""}]`

/** The end of the program up to the equation, where it stands, and both values. */
export const print = (
  d: Difference,
  body: Body,
  sides: Sides = { expected: "one device", found: "ranks" },
  names: Excerpt.Names = new Map()
): ReadonlyArray<string> => {
  const { equation, expected, occurrence, output } = d
  const place = Excerpt.placeOf(body, equation)
  const around = place === null ? [Excerpt.line(equation, output)] : Excerpt.lines(place, equation, output, names)
  const regions = (place?.regions ?? []).map(
    (e) => `${e.primitive.name}${e.params.axis ? ` over ${e.params.axis}` : ""}`
  )
  const where = [
    ...(regions.length > 0 ? [`in ${regions.join(", ")}`] : []),
    ...(occurrence > 0 ? [`repetition ${occurrence}`] : []),
    ...(d.layout === null ? [] : [`held as ${Layout.print(d.layout)}`]),
    d.found === null ? "nowhere to be found" : `off by ${d.distance.toExponential(1)}`
  ]
  const width = Math.max(sides.expected.length, sides.found.length) + 1
  const side = (name: string) => `  ${`${name}:`.padEnd(width)}`
  return [
    ...(around.length > 1 ? ["program:", ...around.slice(0, -1).map((l) => `  ${l}`)] : []),
    `first different equation: ${around[around.length - 1]!}`,
    `  ${where.join(", ")}`,
    `${side(sides.expected)} ${numbers(expected)}`,
    ...(d.found === null ? [] : [`${side(sides.found)} ${numbers(Host.reorder(d.found, expected.axes))}`])
  ]
}
