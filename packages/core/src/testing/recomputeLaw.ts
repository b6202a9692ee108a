/** Whatever is computed again instead of kept, gradients are the same, bit for bit. */
import * as fc from "fast-check"
import * as Evaluate from "../Evaluate.ts"
import * as Gradient from "../Gradient.ts"
import * as Host from "../HostArray.ts"
import type { Body } from "../Node.ts"
import * as Recompute from "../Recompute.ts"
import * as Arbitraries from "./Arbitraries.ts"
import * as FirstDifference from "./FirstDifference.ts"
import * as Law from "./Law.ts"
import * as Losses from "./Losses.ts"
import * as Sightings from "./Sighting.ts"
import * as Steps from "./Steps.ts"
import type { Given, Sizes } from "./Subject.ts"
import * as Subjects from "./Subject.ts"

export interface RecomputeOptions extends Law.Options {
  /** Policies to try; all kinds unless given. */
  readonly policies?: fc.Arbitrary<Recompute.Policy>
  /** The pass that puts regions around what runs again, to try another; `Recompute.apply` unless given. */
  readonly implementation?: typeof Recompute.apply
}

interface Case {
  readonly sizes: Sizes
  readonly policy: Recompute.Policy
  readonly seed: number
}

/** What is wrong with one case. */
const problem =
  (given: Given, { implementation = Recompute.apply }: RecomputeOptions) =>
  ({ policy, seed, sizes }: Case): Law.Verdict => {
    const subject = Subjects.of(given)
    const loss = Losses.of(subject.make(sizes), seed)
    const wrt = loss.parameters.map((_, i) => i)
    const kept = Gradient.valueAndGrad(loss.body, wrt)
    const again = Gradient.valueAndGrad(implementation(loss.body, policy), wrt)
    const [truth, found] = [kept, again].map((body) => Evaluate.runUnsafe(body, loss.inputs))
    const gaps = truth!.map((x, i) => Host.distance(x, found![i]!))
    const output = gaps.findIndex((gap) => gap !== 0)
    if (output < 0) return null
    return {
      what: `${subject.name}: ${Losses.withGradients(loss)[output]} differs by ${gaps[output]!.toExponential(1)}`,
      where: () => located(kept, again, loss, policy)
    }
  }

/** The first value of the program that keeps everything which the other one does not have. */
const located = (kept: Body, again: Body, loss: Losses.LossCase, policy: Recompute.Policy): ReadonlyArray<string> => {
  const { inputs } = loss
  const seen = Sightings.ofRun(again, FirstDifference.record({ body: again, inputs }), [])
  const found = FirstDifference.byValue({ body: kept, inputs }, seen, 0)
  const sides = { expected: "everything kept", found: `recompute ${Steps.showPolicy(policy)}` }
  return found === null
    ? ["every value is there: the outputs are put together wrongly"]
    : FirstDifference.print(found, kept, sides, Losses.names(loss, kept))
}

const law = (given: Given, { policies = Arbitraries.recompute }: RecomputeOptions): Law.Law<Case> => ({
  name: "recomputeIsInvisible",
  cases: fc.record({ sizes: Arbitraries.sizes(Subjects.of(given)), policy: policies, seed: Arbitraries.seed }),
  show: ({ policy, seed, sizes }) => [
    ...Steps.showSizes(sizes),
    `mesh: one device, recompute ${Steps.showPolicy(policy)}`,
    `values from seed ${seed}`
  ]
})

/** The smallest case in which recomputation shows, or null. */
export const recomputeCounterexample = (given: Given, options: RecomputeOptions = {}): Law.LawBroken | null =>
  Law.counterexample(law(given, options), problem(given, options), options, 40)

/**
 * Loss, metrics and gradients of all parameters are bit for bit the same under every recomputation policy, dropout included. Throws `LawBroken` with
 * the smallest counterexample and the first equation whose value is not computed again as it was.
 */
export const recomputeIsInvisible = (given: Given, options: RecomputeOptions = {}): void =>
  Law.assert(recomputeCounterexample(given, options))
