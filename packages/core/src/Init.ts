/** How parameters begin. Values describe; `Module.init` makes a program of them. */
import * as Axis from "./Axis.ts"
import type { AnyTensor, Tensor } from "./Node.ts"
import { build } from "./Node.ts"
import * as Random from "./Random.ts"
import { broadcast, constant, scale, shift } from "./primitives/algebra.ts"
import { iotaP } from "./primitives/index.ts"
import { less, select } from "./primitives/pointwise.ts"

export type Init =
  | { readonly kind: "constant"; readonly value: number }
  | { readonly kind: "normal"; readonly std: number }
  | { readonly kind: "uniform"; readonly bound: number }
  /** Uniform with bound sqrt(6 / (fan in + fan out)); the axes that are not `fanIn` are the fan out. @source Glorot and Bengio 2010, equation 16 */
  | { readonly kind: "xavierUniform"; readonly fanIn: ReadonlyArray<string> }
  /** Normal with variance 1 / fan in. */
  | { readonly kind: "fanIn"; readonly axes: ReadonlyArray<string> }

export const zeros: Init = { kind: "constant", value: 0 }
export const ones: Init = { kind: "constant", value: 1 }
export const constantOf = (value: number): Init => ({ kind: "constant", value })
export const normal = (std: number): Init => ({ kind: "normal", std })
export const uniform = (bound: number): Init => ({ kind: "uniform", bound })
export const xavierUniform = (...fanIn: ReadonlyArray<string>): Init => ({ kind: "xavierUniform", fanIn })
export const fanIn = (...axes: ReadonlyArray<string>): Init => ({ kind: "fanIn", axes })

/** Values over `axes`, zero beyond what is meant; `repeated` axes (a stack's layers) are not part of any fan. */
export const values = (init: Init, axes: Axis.Axes, repeated: ReadonlyArray<string>, key: Random.Key): Tensor<string> =>
  axes
    .filter((a) => a.logical !== a.size)
    .reduce<Tensor<string>>(
      (x, a) => {
        const at = build(iotaP, [], { axis: a, dtype: "i32", start: 0 }, "compute")[0]! as Tensor<string, "int">
        const meant = less(at, constant(a.logical, "i32") as unknown as Tensor<never, "int">)
        return select(meant, x, constant(0)) as AnyTensor
      },
      drawn(init, axes, repeated, key)
    )

const drawn = (init: Init, axes: Axis.Axes, repeated: ReadonlyArray<string>, key: Random.Key): Tensor<string> => {
  const own = Axis.without(axes, repeated)
  const fan = (names: ReadonlyArray<string>) =>
    own.filter((a) => names.includes(a.name)).reduce((n, a) => n * a.logical, 1)
  const symmetric = (bound: number) => scale(shift(scale(Random.uniform(key, axes), 2), -1), bound)
  switch (init.kind) {
    case "constant":
      return broadcast(constant(init.value), axes)
    case "normal":
      return scale(Random.normal(key, axes), init.std)
    case "uniform":
      return symmetric(init.bound)
    case "xavierUniform": {
      const into = fan(init.fanIn)
      const out = own.reduce((n, a) => n * a.logical, 1) / Math.max(1, into)
      return symmetric(Math.sqrt(6 / (into + out)))
    }
    case "fanIn":
      return scale(Random.normal(key, axes), 1 / Math.sqrt(Math.max(1, fan(init.axes))))
  }
}
