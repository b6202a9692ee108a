/** How many layers' parameters are gathered at one time: one, and one more for every gather that is under way ahead. */
import * as Distribute from "@tessera/core/Distribute"
import type { Launch } from "@tessera/core/Plan"
import { elements, type View } from "@tessera/core/plan/View"
import * as Strategy from "@tessera/core/Strategy"
import * as CpuPlan from "@tessera/cpu/CpuPlan"
import * as Result from "effect/Result"
import { expect, it } from "vitest"
import * as Trainings from "../application/trainings.ts"

const layers = 6
const config = Trainings.config({ batch: 8, hidden: 32, layers })

/** Gathers in flight or in use after each launch, at most. */
const mostGathered = (launches: ReadonlyArray<Launch<unknown>>): number => {
  const last = new Map<number, number>()
  const touch = (views: ReadonlyArray<View>, k: number) => views.forEach((v) => last.set(v.buffer, k))
  launches.forEach((l, k) => {
    touch(l.reads, k)
    touch(l.writes, k)
  })
  const gathers = launches.flatMap((l, k) =>
    l.kind === "start" && l.exchange.equation.outputs[0]!.role === "gathered"
      ? [
          {
            from: k,
            to: Math.max(...l.writes.map((w) => last.get(w.buffer)!)),
            size: Math.max(...l.writes.map(elements))
          }
        ]
      : []
  )
  // Those of the head and the patch embedding stay for long: only units of layers come and go, twice each.
  const largest = Math.max(...gathers.map((g) => g.size))
  const passing = gathers.filter((g) => g.size === largest)
  expect(passing.length).toBe(2 * layers)
  return Math.max(...passing.map((g) => passing.filter((o) => o.from <= g.from && g.from <= o.to).length))
}

it.each([0, 1, 2])("%i ahead", (prefetch) => {
  const strategy = Strategy.make({ mesh: [["data", 4]], fsdp: { prefetch } })
  const made = Result.getOrThrow(Distribute.step({ ...config, strategy }))
  if (made.kind !== "spread") throw new Error("not spread")
  const plan = CpuPlan.make(
    made.local.program,
    { mesh: strategy.mesh, rank: 0 },
    { donated: made.step.donated, prefetch }
  )
  expect(mostGathered(plan.launches)).toBe(1 + prefetch)
})
