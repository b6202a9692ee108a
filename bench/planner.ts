/**
 * The planner beside published tables, as the tables of docs/planner.md: `node bench/planner.ts`. Nothing is run but the planner.
 */
import * as Experiment from "@tessera/cli/Experiment"
import * as Outlook from "@tessera/cli/plan/Outlook"
import * as Text from "@tessera/cli/plan/Text"
import * as RecipeSource from "@tessera/cli/RecipeSource"
import type { Device } from "@tessera/core/planner/Devices"
import { devices } from "@tessera/core/planner/Devices"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import { NodeServices } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { fair, rows } from "../test/src/planner/rows.ts"

const services = Layer.merge(CpuBackend.layerWith({ threads: 1 }), NodeServices.layer)
const run = <A, E>(effect: Effect.Effect<A, E, Layer.Success<typeof services>>) =>
  Effect.runPromise(Effect.provide(effect, services))

const outlook = (recipe: string, set: ReadonlyArray<string>, device: Device) =>
  Effect.gen(function* () {
    const loaded = yield* RecipeSource.load(recipe, { set })
    const ranks = Experiment.strategy(loaded.recipe).mesh.reduce((n, [, c]) => n * c, 1)
    return yield* Outlook.of(loaded.recipe, { count: ranks, device })
  })

const percent = (x: number) => `${x >= 0 ? "+" : ""}${(100 * x).toFixed(1)} %`
const line = (...cells: ReadonlyArray<string>) => console.log(`| ${cells.join(" | ")} |`)

line("Published row", "samples/s", "predicted", "off", "TFLOP/s", "by the formula", "fitted")
line("---", "--:", "--:", "--:", "--:", "--:", "---")
for (const row of rows) {
  const found = await run(outlook(row.recipe, row.set, devices[row.device]))
  const flops = (row.samples * Outlook.tabulatedFlops(found.recipe.model)) / 1e12
  line(
    row.name,
    row.samples.toFixed(0),
    found.speed.samplesPerSecond.toFixed(0),
    percent(found.speed.samplesPerSecond / row.samples - 1),
    row.teraflops.toFixed(2),
    flops.toFixed(2),
    row.fitted ? "yes" : ""
  )
}

console.log("")
line("Parameters", "width x layers", "memory of a rank", "fits", "samples/s", "epoch of ImageNet", "of the peak")
line("---", "---", "--:", "---", "--:", "--:", "--:")
for (const { name, set } of fair) {
  const found = await run(outlook("vit-g14-rosetta", set, devices["A100-80G"]))
  const { hidden, layers } = found.recipe.model
  line(
    name,
    `${hidden} x ${layers}`,
    `${(found.prediction.memory.total / 2 ** 30).toFixed(1)} GiB`,
    found.prediction.fits ? "yes" : "no",
    found.speed.samplesPerSecond.toFixed(0),
    Text.secondsText(1_281_167 / found.speed.samplesPerSecond),
    `${(100 * found.speed.utilisation).toFixed(1)} %`
  )
}

console.log("")
line("ViT-H/14 on 8 x A100-40G", "microbatches", "memory of a rank", "samples/s")
line("---", "--:", "--:", "--:")
const speeds: Array<number> = []
for (const [name, set] of [
  ["DDP, O1", ["precision=bf16-O1", "strategy.zero=0"]],
  ["FSDP, O2", ["precision=bf16-O2", "strategy.fsdp={}"]]
] as const)
  for (const microbatches of [1, 2, 4, 8, 16, 32, 64]) {
    const own = [
      "model.preset=H/14",
      "batchSize=512",
      "recompute=none",
      "strategy.mesh.data=8",
      `microbatches=${microbatches}`
    ]
    const found = await run(outlook("vit-g14-rosetta", [...own, ...set], devices["A100-40G"]))
    if (!found.prediction.fits) continue
    speeds.push(found.speed.samplesPerSecond)
    line(
      name,
      String(microbatches),
      `${(found.prediction.memory.total / 2 ** 30).toFixed(1)} GiB`,
      found.speed.samplesPerSecond.toFixed(0)
    )
    break
  }
console.log(`\nfaster by ${(speeds[1]! / speeds[0]!).toFixed(2)}`)
