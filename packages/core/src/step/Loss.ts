/** The forward program of a step: parameters and one microbatch to sums. */
import * as Accumulate from "../Accumulate.ts"
import * as Axis from "../Axis.ts"
import { RecipeError } from "../Errors.ts"
import * as Module from "../Module.ts"
import type { AnyTensor, Body, Tensor, TensorType } from "../Node.ts"
import * as Padding from "../Padding.ts"
import * as Precision from "../Precision.ts"
import { cast } from "../primitives/algebra.ts"
import * as Program from "../Program.ts"
import * as Random from "../Random.ts"
import { simplify } from "../Simplify.ts"
import * as Strategy from "../Strategy.ts"
import * as Tree from "../Tree.ts"
import type { BatchTypes, Config, PairwiseLoss } from "./Config.ts"
import { isType } from "./Config.ts"

export interface LossProgram {
  /** parameters, batch, seed, lossScale to total, weight, metrics: all f32 scalars, for one microbatch or for all. */
  readonly body: Body
  /** The body takes the whole batch, and cuts it into microbatches itself. */
  readonly whole: boolean
  readonly metrics: ReadonlyArray<string>
}

/** What the step reports by itself. */
const reserved: ReadonlyArray<string> = ["loss", "weight", "gradientNorm", "finite", "updated"]

/** Traced, in the types of the precision, simplified and padded. Throws `ProgramError` and `RecipeError`. */
export const lossProgram = <P extends Module.ParamTree, B extends BatchTypes>(config: Config<P, B>): LossProgram => {
  const { loss, params, precision = Precision.f32, strategy = Strategy.single } = config
  const [types, batchShape] = Tree.flatten<TensorType, B>(config.batch, isType)
  const [, shape] = Tree.flatten<Module.Param, Module.ParamTree>(params, Module.isParam)
  const whole = typeof loss !== "function" && loss.negatives === "global"
  const examples = Tree.paths(batchShape).indexOf("examples")

  /** Leaves of parameters and of a batch as a model takes them. */
  const given = (parameters: ReadonlyArray<AnyTensor>, batch: ReadonlyArray<AnyTensor>, seed: AnyTensor) =>
    [
      Tree.unflatten(shape, parameters) as Module.Tensors<P>,
      Tree.unflatten(batchShape, batch) as Tree.Mapped<B, AnyTensor>,
      Module.training(Random.make(seed as Tensor<never, "int">, batch[examples]!))
    ] as const

  const comparing = (
    pairwise: PairwiseLoss<P, B>,
    parameters: ReadonlyArray<AnyTensor>,
    batch: ReadonlyArray<AnyTensor>,
    seed: AnyTensor
  ): Accumulate.Loss => {
    let names: ReadonlyArray<string> = []
    const microbatches = whole ? strategy.microbatches : 1
    const features = Accumulate.cached({ parameters, batch, seed, microbatches }, (p, b, s) => {
      const made = pairwise.features(...given(p, b, s))
      names = Object.keys(made)
      return Object.values(made)
    })
    const all = Object.fromEntries(names.map((name, i) => [name, features[i]!]))
    return pairwise.loss(all, ...given(parameters, batch, seed))
  }

  let metrics: ReadonlyArray<string> = []
  const program = Program.traceUnsafe(
    {
      params: Module.inputs(params) as unknown,
      batch: types.map((t) => Accumulate.resized(t, (n) => n / (whole ? 1 : strategy.microbatches))),
      seed: { axes: [], dtype: "u32" as const },
      lossScale: { axes: [], dtype: "f32" as const }
    },
    (inputs) => {
      const batch = inputs.batch as unknown as ReadonlyArray<AnyTensor>
      const [parameters] = Tree.flatten<AnyTensor, unknown>(inputs.params, Tree.isTensorLeaf)
      const seed = inputs.seed as AnyTensor
      const result =
        typeof loss === "function" ? loss(...given(parameters, batch, seed)) : comparing(loss, parameters, batch, seed)
      metrics = Object.keys(result.metrics ?? {})
      return sums({ total: result.total, weight: result.weight, ...result.metrics })
    }
  )
  const clash = metrics.find((name) => reserved.includes(name))
  if (clash !== undefined) {
    throw new RecipeError({
      key: `metrics.${clash}`,
      problem: "the step reports this name itself",
      hint: "give the metric another name"
    })
  }
  return { body: Padding.apply(simplify(Precision.apply(program, precision)), strategy), whole, metrics }
}

/** The metrics that add up, as f32 scalars. */
export const sums = (metrics: Readonly<Record<string, AnyTensor>>): ReadonlyArray<AnyTensor> =>
  Object.entries(metrics).map(([name, x]) => {
    if (x.type.axes.length > 0) {
      throw new RecipeError({
        key: `metrics.${name}`,
        problem: `has the axes ${Axis.print(x.type.axes)}`,
        hint: "sum over them: metrics are scalars that add up"
      })
    }
    return cast(x as Tensor<never>, "f32")
  })
