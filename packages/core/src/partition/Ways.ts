/**
 * The legal ways to run an equation on the ranks of one mesh axis. Each mesh axis chooses by itself; that every way is legal together with every
 * way of another axis is what makes the choice local.
 */
import * as Result from "effect/Result"
import * as Axis from "../Axis.ts"
import { kindOf } from "../DType.ts"
import { ProgramError } from "../Errors.ts"
import type { Placement } from "../Layout.ts"
import { axisOf, splitOn } from "../Layout.ts"
import type { AnyTensor, Body, ByName, Equation, TensorType } from "../Node.ts"
import { decomposition } from "../primitives/composite.ts"

/** Placements of all inputs and outputs as one mesh axis sees them. */
export interface Way {
  readonly inputs: ReadonlyArray<Placement>
  readonly outputs: ReadonlyArray<Placement>
}

/** Everything whole on every rank: always legal. */
export const wholeWay = (e: Equation): Way => ({
  inputs: e.inputs.map(() => "whole"),
  outputs: e.outputs.map(() => "whole")
})

/** The ways besides "all whole", those that split work first. */
export const waysOf = (e: Equation): ReadonlyArray<Way> => {
  const rule = e.primitive.partition
  switch (rule.kind) {
    case "byName":
      return byName(e, rule)
    case "derived":
      return derived(e)
    case "region":
    case "local":
      return []
  }
}

const byName = (e: Equation, rule: ByName<unknown>): ReadonlyArray<Way> => {
  const alias = rule.same?.(e.params) ?? {}
  const forbidden = rule.whole?.(e.params) ?? []
  const present = new Set(e.inputs.flatMap((x) => Axis.names(x.type.axes)))
  const kept = e.outputs.map((o) => Axis.names(o.type.axes).filter((name) => !forbidden.includes(name)))
  const ways: Array<Way> = []
  for (const axis of present) {
    if (forbidden.includes(axis)) continue
    const outs = kept.map((names) => names.find((o) => (alias[o] ?? o) === axis))
    if (outs.some((out) => out === undefined) && rule.reduces === undefined) continue
    ways.push({
      inputs: e.inputs.map((x) => (Axis.has(x.type.axes, axis) ? splitOn(axis) : "whole")),
      outputs: outs.map((out) => (out === undefined ? rule.reduces! : splitOn(out)))
    })
  }
  if (rule.spreads) {
    for (const out of kept[0]!)
      if (!present.has(alias[out] ?? out)) ways.push({ inputs: e.inputs.map(() => "whole"), outputs: [splitOn(out)] })
  }
  for (const group of groupsOf(e, rule)) {
    ways.push({
      inputs: e.inputs.map((_, i) => (group.includes(i) ? "sum" : "whole")),
      outputs: e.outputs.map(() => "sum")
    })
  }
  return ways
}

/** Inputs that may owe a sum together. Integers and booleans wrap or saturate: their parts do not add up through a cast. */
const groupsOf = (e: Equation, { linear = [] }: ByName<unknown>): ReadonlyArray<ReadonlyArray<number>> => {
  if (linear === "together") return [e.inputs.map((_, i) => i)]
  const [x, o] = [e.inputs[0], e.outputs[0]!]
  const converts = e.primitive.name === "cast" && kindOf(x!.type.dtype) !== kindOf(o.type.dtype)
  return converts ? [] : linear
}

/**
 * What a program knows of the size of an axis: numbers and coordinates written inside of it, and parameters. Only the types that operations
 * repeat their operands to may follow the size, since they are built again from local types.
 */
const knowledge = (body: Body, axis: string): string =>
  JSON.stringify(
    body.equations.map((e) => [e.primitive.name, e.primitive.meaning.kind === "region" ? null : (e.params as unknown)]),
    (_key, value: unknown) =>
      Array.isArray(value) && value.some((v) => isAxis(v, axis))
        ? value.map((v) => (isAxis(v, axis) ? axis : (v as unknown)))
        : value
  )

const isAxis = (x: unknown, name: string): boolean =>
  typeof x === "object" && x !== null && "name" in x && "logical" in x && x.name === name

const doubled = (type: TensorType, axis: string): TensorType => ({
  dtype: type.dtype,
  axes: type.axes.map((a) => (a.name === axis ? Axis.make(axis, a.size * 2) : a))
})

const known = new WeakMap<object, Map<string, ReadonlyArray<Way>>>()

/**
 * A composite may be split along an axis exactly when its decomposition runs under that split without moving anything and without reading the
 * size of the axis: a mean over it would silently take the local one.
 */
const derived = (e: Equation): ReadonlyArray<Way> => {
  const types = e.inputs.map((x) => x.type)
  const all = known.get(e.primitive) ?? new Map<string, ReadonlyArray<Way>>()
  known.set(e.primitive, all)
  const key = JSON.stringify([types, e.params])
  const found = all.get(key)
  if (found !== undefined) return found
  const body = decomposition(e.primitive, types, e.params)
  const axes = new Set(types.flatMap((t) => Axis.names(t.axes)))
  const ways = [...axes].flatMap((axis) => {
    const other = at(
      e,
      types.map((t) => doubled(t, axis))
    )
    return other !== null && knowledge(other, axis) === knowledge(body, axis) ? follow(body, axis) : []
  })
  all.set(key, ways)
  return ways
}

/** The decomposition at other types, or null where it has none: an axis whose size is fixed. */
const at = (e: Equation, types: ReadonlyArray<TensorType>): Body | null => {
  const made = Result.try({
    try: () => decomposition(e.primitive, types, e.params),
    catch: (error) => {
      if (error instanceof ProgramError) return error
      throw error
    }
  })
  return Result.isSuccess(made) ? made.success : null
}

/** Where a split of every input along `axis` leads, or nothing when something would have to move. */
const follow = (body: Body, axis: string): ReadonlyArray<Way> => {
  const placed = new Map<AnyTensor, Placement>(
    body.inputs.map((x) => [x, Axis.has(x.type.axes, axis) ? splitOn(axis) : "whole"])
  )
  for (const e of body.equations) {
    const given = e.inputs.map((x) => placed.get(x)!)
    const way = given.every((p) => p === "whole")
      ? wholeWay(e)
      : waysOf(e).find((w) => w.inputs.every((p, i) => p === given[i]))
    if (way === undefined) return []
    e.outputs.forEach((o, i) => placed.set(o, way.outputs[i]!))
  }
  return [{ inputs: body.inputs.map((x) => placed.get(x)!), outputs: body.outputs.map((x) => placed.get(x)!) }]
}

/** Whether a way fits sizes when earlier mesh axes already took `before`: an axis split by several must divide by all. */
export const fits = (
  type: TensorType,
  placement: Placement,
  count: number,
  before: ReadonlyArray<readonly [Placement, number]>
): boolean => {
  const axis = axisOf(placement)
  if (axis === null) return true
  const all = before.reduce((n, [p, c]) => (p === placement ? n * c : n), count)
  return (Axis.find(type.axes, axis)?.size ?? 0) % all === 0
}
