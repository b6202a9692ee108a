/**
 * ViT-B/16 pre-training as NeMo does it.
 *
 * Command: tessera train vit-b16-nemo --data shards:PATTERN --test shards:PATTERN; tessera explain vit-b16-nemo needs no data
 * Data: ImageNet-1k as WebDataset shards
 * Time: made for clusters of accelerators; the settings are the reference, microbatches of 256 are its micro_batch_size
 * @source NVIDIA/NeMo@r1.23.0 examples/vision/vision_transformer/conf/megatron_vit_classification_config.yaml, nemo/collections/vision/data/megatron/vit_dataset.py
 */
export const vitB16Nemo = {
  name: "vit-b16-nemo",
  description: "ViT-B/16 pre-training with NeMo's settings",
  model: { preset: "B/16", variant: "nemo" },
  data: {
    train: "shards:imagenet/train-{000000..000146}.tar",
    test: "shards:imagenet/val-{000000..000006}.tar",
    classes: 1000,
    normalization: "imagenet",
    augmentation: { crop: "randomResized", flip: 0.5, colorJitter: 0.4, hue: 0.1, autoAugment: true },
    evaluation: "centerCrop",
    evaluationCrop: 1,
    workers: 2
  },
  batchSize: 4096,
  microbatches: 16,
  steps: 95_000,
  optimizer: { name: "adamw", learningRate: 5e-4, weightDecay: 0.1, b1: 0.9, b2: 0.999 },
  schedule: { name: "nemoCosine", warmup: 10_000, minimum: 1e-5 },
  precision: "f16-O1",
  clip: 1,
  clipFormula: "megatron",
  seed: 1234,
  evaluateEvery: 100,
  checkpoint: { every: 100, keepLast: 1, keepBest: 10 }
} as const
