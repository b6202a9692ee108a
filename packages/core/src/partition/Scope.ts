/**
 * The program of one rank while it is made: its equations, and for every tensor of the global program the versions in which ranks hold it. Moves
 * between layouts become collectives here.
 */
import * as Axis from "../Axis.ts"
import { NoRule, PartitionError } from "../Errors.ts"
import type { Layout, Placement } from "../Layout.ts"
import * as Layouts from "../Layout.ts"
import { axisOf, owes } from "../Layout.ts"
import * as Mesh from "../Mesh.ts"
import type { AnyPrimitive, AnyTensor, Role, TensorType } from "../Node.ts"
import { build, bytesOf } from "../Node.ts"
import { allGatherP, allReduceP, allToAllP, keepFirstP, reduceScatterP, shardP } from "../primitives/collective.ts"
import type { Strategy } from "../Strategy.ts"

/** A local tensor that holds the value of a global one in a layout. */
export interface Version {
  readonly tensor: AnyTensor
  readonly layout: Layout
}

/** What it takes to move a tensor: number of collectives, then bytes that a rank sends. */
export interface Price {
  readonly moves: number
  readonly bytes: number
}

export const cheaper = (a: Price, b: Price): boolean =>
  a.moves < b.moves || (a.moves === b.moves && a.bytes < b.bytes - 1e-9)

const free: Price = { moves: 0, bytes: 0 }
const sum = (a: Price, b: Price): Price => ({ moves: a.moves + b.moves, bytes: a.bytes + b.bytes })

/** Price along one mesh axis of `count` ranks; `bytes` is the size per rank if this mesh axis did not split it. Null: there is no such move. */
const priceOf = (from: Placement, to: Placement, bytes: number, count: number, scalar: boolean): Price | null => {
  const share = (count - 1) / count
  if (from === to || (from === "whole" && axisOf(to) !== null)) return free
  // Of a scalar the first rank keeps all: it joins a sum that is owed anyway.
  if (owes(to)) return from === "whole" && to === "sum" && scalar ? free : null
  if (owes(from)) return { moves: 1, bytes: (axisOf(to) !== null && from === "sum" ? 1 : 2) * share * bytes }
  return { moves: 1, bytes: to === "whole" ? share * bytes : (share * bytes) / count }
}

export class Scope {
  readonly strategy: Strategy
  private readonly naming: Layouts.Naming
  readonly versions = new Map<AnyTensor, Array<Version>>()
  /** Tensors that depend on no input: coordinates, masks and the like. */
  readonly closed = new Set<AnyTensor>()
  private readonly shared = new Map<string, ReadonlyArray<AnyTensor>>()
  private readonly ids = new Map<unknown, number>()
  private readonly homes = new Map<AnyTensor, Layout>()

  constructor(strategy: Strategy, naming: Layouts.Naming) {
    this.strategy = strategy
    this.naming = naming
  }

  private id(x: unknown): number {
    const known = this.ids.get(x) ?? this.ids.size
    this.ids.set(x, known)
    return known
  }

  /** An equation of the rank's program; equal ones are one. */
  emit(
    primitive: AnyPrimitive,
    inputs: ReadonlyArray<AnyTensor>,
    params: any,
    roles: ReadonlyArray<Role> | Role
  ): ReadonlyArray<AnyTensor> {
    const plain = primitive.meaning.kind === "region" ? `#${this.id(params)}` : keyOf(params)
    const key = `${primitive.name} ${inputs.map((x) => this.id(x)).join()} ${plain} ${String(roles)}`
    const known = this.shared.get(key) ?? build(primitive, inputs, params, roles)
    this.shared.set(key, known)
    return known
  }

  add(x: AnyTensor, version: Version): void {
    const all = this.versions.get(x)
    if (all === undefined) this.versions.set(x, [version])
    else if (!all.some((v) => Layouts.same(v.layout, version.layout))) all.push(version)
  }

