/** The native backend agrees with the evaluator on every primitive, storage type and legal input. */
import type { PrimitiveName } from "@tessera/core/primitives/all"
import type { Body } from "@tessera/core/Node"
import * as Evaluate from "@tessera/core/Evaluate"
import type * as Host from "@tessera/core/HostArray"
import * as fc from "fast-check"
import { afterAll, describe, expect, it } from "vitest"
import * as Sample from "../samples/Sample.ts"
import { names, samples } from "../samples/samples.ts"
import { allowed, disagreement, type Exact, isIllConditioned } from "./agreement.ts"
import { onCpu } from "./onCpu.ts"

const cpu = onCpu()
afterAll(() => cpu.close())

type Run = (body: Body, arrays: ReadonlyArray<Host.HostArray>) => Promise<ReadonlyArray<Host.HostArray>>

/** The law for one primitive; gives the counterexample in words, or null. */
const check = async (name: PrimitiveName, runs: number, run: Run): Promise<string | null> => {
  const details = await fc.check(
    fc.asyncProperty(samples[name], async (s) => {
      const body = Sample.bodyOf(s)
      const expected = Evaluate.runUnsafe(body, s.arrays)
      const found = await run(body, s.arrays)
      expected.forEach((e, i) => {
        const judge = (x: Host.HostArray) => disagreement(e, x, s.arrays, allowed(s, e.dtype))
        const problem = judge(found[i]!)
        const exact: Exact = (nudge) => Evaluate.runUnsafe(body, nudge(s.arrays))[i]!
        if (problem !== null && !isIllConditioned(e, found[i]!, exact, judge))
          throw new Error(`${name}, output ${i}: ${problem}\n${Sample.print(s)}`)
      })
    }),
    { numRuns: runs }
  )
  return details.failed ? String(details.errorInstance) : null
}

describe("the native backend means what the evaluator means", () => {
  for (const name of names) {
    it(name, { timeout: 120_000 }, async () => {
      expect(await check(name, 200, cpu.run)).toBeNull()
    })
  }

  it("the law sees a backend that is wrong in one element", async () => {
    const broken: Run = async (body, arrays) => {
      const results = await cpu.run(body, arrays)
      return results.map((r) => ({ ...r, data: r.data.map((v, i) => (i === r.data.length - 1 ? v + 1 : v)) }))
    }
    expect(await check("add", 200, broken)).toContain("output 0")
  })
})
