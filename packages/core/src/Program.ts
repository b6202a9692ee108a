/** A program: a cut of the expression graph in dependency order. Every transformation takes one and gives another. */
import * as Result from "effect/Result"
import * as Axis from "./Axis.ts"
import { ProgramError } from "./Errors.ts"
import type { AnyTensor, Body, Cost, Equation, Tensor, TensorType } from "./Node.ts"
import { build, bytesOf, input } from "./Node.ts"
import * as Tree from "./Tree.ts"

/** Inputs and outputs are trees of tensors; `inputs` and `outputs` are their leaves in order. */
export interface Program<In = unknown, Out = unknown> extends Body {
  readonly inTree: Tree.Shape<In>
  readonly outTree: Tree.Shape<Out>
}

/** Equations between inputs and outputs. An explicit stack: unrolled programs are deep. */
const linearize = (inputs: ReadonlyArray<AnyTensor>, outputs: ReadonlyArray<AnyTensor>): ReadonlyArray<Equation> => {
  const known = new Set<AnyTensor>(inputs)
  const order: Array<Equation> = []
  const done = new Map<Equation, boolean>()
  const stack: Array<Equation> = []
  const push = (x: AnyTensor) => {
    if (known.has(x)) return
    if (x.equation === null)
      throw new Error(`program uses a tensor ${Axis.print(x.type.axes)} (${x.role}) that is not among its inputs`)
    if (!done.has(x.equation)) stack.push(x.equation)
  }
  for (const output of outputs) {
    push(output)
    while (stack.length > 0) {
      const top = stack[stack.length - 1]!
      const state = done.get(top)
      if (state === undefined) {
        done.set(top, false)
        for (let i = top.inputs.length - 1; i >= 0; i--) push(top.inputs[i]!)
      } else {
        stack.pop()
        if (!state) {
          done.set(top, true)
          order.push(top)
        }
      }
    }
  }
  return order
}

/** A body from tensors: the sub-programs of regions, and the working form of passes. */
export const body = (inputs: ReadonlyArray<AnyTensor>, outputs: ReadonlyArray<AnyTensor>): Body => ({
  inputs,
  outputs,
  equations: linearize(inputs, outputs)
})

/** The same trees around another body; leaves keep their order. */
export const withBody = <I, O>(program: Program<I, O>, other: Body): Program<I, O> => ({
  inputs: other.inputs,
  outputs: other.outputs,
  equations: other.equations,
  inTree: program.inTree,
  outTree: program.outTree
})

/** Calls `f` once on free inputs of the given types and keeps what it built. The only place that catches a `ProgramError`. */
export const trace = <In, Out>(
  inputs: In,
  f: (inputs: Tree.Mapped<In, AnyTensor>) => Out
): Result.Result<Program<In, Out>, ProgramError> =>
  Result.try({
    try: () => traceUnsafe(inputs, f),
    catch: (error) => {
      if (error instanceof ProgramError) return error
      throw error
    }
  })

/** `trace` that throws its `ProgramError`. */
export const traceUnsafe = <In, Out>(inputs: In, f: (inputs: Tree.Mapped<In, AnyTensor>) => Out): Program<In, Out> => {
  const [types, inTree] = Tree.flatten<TensorType | AnyTensor, In>(inputs, isTypeLeaf)
  const leaves = types.map((t) => ("axes" in t ? input(t) : input(t.type, t.role)))
  const [outputs, outTree] = Tree.flatten<AnyTensor, Out>(
    f(Tree.unflatten(inTree, leaves) as Tree.Mapped<In, AnyTensor>),
    Tree.isTensorLeaf
  )
  return { ...body(leaves, outputs), inTree, outTree }
}

const isTypeLeaf = (x: unknown): x is TensorType | AnyTensor =>
  Tree.isTensorLeaf(x) || (typeof x === "object" && x !== null && "axes" in x && "dtype" in x && Array.isArray(x.axes))

/** A program over existing tensors. */
export const make = <In, Out>(inputs: In, outputs: Out): Program<In, Out> => {
  const [ins, inTree] = Tree.flatten<AnyTensor, In>(inputs, Tree.isTensorLeaf)
  const [outs, outTree] = Tree.flatten<AnyTensor, Out>(outputs, Tree.isTensorLeaf)
  return { ...body(ins, outs), inTree, outTree }
}

