/** Programs of one rank with a fault: equations are rewritten, and it stays known which tensor of a rank holds which global one. */
import type { AnyTensor, Body, Equation } from "@tessera/core/Node"
import { build } from "@tessera/core/Node"
import type { Lowered } from "@tessera/core/Partition"
import * as Program from "@tessera/core/Program"

export type Rewrite = (equation: Equation, inputs: ReadonlyArray<AnyTensor>) => ReadonlyArray<AnyTensor> | null

/** Rewrites equations, those in regions too. What stands for an input of the program may be replaced as well. */
export const rewritten = (
  local: Lowered,
  rewrite: Rewrite,
  input: (x: AnyTensor, index: number) => AnyTensor = (x) => x
): Lowered => {
  const now = new Map<AnyTensor, AnyTensor>()
  const walk = (from: Body, inputs: ReadonlyArray<AnyTensor>): Body => {
    const outputs = Program.inline(from, inputs, (e, given) => {
      const { meaning } = e.primitive
      const params =
        meaning.kind === "region"
          ? meaning.withBodies(
              e.params,
              meaning.bodies(e.params).map((b) => walk(b, b.inputs))
            )
          : e.params
      const roles = e.outputs.map((o) => o.role)
      const made = rewrite(e, given) ?? build(e.primitive, given, params, roles)
      e.outputs.forEach((o, i) => now.set(o, made[i]!))
      return made
    })
    return Program.body(from.inputs, outputs)
  }
  const body = walk(local.body, local.body.inputs.map(input))
  const held = [...local.held].map(
    ([x, versions]) => [x, versions.map((v) => ({ ...v, tensor: now.get(v.tensor) ?? v.tensor }))] as const
  )
  return { ...local, body, held: new Map(held) }
}

/** Program.map for the equations of one primitive. */
export const replacing =
  (name: string, to: Rewrite) =>
  (body: Body): Body =>
    Program.map(body, (e, inputs) => (e.primitive.name === name ? to(e, inputs) : null))
