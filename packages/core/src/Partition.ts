/**
 * From a program for one device to the program of one rank: equation by equation, from rule tables over axis names. Gradients are taken before, so
 * nothing here differentiates a collective. What a strategy asks for appears in the printed program, with its bytes.
 */
import * as Result from "effect/Result"
import { bucket } from "./Bucket.ts"
import { PartitionError, ProgramError, StillOwing } from "./Errors.ts"
import type { Layout, Placement } from "./Layout.ts"
import * as Layouts from "./Layout.ts"
import { axisOf, owes } from "./Layout.ts"
import * as Mesh from "./Mesh.ts"
import type { AnyTensor, Body, Equation } from "./Node.ts"
import { input } from "./Node.ts"
import { emitRing, ringAxis, ringWay } from "./partition/Ring.ts"
import type { Price, Version } from "./partition/Scope.ts"
import { cheaper, Scope } from "./partition/Scope.ts"
import type { Way } from "./partition/Ways.ts"
import { fits, waysOf, wholeWay } from "./partition/Ways.ts"
import { castP } from "./primitives/algebra.ts"
import type { ScanParams } from "./primitives/control.ts"
import { scanP } from "./primitives/control.ts"
import { placeP } from "./primitives/emit.ts"
import * as Program from "./Program.ts"
import type { Strategy } from "./Strategy.ts"
import * as Tree from "./Tree.ts"

/** The program of one rank, and in which layout it takes and gives its tensors. */
export interface Lowered {
  readonly body: Body
  readonly inputLayouts: ReadonlyArray<Layout>
  readonly outputLayouts: ReadonlyArray<Layout>
  /** For every tensor of the global program, in regions too, where ranks hold it. For counterexamples and for the check. */
  readonly held: ReadonlyMap<AnyTensor, ReadonlyArray<Version>>
}

export interface Options {
  /** The program went through `Padding`, as those of `Step` did. Else an axis that does not divide is an error, seq and vocab included. */
  readonly padded?: boolean
  /** Layouts of inputs; by default those of their names. */
  readonly inputs?: ReadonlyArray<Layout>
  /** Layout of output i, from what is there; by default that of its names. */
  readonly outputs?: (output: number, x: AnyTensor, scope: Scope) => Layout
}

/** Lowers a body. Throws `PartitionError`. */
export const lower = (body: Body, strategy: Strategy, options: Options = {}): Lowered => {
  const scope = new Scope(strategy, { padded: options.padded ?? false })
  const layouts = options.inputs ?? body.inputs.map((x) => scope.home(x))
  const inputs = body.inputs.map((x, i) => input(Layouts.localType(x.type, layouts[i]!, strategy.mesh), x.role))
  body.inputs.forEach((x, i) => scope.add(x, { tensor: inputs[i]!, layout: layouts[i]! }))
  const held = new Map<AnyTensor, ReadonlyArray<Version>>()
  lowerEquations(body.equations, scope, held, options)
  const outputLayouts = body.outputs.map((x, i) => options.outputs?.(i, x, scope) ?? scope.home(x))
  const outputs = body.outputs.map((x, i) => scope.at(x, outputLayouts[i]!))
  for (const [x, versions] of scope.versions) held.set(x, versions)
  return { body: Program.body(inputs, outputs), inputLayouts: layouts, outputLayouts, held }
}

const lowerEquations = (
  equations: ReadonlyArray<Equation>,
  scope: Scope,
  held: Map<AnyTensor, ReadonlyArray<Version>>,
  options: Options
): void => {
  const placed = new Set(equations.flatMap((e) => (e.params.role === "gradient" ? e.inputs : [])))
  for (const e of equations) {
    if (e.primitive.meaning.kind === "region") lowerRegion(e, scope, held, options)
    else if (e.primitive === castP && (e.outputs[0]!.role === "gradient" || placed.has(e.outputs[0]!))) {
      // What a gradient owes is paid where it is placed, in the type that it has there, not where another type has fewer bytes.
      const [x, o] = [e.inputs[0]!, e.outputs[0]!]
      for (const { layout, tensor } of scope.versionsOf(x))
        scope.add(o, { tensor: scope.emit(castP, [tensor], e.params, o.role)[0]!, layout })
    } else if (e.primitive === placeP) {
      const [x, o] = [e.inputs[0]!, e.outputs[0]!]
      for (const { layout, tensor } of scope.versionsOf(x))
        scope.add(o, { tensor: scope.emit(placeP, [tensor], e.params, o.role)[0]!, layout })
      scope.settle(o, true)
    } else if (opens(e, scope)) {
      const { meaning } = e.primitive
      if (meaning.kind !== "composite") throw new Error(`${e.primitive.name} is no composite`)
      const inside = Program.body(e.inputs, meaning.decompose(e.inputs, e.params))
      lowerEquations(inside.equations, scope, held, options)
      inside.outputs.forEach((x, i) => {
        for (const v of scope.versionsOf(x)) scope.add(e.outputs[i]!, v)
      })
    } else lowerEquation(e, scope)
  }
}

