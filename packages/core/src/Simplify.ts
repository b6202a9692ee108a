/** Fewer equations, same meaning: common subexpressions, dead code and a table of algebraic identities, inside regions too. */
import * as Axis from "./Axis.ts"
import * as DType from "./DType.ts"
import type { AnyTensor, Body, Equation } from "./Node.ts"
import { build } from "./Node.ts"
import * as Program from "./Program.ts"
import { addP, broadcastP, castP, constantP, contractP, divP, mulP, negP, subP, sumP } from "./primitives/algebra.ts"
import { mergeP, renameP, sliceP, splitP } from "./primitives/axes.ts"
import { recomputeP, scanP } from "./primitives/control.ts"
import type { ScanParams } from "./primitives/control.ts"
import { placeP } from "./primitives/emit.ts"

/** The simplified program. Applying it again changes nothing. */
export const simplify = <I, O>(program: Program.Program<I, O>): Program.Program<I, O> => {
  const after = simplifyBody(program)
  return after === program ? program : Program.withBody(program, after)
}

/** `simplify` for a bare body. Its inputs stay; outputs keep their types and roles. */
export const simplifyBody = (from: Body): Body => {
  let body = from
  // Every round removes an equation, an operand or a result of one, so this ends; the bound only guards against a cyclic identity.
  for (let round = 0; round < 100; round++) {
    const next = prune(merge(body, false))
    // Equal products are one by now, so that "read once" means what it says.
    const settled = next === body ? merge(body, true) : next
    if (settled === body) return body
    body = settled
  }
  return body
}

/** Text of parameters that tells apart what JSON does not: infinities, NaN and minus zero. */
const keyOf = (params: unknown): string =>
  JSON.stringify(params, (_k, v: unknown) =>
    typeof v === "number" && (!Number.isFinite(v) || Object.is(v, -0)) ? `#${Object.is(v, -0) ? "-0" : v}` : v
  )

/** How often each tensor is read. */
const countUses = (body: Body): ReadonlyMap<AnyTensor, number> => {
  const uses = new Map<AnyTensor, number>()
  const use = (x: AnyTensor) => uses.set(x, (uses.get(x) ?? 0) + 1)
  for (const e of body.equations) e.inputs.forEach(use)
  body.outputs.forEach(use)
  return uses
}

/** One pass forward: simplifies region bodies, applies the algebraic table and shares equal equations. */
const merge = (body: Body, settled: boolean): Body => {
  const uses = countUses(body)
  const ids = new Map<AnyTensor, number>()
  const idOf = (x: AnyTensor): number => {
    const known = ids.get(x) ?? ids.size
    ids.set(x, known)
    return known
  }
  const env = new Map<AnyTensor, AnyTensor>()
  const now = (x: AnyTensor) => env.get(x) ?? x
  const shared = new Map<string, ReadonlyArray<AnyTensor>>()
  for (const e of body.equations) {
    const inputs = e.inputs.map(now)
    const { meaning } = e.primitive
    const before = meaning.kind === "region" ? meaning.bodies(e.params) : []
    const bodies = before.map(simplifyBody)
    const changed = bodies.some((b, i) => b !== before[i])
    const params = changed && meaning.kind === "region" ? meaning.withBodies(e.params, bodies) : e.params
    const identity = rewriteAlgebra(e, inputs, (i) => settled && uses.get(e.inputs[i]!) === 1)
    if (identity !== null && sameType(identity, e.outputs[0]!)) {
      env.set(e.outputs[0]!, identity)
      continue
    }
    const roles = e.outputs.map((o) => o.role)
    const plain =
      meaning.kind === "region"
        ? Object.fromEntries(Object.entries(params).filter(([, v]) => !bodies.includes(v as Body)))
        : params
    const key = `${e.primitive.name}(${inputs.map(idOf).join(",")})${roles.join(",")}${keyOf(plain)}${bodies.map(Program.print).join("\n")}`
    const known = shared.get(key)
    const same = !changed && inputs.every((x, i) => x === e.inputs[i])
    const outputs = known ?? (same ? e.outputs : build(e.primitive, inputs, params, roles))
    if (known === undefined) shared.set(key, outputs)
    e.outputs.forEach((o, i) => {
      if (outputs[i] !== o) env.set(o, outputs[i]!)
    })
  }
  return env.size === 0 ? body : Program.body(body.inputs, body.outputs.map(now))
}

