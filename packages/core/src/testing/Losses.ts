/** The loss of an experiment as a program on one device, with values: what laws about derivatives and types start from. */
import type { HostArray } from "../HostArray.ts"
import * as Module from "../Module.ts"
import type { Body, TensorType } from "../Node.ts"
import * as Optimizer from "../Optimizer.ts"
import { sgd } from "../optimizers/sgd.ts"
import { isType } from "../step/Config.ts"
import { lossProgram } from "../step/Loss.ts"
import * as Tree from "../Tree.ts"
import * as Excerpt from "./Excerpt.ts"
import type { Experiment } from "./Subject.ts"
import * as Subjects from "./Subject.ts"

export interface LossCase {
  /** Parameters, batch, seed and loss scale to total, weight and metrics, all in f32. */
  readonly body: Body
  readonly inputs: ReadonlyArray<HostArray>
  /** Paths of the parameters, which are the first inputs. */
  readonly parameters: ReadonlyArray<string>
  /** Names of all inputs. */
  readonly inputNames: ReadonlyArray<string>
  /** Names of the outputs: total, weight, then metrics. */
  readonly outputNames: ReadonlyArray<string>
}

const optimizer = Optimizer.make(sgd())

/** The loss with values that follow from the seed. */
export const of = (experiment: Experiment, seed: number): LossCase => {
  const { body, metrics } = lossProgram({ ...experiment, optimizer })
  const values = Subjects.draw(experiment, optimizer, seed)
  const [, , drawn, scale] = Subjects.scalars(1, 1, seed)
  const parameters = Module.leaves(experiment.params).map((leaf) => leaf.path)
  const [, shape] = Tree.flatten<TensorType, unknown>(experiment.batch, isType)
  return {
    body,
    inputs: [...values.parameters, ...values.batch, drawn!, scale!],
    parameters,
    inputNames: [
      ...parameters.map((path) => `params/${path}`),
      ...Tree.paths(shape).map((path) => `batch/${path}`),
      "seed",
      "lossScale"
    ],
    outputNames: ["total", "weight", ...metrics]
  }
}

/** Names of a program's inputs that are those of the loss. */
export const names = ({ inputNames }: LossCase, body: Body): Excerpt.Names => Excerpt.named(body.inputs, inputNames)

/** Names of the outputs of the loss and of the gradients of all parameters after them. */
export const withGradients = ({ outputNames, parameters }: LossCase): ReadonlyArray<string> => [
  ...outputNames,
  ...parameters.map((path) => `the gradient of ${path}`)
]
