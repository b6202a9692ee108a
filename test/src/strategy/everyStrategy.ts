/** Every strategy alone and in random combinations means what one device means, in float64. */
import type { Choices } from "@tessera/core/Strategy"
import * as Arbitraries from "@tessera/core/testing/Arbitraries"
import { strategyCounterexample, strategyProblem } from "@tessera/core/testing/strategyLaw"
import type { Subject } from "@tessera/core/testing/Subject"
import { describe, expect, it } from "vitest"
import { alone } from "./alone.ts"

/** The plainest sizes of a subject, and some that do not divide. */
const sizesOf = (subject: Subject, more: number) =>
  Object.fromEntries(
    Object.entries(subject.sizes).map(([name, values]) => [name, values[Math.min(more, values.length - 1)]!])
  )

export const everyStrategy = (subject: Subject): void => {
  describe(subject.name, () => {
    it.each(Object.entries(alone))("%s", (_what, strategy: Choices) => {
      const problem = strategyProblem(subject)
      for (const more of [0, 1]) {
        const sizes = { ...sizesOf(subject, more), batch: 8, layers: 4 }
        expect(problem({ sizes, strategy, seed: 11 + more })).toBe(null)
      }
    })

    combinations(subject, 5)
  })
}

/** Random combinations on up to 16 ranks; few in every run of the tests, many among the slow proofs. */
export const combinations = (subject: Subject, runs: number): void => {
  it(`${subject.name}: ${runs} random combinations on up to 16 ranks`, () => {
    expect(strategyCounterexample(subject, { runs, strategies: Arbitraries.choices(16) })).toBe(null)
  })
}