  versionsOf(x: AnyTensor): ReadonlyArray<Version> {
    return this.versions.get(x)!
  }

  /** The layout by the names of its axes. */
  home(x: AnyTensor): Layout {
    const known = this.homes.get(x) ?? Layouts.named(x.type, x.role, this.strategy, this.naming)
    this.homes.set(x, known)
    return known
  }

  /**
   * A debt is paid into the layout that its own names give, then moved on from there: data parallelism stays one all-reduce, ZeRO becomes a
   * scatter.
   */
  private path(x: AnyTensor, from: Placement, to: Placement, meshAxis: string, bytes: number): Price | null {
    const count = Mesh.countOf(this.strategy.mesh, meshAxis)
    const scalar = x.type.axes.length === 0
    if (!owes(from) || owes(to)) return priceOf(from, to, bytes, count, scalar)
    const home = this.home(x).get(meshAxis)!
    const pay = priceOf(from, home, bytes, count, scalar)
    const move = priceOf(home, to, bytes, count, scalar)
    return pay === null || move === null ? null : sum(pay, move)
  }

  /** Bytes of a rank's part if `meshAxis` did not split it. */
  private bytes(type: TensorType, layout: Layout, meshAxis: string): number {
    let bytes = bytesOf(type)
    for (const [m, p] of layout) if (m !== meshAxis && axisOf(p) !== null) bytes /= Mesh.countOf(this.strategy.mesh, m)
    return bytes
  }

  /** The cheapest way to have `x` at `to` on one mesh axis. */
  price(x: AnyTensor, meshAxis: string, to: Placement): Price | null {
    let best: Price | null = null
    for (const v of this.versionsOf(x)) {
      const price = this.path(x, v.layout.get(meshAxis)!, to, meshAxis, this.bytes(x.type, v.layout, meshAxis))
      if (price !== null && (best === null || cheaper(price, best))) best = price
    }
    return best
  }

  /** What an output costs that comes as `from`: towards the layout of its names, at once but for debts. */
  outputPrice(x: AnyTensor, meshAxis: string, from: Placement, late: boolean): Price | null {
    const layout = this.home(x)
    const home = layout.get(meshAxis)!
    const count = Mesh.countOf(this.strategy.mesh, meshAxis)
    const price = priceOf(from, home, this.bytes(x.type, layout, meshAxis), count, x.type.axes.length === 0)
    // A new debt that names do not ask to scatter is paid late: no move yet.
    return price !== null && late && owes(from) && home === "whole" ? { moves: 0, bytes: price.bytes } : price
  }

  /** The local tensor that holds `x` in the layout `to`; moved if no version has that layout yet. */
  at(x: AnyTensor, to: Layout): AnyTensor {
    const { mesh } = this.strategy
    const all = this.versionsOf(x)
    const known = all.find((v) => Layouts.same(v.layout, to))
    if (known !== undefined) return known.tensor
    let best: { readonly version: Version; readonly price: Price } | null = null
    for (const version of all) {
      let price: Price | null = free
      for (const [m] of mesh) {
        const one = this.path(x, version.layout.get(m)!, to.get(m)!, m, this.bytes(x.type, version.layout, m))
        price = price === null || one === null ? null : sum(price, one)
      }
      if (price !== null && (best === null || cheaper(price, best.price))) best = { version, price }
    }
    if (best === null) return this.stuck(x, to)
    let { layout, tensor } = best.version
    while (!Layouts.same(layout, to)) {
      const next = this.step(x, tensor, layout, to)
      tensor = next.tensor
      layout = next.layout
      this.add(x, next)
    }
    return tensor
  }

  private stuck(x: AnyTensor, to: Layout): never {
    const held = this.versionsOf(x).map((v) => Layouts.print(v.layout))
    throw new PartitionError({
      reason: new NoRule({
        operation: x.equation?.primitive.name ?? "input",
        problem: `${Axis.print(x.type.axes)} is held as ${held.join(" and ")} and cannot become ${Layouts.print(to)}`,
        hint: "its partition rule leaves a sum that nothing may pay"
      })
    })
  }

