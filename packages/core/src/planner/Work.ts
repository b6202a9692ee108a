/** What one rank does in a step, counted on its programs: products, bytes that other kernels move, collectives. No device is needed. */
import type { Distributed, Pipelined } from "../Distribute.ts"
import type { DType } from "../DType.ts"
import * as Fuse from "../Fuse.ts"
import type { Body, Equation, Role } from "../Node.ts"
import { bytesOf } from "../Node.ts"
import { moves } from "../primitives/collective.ts"
import type { FusedParams } from "../primitives/control.ts"
import * as Program from "../Program.ts"

/** Collectives of one kind and mesh axis. */
export interface Wire {
  readonly collective: string
  readonly meshAxis: string
  readonly what: Role
  readonly count: number
  /** What a rank sends. */
  readonly bytes: number
}

export interface Work {
  /** FLOPs of products, 2 a multiply-add, by storage type of their operands. */
  readonly products: Readonly<Partial<Record<DType, number>>>
  /** What products read and write, every operand once. */
  readonly operands: number
  /** What kernels other than products read and write. */
  readonly bytes: number
  readonly kernels: number
  readonly wires: ReadonlyArray<Wire>
}

export const none: Work = { products: {}, operands: 0, bytes: 0, kernels: 0, wires: [] }

export const plus = (a: Work, b: Work, times = 1): Work => {
  const products: Partial<Record<DType, number>> = { ...a.products }
  for (const [dtype, flops] of Object.entries(b.products) as ReadonlyArray<[DType, number]>)
    products[dtype] = (products[dtype] ?? 0) + times * flops
  const wires = [...a.wires]
  for (const w of b.wires) {
    const i = wires.findIndex((o) => o.collective === w.collective && o.meshAxis === w.meshAxis && o.what === w.what)
    const known = i < 0 ? { ...w, count: 0, bytes: 0 } : wires[i]!
    const sum = { ...known, count: known.count + times * w.count, bytes: known.bytes + times * w.bytes }
    if (i < 0) wires.push(sum)
    else wires[i] = sum
  }
  return {
    products,
    operands: a.operands + times * b.operands,
    bytes: a.bytes + times * b.bytes,
    kernels: a.kernels + times * b.kernels,
    wires
  }
}

/** Equations that only rename or cut axes: no kernel runs. */
const views: ReadonlySet<string> = new Set([
  ...["rename", "merge", "split", "slice", "broadcast", "place", "unpack", "pack", "constant", "iota", "stopGradient"]
])

const sums: ReadonlySet<string> = new Set([
  ...["contract", "attention", "attentionBackward", "norm", "normBackward", "crossEntropy", "crossEntropyBackward"],
  ...["gather", "scatterAdd", "sum", "max", "argmax", "cumsum", "softmax", "adamw", "scan", "recompute", "fused"]
])

/** What compilers for accelerators do: elementwise chains are one kernel, products take biases, activations and residuals with them. */
const ability: Fuse.Ability = {
  pointwise: ({ primitive }) =>
    primitive.meaning.kind === "core" && !sums.has(primitive.name) && !views.has(primitive.name),
  source: ({ inputs }) => inputs.length === 0,
  operands: 64,
  equations: 256,
  gemm: true
}

/** Of a program of one rank. */
export const ofBody = (body: Body): Work => counted(Fuse.fuse(body, ability))

const counted = (body: Body): Work => body.equations.reduce((all, e) => plus(all, ofEquation(e)), none)

const ofEquation = (e: Equation): Work => {
  const { meaning, name } = e.primitive
  const bytes = [...e.inputs, ...e.outputs].reduce((n, x) => n + bytesOf(x.type), 0)
  if (name === "fused") {
    const p = e.params as FusedParams
    const inside = p.body.equations.reduce((all, x) => plus(all, products(x)), none)
    return p.pattern === "pointwise" ? { ...none, bytes, kernels: 1 } : { ...inside, kernels: 1 }
  }
  if (meaning.kind === "region") {
    const repeat = typeof e.params.size === "number" ? (e.params.size as number) : 1
    return meaning.bodies(e.params).reduce((all, b) => plus(all, counted(b), repeat), none)
  }
  if (meaning.kind === "collective") {
    if (!moves(e.primitive)) return none
    const wire = meaning.wire(
      e.inputs.map((x) => x.type),
      e.outputs.map((x) => x.type),
      e.params
    )
    const { meshAxis } = e.params as { readonly meshAxis: string }
    return { ...none, wires: [{ collective: name, meshAxis, what: e.outputs[0]!.role, count: 1, bytes: wire }] }
  }
  if (views.has(name)) return none
  const own = products(e)
  const isProduct = name === "contract"
  return { ...own, bytes: isProduct ? 0 : bytes, kernels: 1 }
}

const products = (e: Equation): Work => {
  const { contraction } = e.primitive.flops(
    e.inputs.map((x) => x.type),
    e.outputs.map((x) => x.type),
    e.params
  )
  if (contraction === 0) return none
  const operands = [...e.inputs, ...e.outputs].reduce((n, x) => n + bytesOf(x.type), 0)
  return { ...none, operands, products: { [e.inputs[0]!.type.dtype]: contraction } }
}

/** Of one rank in one step; in a pipeline of a rank of a stage, without the wait for other stages. */
export const of = (distributed: Distributed, stage = 0): Work =>
  distributed.kind === "spread" ? ofBody(distributed.local.program) : ofStage(distributed, stage)

const ofStage = ({ step }: Pipelined, stage: number): Work => {
  const { chunks, microbatches, pipeline, stages, update } = step
  const last = chunks.length - 1
  const send = (bytes: number): Work =>
    bytes === 0 || stages === 1
      ? none
      : {
          ...none,
          wires: [{ collective: "send", meshAxis: pipeline.meshAxis, what: "compute", count: 1, bytes }]
        }
  const total = (xs: Body["outputs"]) => xs.reduce((n, x) => n + bytesOf(x.type), 0)
  return chunks.reduce((all, c, i) => {
    if (i % stages !== stage) return all
    const back = c.backward.body.outputs.slice(0, c.differentiable.filter(Boolean).length)
    const passes = [
      ofBody(c.forward.body),
      ofBody(c.backward.body),
      send(i < last ? total(c.forward.body.outputs.slice(0, c.outputs)) : 0),
      send(i > 0 ? total(back) : 0)
    ]
    return passes.reduce((sum, w) => plus(sum, w, microbatches), all)
  }, ofBody(update.body))
}

/** Products of a whole program, 2 a multiply-add. */
export const flopsOf = (body: Body): number => Program.cost(body).contractionFlops
