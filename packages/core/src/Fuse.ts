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
  pattern: FusedParams["pattern"]
  readonly space: string
  readonly members: Array<Equation>
  /** Groups whose results this one reads. */
  readonly needs: Set<number>
  /** What a product's kernel has taken in so far. */
  readonly product: Product | null
}

interface Product {
  contracts: number
  /** Several contractions added up: one product with a longer sum. */
  summed: boolean
  /** Biases, activations or residuals: nothing more can be added up. */
  epilogue: "none" | "bias" | "closed"
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
  /** `from` becomes part of `into`. */
  const join = (from: Group, into: Group): void => {
    for (const n of needsOf(from.id)) if (n !== into.id) into.needs.add(n)
    into.members.push(...from.members)
    union.set(from.id, into.id)
  }
  const consumers = new Map<AnyTensor, number>()
  for (const o of body.outputs) consumers.set(o, (consumers.get(o) ?? 0) + 1)
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
      needs,
      product:
        e.primitive.name === "contract" && e.params.over.length > 0
          ? { contracts: 1, summed: false, epilogue: "none" }
          : null
    }
    groups.push(mine)
    groupOf.set(e, mine)
    if (ability.gemm && joinProduct(e, mine, body, consumers, { groupOf, groups, join, reaches, root })) continue
    if (!ability.pointwise(e)) continue
    let current = mine
    for (const candidate of new Set(producers)) {
      const other = groups[root(candidate.id)]!
      if (other.id === current.id || other.space !== current.space || other.product !== null) continue
      if (!other.members.every(ability.pointwise)) continue
      if (other.members.length + current.members.length > ability.equations) continue
      // Joining is legal when no path leads from one to the other through a third.
      const between = needsOf(current.id).some((n) => n !== other.id && reaches(n, other.id))
      if (between || operandCount([...other.members, ...current.members], body, consumers, isSource) > ability.operands)
        continue
      join(current, other)
      current = other
    }
  }
  const chosen = groups.filter((g) => !union.has(g.id) && g.members.length > 1)
  return rebuild(body, chosen, isSource)
}

interface Grouping {
  readonly groups: ReadonlyArray<Group>
  readonly groupOf: ReadonlyMap<Equation, Group>
  readonly root: (id: number) => number
  readonly reaches: (from: number, target: number) => boolean
  readonly join: (from: Group, into: Group) => void
}

/** Columns of a product: the axes of its second operand that the first lacks. */
const columnsOf = (contract: Equation): ReadonlyArray<string> => {
  const [x, y] = contract.inputs
  return Axis.names(y!.type.axes).filter((n) => !Axis.has(x!.type.axes, n))
}

/**
 * Takes `e` into a product's kernel where one wants it: a sibling that multiplies the same matrix, a product that is added to another, a bias of its
 * columns, a GELU of the biased value, a residual of the same axes.
 */
const joinProduct = (
  e: Equation,
  mine: Group,
  body: Body,
  consumers: ReadonlyMap<AnyTensor, number>,
  all: Grouping
): boolean => {
  const { groupOf, groups, join, reaches, root } = all
  const groupAt = (x: AnyTensor): Group | null => {
    const g = x.equation === null ? undefined : groupOf.get(x.equation)
    const at = g === undefined ? null : groups[root(g.id)]!
    return at?.product == null || at === mine ? null : at
  }
  /** No path from the group to what else `e` reads. */
  const legal = (into: Group) =>
    e.inputs.every((x) => {
      const g = x.equation === null ? undefined : groupOf.get(x.equation)
      const id = g === undefined ? -1 : root(g.id)
      return id < 0 || id === into.id || !reaches(id, into.id)
    })
  if (mine.product !== null) {
    const sibling = groups.find(
      (g) =>
        root(g.id) === g.id &&
        g !== mine &&
        g.product !== null &&
        !g.product.summed &&
        g.product.epilogue !== "closed" &&
        g.members.some(
          (m) =>
            m.primitive.name === "contract" &&
            m.inputs[0] === e.inputs[0] &&
            m.params.over.length === e.params.over.length &&
            m.params.over.every((o: string) => e.params.over.includes(o)) &&
            m.params.dtype === e.params.dtype &&
            !sharesBatch(m) &&
            !sharesBatch(e)
        )
    )
    if (sibling === undefined || !legal(sibling)) return false
    sibling.product!.contracts++
    join(mine, sibling)
    sibling.pattern = "gemm"
    return true
  }
  if (e.primitive.name === "gelu") {
    const g = groupAt(e.inputs[0]!)
    if (g === null || g.product!.contracts !== 1 || g.product!.epilogue !== "bias" || !isLast(g, e.inputs[0]!))
      return false
    g.product!.epilogue = "closed"
    join(mine, g)
    g.pattern = "gemm"
    return true
  }
  if (e.primitive.name !== "add") return false
  const [a, b] = [groupAt(e.inputs[0]!), groupAt(e.inputs[1]!)]
  const alone = (x: AnyTensor) => consumers.get(x) === 1
  if (a !== null && b !== null && a !== b) {
    const plain = [a, b].every(
      (g) =>
        g.product!.epilogue === "none" && (g.product!.contracts === 1 || g.product!.summed) && g.space === mine.space
    )
    if (!plain || !alone(e.inputs[0]!) || !alone(e.inputs[1]!)) return false
    if (reaches(a.id, b.id) || reaches(b.id, a.id)) return false
    join(b, a)
    join(mine, a)
    a.product!.contracts += b.product!.contracts
    a.product!.summed = true
    a.pattern = "gemm"
    return true
  }
  const [g, value, other] = a !== null ? [a, e.inputs[0]!, e.inputs[1]!] : [b, e.inputs[1]!, e.inputs[0]!]
  if (g === null || !alone(value) || value.type.dtype !== other.type.dtype || !legal(g)) return false
  const contract = g.members.find(
    (m) => m.primitive.name === "contract" && (m.outputs[0] === value || g.product!.summed)
  )
  if (contract === undefined) return false
  const columns = columnsOf(contract)
  const isBias =
    other.type.axes.length > 0 &&
    Axis.names(other.type.axes).every((n) => columns.includes(n)) &&
    other.type.axes.length === columns.length
  if (isBias && g.product!.epilogue !== "closed" && !g.product!.summed && value.equation === contract) {
    g.product!.epilogue = "bias"
  } else if (
    g.product!.contracts === 1 &&
    g.product!.epilogue !== "closed" &&
    Axis.equal(other.type.axes, value.type.axes)
  ) {
    g.product!.epilogue = "closed"
  } else return false
  join(mine, g)
  g.pattern = "gemm"
  return true
}

/** Whether `x` is made by the newest member. */
const isLast = (g: Group, x: AnyTensor): boolean => g.members[g.members.length - 1] === x.equation

const sharesBatch = (contract: Equation): boolean => {
  const [x, y] = contract.inputs
  return Axis.names(x!.type.axes).some((n) => Axis.has(y!.type.axes, n) && !contract.params.over.includes(n))
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
      if (within < (consumers.get(o) ?? 0)) writes++
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
