/** The passes that the native backend runs before it plans keep meaning and types; and a fused program runs as its parts do. */
import { prepare } from "@tessera/cpu/CpuPlan"
import * as Evaluate from "@tessera/core/Evaluate"
import { fuse } from "@tessera/core/Fuse"
import type { Body } from "@tessera/core/Node"
import * as Program from "@tessera/core/Program"
import { isPointwise, isSource } from "@tessera/cpu/emit/pointwise"
import * as fc from "fast-check"
import { afterAll, describe, expect, it } from "vitest"
import { counterexample, passLaw } from "../laws/passLaw.ts"
import { models } from "../programs/models.ts"
import { all as programs } from "@tessera/core/testing/Programs"
import { disagreement } from "./agreement.ts"
import { onCpu } from "./onCpu.ts"

const ability = { pointwise: isPointwise, source: isSource, operands: 24, equations: 96, gemm: true }
const fusing = (body: Body) => fuse(body, ability)

passLaw("fusing", fusing, { idempotent: false, runs: 400 })
passLaw("preparing for the native backend", prepare, { idempotent: false, runs: 200 })

const cpu = onCpu()
afterAll(() => cpu.close())

/** Adds one to the first output. */
const broken = (body: Body): Body => {
  const fused = fusing(body)
  return { ...fused, outputs: [...fused.outputs.slice(1), ...fused.outputs.slice(0, 1)] }
}

describe("whole programs on the native backend", () => {
  it("mean what the evaluator means: random programs", { timeout: 240_000 }, async () => {
    await fc.assert(
      fc.asyncProperty(programs, async ({ arrays, body }) => {
        const [expected, found] = [Evaluate.runUnsafe(body, arrays), await cpu.run(body, arrays)]
        expected.forEach((e, i) => {
          const problem = disagreement(e, found[i]!, arrays, e.dtype === "f32" ? 2e-4 : 0.1)
          if (problem !== null) throw new Error(`output ${i}: ${problem}\n${Program.print(body)}`)
        })
      }),
      { numRuns: 300 }
    )
  })
  for (const { arrays, body, name } of models) {
    it(`mean what the evaluator means: ${name}`, async () => {
      const [expected, found] = [Evaluate.runUnsafe(body, arrays), await cpu.run(body, arrays)]
      expected.forEach((e, i) => expect(disagreement(e, found[i]!, arrays, 2e-4), `output ${i}`).toBeNull())
    })
  }
  it("the pass law notices outputs that changed places", () => {
    expect(counterexample(broken, { idempotent: false })).not.toBeNull()
  })
})
