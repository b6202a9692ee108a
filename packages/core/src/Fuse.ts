/**
 * Groups equations into kernels, as far as a backend says it can. A `fused` equation contains the program it stands for, so the reference
 * evaluator just runs it and the pass is testable.
 */
import * as Axis from "./Axis.ts"
import type { AnyTensor, Body, Equation } from "./Node.ts"
import { build, input } from "./Node.ts"
import type { FusedParams } from "./primitives/control.ts"
import { fusedP } from "./primitives/control.ts"
import * as Program from "./Program.ts"

export interface Ability {
  /** Operations that can run inside one elementwise kernel. */
  readonly pointwise: (e: Equation) => boolean
  /** Operations without inputs that an elementwise kernel makes by itself (constants, coordinates). */
  readonly source: (e: Equation) => boolean
  /** Most operands of one kernel. */
  readonly operands: number
  /** Most equations of one kernel. */
  readonly equations: number
  /** Whether products may take biases, activations, residuals and siblings into one kernel. */
  readonly gemm: boolean
}

const key = (axes: Axis.Axes): string =>
  axes
    .map((a) => `${a.name}:${a.size}`)
    .sort()
    .join()

interface Group {
  readonly id: number
  readonly pattern: FusedParams["pattern"]
  readonly space: string
  readonly members: Array<Equation>
  /** Groups whose results this one reads. */
  readonly needs: Set<number>
}

/** Fuses every body, innermost first. */
export const fuse = (program: Body, ability: Ability): Body => {
  const inner = Program.body(
    program.inputs,
    Program.inline(program, program.inputs, (e, inputs) => {
      const { meaning } = e.primitive
      if (meaning.kind !== "region" || e.primitive.name === "fused") return null
      const before = meaning.bodies(e.params)
      const after = before.map((b) => fuse(b, ability))
      return after.every((b, i) => b === before[i])
        ? null
        : build(
            e.primitive,
            inputs,
            meaning.withBodies(e.params, after),
            e.outputs.map((o) => o.role)
          )
    })
  )
  return fuseBody(inner, ability)
}

const fuseBody = (body: Body, ability: Ability): Body => {
  const groups: Array<Group> = []
  const groupOf = new Map<Equation, Group>()
  const union = new Map<number, number>()
  const root = (id: number): number => {
    let r = id
    while (union.has(r)) r = union.get(r)!
    return r
  }
  const needsOf = (id: number): ReadonlyArray<number> => [...groups[id]!.needs].map(root).filter((n) => n !== id)
  /** Whether a path leads from `from` to what it needs, `target`. */
  const reaches = (from: number, target: number): boolean => {
    const seen = new Set<number>()
    const stack = [from]
    while (stack.length > 0) {
      const g = stack.pop()!
      if (g === target) return true
      if (seen.has(g)) continue
      seen.add(g)
      stack.push(...needsOf(g))
    }
    return false
  }
  const consumers = new Map<AnyTensor, number>()
  for (const e of body.equations) for (const x of e.inputs) consumers.set(x, (consumers.get(x) ?? 0) + 1)

  const isSource = (x: AnyTensor) => x.equation !== null && x.equation.inputs.length === 0 && ability.source(x.equation)
  for (const e of body.equations) {
    if (e.inputs.length === 0 && ability.source(e)) continue
    const producers = e.inputs.flatMap((x) => {
      const g = x.equation === null ? undefined : groupOf.get(x.equation)
      return g === undefined ? [] : [groups[root(g.id)]!]
    })
    const needs = new Set(producers.map((g) => g.id))
    const mine: Group = {
      id: groups.length,
      pattern: "pointwise",
      space: key(e.outputs[0]!.type.axes),
      members: [e],
      needs
    }
    groups.push(mine)
    groupOf.set(e, mine)
    if (!ability.pointwise(e)) continue
    let current = mine
    for (const candidate of new Set(producers)) {
      const other = groups[root(candidate.id)]!
      if (other.id === current.id || other.space !== current.space || !other.members.every(ability.pointwise)) continue
      if (other.members.length + current.members.length > ability.equations) continue
      // Joining is legal when no path leads from one to the other through a third.
      const between = needsOf(current.id).some((n) => n !== other.id && reaches(n, other.id))
      if (between || operandCount([...other.members, ...current.members], body, consumers, isSource) > ability.operands)
        continue
      const joined = current.id
      for (const n of needsOf(current.id)) if (n !== other.id) other.needs.add(n)
      other.members.push(...current.members)
      union.set(joined, other.id)
      current = other
    }
  }
  const chosen = groups.filter((g) => !union.has(g.id) && g.members.length > 1)
  return rebuild(body, chosen, isSource)
}

