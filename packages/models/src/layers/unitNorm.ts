/** Vectors of length 1. */
import * as T from "@tessera/core/Tensor"

/** `x / sqrt(sum(x^2) + 1e-12)` along one axis, in f32 inside. Nothing becomes nothing. `[.., axis] -> [.., axis]` */
export const apply = <A extends string, E extends A>(x: T.Tensor<A>, axis: E): T.Tensor<A> => {
  const size = T.sizeOf(x, axis)
  return T.scale(T.rmsNorm(x, axis, 1e-12 / size), 1 / Math.sqrt(size))
}
