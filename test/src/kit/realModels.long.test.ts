import { describe, it } from "@effect/vitest"
import * as Testing from "@tessera/core/testing"
import { subjects } from "../programs/subjects.ts"

// What strategies do to these models is in test/src/strategy.
describe.each(subjects)("$name", (subject) => {
  const timeout = 300_000
  it("gradients", { timeout }, () => Testing.gradientIsCorrect(subject))
  it("recomputation", { timeout }, () => Testing.recomputeIsInvisible(subject))
  it("accumulation", { timeout }, () => Testing.accumulationEqualsFullBatch(subject))
  it("precision", { timeout }, () => Testing.precisionWithin(subject, { runs: 30 }))
  it("collectives", { timeout }, () => Testing.collectivesAgree(subject))
  it.live("resuming", () => Testing.resumeIsExact(subject), timeout)
})
