/**
 * Cuts a forward program into chunks of layers. A chunk computes what its layers need and no earlier chunk has; values that later chunks read travel
 * through the boundaries between. What depends on parameters, whole numbers and coordinates alone is made again where it is needed.
 */
import * as Axis from "../Axis.ts"
import { kindOf } from "../DType.ts"
import { Indivisible, NoRule, PartitionError } from "../Errors.ts"
import type { AnyTensor, Body, Equation } from "../Node.ts"
import { build, input } from "../Node.ts"
import { sliceP } from "../primitives/axes.ts"
import type { ScanParams } from "../primitives/control.ts"
import { scanP } from "../primitives/control.ts"
import * as Program from "../Program.ts"

/** An input of a chunk that is one of the whole program, or a run of its layers. */
export interface Given {
  /** Index among the inputs of the whole program. */
  readonly index: number
  readonly layers: { readonly start: number; readonly size: number } | null
}

export interface Chunk {
  /** Inputs: boundary values from the chunk before, then those of `given`. Outputs: boundary values, of the last chunk the program's outputs. */
  readonly body: Body
  /** How many of the inputs are boundary values. */
  readonly boundary: number
  readonly given: ReadonlyArray<Given>
}

/** A run of layers of one stack. */
interface Section {
  readonly scan: Equation
  readonly start: number
  readonly size: number
}

const refuse = (problem: string, hint: string): never => {
  throw new PartitionError({ reason: new NoRule({ operation: "pipeline", problem, hint }) })
}

/** The stacks of layers in the order in which they run. */
const stacksOf = (body: Body): ReadonlyArray<Equation> => {
  const found = body.equations.filter((e) => e.primitive === scanP && e.params.axis === "layers")
  if (found.length === 0) refuse("the program has no stack of layers", "build the layers with Module.stack")
  for (const { params } of found) {
    const p = params as ScanParams
    if (p.body.outputs.length > p.carried)
      refuse("a stack hands out intermediates of its layers", "captures and sums of layers cannot be cut into stages")
  }
  return found
}

/** Equal runs of layers over all stacks. */
const sectionsOf = (
  stacks: ReadonlyArray<Equation>,
  chunks: number,
  meshAxis: string
): ReadonlyArray<ReadonlyArray<Section>> => {
  const total = stacks.reduce((n, e) => n + (e.params as ScanParams).size, 0)
  if (total % chunks !== 0) {
    throw new PartitionError({
      reason: new Indivisible({
        tensor: "the stacks of layers",
        axis: "layers",
        size: total,
        meshAxes: [meshAxis],
        count: chunks
      })
    })
  }
  const each = total / chunks
  return Array.from({ length: chunks }, (_, c) => {
    let first = 0
    return stacks.flatMap((scan) => {
      const { size } = scan.params as ScanParams
      const [from, to] = [Math.max(c * each, first), Math.min((c + 1) * each, first + size)]
      const section = { scan, start: from - first, size: to - from }
      first += size
      return section.size > 0 ? [section] : []
    })
  })
}

/** Tensors before any layer that depend on no float of the batch: made again rather than sent. */
const portableOf = (body: Body, stacks: ReadonlyArray<Equation>): ReadonlySet<AnyTensor> => {
  const found = new Set<AnyTensor>(
    body.inputs.filter((x) => x.role === "parameter" || kindOf(x.type.dtype) !== "float")
  )
  for (const e of body.equations)
    if (!stacks.includes(e) && e.inputs.every((x) => found.has(x))) for (const o of e.outputs) found.add(o)
  return found
}

/** Cuts a forward program into equal chunks of layers. Throws `PartitionError` where it cannot. */
export const cut = (program: Body, chunks: number, meshAxis: string): ReadonlyArray<Chunk> => {
  const stacks = stacksOf(program)
  const sections = sectionsOf(stacks, chunks, meshAxis)
  const portable = portableOf(program, stacks)
  const ofStacks = new Set(stacks.flatMap((e) => e.outputs))
  const isInput = new Set(program.inputs)
  /** The chunk that computes a tensor, for tensors that are not made again. */
  const home = new Map<AnyTensor, number>()
  /** For every chunk, the earlier tensors that it reads. */
  const reads = sections.map(() => new Set<AnyTensor>())

  const demand = (targets: ReadonlyArray<AnyTensor>, chunk: number): void => {
    const seen = new Set<AnyTensor>()
    const stack = [...targets]
    while (stack.length > 0) {
      const x = stack.pop()!
      if (seen.has(x) || isInput.has(x)) continue
      seen.add(x)
      const known = home.get(x)
      if (known !== undefined && known < chunk) reads[chunk]!.add(x)
      else if (!ofStacks.has(x)) {
        if (known === undefined && !portable.has(x)) home.set(x, chunk)
        stack.push(...x.equation!.inputs)
      }
    }
  }
  sections.forEach((own, chunk) => {
    for (const { scan, size, start } of own) {
      const p = scan.params as ScanParams
      // Layers after the first take over what is carried; each operand is cut to the run where it is used.
      demand(start === 0 ? scan.inputs : scan.inputs.slice(p.carried), chunk)
      if (start + size === p.size) scan.outputs.forEach((o) => home.set(o, chunk))
    }
    if (chunk === chunks - 1) demand(program.outputs, chunk)
  })

  /** What is read later, besides what is carried through a stack that goes on. */
  const passing = (chunk: number): ReadonlyArray<AnyTensor> => {
    const later = new Set(reads.slice(chunk + 1).flatMap((set) => [...set]))
    return [...later].filter((x) => home.get(x)! <= chunk)
  }
  let [before, carried]: [ReadonlyArray<AnyTensor>, ReadonlyArray<AnyTensor>] = [[], []]
  return sections.map((own, chunk) => {
    const builder = new Builder(program, before, carried)
    const made = own.map((section) => builder.run(section))
    const last = own[own.length - 1]!
    const open = last.start + last.size < (last.scan.params as ScanParams).size
    const after = chunk === chunks - 1 ? [] : passing(chunk)
    const outputs =
      chunk === chunks - 1
        ? program.outputs.map((x) => builder.at(x))
        : [...after.map((x) => builder.at(x)), ...(open ? made[made.length - 1]! : [])]
    before = after
    carried = open ? last.scan.outputs : []
    return builder.finish(outputs)
  })
}