  /** One collective towards `to`: what shrinks the data goes first, what grows it last. */
  private step(x: AnyTensor, tensor: AnyTensor, layout: Layout, to: Layout): Version {
    const { mesh } = this.strategy
    const order = mesh.map(([m]) => m)
    const from = (m: string) => layout.get(m)!
    const goal = (m: string) => axisOf(to.get(m)!)
    const home = this.home(x)
    /** No later mesh axis splits it. */
    const minor = (m: string, axis: string) =>
      order.slice(order.indexOf(m) + 1).every((other) => axisOf(layout.get(other)!) !== axis)
    const go = (primitive: AnyPrimitive, m: string, p: Placement, params: object): Version => {
      const role = primitive === allGatherP && this.placed(x) ? "gathered" : tensor.role
      const given = { meshAxis: m, count: Mesh.countOf(mesh, m), ...params }
      return { tensor: this.emit(primitive, [tensor], given, role)[0]!, layout: new Map(layout).set(m, p) }
    }
    const pending = order.filter((m) => layout.get(m) !== to.get(m))
    for (const m of pending) {
      const axis = goal(m)
      if (from(m) === "whole" && axis !== null && minor(m, axis)) return go(shardP, m, to.get(m)!, { axis })
    }
    for (const m of pending) if (from(m) === "whole" && to.get(m) === "sum") return go(keepFirstP, m, "sum", {})
    for (const m of pending) {
      const axis = axisOf(home.get(m)!)
      if (from(m) === "sum" && axis !== null && minor(m, axis))
        return go(reduceScatterP, m, home.get(m)!, { axes: [axis] })
    }
    for (const m of pending) {
      const [a, b] = [axisOf(from(m)), goal(m)]
      if (a !== null && b !== null && minor(m, a) && minor(m, b))
        return go(allToAllP, m, to.get(m)!, { from: a, to: b })
    }
    for (const m of pending) if (owes(from(m))) return go(allReduceP, m, "whole", { by: from(m) })
    for (const m of pending.toReversed()) {
      const axis = axisOf(from(m))
      if (axis !== null && minor(m, axis)) return go(allGatherP, m, "whole", { axes: [axis] })
    }
    // Nested splits in the wrong order: undo the innermost.
    const blocking = order.toReversed().find((m) => axisOf(from(m)) !== null)!
    return go(allGatherP, blocking, "whole", { axes: [axisOf(from(blocking))!] })
  }

  /** Whether it is a parameter as compute sees it. */
  private placed(x: AnyTensor): boolean {
    const e = x.equation
    return x.role === "compute" && e !== null && e.primitive.name === "place" && e.inputs[0]!.role === "parameter"
  }

  /**
   * After an equation: at once to the layout of its names, except that a debt is paid late, by whoever cannot live with it; with `scatter` a debt
   * that names ask to split is paid now.
   */
  settle(x: AnyTensor, scatter: boolean): void {
    const all = this.versionsOf(x)
    const target = new Map<string, Placement>()
    for (const [m, p] of this.home(x)) {
      const owed = all.map((v) => v.layout.get(m)!).find(owes)
      const paid = all.some((v) => !owes(v.layout.get(m)!))
      target.set(m, owed !== undefined && !paid && !(scatter && axisOf(p) !== null) ? owed : p)
    }
    this.at(x, target)
  }
}

/** JSON that tells infinities, NaN and minus zero apart. */
const keyOf = (params: unknown): string =>
  JSON.stringify(params, (_k, v: unknown) =>
    typeof v === "number" && (!Number.isFinite(v) || Object.is(v, -0)) ? `#${Object.is(v, -0) ? "-0" : v}` : v
  )
