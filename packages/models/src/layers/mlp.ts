/** The feed-forward half of a block. */
import * as Module from "@tessera/core/Module"
import * as T from "@tessera/core/Tensor"
import * as Dropout from "./dropout.ts"
import type { Initialisation } from "./initialisation.ts"
import * as Linear from "./linear.ts"

/** gelu: exact, by erf. geluTanh: its tanh form. geluQuick: x sigmoid(1.702 x), OpenAI's CLIP. */
export type Activation = "gelu" | "geluTanh" | "geluQuick" | "relu"

const activations: Readonly<Record<Activation, <A extends string>(x: T.Tensor<A>) => T.Tensor<A>>> = {
  gelu: (x) => T.gelu(x, "erf"),
  geluTanh: (x) => T.gelu(x, "tanh"),
  geluQuick: (x) => T.gelu(x, "quick"),
  relu: (x) => T.relu(x)
}

export interface Sizes {
  readonly hidden: number
  readonly mlp: number
}

export type Params = { readonly in: Linear.Params<"embed", "mlp">; readonly out: Linear.Params<"mlp", "embed"> }

/** `[.., embed] -> [.., embed]` through `mlp`: linear, activation, dropout of the activations, linear. @source arXiv:1706.03762, section 3.3 */
export const make = <A extends string>(
  { hidden, mlp }: Sizes,
  init: Initialisation,
  options: { readonly activation: Activation; readonly dropout: number }
): Module.Module<Params, T.Tensor<A | "embed">, T.Tensor<A | "embed">> =>
  Module.make(
    {
      in: Linear.params({ embed: hidden }, { mlp }, { weight: init.kernel("embed"), bias: init.mlpBias }),
      out: Linear.params({ mlp }, { embed: hidden }, { weight: init.output("mlp"), bias: init.mlpBias })
    },
    (p, x, call) => {
      const inner = Linear.apply<A | "embed", "embed", "mlp">(p.in, x, "embed")
      const active = Dropout.apply(activations[options.activation](inner), options.dropout, "inner", call)
      return Linear.apply<string, "mlp", "embed">(p.out, active as T.AnyTensor, "mlp") as T.AnyTensor
    }
  )
