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
 * Gradients of one microbatch are placed in the policy's type, for where the gradient table scatters them at once. In f32 they are widened before they
 * are placed, so that a product leaves unrounded, and stay so; in 16 bits what is wider is rounded before it travels.
 */
export const placeGradients = (body: Body, { gradients: type }: Precision): Body =>
  Program.map(body, (e, inputs) => {
    const [x] = inputs
    if (e.primitive !== placeP || e.params.role !== "gradient" || x!.type.dtype === type) return null
    if (type === "f32") return build(placeP, [cast(x!, type)], e.params, "gradient")
    return x!.type.dtype === "f32" ? [cast(build(placeP, [cast(x!, type)], e.params, "gradient")[0]!, "f32")] : null
  })

/**
 * The gradient of the whole batch as the optimizer reads it. In 16 bits it is rounded on every device; what the devices owe each other is paid when
 * the optimizer reads it, so that the collective carries 16-bit values.
 */
export const reduceGradient = (x: AnyTensor, { gradients }: Precision): AnyTensor => cast(x, gradients)
