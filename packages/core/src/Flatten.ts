/**
 * Parameters that travel together: those of one unit (a layer, or the whole model) in one flat tensor, which divides over any number of ranks. One
 * unit is gathered by one collective, and its gradient is scattered by one. Parameters of different storage type, and frozen and trained ones, never
 * share a flat tensor; nor do those that the optimizer treats differently. A pass over the forward program, before derivatives.
 * @source FairScale FullyShardedDataParallel, flatten_parameters; arXiv:2304.11277, section 4.2
 */
import * as Axis from "./Axis.ts"
import type { DType } from "./DType.ts"
import { NoRule, PartitionError, RecipeError } from "./Errors.ts"
import * as Init from "./Init.ts"
import { axisOf, named, shardCount } from "./Layout.ts"
import * as Mesh from "./Mesh.ts"
import * as Module from "./Module.ts"
import type { AnyTensor, Body, Equation } from "./Node.ts"
import { build, input } from "./Node.ts"
import type * as Optimizer from "./Optimizer.ts"
import { castP } from "./primitives/algebra.ts"
import { mergeP } from "./primitives/axes.ts"
import type { ScanParams } from "./primitives/control.ts"
import { scanP } from "./primitives/control.ts"
import { placeP } from "./primitives/emit.ts"
import type { Member, PackParams } from "./primitives/pack.ts"
import { unpackP } from "./primitives/pack.ts"
import * as Program from "./Program.ts"
import type { Fsdp, Strategy } from "./Strategy.ts"

/** The axis that holds everything. */
export const flatAxis = "flat"
/** Outside of it: the parts into which tensor parallelism splits parameters. Each is flattened by itself. */
export const partAxis = "part"

/** One flat parameter. */
export interface Unit {
  readonly path: string
  /** Leaves in the order of their elements. */
  readonly leaves: ReadonlyArray<number>
  readonly params: PackParams
  /** Axes that stay outside of the flat one: layers, where each is a unit, and parts. */
  readonly rest: Axis.Axes
  /** Of every member the axis that is split into the parts; null where there are none. */
  readonly split: ReadonlyArray<Axis.Axis> | null
  /** The stack of layers of which each is a unit, if it is one. */
  readonly stacked: boolean
  /** In which types its members travel. */
  readonly dtypes: ReadonlyArray<DType>
}

export interface Flattened {
  readonly body: Body
  readonly params: Module.ParamTree
  readonly optimizer: Optimizer.Optimizer
  readonly units: ReadonlyArray<Unit>
}

const refuse = (problem: string, hint: string): never => {
  throw new PartitionError({ reason: new NoRule({ operation: "flattened parameters", problem, hint }) })
}

/** Ranks over which flat parameters are dealt out. */
const shardsOf = (strategy: Strategy): number => {
  const rules = [strategy.parameters, strategy.gradients, strategy.optimizer]
  const meshAxes = new Set(rules.flatMap((table) => table.flatMap(([axis, m]) => (axis === flatAxis ? [m] : []))))
  return [...meshAxes].reduce((n, m) => n * Mesh.countOf(strategy.mesh, m), 1)
}

/** The program on flat parameters. Inputs: one for each unit, then those of the program behind its parameters. Throws `PartitionError`, `RecipeError`. */
export const apply = (
  body: Body,
  params: Module.ParamTree,
  optimizer: Optimizer.Optimizer,
  strategy: Strategy,
  fsdp: Fsdp
): Flattened => {
  if (!optimizer.rule.elementwise) {
    throw new RecipeError({
      key: "optimizer",
      problem: `${optimizer.rule.name} looks at whole parameters, flattened ones hold many`,
      hint: "use an elementwise rule (adamw, sgd, lion), or zero 3 instead of fsdp"
    })
  }
  const leaves = Module.leaves(params)
  const own = new Set(body.inputs.slice(0, leaves.length))
  const units = unitsOf(body, leaves, optimizer, strategy, fsdp)
  const flats = units.map((u) => {
    const { dtype } = body.inputs[u.leaves[0]!]!.type
    return input({ axes: axesOf(u), dtype }, "parameter")
  })
  const rest = body.inputs.filter((x) => !own.has(x))
  const pass = new Pass(units, fsdp)
  const leafOf = new Map(body.inputs.slice(0, leaves.length).map((x, i) => [x, i]))
  const outputs = pass.run(body, new Map(rest.map((x) => [x, x])), leafOf, new Map(units.map((u, i) => [u, flats[i]!])))
  const unitAt = new Map(units.map((u) => [u.path, u]))
  const first = (leaf: Module.Leaf) => leaves[unitAt.get(leaf.path)!.leaves[0]!]!
  return {
    body: Program.body([...flats, ...rest], outputs),
    params: treeOf(units),
    units,
    optimizer: {
      ...optimizer,
      decayMask: (leaf) => optimizer.decayMask(first(leaf)),
      learningRateScale: (leaf) => optimizer.learningRateScale(first(leaf)),
      trainable: (leaf) => optimizer.trainable(first(leaf))
    }
  }
}

