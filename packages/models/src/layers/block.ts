/** One layer of a pre-norm encoder. */
import * as Module from "@tessera/core/Module"
import * as T from "@tessera/core/Tensor"
import * as Dropout from "./dropout.ts"
import type { Initialisation } from "./initialisation.ts"
import * as LayerNorm from "./layerNorm.ts"
import * as Mlp from "./mlp.ts"
import * as SelfAttention from "./selfAttention.ts"

type Tokens = T.Tensor<"batch" | "seq" | "embed">

export interface Sizes extends SelfAttention.Sizes, Mlp.Sizes {}

export interface Options {
  readonly qkvBias: boolean
  readonly activation: Mlp.Activation
  readonly epsilon: number
  /** After attention out and after MLP out. */
  readonly dropout: number
  /** Between the two maps of the MLP. */
  readonly mlpDropout: number
  readonly attentionDropout: number
  /** Intermediates to hand out. */
  readonly capture: Capture
}

export interface Capture {
  /** The output of every block: `features`, `[layers, batch, seq, embed]`. */
  readonly features?: boolean
  /** Softmax probabilities: `attention`, `[layers, batch, heads, seq, keySeq]`. Evaluation only. */
  readonly attention?: boolean
}

export type Params = {
  readonly attentionNorm: LayerNorm.Params
  readonly attention: SelfAttention.Params
  readonly mlpNorm: LayerNorm.Params
  readonly mlp: Mlp.Params
}

/**
 * `x + drop(attention(norm x))`, then `x + drop(mlp(norm x))`. `[batch, seq, embed] -> [batch, seq, embed]`. The layer constant `dropPath` is the rate at
 * which a sample skips a branch.
 * @source arXiv:2010.11929, equations 2 and 3
 */
export const make = (
  sizes: Sizes,
  init: Initialisation,
  options: Options
): Module.Module<Params, Module.Layer<"batch" | "seq" | "embed">, Module.LayerResult<"batch" | "seq" | "embed">> => {
  const attention = SelfAttention.make(sizes, init, {
    dropout: options.attentionDropout,
    probabilities: options.capture.attention ?? false,
    qkvBias: options.qkvBias
  })
  const mlp = Mlp.make<"batch" | "seq">(sizes, init, { activation: options.activation, dropout: options.mlpDropout })
  const norm = LayerNorm.params(sizes.hidden)
  return Module.make(
    { attentionNorm: norm, attention: attention.params, mlpNorm: norm, mlp: mlp.params },
    (p, layer, call) => {
      const skip = layer.constants["dropPath"]
      const residual = (x: Tokens, branch: Tokens, name: string): Tokens =>
        T.add(
          x,
          Dropout.path<"seq" | "embed">(
            Dropout.apply(branch, options.dropout, `${name}Dropout`, call),
            skip,
            `${name}Path`,
            call
          )
        )
      const attended = Module.run(
        attention,
        "attention",
        p.attention,
        LayerNorm.apply<"batch" | "seq">(p.attentionNorm, layer.value, options.epsilon),
        call
      )
      const middle = residual(layer.value, attended.value, "attention")
      const fed = Module.run(
        mlp,
        "mlp",
        p.mlp,
        LayerNorm.apply<"batch" | "seq">(p.mlpNorm, middle, options.epsilon),
        call
      )
      const value = residual(middle, fed, "mlp")
      return {
        value,
        captured: {
          ...(options.capture.features ? { features: value } : {}),
          ...(attended.probabilities === undefined ? {} : { attention: attended.probabilities })
        }
      }
    }
  )
}
