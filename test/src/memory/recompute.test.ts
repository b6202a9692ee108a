/** What is computed again on native kernels has the same bits: parameters after a step, under every policy, in f32 and bf16. */
import type { HostArray } from "@tessera/core/HostArray"
import * as Optimizer from "@tessera/core/Optimizer"
import { sgd } from "@tessera/core/optimizers/sgd"
import * as Precision from "@tessera/core/Precision"
import type * as Recompute from "@tessera/core/Recompute"
import * as Strategy from "@tessera/core/Strategy"
import * as Subjects from "@tessera/core/testing/Subject"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as ManagedRuntime from "effect/ManagedRuntime"
import { afterAll, expect, it } from "vitest"
import { decoder, vit } from "../programs/subjects.ts"
import { trainOnRanks } from "../ranks/trainOnRanks.ts"

const runtime = ManagedRuntime.make(CpuBackend.layerWith({ threads: 1, memory: "guarded" }))
afterAll(() => runtime.dispose())

const policies: ReadonlyArray<Recompute.Policy> = [
  { kind: "full" },
  { kind: "full", method: "uniform", layers: 2 },
  { kind: "full", method: "block", layers: 3 },
  { kind: "selective" }
]

const after = async (
  subject: Subjects.Subject,
  precision: Precision.Precision,
  recompute: Recompute.Policy
): Promise<ReadonlyArray<HostArray>> => {
  const sizes = Object.fromEntries(Object.entries(subject.sizes).map(([name, values]) => [name, values.at(-1)!]))
  const experiment = subject.make({ ...sizes, batch: 4, layers: 4 })
  const optimizer = Optimizer.make(sgd())
  const strategy = Strategy.make({ mesh: [], recompute })
  const values = Subjects.draw(experiment, optimizer, 7)
  const config = { ...experiment, precision, optimizer, strategy }
  const [step] = await runtime.runPromise(trainOnRanks(config, values, { steps: 1, rate: 1, seed: 7 }))
  return step!.arrays
}

it.each(
  [vit(1), decoder(true)].flatMap((s) => [Precision.f32, Precision.bf16].map((p) => [s.name, p.name, s, p] as const))
)("%s, %s", async (_name, _precision, subject, precision) => {
  const kept = await after(subject, precision, { kind: "none" })
  for (const policy of policies) {
    const again = await after(subject, precision, policy)
    kept.forEach((x, i) => expect(again[i]!.data).toEqual(x.data))
  }
})
