/** What every law has in common: it is one call, it throws with the smallest counterexample it finds, and it says how to run that one again. */
import * as fc from "fast-check"
import * as Result from "effect/Result"

/** A law does not hold. The message is the counterexample, made as small as it could be; it fits on a screen. */
export class LawBroken extends Error {
  override readonly name = "LawBroken"
  /** The smallest case that was found, as drawn. */
  readonly smallest: unknown
  /** To draw the same cases again. */
  readonly seed: number

  constructor(message: string, smallest: unknown, seed: number) {
    super(message)
    this.smallest = smallest
    this.seed = seed
  }
}

export interface Options {
  /** Random cases; each law has its own default. */
  readonly runs?: number
  /** To run the same cases again. */
  readonly seed?: number
}

/** What is wrong with a case. */
export interface Problem {
  /** In a sentence: what differs, and by how much. */
  readonly what: string
  /** Lines that name the first equation whose values differ. Looked for in the smallest case only, since it takes time. */
  readonly where: () => ReadonlyArray<string>
}

/** On one case: what is wrong with it; null when nothing; "skip" where it is not legal, so that another is drawn. */
export type Verdict = Problem | "skip" | null

/** A law: the cases it speaks of, and how a case is printed. */
export interface Law<A> {
  readonly name: string
  readonly cases: fc.Arbitrary<A>
  /** Of one case, a line for each thing that was chosen. */
  readonly show: (a: A) => ReadonlyArray<string>
  /** What to do when every case is left out; sizes that do not divide unless said otherwise. */
  readonly advice?: string
}

const keyOf = (value: unknown): string =>
  JSON.stringify(value, (_k, v: unknown) => (typeof v === "number" && !Number.isFinite(v) ? String(v) : v))

/** Verdicts by case: shrinking comes back to the same cases again and again. */
type Verdicts = Map<string, Verdict>

/** Lets a case pass, leaves it out, or throws what is wrong with it. */
const pronounce = (verdicts: Verdicts, key: string, verdict: Verdict): void => {
  verdicts.set(key, verdict)
  fc.pre(verdict !== "skip")
  if (verdict !== null) throw new Error((verdict as Problem).what)
}

const parameters = ({ runs, seed }: Options, usual: number) => ({
  numRuns: runs ?? usual,
  maxSkipsPerRun: 200,
  ...(seed === undefined ? {} : { seed })
})

/** Draws cases until one is found that fails, and shrinks it; null when none does. */
export const counterexample = <A>(
  law: Law<A>,
  verdict: (a: A) => Verdict,
  options: Options,
  usual: number
): LawBroken | null => {
  const verdicts: Verdicts = new Map()
  const details = fc.check(
    fc.property(law.cases, (a) => {
      const key = keyOf(a)
      const known = verdicts.get(key)
      pronounce(verdicts, key, known === undefined ? verdict(a) : known)
    }),
    parameters(options, usual)
  )
  return report(law, verdicts, details)
}

/** The same for verdicts that take time. */
export const counterexampleLater = async <A>(
  law: Law<A>,
  verdict: (a: A) => Promise<Verdict>,
  options: Options,
  usual: number
): Promise<LawBroken | null> => {
  const verdicts: Verdicts = new Map()
  const details = await fc.check(
    fc.asyncProperty(law.cases, async (a) => {
      const key = keyOf(a)
      const known = verdicts.get(key)
      pronounce(verdicts, key, known === undefined ? await verdict(a) : known)
    }),
    parameters(options, usual)
  )
  return report(law, verdicts, details)
}

const report = <A>(law: Law<A>, verdicts: Verdicts, found: fc.RunDetails<[A]>): LawBroken | null => {
  if (!found.failed) return null
  if (found.counterexample === null) {
    const { advice = "give the subject sizes that divide, such as powers of two" } = law
    return new LawBroken(`${law.name}: none of ${found.numSkips} cases could be judged; ${advice}`, null, found.seed)
  }
  const [smallest] = found.counterexample
  const problem = verdicts.get(keyOf(smallest)) ?? null
  // An error that no law foresaw, such as one of a hook: it is the counterexample.
  if (problem === null || problem === "skip") throw found.errorInstance
  const lines = [
    `${law.name} does not hold`,
    `  ${problem.what}`,
    ...law.show(smallest).map((line) => `  ${line}`),
    ...problem.where().map((line) => `  ${line}`),
    `  again: { seed: ${found.seed} } (found in case ${found.numRuns}, made smaller ${found.numShrinks} times)`
  ]
  return new LawBroken(lines.map(fit).join("\n"), smallest, found.seed)
}

/** No line is longer than a screen is wide. */
const fit = (line: string): string => (line.length <= lineLength ? line : `${line.slice(0, lineLength - 3)}...`)

const lineLength = 150

/** Throws when there is a counterexample. */
export const assert = (found: LawBroken | null): void => {
  if (found !== null) throw found
}

/** The verdict on a case that may not be legal: errors of the kinds given say so, all others are the law's business. */
export const legal = <A, E extends { readonly _tag: string; readonly message: string }>(
  made: Result.Result<A, E>,
  refused: ReadonlyArray<string>,
  then: (a: A) => Verdict
): Verdict => {
  if (Result.isSuccess(made)) return then(made.success)
  return refused.includes(made.failure._tag) ? "skip" : { what: made.failure.message, where: () => [] }
}
