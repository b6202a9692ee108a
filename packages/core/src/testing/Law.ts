/** What every law has in common: it is one call, it throws with the smallest counterexample it finds, and it says how to run that one again. */
import * as fc from "fast-check"
import * as Result from "effect/Result"

/** A law does not hold. The message is the counterexample, made as small as it could be. */
export class LawBroken extends Error {
  override readonly name = "LawBroken"
}

export interface Options {
  /** Random cases; each law has its own default. */
  readonly runs?: number
  /** To run the same cases again. */
  readonly seed?: number
}

/** A case that was tried: what is wrong with it; null when nothing; "skip" where it is not legal, so that another is drawn. */
export type Verdict = string | null | "skip"

const shown = (value: unknown): string =>
  JSON.stringify(value, (_k, v: unknown) => (typeof v === "number" && !Number.isFinite(v) ? String(v) : v))

/** Draws cases until one is found that fails, and shrinks it; null when none does. */
export const counterexample = <A>(
  name: string,
  cases: fc.Arbitrary<A>,
  verdict: (a: A) => Verdict,
  { runs = 30, seed }: Options
): string | null => {
  const checked = new Map<string, Verdict>()
  const found = fc.check(
    fc.property(cases, (a) => {
      const key = shown(a)
      const known = checked.get(key) ?? verdict(a)
      checked.set(key, known)
      fc.pre(known !== "skip")
      if (known !== null) throw new LawBroken(known)
    }),
    { numRuns: runs, maxSkipsPerRun: 200, ...(seed === undefined ? {} : { seed }) }
  )
  if (!found.failed) return null
  if (found.counterexample === null)
    return `${name}: of ${found.numSkips} cases none was legal; give the subject sizes that divide (powers of two)`
  const [smallest] = found.counterexample
  const problem = found.errorInstance instanceof Error ? found.errorInstance.message : String(found.errorInstance)
  return [
    `${name} does not hold`,
    problem,
    `  case: ${shown(smallest)}`,
    `  again: { seed: ${found.seed} } (found after ${found.numRuns} cases, shrunk ${found.numShrinks} times)`
  ].join("\n")
}

/** Throws when there is a counterexample. */
export const assert = (found: string | null): void => {
  if (found !== null) throw new LawBroken(found)
}

/** The verdict on a case that may not be legal: errors of the kinds given say so, all others are the law's business. */
export const legal = <A, E extends { readonly _tag: string; readonly message: string }>(
  made: Result.Result<A, E>,
  refused: ReadonlyArray<string>,
  then: (a: A) => Verdict
): Verdict => {
  if (Result.isSuccess(made)) return then(made.success)
  return refused.includes(made.failure._tag) ? "skip" : made.failure.message
}
