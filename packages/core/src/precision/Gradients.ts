/** In which type gradients of parameters are reduced over devices. */
import type { AnyTensor, Body } from "../Node.ts"
import { build } from "../Node.ts"
import { castP } from "../primitives/algebra.ts"
import { placeP } from "../primitives/emit.ts"
import * as Program from "../Program.ts"
import type { Float, Precision } from "./Policy.ts"

const cast = (x: AnyTensor, dtype: Float): AnyTensor =>
  x.type.dtype === dtype ? x : build(castP, [x], { dtype }, x.role)[0]!

/**
 * Gradients of one microbatch are placed in the policy's type, for where the gradient table scatters them at once. In f32 the cast from the type
 * of compute moves in front of the placement, so that the product leaves unrounded; in 16 bits what is wider is rounded before it travels.
 */
export const placeGradients = (body: Body, { gradients: type }: Precision): Body =>
  Program.map(body, (e, inputs) => {
    if (type === "f32") {
      const from = inputs[0]
      if (e.primitive !== castP || e.params.dtype !== "f32" || from === undefined || from.role !== "gradient")
        return null
      const inner = from.equation
      if (inner === null || inner.primitive !== placeP) return null
      const wide = build(castP, inner.inputs, e.params, inner.inputs[0]!.role)
      return build(placeP, wide, inner.params, "gradient")
    }
    if (e.primitive !== placeP || e.params.role !== "gradient" || inputs[0]!.type.dtype !== "f32") return null
    return [cast(build(placeP, [cast(inputs[0]!, type)], e.params, "gradient")[0]!, "f32")]
  })

/**
 * The gradient of the whole batch as the optimizer reads it. In 16 bits it is rounded on every device and whatever the devices owe each other is paid
 * here, so that the collective carries 16-bit values; in f32 it is paid as late as may be.
 */
export const reduceGradient = (x: AnyTensor, { gradients }: Precision): AnyTensor =>
  gradients === "f32" ? x : build(placeP, [cast(x, gradients)], { role: "optimizer", settled: true }, "optimizer")[0]!