/** Re-emits a body on other inputs; what does not change is shared. `rewrite` may replace equations. */
export const inline = (
  from: Body,
  inputs: ReadonlyArray<AnyTensor>,
  rewrite: (equation: Equation, inputs: ReadonlyArray<AnyTensor>) => ReadonlyArray<AnyTensor> | null = () => null
): ReadonlyArray<AnyTensor> => {
  const env = new Map<AnyTensor, AnyTensor>(from.inputs.map((x, i) => [x, inputs[i]!]))
  for (const e of from.equations) {
    const given = e.inputs.map((x) => env.get(x) ?? x)
    const same = given.every((x, i) => x === e.inputs[i])
    const outputs =
      rewrite(e, given) ??
      (same
        ? e.outputs
        : build(
            e.primitive,
            given,
            e.params,
            e.outputs.map((o) => o.role)
          ))
    e.outputs.forEach((o, i) => env.set(o, outputs[i]!))
  }
  return from.outputs.map((o) => env.get(o) ?? o)
}

/** Rewrites equation by equation, region bodies included; types of inputs stay. */
export const map = (
  from: Body,
  rewrite: (equation: Equation, inputs: ReadonlyArray<AnyTensor>) => ReadonlyArray<AnyTensor> | null
): Body => {
  const outputs = inline(from, from.inputs, (e, inputs) => {
    const { meaning } = e.primitive
    if (meaning.kind !== "region") return rewrite(e, inputs)
    const before = meaning.bodies(e.params)
    const after = before.map((b) => map(b, rewrite))
    if (after.every((b, i) => b === before[i])) return rewrite(e, inputs)
    const params = meaning.withBodies(e.params, after)
    const rebuilt = build(
      e.primitive,
      inputs,
      params,
      e.outputs.map((o) => o.role)
    )
    return rewrite(rebuilt[0]!.equation!, inputs) ?? rebuilt
  })
  return outputs.every((o, i) => o === from.outputs[i]) ? from : body(from.inputs, outputs)
}

/** Text form: one line an equation, bodies of regions indented. The basis of goldens and of `digest`. */
export const print = (program: Body): string => {
  const names = new Map<AnyTensor, string>()
  const name = (x: AnyTensor): string => {
    const known = names.get(x) ?? `%${names.size}`
    names.set(x, known)
    return known
  }
  const typeOf = (x: AnyTensor) =>
    `${x.type.dtype}${Axis.print(x.type.axes)}${x.role === "compute" ? "" : ` ${x.role}`}`
  const lines: Array<string> = []
  const walk = (b: Body, indent: string) => {
    lines.push(`${indent}(${b.inputs.map((x) => `${name(x)}: ${typeOf(x)}`).join(", ")}) {`)
    for (const e of b.equations) {
      const { meaning } = e.primitive
      const inner = meaning.kind === "region" ? meaning.bodies(e.params) : []
      const params = meaning.kind === "region" ? printParams(e.params, inner) : json(e.params)
      const outs = e.outputs.map((o) => `${name(o)}: ${typeOf(o)}`).join(", ")
      lines.push(
        `${indent}  ${outs} = ${e.primitive.name}(${e.inputs.map(name).join(", ")})${params === "{}" ? "" : ` ${params}`}`
      )
      for (const b2 of inner) walk(b2, `${indent}    `)
    }
    lines.push(`${indent}} -> (${b.outputs.map(name).join(", ")})`)
  }
  walk(program, "")
  return lines.join("\n")
}

/** One equation without names: `allReduce(f32[batch:4]) {"meshAxis":"data"}`. */
export const line = (e: Equation): string => {
  const { meaning } = e.primitive
  const inner = meaning.kind === "region" ? meaning.bodies(e.params) : []
  const params = meaning.kind === "region" ? printParams(e.params, inner) : json(e.params)
  const types = e.inputs.map(({ type }) => `${type.dtype}${Axis.print(type.axes)}`)
  return `${e.primitive.name}(${types.join(", ")})${params === "{}" ? "" : ` ${params}`}`
}

