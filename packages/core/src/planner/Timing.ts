/** How long a step takes on a device: products at a share of the peak, everything else at a share of the bandwidth, collectives by where ranks stand. */
import type { DType } from "../DType.ts"
import * as Mesh from "../Mesh.ts"
import type { Traffic } from "../Traffic.ts"
import type { Device } from "./Devices.ts"
import type { Work } from "./Work.ts"

/** Shares of what the data sheet promises that programs reach. More than 1 where they move less than is counted here. */
export interface Shares {
  /** Of the peak, by products whose operands cost nothing. */
  readonly products: number
  /** Of the memory's bandwidth, by operands and results of products: small and narrow products reach less of the peak. */
  readonly operands: number
  /** Of the memory's bandwidth, by all other kernels. */
  readonly bandwidth: number
  /** Of links and network, by collectives of parameters and gradients. */
  readonly wire: number
  /** The same for collectives of activations, which every layer waits for. */
  readonly activations: number
  /** Of the time of collectives of parameters and gradients, what runs behind products. */
  readonly hidden: number
}

/**
 * What a compiler of 2023 reached, without hiding collectives. `operands`, `bandwidth` and `activations` were fitted on three published rows (ViT-G/14 on
 * 64 A100; on 32 with 8 microbatches; the same with the model over 4), the others are fixed: `test/src/planner/published.test.ts` fits them again.
 * @source NVIDIA/JAX-Toolbox@23.10-release rosetta/rosetta/projects/vit/README.md, performance tables
 */
export const published: Shares = {
  products: 0.9,
  operands: 0.176,
  bandwidth: 1.22,
  wire: 1,
  activations: 0.337,
  hidden: 0
}

/** Seconds of one step of one rank. */
export interface Timing {
  readonly products: number
  readonly operands: number
  readonly kernels: number
  /** Collectives that are waited for, by mesh axis. */
  readonly wires: Readonly<Record<string, number>>
  /** Collectives that run behind products. */
  readonly hidden: number
  readonly total: number
}

/** Every collective needs at least so long: a launch and a round through the switch. */
const latency = 20e-6

const peakOf = (device: Device, dtype: DType): number =>
  dtype === "bf16" || dtype === "f16" ? device.peak[dtype] : device.peak.f32

/** Members of a group along a mesh axis that share a node, and the nodes over which it stretches. Ranks fill nodes in their order. */
export const placement = (mesh: Mesh.Mesh, meshAxis: string, perNode: number) => {
  const at = mesh.findIndex(([name]) => name === meshAxis)
  const count = Mesh.countOf(mesh, meshAxis)
  const stride = Mesh.rankCount(mesh.slice(at + 1))
  const inside = Math.max(1, Math.min(count, Math.floor(perNode / stride)))
  return { inside, nodes: Math.ceil(count / inside) }
}

/** Seconds of collectives on an idle machine: inside of the nodes first, then between them, where all devices of a node share its network. */
export const wireSeconds = (wire: Traffic, mesh: Mesh.Mesh, device: Device): number => {
  const p = Mesh.countOf(mesh, wire.meshAxis)
  const { inside, nodes } = placement(mesh, wire.meshAxis, device.perNode)
  const share = device.network / Math.min(device.perNode, Mesh.rankCount(mesh))
  const wait = wire.count * latency
  if (nodes === 1) return wait + wire.bytes / device.link
  if (inside === 1 || wire.collective === "send" || wire.collective === "permute") return wait + wire.bytes / share
  // Bytes of the whole: a rank sends (p - 1) / p of them once, or twice in an all-reduce.
  const whole = (wire.bytes * p) / (p - 1)
  return wait + (((inside - 1) / inside) * whole) / device.link + (((nodes - 1) / nodes) * whole) / inside / share
}

const isActivation = (wire: Traffic): boolean => wire.what === "compute"

/** Seconds of products at the peak. */
export const atPeak = (work: Work, device: Device): number =>
  (Object.entries(work.products) as ReadonlyArray<[DType, number]>).reduce((s, [t, n]) => s + n / peakOf(device, t), 0)

export const of = (work: Work, mesh: Mesh.Mesh, device: Device, shares: Shares): Timing => {
  const products = atPeak(work, device) / shares.products
  const operands = work.operands / (device.bandwidth * shares.operands)
  const kernels = work.bytes / (device.bandwidth * shares.bandwidth)
  const wires: Record<string, number> = {}
  let hidden = 0
  for (const wire of work.wires) {
    const seconds = wireSeconds(wire, mesh, device) / (isActivation(wire) ? shares.activations : shares.wire)
    const behind = isActivation(wire) ? 0 : seconds * shares.hidden
    hidden += behind
    wires[wire.meshAxis] = (wires[wire.meshAxis] ?? 0) + seconds - behind
  }
  // What is to run behind products needs products to run behind.
  const exposed = Math.max(0, hidden - products - operands)
  const total = products + operands + kernels + exposed + Object.values(wires).reduce((s, x) => s + x, 0)
  return { products, operands, kernels, wires, hidden, total }
}
