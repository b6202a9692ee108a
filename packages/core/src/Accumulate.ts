/** Gradients over several microbatches, added up before the one update. */
import * as Result from "effect/Result"
import * as Axis from "./Axis.ts"
import type { DType } from "./DType.ts"
import { RecipeError } from "./Errors.ts"
import * as Gradient from "./Gradient.ts"
import type { AnyTensor, Body, Tensor, TensorType } from "./Node.ts"
import { input } from "./Node.ts"
import { broadcast, cast, constant, zeros } from "./primitives/algebra.ts"
import { merge, split } from "./primitives/axes.ts"
import { recompute, scan } from "./primitives/control.ts"
import { place } from "./primitives/emit.ts"
import * as Program from "./Program.ts"

/** What a loss function gives. All three add up over examples, hence over microbatches and ranks; only the quotient total / weight is a mean. */
export interface Loss {
  readonly total: Tensor<never>
  readonly weight: Tensor<never>
  /** Further sums, such as the number of correct answers. */
  readonly metrics?: Readonly<Record<string, Tensor<never>>>
}

/** Examples of one microbatch, or why the batch cannot be cut so. */
export const size = (batch: number, microbatches: number): Result.Result<number, RecipeError> => {
  if (Number.isInteger(microbatches) && microbatches >= 1 && batch % microbatches === 0)
    return Result.succeed(batch / microbatches)
  const legal = Array.from({ length: batch }, (_, i) => i + 1).filter((k) => batch % k === 0)
  const near = legal.reduce((best, k) => (Math.abs(k - microbatches) < Math.abs(best - microbatches) ? k : best), 1)
  return Result.fail(
    new RecipeError({
      key: "strategy.microbatches",
      problem: `${microbatches} microbatches do not divide a batch of ${batch} examples`,
      hint: `the nearest number that does is ${near}`
    })
  )
}

/** The type of a whole batch for the type of a microbatch, or the reverse with 1/k. */
export const resized = (type: TensorType, examples: (now: number) => number): TensorType => ({
  dtype: type.dtype,
  axes: type.axes.map((a) => (a.name === "batch" ? Axis.make("batch", examples(a.size)) : a))
})

export interface Options {
  /** Inputs to differentiate by. */
  readonly wrt: ReadonlyArray<number>
  readonly microbatches: number
  /** Index of the scalar input that output 0 is multiplied by before differentiation (loss scaling); null for 1. */
  readonly lossScale: number | null
  /** In which type gradients add up over microbatches; f32 unless given. */
  readonly accumulation?: DType
  /** Applied to gradients of one microbatch before they are added up; for the pass that decides in which type they are reduced. */
  readonly finish?: (gradients: Body) => Body
}

/**
 * The loss program of one microbatch, whose outputs are f32 sums and output 0 the one to differentiate, becomes a program on the whole batch:
 * the same outputs for the whole batch, then the gradients, f32 unless asked otherwise. Inputs with the axis "batch" grow by the number of microbatches; microbatch j
 * holds the examples i with i mod k = j, so that examples stay on the device that has them. One microbatch makes no loop.
 */
export const valueAndGrad = (loss: Body, options: Options): Body => {
  const { finish = (b) => b, microbatches } = options
  const both = finish(gradients(loss, options))
  if (microbatches === 1) return both
  const batched = loss.inputs.map((x) => Axis.has(x.type.axes, "batch"))
  const whole = loss.inputs.map((x, i) =>
    batched[i]
      ? input(
          resized(x.type, (n) => n * microbatches),
          x.role
        )
      : x
  )
  const parts = whole.flatMap((x, i) =>
    batched[i] ? [split(x as Tensor<"batch">, "batch", { outer: "batch", inner: "micro", size: microbatches })] : []
  )
  const results = scan(
    "micro",
    { carried: [], each: parts, fixed: whole.filter((_, i) => !batched[i]) },
    (inside) => {
      let [e, f] = [0, 0]
      const operands = batched.map((b) => (b ? inside.each[e++]! : inside.fixed[f++]!))
      return { carried: [], stacked: [], summed: Program.inline(both, operands) }
    },
    microbatches
  )
  return Program.body(whole, results.summed)
}

/**
 * `f` of every microbatch, joined again to whole batches, each in a region: the forward pass keeps the results only, the backward pass runs `f` again
 * with the cotangents that all results together give it. So a loss over pairs of examples has exact gradients for any number of microbatches,
 * with the memory of one. `f` gets parameters, the batch's leaves and the seed; its results have the axis "batch". @source arXiv:2101.06983
 */
export const cached = (
  given: {
    readonly parameters: ReadonlyArray<AnyTensor>
    readonly batch: ReadonlyArray<AnyTensor>
    readonly seed: AnyTensor
    readonly microbatches: number
  },
  f: (
    parameters: ReadonlyArray<AnyTensor>,
    batch: ReadonlyArray<AnyTensor>,
    seed: AnyTensor
  ) => ReadonlyArray<AnyTensor>
): ReadonlyArray<AnyTensor> => {
  const { batch, microbatches, parameters, seed } = given
  if (microbatches === 1) return f(parameters, batch, seed)
  const batched = batch.map((x) => Axis.has(x.type.axes, "batch"))
  const each = batch.flatMap((x, i) =>
    batched[i]
      ? [split(x as Tensor<"batch">, "batch", { outer: "batch", inner: "micro", size: microbatches }) as AnyTensor]
      : []
  )
  const fixed = [...batch.filter((_, i) => !batched[i]), ...parameters, seed]
  const { stacked } = scan(
    "micro",
    { carried: [], each, fixed },
    (inside) => {
      const results = recompute([...inside.each, ...inside.fixed], (xs) => {
        let [e, k] = [0, each.length]
        const own = batched.map((b) => (b ? xs[e++]! : xs[k++]!))
        return f(xs.slice(k, -1), own, xs[xs.length - 1]!)
      })
      return { carried: [], stacked: results, summed: [] }
    },
    microbatches
  )
  return stacked.map((x) => merge(x as Tensor<"batch" | "micro">, "batch", "micro", "batch"))
}

const gradients = (loss: Body, { accumulation = "f32", lossScale, wrt }: Options): Body => {
  const { outputs, pullback } = Gradient.linearize(loss)
  const seed = lossScale === null ? constant(1) : loss.inputs[lossScale]!
  const back = pullback(outputs.map((o, i) => (i === 0 ? broadcast(seed as Tensor<never>, o.type.axes) : null)))
  return Program.body(loss.inputs, [
    ...outputs,
    ...wrt.map((i) => {
      const x = loss.inputs[i]!
      const gradient = back[i] ?? zeros({ axes: x.type.axes, dtype: accumulation }, "gradient")
      const role = x.role === "parameter" ? "gradient" : gradient.role
      return cast(place(gradient, role) as Tensor<string>, accumulation)
    })
  ])
}
