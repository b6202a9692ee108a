/**
 * Collectives of one kind travel together: parameters that are gathered for one layer, gradients that are reduced, sums of one number. A pass over the
 * program of one rank; it changes when things move, never what.
 */
import type { AnyTensor, Body, Equation } from "./Node.ts"
import { build, bytesOf } from "./Node.ts"
import { allGatherP, allReduceP, reduceScatterP } from "./primitives/collective.ts"

/**
 * Groups collectives up to about `bytes` of what a rank puts in, in bodies of regions too. `moved` is told what every tensor has become, so that it
 * stays known where ranks hold a value.
 */
export const bucket = (
  body: Body,
  bytes: number,
  moved: (before: AnyTensor, after: AnyTensor) => void = () => {}
): Body => {
  const inner = new Map<Equation, Equation>()
  for (const e of body.equations) {
    const { meaning } = e.primitive
    if (meaning.kind !== "region") continue
    const before = meaning.bodies(e.params)
    const after = before.map((b) => bucket(b, bytes, moved))
    if (after.some((b, i) => b !== before[i])) inner.set(e, { ...e, params: meaning.withBodies(e.params, after) })
  }
  const groups = groupsOf(body, bytes)
  return inner.size === 0 && groups.length === 0 ? body : rebuild(body, inner, groups, moved)
}

interface Group {
  readonly members: Array<Equation>
  bytes: number
  /** Where the first consumer of a member stands. */
  consumer: number
  /** Where the joint collective stands. */
  at: number
}

/** Collectives that may meet: same kind, mesh axis, storage type and purpose. Null for those that go alone. */
const keyOf = (e: Equation): string | null => {
  if (e.primitive !== allGatherP && e.primitive !== allReduceP && e.primitive !== reduceScatterP) return null
  const [o] = e.outputs
  const { role, type } = o!
  const purpose = type.axes.length === 0 ? "numbers" : role
  return purpose === "compute"
    ? null
    : [e.primitive.name, e.params.meshAxis, e.params.by ?? "", type.dtype, purpose].join(" ")
}

const groupsOf = (body: Body, limit: number): ReadonlyArray<Group> => {
  const index = new Map(body.equations.map((e, i) => [e, i]))
  const firstUse = new Map<AnyTensor, number>()
  body.equations.forEach((e, i) => {
    for (const x of e.inputs) if (!firstUse.has(x)) firstUse.set(x, i)
  })
  const usedAt = (e: Equation) => Math.min(...e.outputs.map((o) => firstUse.get(o) ?? Infinity))
  const ready = readyOf(body, index)
  const open = new Map<string, Group>()
  const groups: Array<Group> = []
  for (const [i, e] of body.equations.entries()) {
    const key = keyOf(e)
    if (key === null) continue
    const own = e.inputs.reduce((n, x) => n + bytesOf(x.type), 0)
    const group = open.get(key)
    if (group !== undefined && group.bytes + own <= limit) {
      // Later: nobody has read a member before this one is ready. Earlier: this one was ready when the first one was.
      if (group.consumer > i) group.at = i
      else if (!e.inputs.every((x) => ready(x) < group.at)) {
        open.set(key, start(e, i, own, usedAt(e), groups))
        continue
      }
      group.members.push(e)
      group.bytes += own
      group.consumer = Math.min(group.consumer, usedAt(e))
    } else open.set(key, start(e, i, own, usedAt(e), groups))
  }
  return groups.filter((g) => g.members.length > 1)
}

const start = (e: Equation, at: number, bytes: number, consumer: number, groups: Array<Group>): Group => {
  const group = { members: [e], bytes, consumer, at }
  groups.push(group)
  return group
}

/** The last equation that a value needs, when placements and casts of inputs may run as early as one likes. */
const readyOf = (body: Body, index: ReadonlyMap<Equation, number>) => {
  const inputs = new Set(body.inputs)
  const movable = new Set(["place", "cast"])
  return (x: AnyTensor): number => {
    let at = x
    while (!inputs.has(at)) {
      const e = at.equation!
      if (!movable.has(e.primitive.name)) return index.get(e)!
      at = e.inputs[0]!
    }
    return -1
  }
}

const rebuild = (
  body: Body,
  inner: ReadonlyMap<Equation, Equation>,
  groups: ReadonlyArray<Group>,
  moved: (before: AnyTensor, after: AnyTensor) => void
): Body => {
  const groupOf = new Map(groups.flatMap((g) => g.members.map((e) => [e, g] as const)))
  const env = new Map<AnyTensor, AnyTensor>(body.inputs.map((x) => [x, x]))
  const equations: Array<Equation> = []
  const done = new Set<Equation | Group>()
  const push = (outputs: ReadonlyArray<AnyTensor>) => equations.push(outputs[0]!.equation!)

  const emitOne = (e: Equation): void => {
    const inputs = e.inputs.map((x) => env.get(x)!)
    const changed = inner.get(e)
    if (changed === undefined && inputs.every((x, i) => x === e.inputs[i])) {
      e.outputs.forEach((o) => env.set(o, o))
      equations.push(e)
      return
    }
    const outputs = build(
      e.primitive,
      inputs,
      changed?.params ?? e.params,
      e.outputs.map((o) => o.role)
    )
    e.outputs.forEach((o, i) => env.set(o, outputs[i]!))
    push(outputs)
  }
  const emitGroup = (group: Group): void => {
    const [first] = group.members
    const outputs = build(
      first!.primitive,
      group.members.flatMap((e) => e.inputs.map((x) => env.get(x)!)),
      first!.params.axes === undefined
        ? first!.params
        : { ...first!.params, axes: group.members.flatMap((e) => e.params.axes as ReadonlyArray<string>) },
      group.members.flatMap((e) => e.outputs.map((o) => o.role))
    )
    group.members.flatMap((e) => e.outputs).forEach((o, i) => env.set(o, outputs[i]!))
    push(outputs)
  }
  /** What a joint collective needs early: placements and casts of inputs. */
  const need = (x: AnyTensor): void => {
    const chain: Array<Equation> = []
    let at = x
    while (!env.has(at)) {
      chain.push(at.equation!)
      at = at.equation!.inputs[0]!
    }
    for (const e of chain.toReversed()) {
      emitOne(e)
      done.add(e)
    }
  }
  body.equations.forEach((e, i) => {
    const group = groupOf.get(e)
    if (done.has(e) || (group !== undefined && done.has(group))) return
    if (group === undefined) emitOne(e)
    else if (group.at === i) {
      for (const m of group.members) m.inputs.forEach(need)
      emitGroup(group)
      done.add(group)
    }
  })
  for (const [before, after] of env) if (before !== after) moved(before, after)
  return { inputs: body.inputs, outputs: body.outputs.map((o) => env.get(o)!), equations }
}
