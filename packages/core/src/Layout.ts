/** How a tensor lies on a mesh: for every mesh axis, whole, split along one of its axes, or a part of a sum still to be taken. */
import * as Axis from "./Axis.ts"
import { Indivisible, PartitionError } from "./Errors.ts"
import type { HostArray } from "./HostArray.ts"
import * as Host from "./HostArray.ts"
import * as Mesh from "./Mesh.ts"
import type { Lockstep, Role, TensorType } from "./Node.ts"
import { combine, cut, join } from "./primitives/collective.ts"
import type { Rules, Strategy } from "./Strategy.ts"

/**
 * What one mesh axis sees of a tensor. whole: every rank has it. split: every rank has its part along an axis. sum, max: every rank has an array
 * of which the sum, or the maximum, over the mesh axis is the value: a debt.
 */
export type Placement = "whole" | "sum" | "max" | `split:${string}`

/** One placement for each mesh axis. Two mesh axes may split one axis; the one earlier in the mesh is the outer. */
export type Layout = ReadonlyMap<string, Placement>

export const splitOn = (axis: string): Placement => `split:${axis}`

/** The axis of a split, else null. */
export const axisOf = (p: Placement): string | null => (p.startsWith("split:") ? p.slice(6) : null)

export const owes = (p: Placement): p is "sum" | "max" => p === "sum" || p === "max"

export const whole = (mesh: Mesh.Mesh): Layout => new Map(mesh.map(([m]) => [m, "whole"]))

export const same = (a: Layout, b: Layout): boolean => {
  for (const [m, p] of a) if (b.get(m) !== p) return false
  return true
}

/** Ranks among which an axis is dealt out. */
export const shardCount = (layout: Layout, mesh: Mesh.Mesh, axis: string): number => {
  const placement = splitOn(axis)
  return mesh.reduce((n, [m, count]) => (layout.get(m) === placement ? n * count : n), 1)
}

/** What one rank stores; masks are explicit by then, so that sizes are all that is left. Throws `PartitionError` where a split axis does not divide. */
export const localType = (type: TensorType, layout: Layout, mesh: Mesh.Mesh, tensor?: string): TensorType => ({
  dtype: type.dtype,
  axes: type.axes.map((a) => {
    const count = shardCount(layout, mesh, a.name)
    if (a.size % count !== 0) indivisible(type, a, layout, mesh, count, tensor)
    return Axis.make(a.name, a.size / count)
  })
})

const indivisible = (
  type: TensorType,
  axis: Axis.Axis,
  layout: Layout,
  mesh: Mesh.Mesh,
  count: number,
  tensor: string | undefined
): never => {
  const meshAxes = mesh.flatMap(([m]) => (layout.get(m) === splitOn(axis.name) ? [m] : []))
  throw new PartitionError({
    reason: new Indivisible({
      tensor: tensor ?? Axis.print(type.axes),
      axis: axis.name,
      size: axis.size,
      meshAxes,
      count
    })
  })
}

/** The rule table of a role. */
export const rulesOf = (strategy: Strategy, role: Role): Rules => {
  switch (role) {
    case "compute":
    case "gathered":
      return strategy.compute
    case "parameter":
      return strategy.parameters
    case "gradient":
      return strategy.gradients
    case "optimizer":
      return strategy.optimizer
  }
}

/** Axes that may be stored longer than they are meant, so that they divide. */
export const paddable: ReadonlySet<string> = new Set(["seq", "keySeq", "vocab"])

/** Whether a paddable axis is not stored longer yet, though the rules of the role need it. */
const unpadded = (axis: Axis.Axis, strategy: Strategy, role: Role): boolean => {
  if (!paddable.has(axis.name)) return false
  const meshAxes = new Set(rulesOf(strategy, role).flatMap(([name, m]) => (name === axis.name ? [m] : [])))
  const count = [...meshAxes].reduce((n, m) => n * Mesh.countOf(strategy.mesh, m), 1)
  return axis.size % count !== 0
}

export interface Naming {
  /** What the tensor is called in errors. */
  readonly tensor?: string
  /** The program went through `Padding`: where a paddable axis does not divide yet, it is whole until it is padded. */
  readonly padded?: boolean
}

/** The layout that a tensor has by the names of its axes. Throws `PartitionError` where a split axis does not divide. */
export const named = (
  type: TensorType,
  role: Role,
  strategy: Strategy,
  { padded = false, tensor }: Naming = {}
): Layout => {
  const layout = new Map(whole(strategy.mesh))
  for (const [axis, meshAxis] of rulesOf(strategy, role)) {
    if (layout.get(meshAxis) !== "whole") continue
    const found = Axis.find(type.axes, axis)
    if (found === undefined || (padded && unpadded(found, strategy, role))) continue
    layout.set(meshAxis, splitOn(axis))
    const count = shardCount(layout, strategy.mesh, axis)
    if (found.size % count !== 0) indivisible(type, found, layout, strategy.mesh, count, tensor)
  }
  return layout
}

/** `batch/data, sum over tensor`; "whole" where nothing is split. */
export const print = (layout: Layout): string => {
  const parts = [...layout].flatMap(([m, p]) => {
    const axis = axisOf(p)
    return axis !== null ? [`${axis}/${m}`] : p === "whole" ? [] : [`${p} over ${m}`]
  })
  return parts.length === 0 ? "whole" : parts.join(", ")
}

/** The part of a whole array that each rank holds. Of a debt the first rank of each axis has all and the others have nothing. */
export const scatter = (x: HostArray, layout: Layout, mesh: Mesh.Mesh): Lockstep =>
  Array.from({ length: Mesh.rankCount(mesh) }, (_, rank) => part(x, layout, mesh, rank))

/** The part of a whole array that one rank holds. */
export const part = (x: HostArray, layout: Layout, mesh: Mesh.Mesh, rank: number): HostArray =>
  mesh.reduce((now, [m, count]) => {
    const placement = layout.get(m) ?? "whole"
    const axis = axisOf(placement)
    const at = Mesh.coordinate(mesh, rank, m)
    if (axis !== null) return cut(now, axis, at, count)
    if (placement !== "sum" || at === 0) return now
    return { ...now, data: now.data.map(() => 0) }
  }, x)

export interface Collected {
  readonly array: HostArray
  /** The largest difference between ranks that should hold the same. */
  readonly disagreement: number
}

/** The whole array of what ranks hold. */
export const collect = (xs: Lockstep, layout: Layout, mesh: Mesh.Mesh): Collected => {
  let parts = xs
  let disagreement = 0
  for (const [m, count] of mesh.toReversed()) {
    const placement = layout.get(m) ?? "whole"
    const axis = axisOf(placement)
    parts = Array.from({ length: parts.length / count }, (_, g) => {
      const group = parts.slice(g * count, (g + 1) * count)
      if (axis !== null) return join(group, axis)
      if (owes(placement)) return combine(group, placement)
      for (const x of group) disagreement = Math.max(disagreement, Host.distance(x, group[0]!))
      return group[0]!
    })
  }
  return { array: parts[0]!, disagreement }
}
