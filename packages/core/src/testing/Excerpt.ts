/** A part of a program, for people: one equation and what it is made of. */
import * as Axis from "../Axis.ts"
import type { AnyTensor, Body, Equation } from "../Node.ts"

/** Names of a program's inputs, as far as they have some: "params/head". */
export type Names = ReadonlyMap<AnyTensor, string>

/** Inputs by their paths. */
export const named = (inputs: ReadonlyArray<AnyTensor>, paths: ReadonlyArray<string>): Names =>
  new Map(inputs.flatMap((x, i) => (paths[i] === undefined ? [] : [[x, paths[i]] as const])))

/** The body in which an equation stands, and the regions around it, outermost first. */
export interface Place {
  readonly body: Body
  readonly regions: ReadonlyArray<Equation>
}

export const placeOf = (body: Body, equation: Equation): Place | null => {
  const open: Array<Place> = [{ body, regions: [] }]
  while (open.length > 0) {
    const place = open.pop()!
    if (place.body.equations.includes(equation)) return place
    for (const e of place.body.equations) {
      const { meaning } = e.primitive
      if (meaning.kind !== "region") continue
      for (const inner of meaning.bodies(e.params)) open.push({ body: inner, regions: [...place.regions, e] })
    }
  }
  return null
}

const typeOf = (x: AnyTensor): string => `${x.type.dtype}${Axis.print(x.type.axes)}`

const isAxis = (v: unknown): v is Axis.Axis => typeof v === "object" && v !== null && "logical" in v && "size" in v

const paramsOf = (e: Equation): string => {
  if (e.primitive.meaning.kind === "region") return typeof e.params.axis === "string" ? ` over "${e.params.axis}"` : ""
  const text = JSON.stringify(e.params, (_k, v: unknown) => (isAxis(v) ? `${v.name}=${v.size}` : v))
  return text === "{}" || text === undefined ? "" : ` ${text}`
}

/** What is made of nothing needs no line of its own: `1.25`, `iota`. */
const literal = (x: AnyTensor): string | null => {
  const e = x.equation
  if (e === null || e.inputs.length > 0) return null
  return e.primitive.name === "constant" ? String(e.params.value) : e.primitive.name
}

/** Operands of regions are many: the first ones stand for all. */
const operandsOf = (e: Equation, name: (x: AnyTensor) => string): string => {
  const most = e.primitive.meaning.kind === "region" ? 2 : e.inputs.length
  const rest = e.inputs.length - most
  return [...e.inputs.slice(0, most).map(name), ...(rest > 0 ? [`${rest} more`] : [])].join(", ")
}

/** One line: `f32[batch=2] = sum(f32[batch=2, embed=2]) {"over":["embed"]}`. */
export const line = (e: Equation, output: number, name: (x: AnyTensor) => string | null = () => null): string => {
  const operands = operandsOf(e, (x) => name(x) ?? literal(x) ?? typeOf(x))
  return `${typeOf(e.outputs[output]!)} = ${e.primitive.name}(${operands})${paramsOf(e)}`
}

/** The equations that a value is made of, the nearest ones only, in their order; the last line is the equation itself. */
export const lines = (
  place: Place,
  equation: Equation,
  output: number,
  names: Names,
  most = 7
): ReadonlyArray<string> => {
  const own = new Set(place.body.equations)
  const taken = new Set<Equation>([equation])
  const queue: Array<Equation> = [equation]
  while (queue.length > 0 && taken.size < most) {
    for (const x of queue.shift()!.inputs) {
      const e = x.equation
      if (e === null || e.inputs.length === 0 || !own.has(e) || taken.has(e) || taken.size >= most) continue
      taken.add(e)
      queue.push(e)
    }
  }
  const order = place.body.equations.filter((e) => taken.has(e))
  const labels = new Map<AnyTensor, string>()
  order.forEach((e, k) => e.outputs.forEach((o, i) => labels.set(o, e.outputs.length === 1 ? `%${k}` : `%${k}.${i}`)))
  const name = (x: AnyTensor) => labels.get(x) ?? names.get(x) ?? null
  return order.map((e) => {
    const k = e === equation ? output : 0
    return `${labels.get(e.outputs[k]!)}: ${line(e, k, name)}`
  })
}
