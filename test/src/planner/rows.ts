/** Published tables that the planner is held against. */
import type { Name } from "@tessera/core/planner/Devices"

export interface Row {
  readonly name: string
  readonly recipe: "vit-g14-rosetta" | "vit-b16-rosetta"
  readonly set: ReadonlyArray<string>
  readonly device: Name
  /** A second, of all devices. */
  readonly samples: number
  readonly teraflops: number
  /** Whether the planner's shares were fitted on it. */
  readonly fitted: boolean
}

const g14 = (
  name: string,
  [data, tensor]: readonly [number, number],
  [batch, microbatches]: readonly [number, number],
  [samples, teraflops]: readonly [number, number],
  fitted = false
): Row => ({
  name,
  recipe: "vit-g14-rosetta",
  set: [
    `strategy.mesh.data=${data}`,
    `strategy.mesh.tensor=${tensor}`,
    `batchSize=${batch}`,
    `microbatches=${microbatches}`,
    "recompute=none"
  ],
  device: "A100-80G",
  samples,
  teraflops,
  fitted
})

const b16 = (device: Name, samples: number, teraflops: number): Row => ({
  name: `B/16 on 8 ${device.slice(0, 4)}, 512 a device`,
  recipe: "vit-b16-rosetta",
  set: ["strategy.mesh.data=8", "batchSize=4096", "microbatches=1"],
  device,
  samples,
  teraflops,
  fitted: false
})

/** @source NVIDIA/JAX-Toolbox@23.10-release rosetta/rosetta/projects/vit/README.md; samples of the weak-scaling table are a device's */
export const rows: ReadonlyArray<Row> = [
  g14("G/14 on 8, 16 a device", [8, 1], [128, 1], [34.63 * 8, 718.44]),
  g14("G/14 on 32, 16 a device", [32, 1], [512, 1], [30.36 * 32, 2519.3]),
  g14("G/14 on 64, 16 a device", [64, 1], [1024, 1], [27.92 * 64, 4634.1], true),
  g14("G/14 on 32, data 32, 8 microbatches", [32, 1], [4096, 8], [1281, 3322.29], true),
  g14("G/14 on 32, data 8, tensor 4, 8 microbatches", [8, 4], [4096, 8], [795, 2062.4], true),
  g14("G/14 on 32, data 4, tensor 8, 8 microbatches", [4, 8], [4096, 8], [553, 1433.38]),
  b16("A100-80G", 7200.38, 731.41),
  b16("H100-80G", 11669.52, 1266.95)
]

const rung = (name: string, hidden: number, layers: number, heads: number) => ({
  name,
  set: [
    `model.hidden=${hidden}`,
    `model.mlp=${4 * hidden}`,
    `model.layers=${layers}`,
    `model.heads=${heads}`,
    ...[
      "batchSize=4096",
      "microbatches=1",
      "recompute=full",
      "precision=bf16",
      "strategy.mesh.data=128",
      "strategy.fsdp={}"
    ]
  ]
})

/** Sizes from 1 to 120 thousand million parameters, as FAIR's report names them; widths and depths are ours, since it gives none. */
export const fair = [
  rung("1B", 1408, 40, 16),
  rung("2B", 1792, 48, 16),
  rung("5B", 2560, 64, 32),
  rung("10B", 3584, 64, 32),
  rung("25B", 5120, 80, 40),
  rung("60B", 7168, 96, 64),
  rung("120B", 10_240, 96, 80)
]
