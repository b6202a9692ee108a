/** A precision is as near to f32 as its types allow, and no further away. */
import * as fc from "fast-check"
import * as Accumulate from "../Accumulate.ts"
import { kindOf } from "../DType.ts"
import { RecipeError } from "../Errors.ts"
import * as Evaluate from "../Evaluate.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import type { AnyTensor, Body } from "../Node.ts"
import type { Precision } from "../Precision.ts"
import * as Precisions from "../Precision.ts"
import * as Program from "../Program.ts"
import { simplifyBody } from "../Simplify.ts"
import * as Arbitraries from "./Arbitraries.ts"
import { relative } from "./compare.ts"
import * as FirstDifference from "./FirstDifference.ts"
import * as Law from "./Law.ts"
import * as Losses from "./Losses.ts"
import * as Rounding from "./Rounding.ts"
import * as Sightings from "./Sighting.ts"
import * as Steps from "./Steps.ts"
import type { Given, Sizes } from "./Subject.ts"
import * as Subjects from "./Subject.ts"

export interface PrecisionOptions extends Law.Options {
  /** Precisions to try; all modes but f32 unless given. */
  readonly modes?: ReadonlyArray<Precision>
  /** How many times as far from f32 as what rounding does to the program a result may be; 10 unless given. */
  readonly margin?: number
  /** The pass that brings a program into the types of a precision, to try another; `Precision.apply` unless given. */
  readonly implementation?: typeof Precisions.apply
}

interface Case {
  readonly sizes: Sizes
  /** Index of the mode. */
  readonly mode: number
  /** What parameters are multiplied by. */
  readonly size: number
  readonly seed: number
}

const usual: ReadonlyArray<Precision> = [
  ...new Set(Object.values(Precisions.all).filter((mode) => mode !== Precisions.f32))
]

/** How often rounding is tried. */
const sampleCount = 8

/** Programs and values of one case. */
interface Setup {
  readonly loss: Losses.LossCase
  readonly mode: Precision
  readonly exact: Body
  readonly rounded: Body
  /** The inputs of the one in f32, and those of the other, whose parameters may be stored in 16 bits. */
  readonly inputs: ReadonlyArray<HostArray>
  readonly stored: ReadonlyArray<HostArray>
  readonly samples: ReadonlyArray<Rounding.Sample>
}

/** Loss and gradients as a step takes them. */
const differentiated = (body: Body, parameters: number, mode: Precision): Body =>
  Accumulate.valueAndGrad(body, {
    wrt: Array.from({ length: parameters }, (_, i) => i),
    microbatches: 1,
    lossScale: body.inputs.length - 1,
    accumulation: mode.accumulation,
    finish: (b) => simplifyBody(Precisions.placeGradients(b, mode))
  })

const setup = (
  loss: Losses.LossCase,
  mode: Precision,
  size: number,
  seed: number,
  implementation: typeof Precisions.apply
): Setup => {
  const { body, parameters } = loss
  const count = parameters.length
  const forward = Program.make([...body.inputs], [...body.outputs])
  const exact = differentiated(body, count, Precisions.f32)
  const rounded = differentiated(simplifyBody(implementation(forward, mode)), count, mode)
  const inputs = loss.inputs.map((x, i) => (i < count ? { ...x, data: x.data.map((v) => v * size) } : x))
  const stored = inputs.map((x, i) => Host.make(x.axes, rounded.inputs[i]!.type.dtype, x.data))
  const samples = Array.from({ length: sampleCount }, (_, k) =>
    Rounding.sample(exact, mode, 1 + k + sampleCount * seed)
  )
  const scaled = (factor: number) => ({
    inputs: inputs.with(-1, Host.scalar(factor)),
    stored: stored.with(-1, Host.scalar(factor))
  })
  if (mode.lossScale === null) return { loss, mode, exact, rounded, samples, ...scaled(1) }
  // Gradients in f16 vanish without a scale. As the scaler does: the largest with which nothing overflows.
  const factors = Array.from({ length: 12 }, (_, k) => 2 ** (14 - 3 * k))
  const fits = (factor: number) => finite(Evaluate.runUnsafe(rounded, scaled(factor).stored))
  return { loss, mode, exact, rounded, samples, ...scaled(factors.find(fits) ?? 1) }
}

const finite = (xs: ReadonlyArray<HostArray>): boolean => xs.every((x) => x.data.every(Number.isFinite))

/** The length of the difference of two arrays. */
const apart = (x: HostArray, y: HostArray): number => {
  const z = Host.reorder(y, x.axes)
  return Math.sqrt(x.data.reduce((total, v, k) => total + (v - z.data[k]!) ** 2, 0))
}

const length = (x: HostArray): number => Math.sqrt(x.data.reduce((total, v) => total + v * v, 0))

const rootMeanSquare = (xs: ReadonlyArray<number>): number =>
  Math.sqrt(xs.reduce((total, x) => total + x * x, 0) / xs.length)

