/** Pictures to patch embeddings: split the picture into a grid, then contract each patch. There is no convolution. */
import * as Module from "@tessera/core/Module"
import * as T from "@tessera/core/Tensor"
import type { Initialisation } from "./initialisation.ts"
import * as Linear from "./linear.ts"

export interface Sizes {
  readonly patch: number
  readonly channels: number
  readonly hidden: number
}

type Params = Linear.Params<"patchRow" | "patchCol" | "channel", "embed">

/**
 * `[batch, row, col, channel] -> [batch, patch, embed]`. Patches are numbered row by row; within a patch the weight's axes are row, column, channel:
 * flattened, that is the order (p1 p2 c).
 * @source arXiv:2010.11929, equation 1
 */
export const make = (
  { channels, hidden, patch }: Sizes,
  init: Initialisation,
  options: { readonly bias: boolean }
): Module.Module<Params, T.Tensor<"batch" | "row" | "col" | "channel">, T.Tensor<"batch" | "patch" | "embed">> => {
  const { bias, weight } = init.patch(patch * patch * channels)
  return Module.make(
    Linear.params(
      { patchRow: patch, patchCol: patch, channel: channels },
      { embed: hidden },
      { weight, bias: options.bias ? bias : null }
    ),
    (p, image) => {
      const rows = T.split(image, "row", { outer: "row", inner: "patchRow", size: patch })
      const grid = T.split(rows, "col", { outer: "col", inner: "patchCol", size: patch })
      const embedded = Linear.apply(p, grid, "patchRow", "patchCol", "channel")
      return T.merge(embedded, "row", "col", "patch")
    }
  )
}
