/** Named vision transformers, and what each recipe makes of them. */
import * as VitConfig from "./VitConfig.ts"

export interface Preset {
  readonly config: VitConfig.VitConfig
  /** Where the sizes come from. */
  readonly source: string
}

const vitPaper = "arXiv:2010.11929, table 1; google-research/vision_transformer vit_jax/configs/models.py"
const bigVision = "google-research/big_vision big_vision/models/vit.py decode_variant"
const own = "Tessera: small pictures"

const preset = (source: string, given: VitConfig.Given): Preset => ({ source, config: VitConfig.make(given) })

/** hidden, mlp, heads, layers */
const sizes = {
  Ti: { hidden: 192, mlp: 768, heads: 3, layers: 12 },
  S: { hidden: 384, mlp: 1536, heads: 6, layers: 12 },
  B: { hidden: 768, mlp: 3072, heads: 12, layers: 12 },
  L: { hidden: 1024, mlp: 4096, heads: 16, layers: 24 },
  H: { hidden: 1280, mlp: 5120, heads: 16, layers: 32 },
  g: { hidden: 1408, mlp: 6144, heads: 16, layers: 40 },
  G: { hidden: 1664, mlp: 8192, heads: 16, layers: 48 },
  e: { hidden: 1792, mlp: 15_360, heads: 16, layers: 56 }
} as const

const small = (side: number, patch: number, channels: number, classes: number) => ({
  imageSize: { height: side, width: side },
  patch,
  channels,
  head: { kind: "linear", classes, kernel: "zeros", bias: 0 } as const
})

/** By name: size and patch at 224 pixels without a head, then small ones with a head for pictures of 28 to 64 pixels. */
export const presets = {
  "Ti/16": preset(bigVision, { ...sizes.Ti, patch: 16 }),
  "S/16": preset(bigVision, { ...sizes.S, patch: 16 }),
  "S/32": preset(bigVision, { ...sizes.S, patch: 32 }),
  "B/8": preset(vitPaper, { ...sizes.B, patch: 8 }),
  "B/16": preset(vitPaper, { ...sizes.B, patch: 16 }),
  "B/32": preset(vitPaper, { ...sizes.B, patch: 32 }),
  "L/14": preset(vitPaper, { ...sizes.L, patch: 14 }),
  "L/16": preset(vitPaper, { ...sizes.L, patch: 16 }),
  "L/32": preset(vitPaper, { ...sizes.L, patch: 32 }),
  "H/14": preset(vitPaper, { ...sizes.H, patch: 14 }),
  "H/16": preset(vitPaper, { ...sizes.H, patch: 16 }),
  "g/14": preset(`arXiv:2106.04560, table 2; ${bigVision}`, { ...sizes.g, patch: 14 }),
  "G/14": preset(`arXiv:2106.04560, table 2; ${bigVision}`, { ...sizes.G, patch: 14 }),
  "e/14": preset(`arXiv:2209.06794; ${bigVision}`, { ...sizes.e, patch: 14 }),
  "mnist-tiny": preset(own, { ...small(28, 7, 1, 10), hidden: 64, mlp: 128, heads: 4, layers: 4 }),
  "mnist-small": preset(own, { ...small(28, 4, 1, 10), hidden: 64, mlp: 256, heads: 4, layers: 6 }),
  "cifar-tiny": preset(own, { ...small(32, 4, 3, 10), hidden: 128, mlp: 512, heads: 4, layers: 8 }),
  "cifar-small": preset(own, { ...small(32, 4, 3, 10), hidden: 256, mlp: 1024, heads: 4, layers: 8 }),
  "vit-32": preset(own, { ...small(32, 4, 3, 10), hidden: 192, mlp: 768, heads: 3, layers: 6 }),
  "vit-64": preset(own, { ...small(64, 8, 3, 10), hidden: 192, mlp: 768, heads: 3, layers: 9 })
} as const satisfies Readonly<Record<string, Preset>>

export type Name = keyof typeof presets

/** A preset by name. */
export const get = (name: Name): VitConfig.VitConfig => presets[name].config

/** The same model for pictures of another size, in pixels. */
export const at = (config: VitConfig.VitConfig, height: number, width: number = height): VitConfig.VitConfig => ({
  ...config,
  imageSize: { height, width }
})

/**
 * NeMo's layout: 8 class tokens, its MLP head with bias -10, dropout 0.1, epsilon 1e-5.
 * @source NVIDIA/NeMo@r1.23.0 examples/vision/vision_transformer/conf/megatron_vit_classification_config.yaml
 */
export const nemoPretrain = (config: VitConfig.VitConfig, classes = 1000): VitConfig.VitConfig => ({
  ...config,
  classTokens: 8,
  dropout: 0.1,
  epsilon: 1e-5,
  head: { kind: "nemoMlp", classes, bias: -10 },
  initialisation: "nemo"
})

/**
 * Rosetta's pre-training: an MLP head of width 768, dropout 0.1 also inside of the MLP, tanh GELU, epsilon 1e-5.
 * @source NVIDIA/JAX-Toolbox@23.10-release rosetta/rosetta/projects/vit/configs/pretrain.gin, base.gin
 */
export const rosettaPretrain = (config: VitConfig.VitConfig, classes = 1000): VitConfig.VitConfig => ({
  ...config,
  activation: "geluTanh",
  dropout: 0.1,
  mlpDropout: 0.1,
  epsilon: 1e-5,
  head: { kind: "rosettaMlp", classes, width: 768, bias: 0 },
  initialisation: "rosetta"
})

/**
 * Rosetta's fine-tuning: one zero-initialised map, 384 pixels, no dropout. Its epsilon of 1e-6 differs from the 1e-5 of its pre-training.
 * @source NVIDIA/JAX-Toolbox@23.10-release rosetta/rosetta/projects/vit/configs/finetune.gin
 */
export const rosettaFinetune = (config: VitConfig.VitConfig, classes = 1000, side = 384): VitConfig.VitConfig => ({
  ...at(config, side),
  activation: "geluTanh",
  dropout: 0,
  mlpDropout: 0,
  epsilon: 1e-6,
  head: { kind: "linear", classes, kernel: "zeros", bias: 0 },
  initialisation: "rosetta"
})

/**
 * big_vision's ImageNet-1k recipe: fixed positions, mean over patches, no class token, an MLP head as wide as the model.
 * @source google-research/big_vision big_vision/configs/vit_s16_i1k.py
 */
export const bigVisionImagenet = (config: VitConfig.VitConfig, classes = 1000): VitConfig.VitConfig => ({
  ...config,
  activation: "geluTanh",
  classTokens: 0,
  positions: "sinCos2d",
  pooling: "meanPatches",
  head: { kind: "rosettaMlp", classes, width: config.hidden, bias: 0 }
})