const axesOf = ({ params, rest }: Unit): Axis.Axes => [...rest, Axis.make(flatAxis, params.size)]

/** Declarations; how flat parameters begin is the business of their members. */
const treeOf = (units: ReadonlyArray<Unit>): Module.ParamTree =>
  Object.fromEntries(
    units.map((unit): [string, Module.Param] => [
      unit.path,
      {
        axes: axesOf(unit),
        init: Init.zeros,
        decay: true,
        repeated: unit.stacked ? ["layers"] : []
      }
    ])
  )

/** How a leaf is used: the stack whose layers read it, if that is all, and the types in which it is read. */
interface Use {
  readonly stack: number | null
  readonly dtypes: ReadonlySet<DType>
}

/** The axis of a parameter that its rules split, and into how many parts; layers of stages are another matter. */
const splitOf = (
  { param }: Module.Leaf,
  strategy: Strategy
): { readonly axis: Axis.Axis; readonly parts: number } | null => {
  const layout = named({ axes: param.axes, dtype: "f32" }, "parameter", strategy, { padded: true })
  const found = new Set([...layout.values()].map(axisOf))
  const axis = param.axes.find((a) => a.name !== "layers" && found.has(a.name))
  const parts = axis === undefined ? 1 : shardCount(layout, strategy.mesh, axis.name)
  return axis === undefined || parts === 1 ? null : { axis, parts }
}

/** What an axis is called within one of its parts. */
const within = (axis: string): string => `${axis}OfPart`

/** A parameter's axes with one split into parts. */
export const apart = (axes: Axis.Axes, split: string | undefined, parts: number): Axis.Axes =>
  axes.flatMap((a) =>
    a.name === split ? [Axis.make(partAxis, parts), Axis.make(within(a.name), a.size / parts)] : [a]
  )

const unitsOf = (
  body: Body,
  leaves: ReadonlyArray<Module.Leaf>,
  optimizer: Optimizer.Optimizer,
  strategy: Strategy,
  fsdp: Fsdp
): ReadonlyArray<Unit> => {
  const stacks: Array<Equation> = []
  const groups = new Map<string, Array<number>>()
  const uses = leaves.map((_, i) => useOf(body, body.inputs[i]!, stacks))
  const splits = leaves.map((leaf) => splitOf(leaf, strategy))
  const staged = strategy.parameters.some(([axis, m]) => axis === "layers" && Mesh.countOf(strategy.mesh, m) > 1)
  leaves.forEach((leaf, i) => {
    const { dtypes, stack } = uses[i]!
    const scale = optimizer.learningRateScale(leaf)
    const stacked = stack !== null && (fsdp.unit === "block" || (staged && Axis.has(leaf.param.axes, "layers")))
    const kind = [[...dtypes].sort().join("+") || "f32", ...(optimizer.trainable(leaf) ? [] : ["frozen"])]
    const treated = [...(optimizer.decayMask(leaf) ? [] : ["noDecay"]), ...(scale === 1 ? [] : [JSON.stringify(scale)])]
    const parts = splits[i] === null ? [] : [`in ${splits[i]!.parts} parts`]
    const key = [stacked ? `stack${stack}` : "root", ...kind, ...treated, ...parts].join(" ")
    groups.set(key, [...(groups.get(key) ?? []), i])
  })
  return [...groups].map(([key, members], n) => {
    const first = members[0]!
    const stacked = key.startsWith("stack")
    const parts = splits[first]?.parts ?? 1
    const rest = [
      ...(stacked ? [Axis.find(leaves[first]!.param.axes, "layers")!] : []),
      ...(parts > 1 ? [Axis.make(partAxis, parts)] : [])
    ]
    const split = parts > 1 ? members.map((i) => splits[i]!.axis) : null
    const axes = members.map((i, k) =>
      Axis.without(apart(leaves[i]!.param.axes, split?.[k]?.name, parts), Axis.names(rest))
    )
    const path = `unit${n} ${key.split(" [")[0]}`
    const params = packing(axes, shardsOf(strategy))
    return { path, leaves: members, params, rest, split, stacked, dtypes: [...uses[first]!.dtypes] }
  })
}

