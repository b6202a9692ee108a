import * as Schedule from "@tessera/core/Schedule"
import { describe, expect, it } from "vitest"

const close = (schedule: Schedule.Schedule, values: ReadonlyArray<readonly [step: number, value: number]>) => {
  for (const [step, value] of values) expect(schedule.at(step), `${schedule.name} at ${step}`).toBeCloseTo(value, 14)
}

describe("Schedule", () => {
  it("NeMo's CosineAnnealing: ViT's 5e-4, warm-up 10000 of 95000, minimum 1e-5", () => {
    const s = Schedule.nemoCosine({ base: 5e-4, warmup: 10_000, total: 95_000, minimum: 1e-5 })
    close(s, [
      [0, 5e-4 / 10_001],
      [4999, (5e-4 * 5000) / 10_001],
      [9999, (5e-4 * 10_000) / 10_001],
      [10_000, 5e-4],
      [52_500, 2.55e-4],
      [95_000, 1e-5],
      [95_001, 1e-5],
      [200_000, 1e-5]
    ])
    // A quarter of the way: cos(pi/4).
    expect(s.at(31_250)).toBeCloseTo(1e-5 + (4.9e-4 * (1 + Math.SQRT1_2)) / 2, 14)
    close(Schedule.nemoCosine({ base: 1, warmup: 0, total: 4, minimum: 0 }), [
      [0, 1],
      [2, 0.5],
      [4, 0]
    ])
  })

  it("optax warmup_cosine_decay_schedule: the total includes the warm-up", () => {
    const s = Schedule.optaxWarmupCosine({ initial: 0, peak: 3e-3, warmup: 10_000, total: 85_000, end: 1e-5 })
    close(s, [
      [0, 0],
      [5000, 1.5e-3],
      [10_000, 3e-3],
      [47_500, (3e-3 + 1e-5) / 2],
      [85_000, 1e-5],
      [95_000, 1e-5]
    ])
    close(Schedule.optaxWarmupCosine({ initial: 0.5, peak: 1, warmup: 2, total: 2 }), [
      [0, 0.5],
      [1, 0.75],
      [2, 1]
    ])
  })

  it("optax cosine_decay_schedule with alpha", () => {
    close(Schedule.optaxCosine({ base: 3e-3, total: 20_000, alpha: 0.00333 }), [
      [0, 3e-3],
      [10_000, (3e-3 * (1 + 0.00333)) / 2],
      [20_000, 3e-3 * 0.00333],
      [30_000, 3e-3 * 0.00333]
    ])
  })

  it("big_vision: cosine, linear, polynomial and rsqrt, with warm-up and cool-down", () => {
    close(Schedule.cosine({ base: 1, total: 100, warmup: 20 }), [
      [0, 0],
      [10, 0.5],
      [20, 1],
      [60, 0.5],
      [100, 0],
      [120, 0]
    ])
    close(Schedule.linear({ base: 2, total: 10, warmup: 2, end: 1, cooldown: 4 }), [
      [0, 0],
      [1, 1],
      [2, 2],
      [6, 1.5],
      [8, 1.25 * 0.5],
      [10, 0]
    ])
    close(Schedule.linear({ base: 1, total: 4, power: 2 }), [[2, 0.25]])
    const s = Schedule.rsqrt({ base: 8e-4, total: 500_000, warmup: 10_000, timescale: 10_000, cooldown: 50_000 })
    close(s, [
      [0, 0],
      [5000, 4e-4],
      [10_000, 8e-4],
      [40_000, 4e-4],
      [450_000, 8e-4 / Math.sqrt(45)],
      [475_000, 8e-4 / Math.sqrt(47.5) / 2],
      [500_000, 0]
    ])
    close(Schedule.rsqrt({ base: 1, total: 10, warmup: 2, timescale: 3, shift: 9 }), [
      [1, 0.25],
      [2, 0.5]
    ])
  })

  it("open_clip: base * (step + 1) / warmup, then a cosine", () => {
    close(Schedule.openClipCosine({ base: 5e-4, warmup: 10, total: 30 }), [
      [0, 5e-5],
      [9, 5e-4],
      [10, 5e-4],
      [20, 2.5e-4],
      [30, 0]
    ])
  })

  it("constants and factors, with names that say all", () => {
    close(Schedule.constant(0.3), [
      [0, 0.3],
      [1e6, 0.3]
    ])
    close(Schedule.scaled(Schedule.cosine({ base: 1, total: 2 }), 3), [[1, 1.5]])
    expect(Schedule.nemoCosine({ base: 1, warmup: 2, total: 3, minimum: 0 }).name).toBe(
      "nemoCosine(base 1, warmup 2, total 3, minimum 0)"
    )
  })
})
