/** From a program to what the native library runs, one stretch of kernels after another, with the collectives between them. */
import { CompileError } from "@tessera/core/Errors"
import { fuse } from "@tessera/core/Fuse"
import * as Mesh from "@tessera/core/Mesh"
import { bytesOf } from "@tessera/core/Node"
import { specialise } from "@tessera/core/partition/Specialise"
import * as Plan from "@tessera/core/Plan"
import { decomposeExcept } from "@tessera/core/primitives/composite"
import * as Program from "@tessera/core/Program"
import type { CompileOptions, Outline } from "@tessera/core/services/Backend"
import * as Nest from "./emit/nest.ts"
import { isPointwise, isSource } from "./emit/pointwise.ts"
import { emit, hasKernel } from "./KernelTable.ts"
import { encode, type Instruction } from "./Words.ts"

/** The passes of this backend before planning. */
export const prepare = (program: Program.Body): Program.Body =>
  fuse(decomposeExcept(program, hasKernel), {
    pointwise: isPointwise,
    source: isSource,
    operands: 24,
    equations: 96,
    gemm: true
  })

/** Which rank of which mesh a plan is for. */
export interface Place {
  readonly mesh: Mesh.Mesh
  readonly rank: number
}

/** Collectives of a program whose mesh axis is not that of the ranks at hand, or null. */
const stranger = (body: Program.Body, mesh: Mesh.Mesh): string | null => {
  for (const e of body.equations) {
    const { meaning } = e.primitive
    if (meaning.kind === "region") {
      const found = meaning.bodies(e.params).reduce<string | null>((known, b) => known ?? stranger(b, mesh), null)
      if (found !== null) return found
    }
    if (meaning.kind !== "collective") continue
    const { count, meshAxis } = e.params as { readonly count: number; readonly meshAxis: string }
    if (!Mesh.has(mesh, meshAxis) || Mesh.countOf(mesh, meshAxis) !== count)
      return `${Program.line(e)} is for ${count} ranks along "${meshAxis}"; the ranks are ${Mesh.print(mesh)}`
  }
  return null
}

/** The plan of a program on one rank. Throws `CompileError`. */
export const make = (
  program: Program.Body,
  place: Place,
  { donated = [], prefetch = 0 }: CompileOptions = {}
): Plan.Plan<Instruction> => {
  const problem = stranger(program, place.mesh)
  if (problem !== null) throw new CompileError({ backend: "cpu", reason: "MeshMismatch", detail: problem })
  return Plan.make<Instruction>(prepare(specialise(program, place.mesh, place.rank)), {
    emit,
    copy: Nest.copy,
    accumulate: Nest.accumulate,
    zero: (to, emission) => Nest.fill(to, 0, emission),
    donated,
    prefetch
  })
}

/** What a plan needs. */
export const outline = (
  program: Program.Body,
  plan: Plan.Plan<Instruction>,
  { bound = [] }: CompileOptions
): Outline => ({
  arenaBytes: plan.arenaBytes,
  peak: plan.peak,
  outputBytes: plan.outputs.reduce(
    (n, { donated }, i) => n + (donated === null && !bound.includes(i) ? bytesOf(program.outputs[i]!.type) : 0),
    0
  ),
  launches: plan.launches.length
})

/** Where a buffer of the plan is: 0 is the arena, then inputs, then outputs. */
export interface Location {
  readonly binding: number
  readonly offset: number
}

export const locate = (plan: Plan.Plan<Instruction>, inputCount: number, buffer: number): Location => {
  const b = plan.buffers[buffer]!
  if (b.kind === "arena") return { binding: 0, offset: b.offset }
  return { binding: b.kind === "input" ? 1 + b.index : 1 + inputCount + b.index, offset: 0 }
}

/** What is done at one go: a foreign call, or the beginning or the end of a collective. */
export type Stretch =
  | { readonly kind: "native"; readonly words: BigInt64Array }
  | { readonly kind: "start" | "wait"; readonly exchange: Plan.Exchange }

export const stretches = (plan: Plan.Plan<Instruction>, inputCount: number): ReadonlyArray<Stretch> => {
  const all: Array<Stretch> = []
  let kernels: Array<{ readonly instruction: Instruction; readonly equation: number }> = []
  const close = () => {
    if (kernels.length > 0) all.push({ kind: "native", words: encode(kernels, (id) => locate(plan, inputCount, id)) })
    kernels = []
  }
  for (const l of plan.launches) {
    if (l.kind === "kernel") {
      kernels.push({ instruction: l.payload, equation: l.equation })
      continue
    }
    close()
    all.push({ kind: l.kind, exchange: l.exchange })
  }
  close()
  return all
}