/** Members one after another, and zeros until all ranks have as much. */
const packing = (members: ReadonlyArray<Axis.Axes>, shards: number): PackParams => {
  let start = 0
  const placed = members.map((axes): Member => {
    const member = { start, axes }
    start += Axis.count(axes)
    return member
  })
  return { axis: flatAxis, size: Math.ceil(start / shards) * shards, logical: start, members: placed }
}

/** Looks through regions; `stacks` collects scans along layers by number. */
const useOf = (body: Body, x: AnyTensor, stacks: Array<Equation>): Use => {
  const dtypes = new Set<DType>()
  const found = new Set<number | null>()
  const walk = (b: Body, y: AnyTensor, stack: number | null): void => {
    for (const e of b.equations) {
      e.inputs.forEach((z, i) => {
        if (z !== y) return
        const { meaning } = e.primitive
        if (e.primitive === placeP) {
          found.add(stack)
          dtypes.add(y.type.dtype)
        } else if (e.primitive === castP) walk(b, e.outputs[0]!, stack)
        else if (meaning.kind === "region") {
          const p = e.params as ScanParams
          const along = e.primitive === scanP && p.axis === "layers" && i >= p.carried && i < p.carried + p.each
          if (along && !stacks.includes(e)) stacks.push(e)
          walk(p.body, p.body.inputs[i]!, along ? stacks.indexOf(e) : stack)
        } else
          refuse(`${e.primitive.name} reads a parameter that was not placed`, "use it through the tensor functions")
      })
    }
  }
  walk(body, x, null)
  const [only] = found
  return { stack: found.size === 1 ? (only ?? null) : null, dtypes }
}

interface Leafed {
  readonly leaf: number
  readonly dtype: DType
}

class Pass {
  private readonly unitOf = new Map<number, readonly [Unit, number]>()
  private readonly fsdp: Fsdp

  constructor(units: ReadonlyArray<Unit>, fsdp: Fsdp) {
    this.fsdp = fsdp
    for (const u of units) u.leaves.forEach((leaf, i) => this.unitOf.set(leaf, [u, i]))
  }

  /** The outputs of a body whose leaves come in flat tensors. */
  run(
    body: Body,
    env: Map<AnyTensor, AnyTensor>,
    leafOf: ReadonlyMap<AnyTensor, number>,
    flats: ReadonlyMap<Unit, AnyTensor>
  ): ReadonlyArray<AnyTensor> {
    const leafed = new Map<AnyTensor, Leafed>([...leafOf].map(([x, leaf]) => [x, { leaf, dtype: x.type.dtype }]))
    const made = new Map<string, ReadonlyArray<AnyTensor>>()
    const member = ({ dtype, leaf }: Leafed): AnyTensor => {
      const [unit, at] = this.unitOf.get(leaf)!
      const key = `${unit.path} ${dtype}`
      const all = made.get(key) ?? this.members(unit, flats.get(unit)!, dtype)
      made.set(key, all)
      return all[at]!
    }
    for (const e of body.equations) {
      const source = e.inputs.length === 1 ? leafed.get(e.inputs[0]!) : undefined
      if (source !== undefined && e.primitive === castP)
        leafed.set(e.outputs[0]!, { leaf: source.leaf, dtype: e.params.dtype as DType })
      else if (source !== undefined && e.primitive === placeP) env.set(e.outputs[0]!, member(source))
      else {
        const region = e.primitive.meaning.kind === "region" && e.inputs.some((x) => leafed.has(x))
        const outputs = region ? this.region(e, env, leafed, flats, member) : remake(e, env)
        e.outputs.forEach((o, i) => env.set(o, outputs[i]!))
      }
    }
    return body.outputs.map((o) => env.get(o)!)
  }

