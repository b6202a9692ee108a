/** Where a token is: learned tables and fixed waves. */
import * as Axis from "@tessera/core/Axis"
import * as T from "@tessera/core/Tensor"

/** learned: one vector a class token and patch. sinCos2d: fixed waves for patches, nothing for class tokens. none: nothing. */
export type Kind = "learned" | "sinCos2d" | "none"

export interface Grid {
  /** Patches down and across. */
  readonly rows: number
  readonly cols: number
}

/**
 * `-> [patch, embed]`: sines and cosines of the column, then of the row, a quarter of the width each, at wavelengths from 2 pi to 2 pi x temperature.
 * The width must divide by 4.
 * @source google-research/big_vision big_vision/models/vit.py posemb_sincos_2d (MoCo v3)
 */
export const sinCos2d = ({ cols, rows }: Grid, width: number, temperature = 10_000): T.Tensor<"patch" | "embed"> => {
  const quarter = width / 4
  const rate = quarter === 1 ? 0 : -Math.log(temperature) / (quarter - 1)
  const frequency = T.exp(T.scale(coordinate("frequency", quarter), rate))
  const axes = [Axis.make("row", rows), Axis.make("col", cols), Axis.make("frequency", quarter)]
  const across = T.mul(coordinate("col", cols), frequency)
  const down = T.mul(coordinate("row", rows), frequency)
  const whole = (x: T.Tensor<"row" | "frequency"> | T.Tensor<"col" | "frequency">) =>
    T.broadcast(x as T.Tensor<any>, axes)
  const waves = T.concat(
    [T.sin(across), T.cos(across), T.sin(down), T.cos(down)].map(
      (x) => [whole(x as T.Tensor<any>), "frequency"] as const
    ),
    "embed"
  )
  return T.merge(waves as T.Tensor<"row" | "col" | "embed">, "row", "col", "patch")
}

const coordinate = <N extends string>(name: N, size: number): T.Tensor<N> => T.cast(T.iota(name, size), "f32")
