/**
 * How long it takes to build the step of ViT-G/14 for one rank of a mesh of 64: trace, derivatives, partition, buckets, then the plan of its kernels and
 * memory. Nothing is allocated. `node bench/compile.ts --rounds 5`.
 */
import * as Distribute from "@tessera/core/Distribute"
import * as Optimizer from "@tessera/core/Optimizer"
import { adamw } from "@tessera/core/optimizers/adamw"
import * as StageNeeds from "@tessera/core/runner/StageNeeds"
import type { Choices } from "@tessera/core/Strategy"
import * as Strategy from "@tessera/core/Strategy"
import * as Tasks from "@tessera/core/Tasks"
import * as CpuPlan from "@tessera/cpu/CpuPlan"
import * as Presets from "@tessera/models/presets"
import * as Vit from "@tessera/models/Vit"
import * as Result from "effect/Result"
import { parseArgs } from "node:util"

const { values } = parseArgs({ options: { rounds: { type: "string", default: "3" } } })

const sizes = { batchSize: 4096, height: 224, width: 224, channels: 3, classes: 1000 }
const strategies: Readonly<Record<string, Choices>> = {
  "data 64, zero 1, 8 microbatches": { mesh: [["data", 64]], zero: 1, microbatches: 8 },
  "data 64, fsdp, recomputed": { mesh: [["data", 64]], fsdp: {}, recompute: { kind: "full" } },
  "data 8, tensor 8, zero 1, 8 microbatches": {
    mesh: [
      ["data", 8],
      ["tensor", 8]
    ],
    zero: 1,
    microbatches: 8
  },
  "data 16, tensor 4, sequence, fsdp, recomputed": {
    mesh: [
      ["data", 16],
      ["tensor", 4]
    ],
    sequence: true,
    fsdp: {},
    recompute: { kind: "full" }
  },
  "stage 4, data 8, tensor 2, zero 1, 8 microbatches": {
    mesh: [
      ["stage", 4],
      ["data", 8],
      ["tensor", 2]
    ],
    zero: 1,
    microbatches: 8
  }
}

/** Seconds of both parts, and launches of the plan. */
const once = (choices: Choices) => {
  const began = performance.now()
  const model = Vit.classifier(Presets.rosettaPretrain(Presets.get("G/14")))
  const strategy = Strategy.make(choices)
  const config = { ...Tasks.classification(model, sizes), optimizer: Optimizer.make(adamw()), strategy }
  const made = Result.getOrThrow(Distribute.step(config))
  const built = performance.now()
  const place = { mesh: strategy.mesh, rank: 0 }
  const plans =
    made.kind === "spread"
      ? [CpuPlan.make(made.local.program, place, { donated: made.step.donated })]
      : StageNeeds.jobs(StageNeeds.of(made.step, 0)).map(({ options, program }) =>
          CpuPlan.make(program, place, options)
        )
  const planned = performance.now()
  return {
    build: (built - began) / 1000,
    plan: (planned - built) / 1000,
    launches: plans.reduce((n, p) => n + p.launches.length, 0)
  }
}

const median = (xs: ReadonlyArray<number>): number => xs.toSorted((a, b) => a - b)[xs.length >> 1]!

for (const [name, choices] of Object.entries(strategies)) {
  const all = Array.from({ length: Number(values.rounds) }, () => once(choices))
  const total = all.map((r) => r.build + r.plan)
  const part = (key: "build" | "plan") => median(all.map((r) => r[key])).toFixed(2)
  console.log(
    `${name}: ${median(total).toFixed(2)} s (${Math.min(...total).toFixed(2)} to ${Math.max(...total).toFixed(2)}), ` +
      `building ${part("build")} s, planning ${part("plan")} s, ${all[0]!.launches} launches`
  )
}
