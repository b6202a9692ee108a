/** The program of one rank for a rank that is known: what needs no other rank becomes a slice, a value or zero. What moves data stays. */
import type { AnyTensor, Body } from "../Node.ts"
import { build } from "../Node.ts"
import * as Axis from "../Axis.ts"
import * as Mesh from "../Mesh.ts"
import { constant, zeros } from "../primitives/algebra.ts"
import { sliceP } from "../primitives/axes.ts"
import { keepFirstP, shardP } from "../primitives/collective.ts"
import { selectP } from "../primitives/pointwise.ts"
import * as Program from "../Program.ts"

export const specialise = (body: Body, mesh: Mesh.Mesh, rank: number): Body =>
  Program.map(body, (e, inputs): ReadonlyArray<AnyTensor> | null => {
    if (e.primitive === shardP) {
      const [x, o] = [inputs[0]!, e.outputs[0]!]
      const { axis, meshAxis } = e.params
      const { size } = Axis.find(o.type.axes, axis)!
      const start = Mesh.coordinate(mesh, rank, meshAxis) * size
      return build(sliceP, [x], { axis, to: axis, start, size, logical: size }, o.role)
    }
    if (e.primitive === keepFirstP) {
      // A choice that depends on the rank in its constant only: all ranks have the same equations, so that no pass puts their collectives in another order.
      const first = constant(Mesh.coordinate(mesh, rank, e.params.meshAxis) === 0 ? 1 : 0, "bool")
      return inputs.flatMap((x, i) => build(selectP, [first, x, zeros(x.type)], {}, e.outputs[i]!.role))
    }
    return null
  })