  /** A unit as compute sees it. */
  private members(unit: Unit, flat: AnyTensor, dtype: DType): ReadonlyArray<AnyTensor> {
    const cast = flat.type.dtype === dtype ? flat : build(castP, [flat], { dtype }, flat.role)[0]!
    const keep = this.fsdp.reshardAfterForward ? {} : { keep: true }
    const placed = build(placeP, [cast], { role: "compute", ...keep }, "compute")
    return build(unpackP, placed, unit.params, "compute").map((x, i) => {
      const axis = unit.split?.[i]
      if (axis === undefined) return x
      const params = { axis: axis.name, outer: partAxis, inner: within(axis.name), logical: axis.logical }
      return build(mergeP, [x], params, "compute")[0]!
    })
  }

  /** Whole models are gathered before anything runs; units of a layer travel into the loop and are gathered there. */
  private region(
    e: Equation,
    env: ReadonlyMap<AnyTensor, AnyTensor>,
    leafed: ReadonlyMap<AnyTensor, Leafed>,
    flats: ReadonlyMap<Unit, AnyTensor>,
    member: (leaf: Leafed) => AnyTensor
  ): ReadonlyArray<AnyTensor> {
    const { body } = e.params as { readonly body: Body }
    const p = e.primitive === scanP ? (e.params as ScanParams) : null
    const [carried, each] = p === null ? [0, 0] : [p.carried, p.each]
    const rangeOf = (i: number) => (i < carried ? 0 : i < carried + each ? 1 : 2)
    const parts: ReadonlyArray<Array<readonly [outer: AnyTensor, inner: AnyTensor]>> = [[], [], []]
    const inside = new Map<AnyTensor, AnyTensor>()
    const leafOf = new Map<AnyTensor, number>()
    const inner = new Map<Unit, AnyTensor>()
    e.inputs.forEach((x, i) => {
      const own = body.inputs[i]!
      const found = leafed.get(x)
      if (found === undefined || this.fsdp.unit === "model") {
        const role = found === undefined ? own.role : "compute"
        const outer = found === undefined ? env.get(x)! : member(found)
        const made = input(own.type, role)
        inside.set(own, made)
        parts[rangeOf(i)]!.push([outer, made])
        return
      }
      const [unit] = this.unitOf.get(found.leaf)!
      leafOf.set(own, found.leaf)
      if (inner.has(unit)) return
      const outer = flats.get(unit)!
      const sliced = rangeOf(i) === 1 ? Axis.without(outer.type.axes, [p!.axis]) : outer.type.axes
      inner.set(unit, input({ axes: sliced, dtype: outer.type.dtype }, outer.role))
      parts[rangeOf(i)]!.push([outer, inner.get(unit)!])
    })
    const all = parts.flat()
    const outputs = this.run(body, inside, leafOf, inner)
    const next = Program.body(
      all.map(([, made]) => made),
      outputs
    )
    return build(
      e.primitive,
      all.map(([outer]) => outer),
      { ...e.params, body: next, ...(p === null ? {} : { each: parts[1]!.length }) },
      e.outputs.map((o) => o.role)
    )
  }
}

/** The equation on other operands. A placement of what is in compute already falls away. */
const remake = (e: Equation, env: ReadonlyMap<AnyTensor, AnyTensor>): ReadonlyArray<AnyTensor> => {
  const inputs = e.inputs.map((x) => env.get(x)!)
  if (e.primitive === placeP && inputs[0]!.role === e.params.role) return inputs
  return build(
    e.primitive,
    inputs,
    e.params,
    e.outputs.map((o) => (o.role === "parameter" ? inputs[0]!.role : o.role))
  )
}