/** The program of one chunk while it is made. */
class Builder {
  private readonly env = new Map<AnyTensor, AnyTensor>()
  private readonly boundary: ReadonlyArray<AnyTensor>
  private open: ReadonlyArray<AnyTensor>
  private readonly given: Array<Given & { readonly tensor: AnyTensor }> = []
  private readonly program: Body

  constructor(program: Body, before: ReadonlyArray<AnyTensor>, carried: ReadonlyArray<AnyTensor>) {
    this.program = program
    const fresh = (x: AnyTensor) => input(x.type, x.role)
    const passed = before.map(fresh)
    before.forEach((x, i) => this.env.set(x, passed[i]!))
    this.open = carried.map(fresh)
    this.boundary = [...passed, ...this.open]
  }

  /** The tensor in this chunk; made here unless it came in. */
  at(target: AnyTensor): AnyTensor {
    const stack = [target]
    while (stack.length > 0) {
      const x = stack[stack.length - 1]!
      if (this.env.has(x)) {
        stack.pop()
        continue
      }
      const index = this.program.inputs.indexOf(x)
      if (index >= 0) {
        this.env.set(x, this.take(index, null))
        continue
      }
      const e = x.equation!
      const missing = e.inputs.filter((y) => !this.env.has(y))
      if (missing.length > 0) {
        stack.push(...missing)
        continue
      }
      const outputs = build(
        e.primitive,
        e.inputs.map((y) => this.env.get(y)!),
        e.params,
        e.outputs.map((o) => o.role)
      )
      e.outputs.forEach((o, i) => this.env.set(o, outputs[i]!))
    }
    return this.env.get(target)!
  }

  private take(index: number, layers: Given["layers"]): AnyTensor {
    const known = this.given.find((g) => g.index === index && g.layers?.start === layers?.start)
    if (known !== undefined) return known.tensor
    const { role, type } = this.program.inputs[index]!
    const axes = type.axes.map((a) => (layers !== null && a.name === "layers" ? Axis.make("layers", layers.size) : a))
    const tensor = input({ axes, dtype: type.dtype }, role)
    this.given.push({ index, layers, tensor })
    return tensor
  }

  /** A run of layers of an operand. Through elementwise operations the run is taken of what they read, so that no stage needs all layers. */
  private layersOf(x: AnyTensor, start: number, size: number): AnyTensor {
    if (!Axis.has(x.type.axes, "layers")) return this.at(x)
    const index = this.program.inputs.indexOf(x)
    if (index >= 0) return this.take(index, { start, size })
    const e = x.equation!
    const rule = e.primitive.partition
    const through =
      rule.kind === "byName" &&
      e.inputs.length > 0 &&
      rule.localize === undefined &&
      !(rule.whole?.(e.params) ?? []).includes("layers") &&
      e.inputs.some((y) => Axis.has(y.type.axes, "layers"))
    if (!through) return build(sliceP, [this.at(x)], { axis: "layers", to: "layers", start, size }, x.role)[0]!
    const inputs = e.inputs.map((y) => this.layersOf(y, start, size))
    return build(e.primitive, inputs, e.params, x.role)[x.index]!
  }

  /** Runs layers; gives what is carried on. */
  run({ scan, size, start }: Section): ReadonlyArray<AnyTensor> {
    const p = scan.params as ScanParams
    const carried = start === 0 ? scan.inputs.slice(0, p.carried).map((x) => this.at(x)) : this.open
    const each = scan.inputs.slice(p.carried, p.carried + p.each).map((x) => this.layersOf(x, start, size))
    const fixed = scan.inputs.slice(p.carried + p.each).map((x) => this.at(x))
    const results = build(
      scanP,
      [...carried, ...each, ...fixed],
      { ...p, size },
      scan.outputs.map((o) => o.role)
    )
    if (start + size === p.size) scan.outputs.forEach((o, i) => this.env.set(o, results[i]!))
    return results
  }

  finish(outputs: ReadonlyArray<AnyTensor>): Chunk {
    const inputs = [...this.boundary, ...this.given.map((g) => g.tensor)]
    return {
      body: Program.body(inputs, outputs),
      boundary: this.boundary.length,
      given: this.given.map(({ index, layers }) => ({ index, layers }))
    }
  }
}