/** Whether a composite runs as its parts, because an operand is split (or padded) where its kernel needs it whole. */
const opens = (e: Equation, scope: Scope): boolean => {
  const rule = e.primitive.partition
  if (rule.kind !== "derived" || rule.opens === undefined) return false
  const axes = rule.opens(e.params)
  return e.inputs.some((x) => {
    if (x.type.axes.some((a) => a.logical !== a.size && axes.includes(a.name))) return true
    return [...scope.home(x).values()].some((p) => axes.includes(axisOf(p) ?? ""))
  })
}

/** The way of one mesh axis: fewest moves, then fewest bytes, then split work, then late sums. `before`: what earlier mesh axes chose. */
const chooseWay = (e: Equation, meshAxis: string, scope: Scope, before: ReadonlyMap<string, Way>): Way => {
  const { mesh } = scope.strategy
  const count = Mesh.countOf(mesh, meshAxis)
  const earlier = (placement: (w: Way) => Placement) =>
    [...before].map(([m, w]) => [placement(w), Mesh.countOf(mesh, m)] as const)
  const possible = waysOf(e).filter(
    (w) =>
      w.inputs.every((p, i) =>
        fits(
          e.inputs[i]!.type,
          p,
          count,
          earlier((b) => b.inputs[i]!)
        )
      ) &&
      w.outputs.every((p, i) =>
        fits(
          e.outputs[i]!.type,
          p,
          count,
          earlier((b) => b.outputs[i]!)
        )
      )
  )
  const splits = (w: Way) => [...w.inputs, ...w.outputs].some((p) => axisOf(p) !== null)
  const ordered = [...possible.filter(splits), ...possible.filter((w) => !splits(w)), wholeWay(e)]
  let best = ordered[ordered.length - 1]!
  let bestPrice: Price = { moves: Infinity, bytes: Infinity }
  for (const way of ordered) {
    const price = priceOfWay(e, way, meshAxis, scope)
    if (price !== null && cheaper(price, bestPrice)) {
      best = way
      bestPrice = price
    }
  }
  return best
}

const priceOfWay = (e: Equation, way: Way, meshAxis: string, scope: Scope): Price | null => {
  let [moves, bytes] = [0, 0]
  const take = (price: Price | null): boolean => {
    if (price === null) return false
    moves += price.moves
    bytes += price.bytes
    return true
  }
  const seen = new Set<string>()
  for (const [i, x] of e.inputs.entries()) {
    // An operand that is given twice in one placement moves once.
    const key = `${e.inputs.indexOf(x)} ${way.inputs[i]}`
    if (seen.has(key)) continue
    seen.add(key)
    if (!take(scope.price(x, meshAxis, way.inputs[i]!))) return null
  }
  const late = !way.inputs.some(owes)
  for (const [i, o] of e.outputs.entries())
    if (!take(scope.outputPrice(o, meshAxis, way.outputs[i]!, late))) return null
  return { moves, bytes }
}

const lowerEquation = (e: Equation, scope: Scope): void => {
  const chosen = new Map<string, Way>()
  const ring = ringAxis(e, scope)
  for (const [m] of scope.strategy.mesh) chosen.set(m, m === ring ? ringWay(e) : chooseWay(e, m, scope, chosen))
  lowerAs(e, chosen, scope, ring)
  // Cheap and closed expressions (coordinates, masks, frequencies) are rebuilt in the layout asked for, never gathered; what nobody takes is dead.
  const closed = e.inputs.every((x) => scope.closed.has(x))
  if (closed) for (const o of e.outputs) scope.closed.add(o)
  if (!closed && e.primitive.recompute !== "cheap") return
  const whole = wholeWay(e)
  const again = new Map(
    [...chosen].map(([m, w]) => [m, e.inputs.every((x) => scope.price(x, m, "whole")?.moves === 0) ? whole : w])
  )
  lowerAs(e, again, scope, null)
}

