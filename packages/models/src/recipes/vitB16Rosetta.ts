/**
 * ViT-B/16 pre-training as Rosetta does it: every parameter decays, the last 10,000 steps run at the end rate.
 *
 * Command: tessera train vit-b16-rosetta --data shards:PATTERN --test shards:PATTERN; tessera explain vit-b16-rosetta needs no data
 * Data: ImageNet-1k as WebDataset shards
 * Time: made for clusters of accelerators
 * @source NVIDIA/JAX-Toolbox@23.10-release rosetta/rosetta/projects/vit/configs/pretrain.gin, dali_utils.py
 */
export const vitB16Rosetta = {
  name: "vit-b16-rosetta",
  description: "ViT-B/16 pre-training with Rosetta's settings",
  model: { preset: "B/16", variant: "rosetta" },
  data: {
    train: "shards:imagenet/train-{000000..000146}.tar",
    test: "shards:imagenet/val-{000000..000006}.tar",
    classes: 1000,
    normalization: "imagenet",
    augmentation: { crop: "randomResized", flip: 0.5, colorJitter: 0.4, autoAugment: true },
    evaluation: "resizeSquare",
    workers: 2
  },
  batchSize: 4096,
  microbatches: 16,
  steps: 95_000,
  optimizer: { name: "adamw", learningRate: 3e-3, weightDecay: 0.3, decay: "all", b1: 0.9, b2: 0.999, epsilon: 1e-8 },
  schedule: { name: "optaxWarmupCosine", warmup: 10_000, initial: 0, end: 1e-5, total: 85_000 },
  precision: "bf16",
  clip: 1,
  clipFormula: "optax",
  seed: 0,
  evaluateEvery: 1000,
  checkpoint: { every: 10_000, keepLast: 2, keepBest: 0 }
} as const