/** What replaces a tensor must have its type and its role, else layouts would change. */
const sameType = (x: AnyTensor, y: AnyTensor): boolean =>
  x.role === y.role && x.type.dtype === y.type.dtype && Axis.equal(x.type.axes, y.type.axes)

/** Drops results of regions that nobody reads, then the operands that nothing inside reads. Plain dead equations go by themselves. */
const prune = (body: Body): Body => {
  const used = new Set<AnyTensor>(body.outputs)
  for (const e of body.equations) for (const x of e.inputs) used.add(x)
  const env = new Map<AnyTensor, AnyTensor>()
  const now = (x: AnyTensor) => env.get(x) ?? x
  for (const e of body.equations) {
    const inputs = e.inputs.map(now)
    const live = e.outputs.map((o) => used.has(o))
    const pruned =
      e.primitive === scanP
        ? pruneScan(e, inputs, live)
        : e.primitive === recomputeP
          ? pruneRecompute(e, inputs, live)
          : null
    if (pruned !== null) pruned.forEach((x, i) => x !== null && env.set(e.outputs[i]!, x))
    else if (inputs.some((x, i) => x !== e.inputs[i])) {
      const outputs = build(
        e.primitive,
        inputs,
        e.params,
        e.outputs.map((o) => o.role)
      )
      e.outputs.forEach((o, i) => env.set(o, outputs[i]!))
    }
  }
  return env.size === 0 ? body : Program.body(body.inputs, body.outputs.map(now))
}

/** Inputs of a body that its outputs depend on. */
const reads = (inputs: ReadonlyArray<AnyTensor>, outputs: ReadonlyArray<AnyTensor>): ReadonlySet<AnyTensor> => {
  const found = new Set<AnyTensor>(outputs)
  for (const e of Program.body(inputs, outputs).equations) for (const x of e.inputs) found.add(x)
  return new Set(inputs.filter((x) => found.has(x)))
}

/** New outputs in the old places (null where dropped), or null when there is nothing to drop. */
const pruneScan = (
  e: Equation,
  inputs: ReadonlyArray<AnyTensor>,
  used: ReadonlyArray<boolean>
): ReadonlyArray<AnyTensor | null> | null => {
  const p = e.params as ScanParams
  const { body } = p
  // A carry lives when it is read outside, or by something that lives.
  const live = [...used]
  let read: ReadonlySet<AnyTensor> = new Set()
  for (let grew = true; grew;) {
    grew = false
    read = reads(
      body.inputs,
      body.outputs.filter((_, i) => live[i])
    )
    for (let i = 0; i < p.carried; i++) {
      if (!live[i] && read.has(body.inputs[i]!)) {
        live[i] = true
        grew = true
      }
    }
  }
  // Operands given twice are passed once.
  const first = body.inputs.map((x, i) => {
    const kind = (j: number) => (j < p.carried ? 0 : j < p.carried + p.each ? 1 : 2)
    const twin =
      kind(i) === 0
        ? i
        : inputs.findIndex((y, j) => y === inputs[i] && kind(j) === kind(i) && read.has(body.inputs[j]!))
    return twin >= 0 && twin < i && read.has(x) ? twin : i
  })
  const keep = body.inputs.map((x, i) => (i < p.carried ? live[i]! : first[i] === i && read.has(x)))
  if (live.every(Boolean) && keep.every(Boolean)) return null
  const inner = Program.inline(
    body,
    body.inputs.map((_, i) => body.inputs[first[i]!]!)
  )
  const params: ScanParams = {
    ...p,
    body: Program.body(
      body.inputs.filter((_, i) => keep[i]),
      inner.filter((_, i) => live[i])
    ),
    carried: live.slice(0, p.carried).filter(Boolean).length,
    each: keep.slice(p.carried, p.carried + p.each).filter(Boolean).length,
    stacked: live.slice(p.carried, p.carried + p.stacked).filter(Boolean).length
  }
  return rebuilt(
    e,
    inputs.filter((_, i) => keep[i]),
    params,
    live
  )
}

