/** What one rank does in a step, counted on its programs: products, bytes that other kernels move, collectives. No device is needed. */
import type { Distributed, Pipelined } from "../Distribute.ts"
import type { DType } from "../DType.ts"
import * as Fuse from "../Fuse.ts"
import type { Body, Equation } from "../Node.ts"
import { bytesOf } from "../Node.ts"
import type { FusedParams } from "../primitives/control.ts"
import type { Traffic } from "../Traffic.ts"
import * as Traffics from "../Traffic.ts"

/** What kernels do. */
interface Kernels {
  /** FLOPs of products, 2 a multiply-add, by storage type of their operands. */
  readonly products: Readonly<Partial<Record<DType, number>>>
  /** What products read and write, every operand once. */
  readonly operands: number
  /** What kernels other than products read and write. */
  readonly bytes: number
  readonly kernels: number
}

export interface Work extends Kernels {
  readonly wires: ReadonlyArray<Traffic>
}

const none: Kernels = { products: {}, operands: 0, bytes: 0, kernels: 0 }

const plus = (a: Kernels, b: Kernels, times = 1): Kernels => {
  const products: Partial<Record<DType, number>> = { ...a.products }
  for (const [dtype, flops] of Object.entries(b.products) as ReadonlyArray<[DType, number]>)
    products[dtype] = (products[dtype] ?? 0) + times * flops
  return {
    products,
    operands: a.operands + times * b.operands,
    bytes: a.bytes + times * b.bytes,
    kernels: a.kernels + times * b.kernels
  }
}

/** Equations that only rename or cut axes: no kernel runs. */
const views: ReadonlySet<string> = new Set([
  ...["rename", "merge", "split", "slice", "broadcast", "place", "unpack", "pack", "constant", "iota", "stopGradient"],
  "named"
])

/** Equations that are exact and still move bytes, in chains with others. */
const moving: ReadonlySet<string> = new Set([
  ...["cast", "less", "equal", "and", "or", "not", "isFinite", "randomBits", "pad", "concat", "updateSlice"]
])

/** What compilers for accelerators do: elementwise chains are one kernel, products take biases, activations and residuals with them. */
const ability: Fuse.Ability = {
  pointwise: ({ primitive }) =>
    moving.has(primitive.name) || (primitive.meaning.kind === "core" && primitive.precision === "pointwise"),
  source: ({ inputs }) => inputs.length === 0,
  operands: 64,
  equations: 256,
  gemm: true
}

/** Of a program of one rank. */
const ofBody = (body: Body): Kernels => counted(Fuse.fuse(body, ability))

const counted = (body: Body): Kernels => body.equations.reduce((all, e) => plus(all, ofEquation(e)), none)

const ofEquation = (e: Equation): Kernels => {
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
  // Counted by `Traffic`.
  if (meaning.kind === "collective" || views.has(name)) return none
  // Attention is a product and a kernel that streams: its operands count on both sides.
  return { ...products(e), bytes: name === "contract" ? 0 : bytes, kernels: 1 }
}

const products = (e: Equation): Kernels => {
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
export const of = (distributed: Distributed, stage = 0): Work => ({
  ...(distributed.kind === "spread" ? ofBody(distributed.local.program) : ofStage(distributed, stage)),
  wires: Traffics.of(distributed, stage)
})

const ofStage = ({ step: { chunks, microbatches, stages, update } }: Pipelined, stage: number): Kernels =>
  chunks
    .filter((_, i) => i % stages === stage)
    .reduce(
      (all, c) => plus(all, plus(ofBody(c.forward.body), ofBody(c.backward.body)), microbatches),
      ofBody(update.body)
    )
