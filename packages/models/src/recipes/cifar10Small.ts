/**
 * A vision transformer of 4 heads and 6 layers on CIFAR-10.
 *
 * Command: tessera train cifar10-small
 * Data: 20 training and 4 test shards of JPEGs below $TESSERA_SHARED/cifar10 (default ../shared/data/cifar10); --data and --test take others
 * Expected: 79.6 % of the 10,000 test pictures right after 25 epochs
 * Time: about an hour on 2 cores with AVX-512-BF16 (290 to 370 images a second)
 */
export const cifar10Small = {
  name: "cifar10-small",
  description: "A small vision transformer on CIFAR-10",
  model: {
    imageSize: { height: 32, width: 32 },
    patch: 4,
    channels: 3,
    hidden: 192,
    mlp: 384,
    heads: 4,
    layers: 6,
    classTokens: 0,
    positions: "sinCos2d",
    positionTemperature: 20,
    pooling: "meanPatches"
  },
  data: {
    train: "shards:$TESSERA_SHARED/cifar10/cifar10-train-{000000..000019}.tar.gz",
    test: "shards:$TESSERA_SHARED/cifar10/cifar10-test-{000000..000003}.tar",
    classes: 10,
    normalization: "cifar",
    augmentation: { crop: "pad", padding: 4, flip: 0.5 }
  },
  batchSize: 64,
  epochs: 25,
  optimizer: { name: "adamw", learningRate: 5e-4, weightDecay: 0.05 },
  schedule: { name: "cosine", warmup: 1000 },
  precision: "bf16",
  labelSmoothing: 0.1,
  clip: 1,
  seed: 1,
  checkpoint: { every: "epoch", keepLast: 2, keepBest: 1 }
} as const