/** JSON that tells infinities, NaN and minus zero apart. */
const json = (params: unknown): string =>
  JSON.stringify(params, (_, v: unknown) =>
    typeof v === "number" && (!Number.isFinite(v) || Object.is(v, -0)) ? (Object.is(v, -0) ? "-0" : String(v)) : v
  )

const printParams = (params: Readonly<Record<string, unknown>>, bodies: ReadonlyArray<Body>): string =>
  json(Object.fromEntries(Object.entries(params).filter(([, v]) => !bodies.includes(v as Body))))

/** 64-bit fingerprint of the printed program, as 16 hexadecimal digits. */
export const digest = (program: Body): string => fingerprint(print(program))

/** 64-bit non-cryptographic hash of a text (two FNV-like streams with final mixing). */
export const fingerprint = (text: string): string => {
  let [a, b] = [0xdeadbeef, 0x41c6ce57]
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i)
    a = Math.imul(a ^ c, 2654435761)
    b = Math.imul(b ^ c, 1597334677)
  }
  a = Math.imul(a ^ (a >>> 16), 2246822507) ^ Math.imul(b ^ (b >>> 13), 3266489909)
  b = Math.imul(b ^ (b >>> 16), 2246822507) ^ Math.imul(a ^ (a >>> 13), 3266489909)
  return (a >>> 0).toString(16).padStart(8, "0") + (b >>> 0).toString(16).padStart(8, "0")
}

/** Re-derives every type from the rules; gives the first disagreement, or null. A law runs this after every pass. */
export const check = (program: Body): string | null => {
  for (const e of program.equations) {
    const types = e.primitive.type(
      e.inputs.map((x) => x.type),
      e.params
    )
    for (let i = 0; i < types.length; i++) {
      const found = e.outputs[i]!.type
      if (!Axis.equal(types[i]!.axes, found.axes) || types[i]!.dtype !== found.dtype) {
        return `${e.primitive.name}: output ${i} is ${found.dtype}${Axis.print(found.axes)}, its rule says ${types[i]!.dtype}${Axis.print(types[i]!.axes)}`
      }
    }
    const { meaning } = e.primitive
    if (meaning.kind === "region") {
      for (const b of meaning.bodies(e.params)) {
        const problem = check(b)
        if (problem !== null) return problem
      }
    }
  }
  return null
}

export const noCost: Cost = { contractionFlops: 0, otherFlops: 0, bytesRead: 0, bytesWritten: 0, wireBytes: {} }

export const plus = (a: Cost, b: Cost, times = 1): Cost => {
  const wireBytes: Record<string, number> = { ...a.wireBytes }
  for (const [meshAxis, bytes] of Object.entries(b.wireBytes))
    wireBytes[meshAxis] = (wireBytes[meshAxis] ?? 0) + times * bytes
  return {
    contractionFlops: a.contractionFlops + times * b.contractionFlops,
    otherFlops: a.otherFlops + times * b.otherFlops,
    bytesRead: a.bytesRead + times * b.bytesRead,
    bytesWritten: a.bytesWritten + times * b.bytesWritten,
    wireBytes
  }
}

/** Work of one equation; a region's is that of its bodies times its repetitions. */
export const costOf = (e: Equation): Cost => {
  const { meaning } = e.primitive
  if (meaning.kind === "region") {
    const repeat = typeof e.params.size === "number" ? (e.params.size as number) : 1
    return meaning.bodies(e.params).reduce((total, b) => plus(total, cost(b), repeat), noCost)
  }
  const [ins, outs] = [e.inputs.map((x) => x.type), e.outputs.map((x) => x.type)]
  const { contraction, other } = e.primitive.flops(ins, outs, e.params)
  return {
    contractionFlops: contraction,
    otherFlops: other,
    bytesRead: ins.reduce((n, t) => n + bytesOf(t), 0),
    bytesWritten: outs.reduce((n, t) => n + bytesOf(t), 0),
    wireBytes: meaning.kind === "collective" ? { [e.params.meshAxis]: meaning.wire(ins, outs, e.params) } : {}
  }
}

/** Sum over all equations. FLOPs count 2 per multiply-add. */
export const cost = (program: Body): Cost => program.equations.reduce((total, e) => plus(total, costOf(e)), noCost)

export type { Body, Equation, Tensor }