/** Rounding that is too small to count. */
const negligible = 1e-9

const problem =
  (given: Given, options: PrecisionOptions) =>
  (c: Case): Law.Verdict => {
    const { implementation = Precisions.apply, margin = 10, modes = usual } = options
    const subject = Subjects.of(given)
    const mode = modes[c.mode]!
    const made = legal(() => setup(Losses.of(subject.make(c.sizes), c.seed), mode, c.size, c.seed, implementation))
    if (made === null) return "skip"
    const { exact, inputs, loss, rounded, samples, stored } = made
    const truth = Evaluate.runUnsafe(exact, inputs)
    const found = Evaluate.runUnsafe(rounded, stored)
    const tries = samples.map(({ body }) => Evaluate.runUnsafe(body, inputs))
    // What overflows when it is rounded soundly is not asked about.
    if (!finite(truth) || !tries.every(finite)) return "skip"
    const names = Losses.withGradients(loss)
    let judged = 0
    for (const [i, x] of truth.entries()) {
      // Metrics may count, and counts jump.
      if (i >= 2 && i < loss.outputNames.length) continue
      const scatter = rootMeanSquare(tries.map((t) => apart(x, t[i]!)))
      // Of a value that rounding may turn into anything at all, eight tries do not say how far it may be off.
      if (scatter > length(x) / 2) continue
      judged++
      const allowed = margin * scatter + negligible * (1 + length(x))
      const off = apart(x, found[i]!)
      if (off <= allowed) continue
      const size = `${off.toExponential(1)} off, ${scatter.toExponential(1)} is what rounding does`
      return { what: `${subject.name} in ${mode.name}: ${names[i]} is ${size}`, where: () => located(made, margin) }
    }
    // The weight is always there.
    return judged < 2 ? "skip" : null
  }

/** Null where an operation cannot calculate in a type that the policy asks for. */
const legal = <A>(make: () => A): A | null => {
  try {
    return make()
  } catch (error) {
    if (error instanceof RecipeError) return null
    throw error
  }
}

/** The first value in f32 to which the other program has nothing that is near enough. */
const located = (
  { exact, inputs, loss, mode, rounded, samples, stored }: Setup,
  margin: number
): ReadonlyArray<string> => {
  const runs = samples.map(({ body, now }) => ({ now, run: FirstDifference.record({ body, inputs }) }))
  const scatter = (value: { readonly tensor: AnyTensor; readonly occurrence: number; readonly expected: HostArray }) =>
    rootMeanSquare(
      runs.map(({ now, run }) => {
        const values = now.get(value.tensor)!.flatMap((x) => run.of(x))
        return relative(value.expected, values[value.occurrence]![0]!)
      })
    )
  const seen = Sightings.ofRun(rounded, FirstDifference.record({ body: rounded, inputs: stored }), [])
  const found = FirstDifference.byValue(
    { body: exact, inputs },
    seen,
    ({ equation, occurrence, output, value }) =>
      margin * scatter({ tensor: equation.outputs[output]!, occurrence, expected: value[0]! }) + negligible,
    { relevant: ({ equation, output }) => kindOf(equation.outputs[output]!.type.dtype) === "float" }
  )
  return found === null
    ? ["every value is near enough by itself"]
    : FirstDifference.print(found, exact, { expected: "f32", found: mode.name }, Losses.names(loss, exact))
}

const law = (given: Given, { modes = usual }: PrecisionOptions): Law.Law<Case> => ({
  name: "precisionWithin",
  cases: fc.record({
    sizes: Arbitraries.sizes(Subjects.of(given)),
    mode: fc.nat(modes.length - 1),
    size: Arbitraries.among(1, 4, 0.25),
    seed: Arbitraries.seed
  }),
  show: ({ mode, seed, size, sizes }) => [
    ...Steps.showSizes(sizes),
    `mesh: one device, ${modes[mode]!.name}`,
    `values from seed ${seed}${size === 1 ? "" : `, parameters times ${size}`}`
  ],
  advice: "values are not finite in these types; give the batch smaller ranges, or other modes"
})

/** The smallest case in which a precision is further from f32 than rounding explains, or null. */
export const precisionCounterexample = (given: Given, options: PrecisionOptions = {}): Law.LawBroken | null =>
  Law.counterexample(law(given, options), problem(given, options), options, 12)

/**
 * Loss and gradients in a precision are off from f32 by no more than `margin` times what rounding does to this very program. How much that is follows
 * from the types and from the program: it runs in float64 and is rounded to the policy's types wherever the policy says so and nowhere else, eight
 * times, on grids that differ. So it is known of each value how far it may be off; what rounding may turn into anything at all is not judged. Throws
 * `LawBroken` with the smallest counterexample and the first equation whose value is further off.
 */
export const precisionWithin = (given: Given, options: PrecisionOptions = {}): void =>
  Law.assert(precisionCounterexample(given, options))
