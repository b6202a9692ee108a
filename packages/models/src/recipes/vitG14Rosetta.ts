/**
 * ViT-G/14 (1.8 thousand million parameters) with Rosetta's settings.
 *
 * Command: tessera explain vit-g14-rosetta; training needs accelerators and shards as vit-b16-rosetta does
 * @source NVIDIA/JAX-Toolbox@23.10-release rosetta/rosetta/projects/vit/configs/G.gin, pretrain.gin
 */
import { vitB16Rosetta } from "./vitB16Rosetta.ts"

export const vitG14Rosetta = {
  ...vitB16Rosetta,
  name: "vit-g14-rosetta",
  description: "ViT-G/14 pre-training with Rosetta's settings",
  model: { preset: "G/14", variant: "rosetta" },
  microbatches: 256,
  recompute: true
} as const
