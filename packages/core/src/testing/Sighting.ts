/**
 * Where a value of one run is found in another. A program that was spread, cut or differentiated anew has other equations; what must come back in it
 * are the values: whole, as parts or addends on the ranks, as parts or addends in the microbatches.
 */
import * as Axis from "../Axis.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import type { Layout, Placement } from "../Layout.ts"
import * as Layouts from "../Layout.ts"
import type * as Mesh from "../Mesh.ts"
import type { Body, Equation, Lockstep } from "../Node.ts"
import { relative } from "./compare.ts"
import type { Recording } from "./Recording.ts"
import { equationsOf } from "./Recording.ts"

/** A value as the other run has it: on every rank of a mesh, for every microbatch. */
export interface Sighting {
  readonly parts: ReadonlyArray<Lockstep>
  readonly mesh: Mesh.Mesh
  /** What computed it; null where nothing in the run did. */
  readonly primitive: string | null
}

/** What a run of a program has seen. Values in the loop over microbatches are seen of all of them together. */
export const ofRun = (body: Body, run: Recording, mesh: Mesh.Mesh, microbatches = 1): ReadonlyArray<Sighting> => {
  const loop = inLoop(body)
  const found: Array<Sighting> = []
  for (const [tensor, values] of run.tensors) {
    const e = tensor.equation!
    const primitive = e.primitive.name
    const each = values.length / microbatches
    if (loop.has(e) && Number.isInteger(each)) {
      for (let r = 0; r < each; r++) {
        // The loop over microbatches is the outermost one; or there are several such loops, one after another.
        const apart = Array.from({ length: microbatches }, (_, m) => values[r + m * each]!)
        found.push({ parts: apart, mesh, primitive })
        if (each > 1) found.push({ parts: values.slice(r * microbatches, (r + 1) * microbatches), mesh, primitive })
      }
    } else for (const value of values) found.push({ parts: [value], mesh, primitive })
  }
  return found
}

/** Equations in loops over microbatches. */
const inLoop = (body: Body): ReadonlySet<Equation> => {
  const found = new Set<Equation>()
  for (const e of body.equations) {
    const { meaning } = e.primitive
    if (meaning.kind !== "region") continue
    for (const inner of meaning.bodies(e.params))
      for (const x of e.params.axis === "micro" ? equationsOf(inner) : inLoop(inner)) found.add(x)
  }
  return found
}

/** Sightings by the names of their axes, for a quick look. */
export type Index = ReadonlyMap<string, ReadonlyArray<Sighting>>

const keyOf = (axes: Axis.Axes): string => Axis.names(axes).toSorted().join()

export const index = (sightings: ReadonlyArray<Sighting>): Index => {
  const all = new Map<string, Array<Sighting>>()
  for (const s of sightings) {
    const key = keyOf(s.parts[0]![0]!.axes)
    const known = all.get(key)
    if (known === undefined) all.set(key, [s])
    else known.push(s)
  }
  return all
}

export interface Nearest {
  readonly array: HostArray
  readonly distance: number
}

/**
 * The sighting that comes nearest to a value; null where no value has these axes. Stops at the first within the tolerance. Single numbers are equal
 * by chance too often: they must come from the same primitive.
 */
export const nearest = (value: HostArray, primitive: string, within: Index, tolerance: number): Nearest | null => {
  const wanted = plain(value)
  let best: Nearest | null = null
  for (const sighting of within.get(keyOf(wanted.axes)) ?? []) {
    if (value.data.length === 1 && sighting.primitive !== null && sighting.primitive !== primitive) continue
    for (const array of readings(wanted.axes, sighting, tolerance)) {
      const distance = relative(wanted, array)
      if (best === null || distance < best.distance) best = { array, distance }
      if (distance <= tolerance) return best
    }
  }
  return best
}

/** Stored sizes only: padded or not is no question of values. */
const plain = (x: HostArray): HostArray => ({ ...x, axes: x.axes.map((a) => Axis.make(a.name, a.size)) })

/** Every array of the given sizes that a sighting may stand for. */
const readings = function* (axes: Axis.Axes, { mesh, parts }: Sighting, tolerance: number): Generator<HostArray> {
  const local = parts[0]![0]!.axes
  const ratios = new Map(axes.map((a) => [a.name, a.size / Axis.find(local, a.name)!.size]))
  for (const layout of layoutsOf(mesh, ratios)) {
    const left = new Map(ratios)
    for (const [m, p] of layout) {
      const axis = Layouts.axisOf(p)
      if (axis !== null) left.set(axis, left.get(axis)! / mesh.find(([name]) => name === m)![1])
    }
    const examples = left.get("batch") ?? 1
    if ([...left].some(([name, ratio]) => ratio !== 1 && name !== "batch")) continue
    if (examples !== 1 && examples !== parts.length) continue
    const wholes = parts.map((part) => Layouts.collect(part.map(plain), layout, mesh))
    if (wholes.some(({ disagreement }) => disagreement > tolerance)) continue
    const arrays = wholes.map(({ array }) => array)
    const [first] = arrays
    if (examples !== 1) {
      yield interleaved(arrays)
      // A loop of the backward pass runs from the last to the first.
      yield interleaved(arrays.toReversed())
    } else {
      if (arrays.every((x) => relative(first!, x) <= tolerance)) yield first!
      if (arrays.length > 1) yield added(arrays)
    }
  }
}

/** Every way in which mesh axes may hold a value that is so many times larger than what a rank has. */
const layoutsOf = (mesh: Mesh.Mesh, ratios: ReadonlyMap<string, number>): ReadonlyArray<Layout> =>
  mesh.reduce<ReadonlyArray<Layout>>(
    (layouts, [m, count]) => {
      const splits = [...ratios].filter(([, ratio]) => ratio % count === 0).map(([axis]) => Layouts.splitOn(axis))
      const placements: ReadonlyArray<Placement> = ["whole", ...splits, "sum"]
      return layouts.flatMap((layout) => placements.map((p) => new Map([...layout, [m, p] as const])))
    },
    [new Map()]
  )

const added = (xs: ReadonlyArray<HostArray>): HostArray => {
  const first = xs[0]!
  const all = xs.map((x) => Host.reorder(x, first.axes).data)
  return { ...first, data: first.data.map((_, k) => all.reduce((total, data) => total + data[k]!, 0)) }
}

/** Examples of microbatches in the order of the whole batch: example i is in microbatch i mod k. */
const interleaved = (xs: ReadonlyArray<HostArray>): HostArray => {
  const micro = Axis.make("micro", xs.length)
  const stacked = Host.stack(xs, micro, xs[0]!)
  const [batch, rest] = [Axis.find(stacked.axes, "batch")!, Axis.without(stacked.axes, ["batch", "micro"])]
  const ordered = Host.reorder(stacked, [batch, micro, ...rest])
  return { ...ordered, axes: [Axis.make("batch", batch.size * micro.size), ...rest] }
}
