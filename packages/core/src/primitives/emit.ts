import * as Axis from "../Axis.ts"
import { DTypeMismatch, invalid, refuse } from "../Errors.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import type { AnyPrimitive, AnyTensor, Primitive, Role, TensorType } from "../Node.ts"
import { build } from "../Node.ts"

export interface PlaceParams {
  readonly role: Role
  /** A parameter that stays gathered from the forward pass to the backward, instead of being gathered again. */
  readonly keep?: true
  /** Gathered once more, though it was before. */
  readonly again?: true
}

/**
 * Same values, other rule table. Its transpose is what turns the gather of a sharded parameter into the scatter of its gradient: the cotangent
 * of a placed parameter is placed as a gradient.
 */
export const placeP: Primitive<"place", PlaceParams> = {
  name: "place",
  type: ([t]) => [t!],
  meaning: { kind: "core", evaluate: ([x]) => [x!] },
  vjp: { kind: "short", pullback: ([c], [x]) => [place(c!, x!.role === "parameter" ? "gradient" : x!.role)] },
  partition: { kind: "byName", linear: [[0]] },
  flops: () => ({ contraction: 0, other: 0 }),
  precision: "exact",
  recompute: "cheap"
}

export const place = (x: AnyTensor, role: Role): AnyTensor =>
  x.role === role ? x : build(placeP, [x], { role }, role)[0]!

const commonRole = (operation: string, inputs: ReadonlyArray<AnyTensor>): Role => {
  let role: Role | null = null
  for (const x of inputs) {
    if (x.type.axes.length === 0 && x.role === "compute") continue
    const own = x.role === "gathered" ? "compute" : x.role
    if (role === null) role = own
    else if (role !== own) invalid(operation, `mixes tensors with the roles ${role} and ${own}; place one of them`)
  }
  return role ?? "compute"
}

/** Uses a primitive; work on a parameter happens in the compute layout, so a bare parameter is placed there first. */
export const emit = <P>(
  primitive: Primitive<string, P>,
  given: ReadonlyArray<AnyTensor>,
  params: NoInfer<P>
): ReadonlyArray<AnyTensor> => {
  const inputs = given.map((x) => (x.role === "parameter" ? place(x, "compute") : x))
  return build(primitive as AnyPrimitive, inputs, params, commonRole(primitive.name, inputs))
}

export const emit1 = <P>(
  primitive: Primitive<string, P>,
  given: ReadonlyArray<AnyTensor>,
  params: NoInfer<P>
): AnyTensor => emit(primitive, given, params)[0]!

/** The one dtype of all operands. */
export const sameDType = (operation: string, types: ReadonlyArray<TensorType>): TensorType["dtype"] => {
  const first = types[0]!.dtype
  for (const t of types) {
    if (t.dtype !== first) refuse(new DTypeMismatch({ operation, expected: first, found: t.dtype }))
  }
  return first
}

/** Elementwise evaluation with broadcasting by axis name. */
export const elementwise =
  <P>(f: (values: ReadonlyArray<number>, params: P, dtype: TensorType["dtype"]) => number) =>
  (xs: ReadonlyArray<HostArray>, params: P, types: ReadonlyArray<TensorType>): ReadonlyArray<HostArray> => {
    const type = types[0]!
    const at = xs.map((x) => Host.offsets(x.axes, type.axes))
    const data = new Float64Array(Axis.count(type.axes))
    const values = xs.map(() => 0)
    for (let k = 0; k < data.length; k++) {
      for (let j = 0; j < xs.length; j++) values[j] = xs[j]!.data[at[j]![k]!]!
      data[k] = f(values, params, type.dtype)
    }
    return [{ axes: type.axes, dtype: type.dtype, data }]
  }
