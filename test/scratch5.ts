import * as Distribute from "@tessera/core/Distribute"
import * as Program from "@tessera/core/Program"
import * as Work from "@tessera/core/planner/Work"
import * as Timing from "@tessera/core/planner/Timing"
import { devices } from "@tessera/core/planner/Devices"
import * as Experiment from "@tessera/cli/Experiment"
import * as RecipeSource from "@tessera/cli/RecipeSource"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { NodeServices } from "@effect/platform-node"
const rows = [
  ["weak8", "vit-g14-rosetta", { batchSize: 128, microbatches: 1, "strategy.mesh.data": 8 }, "A100-80G", 34.63 * 8],
  ["weak32", "vit-g14-rosetta", { batchSize: 512, microbatches: 1, "strategy.mesh.data": 32 }, "A100-80G", 30.36 * 32],
  ["weak64", "vit-g14-rosetta", { batchSize: 1024, microbatches: 1, "strategy.mesh.data": 64 }, "A100-80G", 27.92 * 64],
  ["mp1", "vit-g14-rosetta", { batchSize: 4096, microbatches: 8, "strategy.mesh.data": 32 }, "A100-80G", 1281],
  [
    "mp4",
    "vit-g14-rosetta",
    { batchSize: 4096, microbatches: 8, "strategy.mesh.data": 8, "strategy.mesh.tensor": 4 },
    "A100-80G",
    795
  ],
  [
    "mp8",
    "vit-g14-rosetta",
    { batchSize: 4096, microbatches: 8, "strategy.mesh.data": 4, "strategy.mesh.tensor": 8 },
    "A100-80G",
    553
  ],
  ["b16a", "vit-b16-rosetta", { batchSize: 4096, microbatches: 1, "strategy.mesh.data": 8 }, "A100-80G", 7200.38],
  ["b16h", "vit-b16-rosetta", { batchSize: 4096, microbatches: 1, "strategy.mesh.data": 8 }, "H100-80G", 11669.52]
] as const
const recompute = process.argv[2] ?? "false"
for (const [name, recipeName, sets, device, samples] of rows) {
  const { recipe } = (await Effect.runPromise(
    RecipeSource.load(recipeName, {
      set: [...Object.entries(sets).map(([k, v]) => `${k}=${v}`), `recompute=${recompute}`]
    }).pipe(Effect.provide(NodeServices.layer)) as never
  )) as any
  const config = Experiment.config(recipe, false)
  const d = Result.getOrThrow(Distribute.step(config))
  const w = Work.of(d)
  const t = Timing.of(w, config.strategy.mesh, devices[device], {
    products: 0.6,
    bandwidth: 0.8,
    wire: 0.77,
    activations: 0.77,
    hidden: 0
  })
  console.log(
    JSON.stringify({
      name,
      y: recipe.batchSize / samples,
      P: w.products.bf16! / devices[device].peak.bf16 + (w.products.f32 ?? 0) / devices[device].peak.f32,
      O: w.operands / devices[device].bandwidth,
      K: w.bytes / devices[device].bandwidth,
      W: t.wires.data! * 0.77,
      T: (t.wires.tensor ?? 0) * 0.77
    })
  )
  if (process.argv[3])
    console.log(
      name,
      "measured",
      (recipe.batchSize / samples).toFixed(3),
      "model",
      t.total.toFixed(3),
      "products",
      t.products.toFixed(3),
      "kernels",
      t.kernels.toFixed(3),
      JSON.stringify(t.wires),
      JSON.stringify(w.products),
      (w.bytes / 1e9).toFixed(0) + " GB",
      w.kernels
    )
}
