/** What laws are about: a training configuration of your own, at sizes that a law may choose. */
import * as Axis from "../Axis.ts"
import { kindOf } from "../DType.ts"
import * as Evaluate from "../Evaluate.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import * as Module from "../Module.ts"
import type { TensorType } from "../Node.ts"
import * as Optimizer from "../Optimizer.ts"
import type * as Step from "../Step.ts"
import * as Tree from "../Tree.ts"
import * as Dice from "./Dice.ts"

export type Sizes = Readonly<Record<string, number>>

/** A model with its loss and the types of a batch: what `Step.make` and `Trainer.make` take. */
export interface Experiment<
  P extends Module.ParamTree = Module.ParamTree,
  B extends Step.BatchTypes = Step.BatchTypes
> {
  readonly params: P
  readonly batch: B
  readonly loss: Step.Config<P, B>["loss"]
  /** By path of a leaf of the batch that holds whole numbers: values are drawn below this. 2 unless given. */
  readonly limits?: Readonly<Record<string, number>>
  /** By path of a leaf of the batch that holds floats: from where to where values are drawn. -1 to 1 unless given. */
  readonly ranges?: Readonly<Record<string, readonly [low: number, high: number]>>
}

/** A training configuration whose sizes a law may choose. The smaller the sizes it allows, the smaller are the counterexamples. */
export interface Subject {
  /** What counterexamples call it. */
  readonly name: string
  /** For every size the values to choose from, the plainest first: counterexamples shrink towards them. */
  readonly sizes: Readonly<Record<string, ReadonlyArray<number>>>
  readonly make: (sizes: Sizes) => Experiment<any, any>
}

/** Only there so that TypeScript gives the loss function the types of parameters and batch. */
export const experiment = <const P extends Module.ParamTree, const B extends Step.BatchTypes>(
  given: Experiment<P, B>
): Experiment<P, B> => given

/** A subject without the types of its parameters and batch, which laws do not need. */
export const subject = <
  const S extends Subject["sizes"],
  P extends Module.ParamTree,
  B extends Step.BatchTypes
>(given: {
  readonly name: string
  readonly sizes: S
  readonly make: (sizes: { readonly [K in keyof S]: number }) => Experiment<P, B>
}): Subject => ({ ...given, make: (sizes) => given.make(sizes as { readonly [K in keyof S]: number }) })

/** What laws take: a subject, or a configuration of fixed sizes. */
export type Given = Subject | Experiment<any, any>

/** A configuration of fixed sizes is a subject without choices. */
export const of = (given: Given): Subject =>
  "make" in given ? given : { name: "the model", sizes: {}, make: () => given }

const isType = (x: unknown): x is TensorType => typeof x === "object" && x !== null && "axes" in x && "dtype" in x

/** Everything that a step reads besides its scalars, on one device: parameters, the state before the first update, a batch. */
export interface Values {
  readonly parameters: ReadonlyArray<HostArray>
  readonly state: ReadonlyArray<HostArray>
  readonly batch: ReadonlyArray<HostArray>
}

/** A batch: an example has a number of its own, and its weight is sometimes 0. */
export const drawBatch = (experiment: Experiment, dice: Dice.Dice): ReadonlyArray<HostArray> => {
  const [types, shape] = Tree.flatten<TensorType, unknown>(experiment.batch, isType)
  return Tree.paths(shape).map((path, i) => {
    const { axes, dtype } = types[i]!
    const value = (k: number): number => {
      if (path === "examples") return 100 + 7 * k
      if (path === "weights") return dice.chance(0.25) ? 0 : 0.25 + dice.next()
      if (kindOf(dtype) !== "float") return dice.int(0, (experiment.limits?.[path] ?? 2) - 1)
      const [low, high] = experiment.ranges?.[path] ?? [-1, 1]
      return low + (high - low) * dice.next()
    }
    return Host.make(
      axes,
      dtype,
      Float64Array.from({ length: Axis.count(axes) }, (_, k) => value(k))
    )
  })
}

/** Values that leave nothing at rest: parameters begin as declared and are then moved, so that zeros do not hide a wrong derivative. */
export const draw = (experiment: Experiment, optimizer: Optimizer.Optimizer, seed: number): Values => {
  const dice = Dice.make(seed + 1)
  const begun = Evaluate.runUnsafe(Module.init(experiment.params), [Host.scalar(seed, "u32")])
  const parameters = begun.map((x) => ({ ...x, data: x.data.map((v) => v + 0.3 * (2 * dice.next() - 1)) }))
  const state = Evaluate.runUnsafe(Optimizer.initial(optimizer, experiment.params), parameters)
  return { parameters, state, batch: drawBatch(experiment, dice) }
}

/** Examples of a whole batch. */
export const examplesOf = (experiment: Experiment): number => Axis.find(experiment.batch.examples.axes, "batch")!.size

/** The scalars of one step. */
export const scalars = (step: number, learningRate: number, seed: number): ReadonlyArray<HostArray> => [
  Host.scalar(learningRate),
  Host.scalar(step),
  Host.scalar(seed + step, "u32"),
  Host.scalar(1)
]
