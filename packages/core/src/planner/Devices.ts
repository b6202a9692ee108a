/** What accelerators can do, from their makers' data sheets: bytes, bytes a second and FLOPs a second, dense. */

/** A device in a cluster of nodes. */
export interface Device {
  readonly name: string
  readonly memory: number
  /** Products with float accumulation, by storage type of the operands. */
  readonly peak: { readonly f32: number; readonly bf16: number; readonly f16: number }
  readonly bandwidth: number
  /** Devices of one node and what one of them sends to the others of its node. */
  readonly perNode: number
  readonly link: number
  /** What a node sends to other nodes. */
  readonly network: number
  readonly source: string
}

const gib = 2 ** 30

const a100 = {
  // Products of f32 run as tf32, as every framework of these tables lets them.
  peak: { f32: 156e12, bf16: 312e12, f16: 312e12 },
  perNode: 8,
  link: 300e9,
  network: 200e9
}

/** By the name on the command line. */
export const devices = {
  "A100-40G": {
    ...a100,
    name: "A100-40G",
    memory: 40 * gib,
    bandwidth: 1.555e12,
    source: "NVIDIA A100 data sheet (SXM4 40GB); DGX A100: 8 x 200 Gb/s InfiniBand"
  },
  "A100-80G": {
    ...a100,
    name: "A100-80G",
    memory: 80 * gib,
    bandwidth: 2.039e12,
    source: "NVIDIA A100 data sheet (SXM4 80GB); DGX A100: 8 x 200 Gb/s InfiniBand"
  },
  "H100-80G": {
    name: "H100-80G",
    memory: 80 * gib,
    peak: { f32: 494.7e12, bf16: 989.4e12, f16: 989.4e12 },
    bandwidth: 3.35e12,
    perNode: 8,
    link: 450e9,
    network: 400e9,
    source: "NVIDIA H100 data sheet (SXM5), tf32 and bf16 without sparsity; DGX H100: 8 x 400 Gb/s InfiniBand"
  },
  "V100-32G": {
    name: "V100-32G",
    memory: 32 * gib,
    peak: { f32: 15.7e12, bf16: 15.7e12, f16: 125e12 },
    bandwidth: 0.9e12,
    perNode: 8,
    link: 150e9,
    network: 50e9,
    source: "NVIDIA V100 data sheet (SXM2 32GB), no bf16 units; DGX-1: 4 x 100 Gb/s InfiniBand"
  }
} as const satisfies Readonly<Record<string, Device>>

export type Name = keyof typeof devices
