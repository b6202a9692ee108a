/** Every strategy by itself, on meshes of up to 8 ranks. */
import type { Choices } from "@tessera/core/Strategy"

const data = (n: number) => ["data", n] as const
const tensor = (n: number) => ["tensor", n] as const
const context = (n: number) => ["context", n] as const
const stage = (n: number) => ["stage", n] as const

export const alone: Readonly<Record<string, Choices>> = {
  "data parallel": { mesh: [data(4)] },
  "zero 1": { mesh: [data(4)], zero: 1 },
  "zero 2": { mesh: [data(4)], zero: 2 },
  "zero 3": { mesh: [data(4)], zero: 3 },
  "fsdp, blocks": { mesh: [data(4)], fsdp: {} },
  "fsdp, blocks, kept after the forward pass": { mesh: [data(4)], fsdp: { reshardAfterForward: false } },
  "fsdp, whole model": { mesh: [data(4)], fsdp: { unit: "model" } },
  "tensor parallel": { mesh: [tensor(4)] },
  "sequence parallel": { mesh: [tensor(4)], sequence: true },
  "context parallel, gathered": { mesh: [context(4)] },
  "context parallel, ring": { mesh: [context(4)], context: "ring" },
  pipeline: { mesh: [stage(4)] },
  "recomputation of all layers": { mesh: [], recompute: { kind: "full" } }
}
