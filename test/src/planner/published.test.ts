/** The planner beside published tables: FLOP columns to the digit, throughput within 15 % with three shares fitted on three rows. */
import { assert, describe, it } from "@effect/vitest"
import * as Experiment from "@tessera/cli/Experiment"
import * as Outlook from "@tessera/cli/plan/Outlook"
import * as RecipeSource from "@tessera/cli/RecipeSource"
import type { Device } from "@tessera/core/planner/Devices"
import { devices } from "@tessera/core/planner/Devices"
import * as Timing from "@tessera/core/planner/Timing"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import { NodeServices } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { fair, rows } from "./rows.ts"

const services = Layer.merge(CpuBackend.layerWith({ threads: 1 }), NodeServices.layer)

const outlook = (recipe: string, set: ReadonlyArray<string>, device: Device) =>
  Effect.gen(function* () {
    const loaded = yield* RecipeSource.load(recipe, { set })
    const count = Experiment.strategy(loaded.recipe).mesh.reduce((n, [, c]) => n * c, 1)
    return yield* Outlook.of(loaded.recipe, { count, device })
  })

const predicted = Effect.forEach(rows, (row) =>
  Effect.map(outlook(row.recipe, row.set, devices[row.device]), (found) => ({ row, found }))
)

/** Solves a small system by elimination. */
const solve = (rowsOf: ReadonlyArray<ReadonlyArray<number>>): ReadonlyArray<number> => {
  const m = rowsOf.map((r) => [...r])
  const n = m.length
  for (let i = 0; i < n; i++) {
    const pivot = m.slice(i).reduce((best, r, k) => (Math.abs(r[i]!) > Math.abs(m[best]![i]!) ? i + k : best), i)
    ;[m[i], m[pivot]] = [m[pivot]!, m[i]!]
    for (let k = 0; k < n; k++) {
      if (k === i) continue
      const f = m[k]![i]! / m[i]![i]!
      m[k] = m[k]!.map((x, j) => x - f * m[i]![j]!)
    }
  }
  return m.map((r, i) => r[n]! / r[i]!)
}

describe("published tables of Rosetta", () => {
  it.effect("FLOP columns are those of the formula, but for the row that contradicts itself", () =>
    Effect.gen(function* () {
      for (const row of rows) {
        const { recipe } = yield* RecipeSource.load(row.recipe, { set: row.set })
        const flops = (row.samples * Outlook.tabulatedFlops(recipe.model)) / 1e12
        const off = Math.abs(flops / row.teraflops - 1)
        if (row.recipe === "vit-b16-rosetta" && row.device === "A100-80G") assert.closeTo(flops, 781.7, 0.1)
        else assert.isBelow(off, 1e-3, row.name)
      }
    }).pipe(Effect.provide(services))
  )

  it.live("throughput is predicted within 15 %, fitted on three rows", () =>
    Effect.gen(function* () {
      const all = yield* predicted
      assert.strictEqual(all.filter(({ row }) => row.fitted).length, 3)
      for (const { found, row } of all)
        assert.isBelow(Math.abs(found.speed.samplesPerSecond / row.samples - 1), row.fitted ? 0.005 : 0.15, row.name)
    }).pipe(Effect.provide(services))
  )

  it.live("the shares are what the three rows give", () =>
    Effect.gen(function* () {
      const all = (yield* predicted).filter(({ row }) => row.fitted)
      const whole = { ...Timing.published, operands: 1, bandwidth: 1, activations: 1 }
      const equations = all.map(({ found: { prediction, recipe }, row }) => {
        const { work } = prediction.stages[0]!
        const t = Timing.of(work, prediction.mesh, prediction.device, whole)
        const of = (activation: boolean) =>
          work.wires
            .filter((w) => (w.what === "compute") === activation)
            .reduce((s, w) => s + Timing.wireSeconds(w, prediction.mesh, prediction.device), 0)
        const measured = recipe.batchSize / row.samples
        return [t.operands, t.kernels, of(true), measured - t.products - of(false)]
      })
      const [operands, bandwidth, activations] = solve(equations).map((x) => 1 / x)
      assert.closeTo(operands! / Timing.published.operands, 1, 0.01)
      assert.closeTo(bandwidth! / Timing.published.bandwidth, 1, 0.01)
      assert.closeTo(activations! / Timing.published.activations, 1, 0.01)
    }).pipe(Effect.provide(services))
  )
})

it.live(
  "all of FAIR's ladder fits on 128 A100 when everything is spread and computed again, up to 25B in under 4 hours an epoch",
  () =>
    Effect.gen(function* () {
      for (const { name, set } of fair) {
        const found = yield* outlook("vit-g14-rosetta", set, devices["A100-80G"])
        assert.isTrue(found.prediction.fits, name)
        const parameters = Number.parseFloat(name) * 1e9
        const epoch = 1_281_167 / found.speed.samplesPerSecond / 3600
        if (parameters <= 25e9) assert.isBelow(epoch, 4, name)
      }
    }).pipe(Effect.provide(services))
)
