/** From tokens to one vector a picture (pooling), and from that to logits (heads). */
import * as Axis from "@tessera/core/Axis"
import * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import * as T from "@tessera/core/Tensor"
import type { Initialisation } from "./initialisation.ts"
import * as LayerNorm from "./layerNorm.ts"
import * as Linear from "./linear.ts"
import * as Mlp from "./mlp.ts"
import * as SelfAttention from "./selfAttention.ts"

type Tokens = T.Tensor<"batch" | "seq" | "embed">
type Pooled = T.Tensor<"batch" | "embed">

/**
 * token: the first class token. meanPatches: mean over patch tokens only (Rosetta and big_vision "gap"). meanAll: mean over all tokens, class tokens
 * included (NeMo `global_average_pool`). attention: a learned probe attends to all tokens (big_vision "map").
 */
export type Pooling = "token" | "meanPatches" | "meanAll" | "attention"

/** `[batch, seq, embed] -> [batch, embed]`, without parameters. */
export const pool = (tokens: Tokens, pooling: "token" | "meanPatches" | "meanAll", classTokens: number): Pooled => {
  switch (pooling) {
    case "token":
      return T.sum(T.slice(tokens, "seq", { to: "class", start: 0, size: 1 }), "class")
    case "meanAll":
      return T.mean(tokens, "seq")
    case "meanPatches":
      return T.mean(
        T.slice(tokens, "seq", { to: "patch", start: classTokens, size: T.sizeOf(tokens, "seq") - classTokens }),
        "patch"
      )
  }
}

export type PoolParams = {
  readonly probe: Module.Param<"embed">
  readonly attention: SelfAttention.Params
  readonly norm: LayerNorm.Params
  readonly mlp: Mlp.Params
}

/**
 * Attention pooling: `x = attention(probe, tokens); x + mlp(norm x)`. `[batch, seq, embed] -> [batch, embed]`
 * @source google-research/big_vision big_vision/models/vit.py MAPHead
 */
export const attentionPool = (
  sizes: SelfAttention.Sizes & Mlp.Sizes,
  init: Initialisation,
  options: { readonly activation: Mlp.Activation; readonly epsilon: number }
): Module.Module<PoolParams, Tokens, Pooled> => {
  const mlp = Mlp.make<"batch">(sizes, init, { activation: options.activation, dropout: 0 })
  const declared: PoolParams = {
    probe: Module.param({ embed: sizes.hidden }, Init.xavierUniform()),
    attention: SelfAttention.params(sizes, init, { qkvBias: true }),
    norm: LayerNorm.params(sizes.hidden),
    mlp: mlp.params
  }
  return Module.make(declared, (p, tokens, call) => {
    const [batch, embed] = ["batch", "embed"].map((name) => Axis.find(tokens.type.axes, name)!)
    const probe = T.broadcast(p.probe, [batch!, Axis.make("seq", 1), embed!]) as T.AnyTensor as Tokens
    const seen = SelfAttention.attend(p.attention, probe, tokens, { dropout: 0, probabilities: false }, call)
    const x = T.sum(seen.value, "seq")
    return T.add(x, Module.run(mlp, "mlp", p.mlp, LayerNorm.apply<"batch">(p.norm, x, options.epsilon), call))
  })
}

/** What follows pooling. Biases of the last layer begin at a constant: -10 in NeMo, -6.9 for sigmoid losses, else 0. */
export type Head =
  /** Pooled features are the result. */
  | { readonly kind: "none" }
  /** One linear map. */
  | { readonly kind: "linear"; readonly classes: number; readonly kernel: "zeros" | "normal"; readonly bias: number }
  /** Dense, tanh, zero-initialised dense. @source google-research/vision_transformer vit_jax/models_vit.py (representation_size) */
  | { readonly kind: "rosettaMlp"; readonly classes: number; readonly width: number; readonly bias: number }
  /** Hidden to hidden, tanh, to classes. @source NVIDIA/NeMo@r1.23.0 nemo/collections/vision/modules/vit/vit_backbone.py VitMlpHead */
  | { readonly kind: "nemoMlp"; readonly classes: number; readonly bias: number }
  /** A linear map without bias into a space shared with other towers. */
  | { readonly kind: "projection"; readonly size: number }

/** Kinds of heads that give logits. */
export type ClassHead = Exclude<Head, { readonly kind: "none" } | { readonly kind: "projection" }>

export type ClassParams =
  | Linear.Params<"embed", "classes">
  | { readonly in: Linear.Params<"embed", "mlp">; readonly out: Linear.Params<"mlp", "classes"> }

/** `[batch, embed] -> [batch, classes]` */
export const classify = (
  hidden: number,
  head: ClassHead
): Module.Module<Module.ParamTree, Pooled, T.Tensor<"batch" | "classes">> => {
  const { classes } = head
  const bias = Init.constantOf(head.bias)
  if (head.kind === "linear") {
    const weight = head.kernel === "zeros" ? Init.zeros : Init.normal(0.02)
    const linear = Linear.params({ embed: hidden }, { classes }, { weight, bias })
    return erased(Module.make(linear, (p, x: Pooled) => Linear.apply(p, x, "embed")))
  }
  // torch.nn.Linear begins uniform within 1 / sqrt(fan in), its bias too.
  const torch = Init.uniform(1 / Math.sqrt(hidden))
  const nemo = head.kind === "nemoMlp"
  const mlp = nemo ? hidden : head.width
  const inner = nemo ? { weight: torch, bias: torch } : { weight: Init.fanIn("embed"), bias: Init.zeros }
  return erased(
    Module.make(
      {
        in: Linear.params({ embed: hidden }, { mlp }, inner),
        out: Linear.params({ mlp }, { classes }, { weight: nemo ? torch : Init.zeros, bias })
      },
      (p, x: Pooled) => Linear.apply(p.out, T.tanh(Linear.apply(p.in, x, "embed")), "mlp")
    )
  )
}

/** `[batch, embed] -> [batch, feature]`; the weight normal with variance 1 / width. @source arXiv:2103.00020, section 2.4 */
export const project = (
  hidden: number,
  size: number
): Module.Module<Module.ParamTree, Pooled, T.Tensor<"batch" | "feature">> =>
  erased(
    Module.make(
      Linear.params({ embed: hidden }, { feature: size }, { weight: Init.fanIn("embed"), bias: null }),
      (p, x: Pooled) => Linear.apply(p, x, "embed")
    )
  )

/** The same module without the shape of its parameters in its type. */
const erased = <P extends Module.ParamTree, Out>(
  module: Module.Module<P, Pooled, Out>
): Module.Module<Module.ParamTree, Pooled, Out> => module as unknown as Module.Module<Module.ParamTree, Pooled, Out>