const lowerAs = (e: Equation, chosen: ReadonlyMap<string, Way>, scope: Scope, ring: string | null): void => {
  const { mesh } = scope.strategy
  const wanted = (placement: (w: Way) => Placement): Layout =>
    new Map([...chosen].map(([m, w]) => [m, placement(w)] as const))
  const inputs = e.inputs.map((x, i) =>
    scope.at(
      x,
      wanted((w) => w.inputs[i]!)
    )
  )
  const layouts = e.outputs.map((_, i) => wanted((w) => w.outputs[i]!))
  const rule = e.primitive.partition
  const params =
    rule.kind === "byName" && rule.localize !== undefined
      ? rule.localize(e.params, (axis) => Layouts.shardCount(layouts[0]!, mesh, axis))
      : e.params
  const roles = e.outputs.map((o) => o.role)
  const outputs =
    ring === null ? scope.emit(e.primitive, inputs, params, roles) : emitRing(e, inputs, ring, Mesh.countOf(mesh, ring))
  e.outputs.forEach((o, i) => {
    scope.add(o, { tensor: outputs[i]!, layout: layouts[i]! })
    scope.settle(o, false)
  })
}

/** Results of regions: the layout of their names where it is to be had, or still owing if nobody inside had to pay. */
export const lateLayout = (x: AnyTensor, scope: Scope): Layout => {
  const home = scope.home(x)
  const debts = (v: Version) => [...v.layout.values()].filter(owes).length
  const fit = scope.versionsOf(x).filter((v) => [...v.layout].every(([m, p]) => p === home.get(m) || p === "sum"))
  return fit.length === 0 ? home : fit.reduce((best, v) => (debts(v) < debts(best) ? v : best)).layout
}

/** Inputs arrive in the layouts of their names; carried values keep it, whatever adds up may leave as a debt. */
const lowerRegion = (
  e: Equation,
  scope: Scope,
  held: Map<AnyTensor, ReadonlyArray<Version>>,
  { padded = false }: Options
): void => {
  const { body } = e.params as { readonly body: Body }
  const carried = e.primitive === scanP ? (e.params as ScanParams).carried : 0
  const layouts = body.inputs.map((x) => Layouts.named(x.type, x.role, scope.strategy, { padded }))
  const inputs = e.inputs.map((x, i) => scope.at(x, layouts[i]!))
  const inner = lower(body, scope.strategy, {
    padded,
    inputs: layouts,
    outputs: (i, x, inside) => (i < carried ? layouts[i]! : lateLayout(x, inside))
  })
  for (const [x, versions] of inner.held) held.set(x, versions)
  const outputs = scope.emit(
    e.primitive,
    inputs,
    { ...e.params, body: inner.body },
    e.outputs.map((o) => o.role)
  )
  e.outputs.forEach((o, i) => {
    scope.add(o, { tensor: outputs[i]!, layout: inner.outputLayouts[i]! })
    scope.settle(o, false)
  })
}

/** What lives from step to step owes nothing. */
const settled = (program: Program.Program, lowered: Lowered): void => {
  const paths = Tree.paths(program.outTree)
  program.outputs.forEach((o, i) => {
    if (o.role !== "parameter" && o.role !== "optimizer") return
    for (const [meshAxis, p] of lowered.outputLayouts[i]!) {
      if (!owes(p)) continue
      throw new PartitionError({
        reason: new StillOwing({ tensor: paths[i]!, meshAxis, where: "the end of the update" })
      })
    }
  })
}

/** Where ranks hold values, after tensors have become others. */
const renamed = (held: Lowered["held"], now: ReadonlyMap<AnyTensor, AnyTensor>): Lowered["held"] =>
  new Map(
    [...held].map(
      ([x, versions]) => [x, versions.map((v) => ({ ...v, tensor: now.get(v.tensor) ?? v.tensor }))] as const
    )
  )

/** The same with collectives of one kind in common. */
export const together = (lowered: Lowered, strategy: Strategy): Lowered => {
  const now = new Map<AnyTensor, AnyTensor>()
  const body = bucket(lowered.body, strategy.bucketBytes, (before, after) => now.set(before, after))
  return { ...lowered, body, held: renamed(lowered.held, now) }
}

/** The program of one rank, inputs and outputs in the layouts of their names. Fails where an axis does not divide or a rule is missing. */
export const partition = <I, O>(
  program: Program.Program<I, O>,
  strategy: Strategy,
  options: Options = {}
): Result.Result<Partitioned<I, O>, PartitionError | ProgramError> =>
  Result.try({
    try: () => {
      const lowered = lower(program, strategy, options)
      settled(program, lowered)
      const travelling = together(lowered, strategy)
      return { ...travelling, program: Program.withBody(program, travelling.body) }
    },
    catch: (error) => {
      if (error instanceof PartitionError || error instanceof ProgramError) return error
      throw error
    }
  })

export interface Partitioned<I, O> extends Lowered {
  readonly program: Program.Program<I, O>
}