const pruneRecompute = (
  e: Equation,
  inputs: ReadonlyArray<AnyTensor>,
  live: ReadonlyArray<boolean>
): ReadonlyArray<AnyTensor | null> | null => {
  const { body } = e.params as { readonly body: Body }
  const outputs = body.outputs.filter((_, i) => live[i])
  const read = reads(body.inputs, outputs)
  const keep = body.inputs.map((x) => read.has(x))
  if (live.every(Boolean) && keep.every(Boolean)) return null
  const params = {
    body: Program.body(
      body.inputs.filter((_, i) => keep[i]),
      outputs
    )
  }
  return rebuilt(
    e,
    inputs.filter((_, i) => keep[i]),
    params,
    live
  )
}

const rebuilt = (
  e: Equation,
  inputs: ReadonlyArray<AnyTensor>,
  params: unknown,
  live: ReadonlyArray<boolean>
): ReadonlyArray<AnyTensor | null> => {
  const outputs = build(
    e.primitive,
    inputs,
    params,
    e.outputs.filter((_, i) => live[i]).map((o) => o.role)
  )
  let k = 0
  return live.map((l) => (l ? outputs[k++]! : null))
}

/** The one value of all elements, where that is evident. */
export const uniform = (x: AnyTensor): number | null => {
  let at = x
  for (;;) {
    const e = at.equation
    if (e === null) return null
    if (e.primitive === constantP) return DType.store(at.type.dtype, e.params.value as number)
    if (e.primitive !== broadcastP && e.primitive !== placeP) return null
    at = e.inputs[0]!
  }
}

const made = (x: AnyTensor, primitive: unknown): Equation | null =>
  x.equation !== null && x.equation.primitive === primitive ? x.equation : null

/** Every value of `from` is a value of `to`. */
const widens = (from: DType.DType, to: DType.DType): boolean =>
  from === to ||
  from === "bool" ||
  ((from === "bf16" || from === "f16") && to === "f32") ||
  (from === "u8" && (to === "f32" || to === "i32" || to === "u32"))

const isFloat = (x: AnyTensor): boolean => DType.kindOf(x.type.dtype) === "float"

/** Identities between neighbours: what output 0 of the equation, on these inputs, equals. `once(i)`: nobody else reads input i. */
const rewriteAlgebra = (
  e: Equation,
  inputs: ReadonlyArray<AnyTensor>,
  once: (i: number) => boolean
): AnyTensor | null => {
  const [x, y] = inputs
  const role = e.outputs[0]?.role ?? "compute"
  const one = (primitive: Equation["primitive"], xs: ReadonlyArray<AnyTensor>, params: unknown): AnyTensor =>
    build(primitive, xs, params, role)[0]!
  switch (e.primitive) {
    case mulP:
      return uniform(y!) === 1 ? x! : uniform(x!) === 1 ? y! : (scaleOfScale(x!, y!, one) ?? scaleOfScale(y!, x!, one))
    case addP:
      return uniform(y!) === 0 ? x! : uniform(x!) === 0 ? y! : null
    case subP:
      return uniform(y!) === 0 ? x! : null
    case divP:
      return uniform(y!) === 1 && isFloat(x!) ? x! : null
    case negP:
      return made(x!, negP)?.inputs[0] ?? null
    case castP:
      return castOf(x!, e.params.dtype as DType.DType, once(0), one)
    case sumP:
      return sumOfBroadcast(x!, e.params.over as ReadonlyArray<string>, one)
    case placeP:
      return placeOf(x!, role)
    case renameP: {
      const inner = made(x!, renameP)
      if (e.params.from === e.params.to) return x!
      if (inner === null || inner.params.to !== e.params.from) return null
      return inner.params.from === e.params.to
        ? inner.inputs[0]!
        : one(renameP, inner.inputs, { from: inner.params.from, to: e.params.to })
    }
    case broadcastP: {
      const axes = e.params.axes as Axis.Axes
      if (axes.every((a) => Axis.has(x!.type.axes, a.name))) return x!
      const inner = made(x!, broadcastP)
      return inner === null ? null : one(broadcastP, inner.inputs, { axes: e.outputs[0]!.type.axes })
    }
    case sliceP: {
      const { axis, size, start, to } = e.params as { axis: string; to: string; start: number; size: number }
      const whole = Axis.find(x!.type.axes, axis)!
      if (start !== 0 || size !== whole.size) return null
      return to === axis ? x! : one(renameP, [x!], { from: axis, to })
    }
    case splitP: {
      const inner = made(x!, mergeP)
      const p = e.params
      return inner !== null &&
        inner.params.axis === p.axis &&
        inner.params.outer === p.outer &&
        inner.params.inner === p.inner
        ? inner.inputs[0]!
        : null
    }
    case mergeP: {
      const inner = made(x!, splitP)
      const p = e.params
      return inner !== null &&
        inner.params.axis === p.axis &&
        inner.params.outer === p.outer &&
        inner.params.inner === p.inner
        ? inner.inputs[0]!
        : null
    }
    default:
      return null
  }
}

