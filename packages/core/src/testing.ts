/**
 * The testing kit: laws that every training keeps, for your own model. Each is one call, which throws `LawBroken` with the smallest counterexample that
 * it finds: sizes, mesh, and the first equation whose values differ. Needs fast-check. See docs/test-your-own-model.md.
 */
export { LawBroken } from "./testing/Law.ts"
export type { Options } from "./testing/Law.ts"
export { experiment, subject } from "./testing/Subject.ts"
export type { Experiment, Given, Sizes, Subject } from "./testing/Subject.ts"
export type { Trial } from "./testing/Steps.ts"

export { strategyCounterexample, strategyPreservesMeaning } from "./testing/strategyLaw.ts"
export type { StrategyCase, StrategyImplementation, StrategyOptions } from "./testing/strategyLaw.ts"
export { accumulationCounterexample, accumulationEqualsFullBatch } from "./testing/accumulationLaw.ts"
export type { AccumulationOptions, StepImplementation } from "./testing/accumulationLaw.ts"
export { recomputeCounterexample, recomputeIsInvisible } from "./testing/recomputeLaw.ts"
export type { RecomputeOptions } from "./testing/recomputeLaw.ts"
export { precisionCounterexample, precisionWithin } from "./testing/precisionLaw.ts"
export type { PrecisionOptions } from "./testing/precisionLaw.ts"
export { resumeCounterexample, resumeIsExact } from "./testing/resumeLaw.ts"
export type { ResumeOptions } from "./testing/resumeLaw.ts"
export type { SaveAndRestore } from "./testing/Resuming.ts"
export { gradientCounterexample, gradientIsCorrect } from "./testing/gradientLaw.ts"
export type { GradientOptions } from "./testing/gradientLaw.ts"
export { collectivesAgree, collectivesCounterexample, ranksOf } from "./testing/collectivesLaw.ts"
export type { CollectivesOptions, Ranks, RanksImplementation } from "./testing/collectivesLaw.ts"

export * as Arbitraries from "./testing/Arbitraries.ts"
export * as Programs from "./testing/Programs.ts"
