/** A law is a function from a case to a complaint, or null where it holds. This looks for a case with a complaint. */
import * as Host from "@tessera/core/HostArray"
import * as fc from "fast-check"

export interface Search {
  readonly runs: number
}

/** The smallest counterexample found, with the seed and path that find it again; null when there is none. */
export const find = <A>(
  cases: fc.Arbitrary<A>,
  complaint: (a: A) => string | null,
  { runs }: Search,
  print: (a: A) => string
): string | null => {
  const details = fc.check(
    fc.property(cases, (a) => {
      const problem = complaint(a)
      if (problem !== null) throw new Error(problem)
    }),
    { numRuns: runs }
  )
  if (!details.failed) return null
  const problem = details.errorInstance instanceof Error ? details.errorInstance.message : String(details.errorInstance)
  const example = details.counterexample === null ? "" : `\n${print(details.counterexample[0])}`
  return `${problem}${example}\n(seed ${details.seed}, path ${details.counterexamplePath}, run ${details.numRuns})`
}

/** Largest difference in units of the larger array (at least 1). */
export const relative = (x: Host.HostArray, y: Host.HostArray): number => {
  let largest = 1
  for (const a of [x, y]) {
    for (const v of a.data) if (Number.isFinite(v)) largest = Math.max(largest, Math.abs(v))
  }
  return Host.distance(x, y) / largest
}

/** The first pair that differs by more than `tolerance`, by name. */
export const difference = (
  expected: ReadonlyArray<Host.HostArray>,
  found: ReadonlyArray<Host.HostArray>,
  tolerance: number,
  what: string
): string | null => {
  if (expected.length !== found.length) return `${expected.length} ${what}s became ${found.length}`
  for (let i = 0; i < expected.length; i++) {
    const distance = relative(expected[i]!, found[i]!)
    if (distance > tolerance) return `${what} ${i} differs by ${distance}`
  }
  return null
}
