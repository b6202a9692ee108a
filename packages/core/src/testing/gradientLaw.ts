/** Derivatives are derivatives: of every parameter, against difference quotients in float64. */
import * as fc from "fast-check"
import * as Axis from "../Axis.ts"
import * as Evaluate from "../Evaluate.ts"
import * as Gradient from "../Gradient.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import * as Arbitraries from "./Arbitraries.ts"
import * as Dice from "./Dice.ts"
import * as Culprit from "./GradientCulprit.ts"
import * as Law from "./Law.ts"
import * as Losses from "./Losses.ts"
import * as Quotient from "./Quotient.ts"
import * as Steps from "./Steps.ts"
import type { Given, Sizes } from "./Subject.ts"
import * as Subjects from "./Subject.ts"

export interface GradientOptions extends Law.Options {
  /** Single elements of each parameter that are looked at, besides the parameter as a whole; 2 unless given. */
  readonly elements?: number
  /** Largest difference, in units of what the parts of a derivative add up to; 1e-6 unless given. */
  readonly tolerance?: number
  /** What differentiates a program, to try another way; `Gradient.valueAndGrad` unless given. */
  readonly implementation?: typeof Gradient.valueAndGrad
}

interface Case {
  readonly sizes: Sizes
  readonly seed: number
}

/** A direction in the space of all parameters, and what to call it. */
interface Probe {
  readonly what: string
  readonly directions: ReadonlyArray<HostArray | null>
}

const like = (x: HostArray, value: (k: number) => number): HostArray => ({
  axes: x.axes,
  dtype: x.dtype,
  data: Float64Array.from({ length: Axis.count(x.axes) }, (_, k) => value(k))
})

/** All parameters together, each as a whole, and single elements of each. */
const probesOf = (loss: Losses.LossCase, elements: number, dice: Dice.Dice): ReadonlyArray<Probe> => {
  const parameters = loss.parameters.map((path, i) => [path, loss.inputs[i]!] as const)
  const noise = (x: HostArray) => like(x, () => 2 * dice.next() - 1)
  const only = (i: number, direction: HostArray) => parameters.map((_, j) => (i === j ? direction : null))
  return [
    { what: "all parameters along a random direction", directions: parameters.map(([, x]) => noise(x)) },
    ...parameters.flatMap(([path, x], i) => [
      { what: `${path} along a random direction`, directions: only(i, noise(x)) },
      ...Array.from({ length: x.data.length === 1 ? 0 : elements }, () => {
        const at = dice.int(0, x.data.length - 1)
        return {
          what: `element ${at} of ${path}`,
          directions: only(
            i,
            like(x, (k) => (k === at ? 1 : 0))
          )
        }
      })
    ])
  ]
}

/** The loss along a direction. */
const along = (total: (inputs: ReadonlyArray<HostArray>) => number, loss: Losses.LossCase, { directions }: Probe) => {
  return (t: number): number =>
    total(
      loss.inputs.map((x, i) => {
        const direction = directions[i] ?? null
        return direction === null ? x : Quotient.moved(x, direction, t)
      })
    )
}

/** What is wrong with one case. */
const problem =
  (given: Given, options: GradientOptions) =>
  ({ seed, sizes }: Case): Law.Verdict => {
    const { elements = 2, implementation = Gradient.valueAndGrad, tolerance = 1e-6 } = options
    const subject = Subjects.of(given)
    const loss = Losses.of(subject.make(sizes), seed)
    const wrt = loss.parameters.map((_, i) => i)
    const results = Evaluate.runUnsafe(implementation(loss.body, wrt), loss.inputs)
    const values = Evaluate.runUnsafe(loss.body, loss.inputs)
    const changed = values.findIndex((x, i) => Host.distance(x, results[i]!) > 1e-12 * (1 + Math.abs(x.data[0]!)))
    if (changed >= 0)
      return {
        what: `${subject.name}: with gradients, ${loss.outputNames[changed]} has another value`,
        where: () => []
      }
    const gradients = results.slice(values.length).map((g, i) => Host.reorder(g, loss.inputs[i]!.axes))
    const total = Culprit.totalOf(loss.body, loss.inputs)
    let judged = 0
    for (const probe of probesOf(loss, elements, Dice.make(seed))) {
      let [expected, scale] = [0, 1e-6]
      probe.directions.forEach((d, i) =>
        d?.data.forEach((v, k) => {
          expected += v * gradients[i]!.data[k]!
          scale += Math.abs(v * gradients[i]!.data[k]!)
        })
      )
      const quotient = Quotient.at(along(total, loss, probe), scale + Math.abs(expected), tolerance)
      if (!quotient.smooth) continue
      judged++
      const size = scale + Math.abs(quotient.value) + 1e-3 * Math.abs(values[0]!.data[0]!)
      if (Math.abs(quotient.value - expected) <= tolerance * size) continue
      return {
        what: `${subject.name}: ${probe.what}: derivative ${short(expected)}, difference quotient ${short(quotient.value)}`,
        where: () => Culprit.find(loss, implementation, tolerance)
      }
    }
    return judged < loss.parameters.length ? "skip" : null
  }

const short = (x: number): string => String(Number(x.toPrecision(6)))

const law = (given: Given): Law.Law<Case> => ({
  name: "gradientIsCorrect",
  cases: fc.record({ sizes: Arbitraries.sizes(Subjects.of(given)), seed: Arbitraries.seed }),
  show: ({ seed, sizes }) => [...Steps.showSizes(sizes), "mesh: one device", `values from seed ${seed}`],
  advice: "the loss is not finite, or not smooth, wherever it was looked at; give the batch ranges in which it is"
})

/** The smallest case in which a derivative is wrong, or null. */
export const gradientCounterexample = (given: Given, options: GradientOptions = {}): Law.LawBroken | null =>
  Law.counterexample(law(given), problem(given, options), options, 10)

/**
 * The gradient of every parameter is the derivative of the loss: along random directions, of all parameters together and of each, and for single
 * elements. What `stopGradient` stops, and the targets of a loss, count as constants. Throws `LawBroken` with the smallest counterexample and the
 * first equation whose derivative differs from its difference quotient.
 */
export const gradientIsCorrect = (given: Given, options: GradientOptions = {}): void =>
  Law.assert(gradientCounterexample(given, options))
