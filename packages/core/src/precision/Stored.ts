/** Optimizers whose parameters and state are kept in 16 bits: how, and which cannot. */
import * as DType from "../DType.ts"
import { RecipeError } from "../Errors.ts"
import type * as Module from "../Module.ts"
import type { Average, Optimizer, Rule, Slots } from "../Optimizer.ts"
import { cast } from "../primitives/algebra.ts"
import type { AnyTensor, Tensor } from "../Node.ts"
import type { Float, Precision } from "./Policy.ts"

const as = (x: AnyTensor, dtype: DType.DType): AnyTensor => cast(x as Tensor<string>, dtype)

/** The optimizer as a policy keeps it: parameters and averaged weights in the type of master weights, f32 state in the type of state. */
export const optimizerIn = (optimizer: Optimizer, { master, state }: Precision): Optimizer =>
  optimizer.stored === master && state === "f32"
    ? optimizer
    : { ...optimizer, stored: master, rule: state === "f32" ? optimizer.rule : keeping(optimizer.rule, state) }

/** The rule with its f32 state kept in another type: widened before the update, which is in f32, and rounded once after it. */
const keeping = (rule: Rule, dtype: Float): Rule => {
  const slotsOf = (leaf: Module.Leaf) =>
    Object.fromEntries(
      Object.entries(rule.state(leaf)).map(([name, slot]) => [name, slot.dtype === "f32" ? { ...slot, dtype } : slot])
    )
  return {
    ...rule,
    name: `${rule.name}, state ${dtype}`,
    state: slotsOf,
    update: (x) => {
      const wide: Slots = Object.fromEntries(Object.entries(x.state).map(([name, slot]) => [name, as(slot, "f32")]))
      const next = rule.update({ ...x, state: wide })
      const rounded = Object.entries(next.state).map(([name, slot]) => [name, as(slot, x.state[name]!.type.dtype)])
      return { parameter: next.parameter, state: Object.fromEntries(rounded) as Slots }
    }
  }
}

/** The largest decay of a running average in a type: a step of 1 - decay of a value must be more than the rounding of that value. */
const mostDecay = (dtype: Float): number => Math.floor((1 - DType.epsilonOf(dtype)) * 10_000 - 1e-9) / 10_000

/** Why a policy cannot keep what an optimizer needs, or null. */
export const optimizerProblem = (optimizer: Optimizer, leaves: ReadonlyArray<Module.Leaf>, precision: Precision) => {
  const { master, state } = precision
  const wrong = (problem: string, hint: string) => new RecipeError({ key: "precision", problem, hint })
  const masterWeights = `mode "${master === "f32" ? state : master}" with f32 master weights and state`
  const { ema, rule } = optimizer
  if (state !== "f32") {
    for (const leaf of leaves.filter(optimizer.trainable)) {
      for (const [slot, { dtype }] of Object.entries(rule.state(leaf))) {
        if (dtype !== "f32") continue
        const average = rule.averages?.[slot]
        if (average === undefined)
          return wrong(
            `${rule.name} does not say whether its state "${slot}" may be kept in ${state}`,
            `give the rule averages for "${slot}", or use ${masterWeights}`
          )
        const why = averageProblem(average, state)
        if (why !== null)
          return wrong(
            `${state} cannot hold the state "${slot}" of ${rule.name} for ${leaf.path}: ${why.problem}`,
            `${why.hint}, or ${masterWeights}`
          )
      }
    }
  }
  if (ema === null || master === "f32") return null
  const why = averageProblem({ decay: ema.decay, squares: false }, master)
  return why === null
    ? null
    : wrong(`${master} cannot hold averaged weights: ${why.problem}`, `${why.hint}, or ${masterWeights}`)
}

const averageProblem = ({ decay, squares }: Average, dtype: Float) => {
  // Squares of gradients of 1e-4 are below the least number of f16.
  if (squares && dtype === "f16")
    return { problem: "squares of small gradients are 0 there", hint: "use sgd or lion, or bf16" }
  if (decay <= mostDecay(dtype)) return null
  return {
    problem: `a running average with decay ${decay} changes by less than the type's rounding and never falls`,
    hint: `use a decay of at most ${mostDecay(dtype)}`
  }
}
