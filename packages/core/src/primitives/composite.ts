import type { DType } from "../DType.ts"
import type { AnyTensor, Body, Equation, Primitive, TensorType } from "../Node.ts"
import { input } from "../Node.ts"
import * as Program from "../Program.ts"

/** Parameters of a composite that calculates in f32 unless told otherwise: then every intermediate of its decomposition is rounded to the type. */
export interface Calculating {
  readonly calculation?: DType
}

interface Rules<P> {
  readonly flops?: Primitive<string, P>["flops"]
  readonly precision: Primitive<string, P>["precision"]
  readonly calculates?: Primitive<string, P>["calculates"] & {}
  readonly recompute?: "cheap" | "expensive"
  readonly vjp?: Primitive<string, P>["vjp"]
  /** Axes along which a split operand makes the decomposition run instead of the kernel. */
  readonly opens?: (params: P) => ReadonlyArray<string>
}

/** The program that a composite stands for, at given types (sizes may be local ones). */
export const decomposition = (
  primitive: Primitive<string, any>,
  types: ReadonlyArray<TensorType>,
  params: unknown
): Body => {
  if (primitive.meaning.kind !== "composite") throw new Error(`${primitive.name} is not a composite`)
  const inputs = types.map((t) => input(t))
  return Program.body(inputs, primitive.meaning.decompose(inputs, params))
}

/**
 * An operation that is a function of smaller ones and may have a kernel of its own. Types come from the decomposition, so they cannot disagree
 * with it; FLOPs too unless given. Without `vjp` its derivative is that of the decomposition.
 */
export const composite = <Name extends string, P>(
  name: Name,
  decompose: (xs: ReadonlyArray<AnyTensor>, params: P) => ReadonlyArray<AnyTensor>,
  rules: Rules<P>
): Primitive<Name, P> => {
  const self: Primitive<Name, P> = {
    name,
    type: (types, p) =>
      decompose(
        types.map((t) => input(t)),
        p
      ).map((o) => o.type),
    meaning: { kind: "composite", decompose },
    vjp: rules.vjp ?? { kind: "decompose" },
    partition: rules.opens === undefined ? { kind: "derived" } : { kind: "derived", opens: rules.opens },
    flops:
      rules.flops ??
      ((types, _out, p) => {
        const c = Program.cost(decomposition(self, types, p))
        return { contraction: c.contractionFlops, other: c.otherFlops }
      }),
    precision: rules.precision,
    ...(rules.calculates === undefined ? {} : { calculates: rules.calculates }),
    recompute: rules.recompute ?? "expensive"
  }
  return self
}

/** Inlines every composite for whose use there is no kernel, region bodies included, until only core primitives and kernels are left. */
export const decomposeExcept = (body: Body, has: (e: Equation) => boolean): Body =>
  Program.map(body, (e, inputs) => {
    const { meaning } = e.primitive
    if (meaning.kind !== "composite" || has(e)) return null
    const inside = inputs.map((x) => input(x.type, x.role))
    const opened = Program.body(inside, meaning.decompose(inside, e.params))
    return Program.inline(decomposeExcept(opened, has), inputs)
  })
