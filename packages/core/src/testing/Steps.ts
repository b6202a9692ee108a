/** Steps on the evaluator, in float64: what laws about steps run, compare and print. */
import * as Result from "effect/Result"
import * as Evaluate from "../Evaluate.ts"
import type { HostArray } from "../HostArray.ts"
import * as Mesh from "../Mesh.ts"
import * as Optimizer from "../Optimizer.ts"
import { adamw } from "../optimizers/adamw.ts"
import { sgd } from "../optimizers/sgd.ts"
import type { Body } from "../Node.ts"
import * as Program from "../Program.ts"
import type * as Recompute from "../Recompute.ts"
import type { Outcome } from "../Simulate.ts"
import type { StepProgram } from "../Step.ts"
import * as Step from "../Step.ts"
import type { Choices } from "../Strategy.ts"
import * as Strategy from "../Strategy.ts"
import * as Tree from "../Tree.ts"
import { relative, widest } from "./compare.ts"
import * as Excerpt from "./Excerpt.ts"
import type { Sizes, Values } from "./Subject.ts"
import * as Subjects from "./Subject.ts"

/** An optimizer, and how many steps it takes until its state counts. */
export interface Trial {
  readonly name: string
  readonly optimizer: Optimizer.Optimizer
  readonly steps: number
  readonly rate: number
}

/** One update at rate 1 without momentum: what it takes off is the gradient. */
export const gradient: Trial = { name: "gradient", optimizer: Optimizer.make(sgd()), steps: 1, rate: 1 }

/** Momentum, and gradients clipped as Megatron does. */
export const momentum = (steps: number): Trial => ({
  name: "sgd with momentum, clipped",
  optimizer: Optimizer.make(sgd({ momentum: 0.9 }), { clip: { maxNorm: 0.3, formula: "megatron" } }),
  steps,
  rate: 0.1
})

/** State, decay and clipping; its epsilon keeps it from blowing up the rounding of gradients that are almost zero. */
export const adam = (steps: number): Trial => ({
  name: "adamw, clipped",
  optimizer: Optimizer.make(adamw({ epsilon: 1e-4 }), { decay: 0.1, clip: { maxNorm: 0.5, formula: "optax" } }),
  steps,
  rate: 0.02
})

/** One step of several after each other. */
export interface Trained extends Outcome {
  /** What the step was given, as declared. */
  readonly inputs: ReadonlyArray<HostArray>
}

/** Steps after each other. */
export const train = (
  run: (inputs: ReadonlyArray<HostArray>) => Outcome,
  values: Values,
  { rate, steps }: Trial,
  seed: number
): ReadonlyArray<Trained> => {
  const live = values.parameters.length + values.state.length
  let held: ReadonlyArray<HostArray> = [...values.parameters, ...values.state]
  return Array.from({ length: steps }, (_, i) => {
    const inputs = [...held, ...values.batch, ...Subjects.scalars(i + 1, rate, seed)]
    const outcome = run(inputs)
    held = outcome.outputs.slice(0, live)
    return { ...outcome, inputs }
  })
}

/** The step on one device, made once for each configuration: cases come back to the same sizes again and again. */
export const singles = (): ((key: string, config: Omit<Step.Config<any, any>, "strategy">) => StepProgram) => {
  const known = new Map<string, StepProgram>()
  return (key, config) => {
    const step =
      known.get(key) ?? (Result.getOrThrow(Step.make({ ...config, strategy: Strategy.single })) as StepProgram)
    known.set(key, step)
    return step
  }
}

/** A step on one device. */
export const alone =
  (step: StepProgram) =>
  (inputs: ReadonlyArray<HostArray>): Outcome => ({
    outputs: Evaluate.runUnsafe(step.program, inputs),
    disagreement: 0
  })

/** The first step whose outputs differ by more than the tolerance. */
export interface Parting {
  /** From 0. */
  readonly step: number
  readonly inputs: ReadonlyArray<HostArray>
  /** "params/head differs by 3.1e-2". */
  readonly what: string
}

export const parting = (
  one: StepProgram,
  truth: ReadonlyArray<Trained>,
  found: ReadonlyArray<Trained>,
  tolerance: number
): Parting | null => {
  const names = Tree.paths(one.program.outTree)
  const loss = names.indexOf("metrics/loss")
  for (const [step, { disagreement, inputs, outputs }] of found.entries()) {
    const expected = truth[step]!.outputs
    const gap = widest(expected, outputs)
    if (Math.max(gap.distance, disagreement) <= tolerance) continue
    // What a user looks at first.
    const own = relative(expected[loss]!, outputs[loss]!)
    const shown = own > tolerance ? { output: loss, distance: own } : gap
    const what =
      disagreement > gap.distance
        ? `ranks disagree by ${disagreement.toExponential(1)}`
        : `${names[shown.output]} differs by ${shown.distance.toExponential(1)}`
    return { step, inputs, what }
  }
  return null
}

/** The program of a step, the forward pass before all else: what comes first there is the cause of what comes later. */
export const forwardFirst = ({ program }: StepProgram): Body => {
  const loss = Tree.paths(program.outTree).indexOf("metrics/loss")
  const { equations } = Program.body(program.inputs, [program.outputs[loss]!, ...program.outputs])
  return { inputs: program.inputs, outputs: program.outputs, equations }
}

/** Names of a step's inputs. */
export const inputNames = ({ program }: StepProgram): Excerpt.Names =>
  Excerpt.named(program.inputs, Tree.paths(program.inTree))

/** "batch=4, embed=2" */
export const showSizes = (sizes: Sizes): ReadonlyArray<string> =>
  Object.keys(sizes).length === 0
    ? []
    : [
        `sizes: ${Object.entries(sizes)
          .map(([name, size]) => `${name}=${size}`)
          .join(", ")}`
      ]

export const showPolicy = (policy: Recompute.Policy): string =>
  policy.kind === "full"
    ? ["full", policy.method ?? "uniform", ...(policy.layers === undefined ? [] : [`of ${policy.layers}`])].join(" ")
    : policy.kind

/** The mesh, and on a second line all that is not as usual. */
export const showStrategy = (choices: Choices): ReadonlyArray<string> => {
  const { context, fsdp, mesh, microbatches = 1, recompute, schedule, sequence, virtualStages = 1, zero = 0 } = choices
  const rest = [
    ...(zero > 0 ? [`zero ${zero}`] : []),
    ...(fsdp === undefined ? [] : [`fsdp ${JSON.stringify(fsdp)}`]),
    ...(sequence === true && Mesh.has(mesh, "tensor") ? ["sequence parallel"] : []),
    ...(context !== undefined && Mesh.has(mesh, "context") ? [`context by ${context}`] : []),
    ...(microbatches > 1 ? [`${microbatches} microbatches`] : []),
    ...(recompute === undefined || recompute.kind === "none" ? [] : [`recompute ${showPolicy(recompute)}`]),
    ...(schedule !== undefined && Mesh.has(mesh, "stage") ? [`schedule ${schedule}`] : []),
    ...(virtualStages > 1 ? [`${virtualStages} chunks a stage`] : [])
  ]
  return [`mesh: ${Mesh.print(mesh)}`, ...(rest.length === 0 ? [] : [`strategy: ${rest.join(", ")}`])]
}
