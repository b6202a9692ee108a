/** Name tables of vision transformers: Hugging Face, timm and vit-pytorch. */
import type { NameTable, Rule } from "./NameTable.ts"
import type * as VitConfig from "../VitConfig.ts"

/** A rule whose source is one parameter. */
const one = (source: string, target: string, ...dims: ReadonlyArray<ReadonlyArray<string>>): Rule => ({
  source,
  dims,
  targets: [target]
})

/** torch.nn.Linear stores `[out, in]`. */
const linear = (
  source: string,
  target: string,
  from: ReadonlyArray<string>,
  to: ReadonlyArray<string>
): ReadonlyArray<Rule> => [
  one(`${source}.weight`, `${target}/weight`, to, from),
  one(`${source}.bias`, `${target}/bias`, to)
]

const norm = (source: string, target: string): ReadonlyArray<Rule> => [
  one(`${source}.weight`, `${target}/gamma`, ["embed"]),
  one(`${source}.bias`, `${target}/beta`, ["embed"])
]

const width = ["heads", "headDim"] as const

/** The output map of attention, whose paths are not those of a linear layer. */
const attentionOut = (source: string): ReadonlyArray<Rule> => [
  one(`${source}.weight`, "blocks/attention/out", ["embed"], width),
  one(`${source}.bias`, "blocks/attention/outBias", ["embed"])
]

/** Class token `[1, class, embed]` and positions `[1, seq, embed]`. */
const embeddings = (config: VitConfig.VitConfig, classToken: string, positions: string): ReadonlyArray<Rule> => [
  ...(config.classTokens === 0 ? [] : [one(classToken, "classToken", [], ["class"], ["embed"])]),
  ...(config.positions === "learned" ? [one(positions, "positions", [], ["seq"], ["embed"])] : [])
]

/** A convolution's kernel is `[embed, channel, patchRow, patchCol]`. */
const convolution = (config: VitConfig.VitConfig, source: string): ReadonlyArray<Rule> => [
  one(`${source}.weight`, "patchEmbed/weight", ["embed"], ["channel"], ["patchRow"], ["patchCol"]),
  ...(config.patchBias ? [one(`${source}.bias`, "patchEmbed/bias", ["embed"])] : [])
]

const head = (config: VitConfig.VitConfig, source: string): ReadonlyArray<Rule> =>
  config.head.kind === "linear" ? linear(source, "head", ["embed"], ["classes"]) : []

/** Query, key and value in one matrix `[part, heads, headDim] x embed`. */
const merged = (config: VitConfig.VitConfig, source: string): ReadonlyArray<Rule> => {
  const targets = (suffix: string) => ["query", "key", "value"].map((n) => `blocks/attention/${n}${suffix}`)
  return [
    { source: `${source}.weight`, dims: [["part", ...width], ["embed"]], targets: targets("") },
    ...(config.qkvBias ? [{ source: `${source}.bias`, dims: [["part", ...width]], targets: targets("Bias") }] : [])
  ]
}

/** `ViTForImageClassification` and `ViTModel` (whose names lack the leading "vit."; pass `prefix: ""`). @source huggingface/transformers models/vit */
export const huggingFace = (config: VitConfig.VitConfig, options: { readonly prefix?: string } = {}): NameTable => {
  const prefix = options.prefix ?? "vit."
  const layer = `${prefix}encoder.layer.{layer}`
  const projections = (["query", "key", "value"] as const).flatMap((n) => [
    one(`${layer}.attention.attention.${n}.weight`, `blocks/attention/${n}`, width, ["embed"]),
    ...(config.qkvBias ? [one(`${layer}.attention.attention.${n}.bias`, `blocks/attention/${n}Bias`, width)] : [])
  ])
  return {
    rules: [
      ...embeddings(config, `${prefix}embeddings.cls_token`, `${prefix}embeddings.position_embeddings`),
      ...convolution(config, `${prefix}embeddings.patch_embeddings.projection`),
      ...norm(`${layer}.layernorm_before`, "blocks/attentionNorm"),
      ...projections,
      ...attentionOut(`${layer}.attention.output.dense`),
      ...norm(`${layer}.layernorm_after`, "blocks/mlpNorm"),
      ...linear(`${layer}.intermediate.dense`, "blocks/mlp/in", ["embed"], ["mlp"]),
      ...linear(`${layer}.output.dense`, "blocks/mlp/out", ["mlp"], ["embed"]),
      ...norm(`${prefix}layernorm`, "finalNorm"),
      ...head(config, "classifier")
    ],
    ignored: [/(^|\.)pooler\.dense\./, /mask_token$/]
  }
}

/** `vit_*_patch*` models. With a mean over patches timm normalises after pooling (`fc_norm`): not the same function, hence not covered. @source huggingface/pytorch-image-models timm/models/vision_transformer.py */
export const timm = (config: VitConfig.VitConfig): NameTable => ({
  rules: [
    ...embeddings(config, "cls_token", "pos_embed"),
    ...convolution(config, "patch_embed.proj"),
    ...(config.preNorm ? norm("norm_pre", "preNorm") : []),
    ...norm("blocks.{layer}.norm1", "blocks/attentionNorm"),
    ...merged(config, "blocks.{layer}.attn.qkv"),
    ...attentionOut("blocks.{layer}.attn.proj"),
    ...norm("blocks.{layer}.norm2", "blocks/mlpNorm"),
    ...linear("blocks.{layer}.mlp.fc1", "blocks/mlp/in", ["embed"], ["mlp"]),
    ...linear("blocks.{layer}.mlp.fc2", "blocks/mlp/out", ["mlp"], ["embed"]),
    ...norm("norm", "finalNorm"),
    ...head(config, "head")
  ],
  ignored: []
})

/**
 * The early form of vit-pytorch: `(h p1)(w p2) -> (p1 p2 c)` patches, no biases on query, key and value, the final norm inside of `mlp_head` (the same
 * function, as one token is pooled).
 * @source lucidrains/vit-pytorch vit_pytorch/vit.py, version 0.24
 */
export const vitPytorch = (config: VitConfig.VitConfig): NameTable => {
  const layer = "transformer.layers.{layer}"
  return {
    rules: [
      ...embeddings(config, "cls_token", "pos_embedding"),
      ...linear("to_patch_embedding.1", "patchEmbed", ["patchRow", "patchCol", "channel"], ["embed"]),
      ...norm(`${layer}.0.norm`, "blocks/attentionNorm"),
      ...merged(config, `${layer}.0.fn.to_qkv`),
      ...attentionOut(`${layer}.0.fn.to_out.0`),
      ...norm(`${layer}.1.norm`, "blocks/mlpNorm"),
      ...linear(`${layer}.1.fn.net.0`, "blocks/mlp/in", ["embed"], ["mlp"]),
      ...linear(`${layer}.1.fn.net.3`, "blocks/mlp/out", ["mlp"], ["embed"]),
      ...norm("mlp_head.0", "finalNorm"),
      ...head(config, "mlp_head.1")
    ],
    ignored: []
  }
}