type One = (primitive: Equation["primitive"], xs: ReadonlyArray<AnyTensor>, params: unknown) => AnyTensor

/** (x * a) * b = x * (a b) for constants. Only in f32: a 16-bit product in between is rounded, integers wrap. */
const scaleOfScale = (x: AnyTensor, factor: AnyTensor, one: One): AnyTensor | null => {
  const inner = made(x, mulP)
  const b = made(factor, constantP)
  if (inner === null || b === null || x.type.dtype !== "f32") return null
  const at = inner.inputs.findIndex((i) => made(i, constantP) !== null)
  if (at < 0) return null
  const product = (inner.inputs[at]!.equation!.params.value as number) * (b.params.value as number)
  // A product outside of f32 would lose what two factors keep.
  if (!(Math.abs(product) > 1e-30 && Math.abs(product) < 1e30)) return null
  return one(mulP, [inner.inputs[1 - at]!, build(constantP, [], { value: product, dtype: "f32" }, "compute")[0]!], {})
}

const castOf = (x: AnyTensor, dtype: DType.DType, once: boolean, one: One): AnyTensor | null => {
  if (x.type.dtype === dtype) return x
  const constant = made(x, constantP)
  if (constant !== null && isFloat(x) && DType.kindOf(dtype) === "float") {
    return one(constantP, [], { value: DType.store(x.type.dtype, constant.params.value as number), dtype })
  }
  const inner = made(x, castP)
  if (inner !== null && widens(inner.inputs[0]!.type.dtype, x.type.dtype)) {
    return inner.inputs[0]!.type.dtype === dtype ? inner.inputs[0]! : one(castP, inner.inputs, { dtype })
  }
  // The sum is accumulated in f32 anyway: what is read as f32 need not be rounded on the way. Alone, or the product would run twice.
  const product = made(x, contractP)
  if (product !== null && once && dtype === "f32" && isFloat(x))
    return one(contractP, product.inputs, { ...product.params, dtype })
  return null
}

/** Summing n equal elements is n times one. Only in f32, where the product rounds no worse than the sum. */
const sumOfBroadcast = (x: AnyTensor, over: ReadonlyArray<string>, one: One): AnyTensor | null => {
  const inner = made(x, broadcastP)
  if (inner === null || x.type.dtype !== "f32") return null
  const source = inner.inputs[0]!
  if (over.some((n) => Axis.has(source.type.axes, n))) return null
  const count = over.reduce((n, name) => n * Axis.find(x.type.axes, name)!.size, 1)
  const kept = Axis.without(x.type.axes, over)
  const spread = Axis.equal(kept, source.type.axes) ? source : one(broadcastP, [source], { axes: kept })
  return one(mulP, [spread, build(constantP, [], { value: count, dtype: "f32" }, "compute")[0]!], {})
}

/** A placement that changes nothing, or goes where the tensor came from. A chain through two other tables is a choice, and stays. */
const placeOf = (x: AnyTensor, role: AnyTensor["role"]): AnyTensor | null => {
  if (x.role === role) return x
  const inner = made(x, placeP)
  return inner !== null && inner.inputs[0]!.role === role ? inner.inputs[0]! : null
}