const operandCount = (
  members: ReadonlyArray<Equation>,
  body: Body,
  consumers: ReadonlyMap<AnyTensor, number>,
  isSource: (x: AnyTensor) => boolean
): number => {
  const inside = new Set(members)
  const reads = new Set<AnyTensor>()
  for (const e of members)
    for (const x of e.inputs) if (!isSource(x) && (x.equation === null || !inside.has(x.equation))) reads.add(x)
  let writes = 0
  for (const e of members) {
    for (const o of e.outputs) {
      const within = members.reduce((n, m) => n + m.inputs.filter((x) => x === o).length, 0)
      if (within < (consumers.get(o) ?? 0) || body.outputs.includes(o)) writes++
    }
  }
  return reads.size + writes
}

/** Puts one `fused` equation in the place of each group. */
const rebuild = (body: Body, groups: ReadonlyArray<Group>, isSource: (x: AnyTensor) => boolean): Body => {
  if (groups.length === 0) return body
  const groupOf = new Map<Equation, Group>()
  for (const g of groups) for (const e of g.members) groupOf.set(e, g)
  const used = new Map<AnyTensor, Array<Equation | null>>()
  for (const e of body.equations) for (const x of e.inputs) used.set(x, [...(used.get(x) ?? []), e])
  for (const o of body.outputs) used.set(o, [...(used.get(o) ?? []), null])

  const env = new Map<AnyTensor, AnyTensor>(body.inputs.map((x) => [x, x]))
  /** The rebuilt tensor; builds what it needs first, with an explicit stack. */
  const resolve = (target: AnyTensor): AnyTensor => {
    const stack: Array<AnyTensor> = [target]
    while (stack.length > 0) {
      const x = stack[stack.length - 1]!
      if (env.has(x)) {
        stack.pop()
        continue
      }
      const e = x.equation!
      const g = groupOf.get(e)
      const needed = g === undefined ? e.inputs : externals(g, isSource)
      const missing = needed.filter((y) => !env.has(y))
      if (missing.length > 0) {
        stack.push(...missing)
        continue
      }
      if (g === undefined) {
        const inputs = e.inputs.map((y) => env.get(y)!)
        const outputs = inputs.every((y, i) => y === e.inputs[i])
          ? e.outputs
          : build(
              e.primitive,
              inputs,
              e.params,
              e.outputs.map((o) => o.role)
            )
        e.outputs.forEach((o, i) => env.set(o, outputs[i]!))
      } else {
        const results = g.members
          .flatMap((m) => m.outputs)
          .filter((o) => (used.get(o) ?? []).some((c) => c === null || groupOf.get(c) !== g))
        const inside = needed.map((y) => input(y.type, y.role))
        const copied = Program.body(inside, Program.inline(Program.body(needed, results), inside))
        const built = build(
          fusedP,
          needed.map((y) => env.get(y)!),
          { body: copied, pattern: g.pattern } satisfies FusedParams,
          results.map((o) => o.role)
        )
        results.forEach((o, i) => env.set(o, built[i]!))
        // Members that nobody outside reads need no value of their own.
      }
    }
    return env.get(target)!
  }
  return Program.body(
    body.inputs,
    body.outputs.map((o) => resolve(o))
  )
}

/** What a group reads from outside, sources excepted. */
const externals = (g: Group, isSource: (x: AnyTensor) => boolean): ReadonlyArray<AnyTensor> => {
  const inside = new Set(g.members)
  const reads = new Set<AnyTensor>()
  for (const e of g.members)
    for (const x of e.inputs) if (!isSource(x) && (x.equation === null || !inside.has(x.equation))) reads.add(x)
  return [...reads]
}
