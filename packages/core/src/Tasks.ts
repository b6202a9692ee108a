/** What models are trained to do: types of a batch, loss and the numbers of an evaluation, for any module. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type * as Accumulate from "./Accumulate.ts"
import * as Axis from "./Axis.ts"
import type { CollectiveError, CompileError, DeviceError, ProgramError, RecipeError } from "./Errors.ts"
import * as Host from "./HostArray.ts"
import type * as Module from "./Module.ts"
import type { AnyTensor, Tensor, TensorType } from "./Node.ts"
import type * as Precision from "./Precision.ts"
import { cast, mul, sum } from "./primitives/algebra.ts"
import { softmaxCrossEntropy } from "./primitives/loss.ts"
import { equal } from "./primitives/pointwise.ts"
import { argmax } from "./primitives/reduce.ts"
import type { Buffer } from "./services/Backend.ts"
import { Backend } from "./services/Backend.ts"
import * as Step from "./Step.ts"
import type { DataBatch } from "./Trainer.ts"
import * as Tree from "./Tree.ts"

type Logits = Tensor<"batch" | "classes">
type Image = Tensor<"batch" | "row" | "col" | "channel">
type Rows = Tensor<"batch">

/** Everything a step needs besides optimizer, precision and strategy. */
export interface Task<P extends Module.ParamTree, B extends Step.BatchTypes> {
  readonly params: P
  readonly batch: B
  readonly loss: (params: Module.Tensors<P>, batch: Tree.Mapped<B, AnyTensor>, call: Module.Call) => Accumulate.Loss
  /** Sums for an evaluation: total, weight, correct. */
  readonly metrics: (
    params: Module.Tensors<P>,
    batch: Tree.Mapped<B, AnyTensor>,
    call: Module.Call
  ) => Readonly<Record<string, Tensor<never>>>
}

export interface ClassificationOptions {
  readonly batchSize: number
  readonly height: number
  readonly width: number
  readonly channels: number
  readonly classes: number
  /** Label smoothing of the training loss; evaluation has none. */
  readonly smoothing?: number
  /** Targets are distributions over the classes (`targets`, `[batch, classes]`): mixed pictures. */
  readonly soft?: boolean
}

/** One of `classes` for every picture, by softmax cross-entropy. `weights` are 0 for rows that only fill up a batch. */
export const classification = <P extends Module.ParamTree>(
  model: Module.Module<P, Image, Logits>,
  options: ClassificationOptions
): Task<P, Step.BatchTypes> => {
  const { batchSize: batch, channels, classes, height, smoothing = 0, soft = false, width } = options
  const types: Step.BatchTypes = {
    examples: { axes: Axis.list({ batch }), dtype: "u32" },
    weights: { axes: Axis.list({ batch }), dtype: "f32" },
    images: { axes: Axis.list({ batch, row: height, col: width, channel: channels }), dtype: "f32" },
    labels: { axes: Axis.list({ batch }), dtype: "i32" },
    ...(soft ? { targets: { axes: Axis.list({ batch, classes }), dtype: "f32" } as TensorType } : {})
  }
  type Given = Readonly<Record<"weights" | "images" | "labels" | "targets", AnyTensor>>
  const sums = (params: Module.Tensors<P>, given: Given, call: Module.Call, target: AnyTensor, spread: number) => {
    const logits = model.apply(params, given.images as Image, call)
    const weights = given.weights as Rows
    const losses = softmaxCrossEntropy(logits, target as Tensor<any>, { classes: "classes", smoothing: spread }) as Rows
    const right = equal(argmax(logits, "classes"), given.labels as Tensor<"batch", "int">) as Tensor<"batch", "bool">
    return {
      total: sum(mul(losses, weights), "batch") as Tensor<never>,
      weight: sum(weights, "batch") as Tensor<never>,
      correct: sum(mul(cast(right, "f32"), weights), "batch") as Tensor<never>
    }
  }
  return {
    params: model.params,
    batch: types,
    loss: (params, given, call) => {
      const g = given as unknown as Given
      const { correct, total, weight } = sums(params, g, call, soft ? g.targets : g.labels, smoothing)
      return { total, weight, metrics: { correct } }
    },
    metrics: (params, given, call) => {
      const g = given as unknown as Given
      return sums(params, g, call, g.labels, 0)
    }
  }
}

/** Sums over all batches, by name. */
export type Sums = Readonly<Record<string, number>>

/** A compiled evaluation: call it with parameters and batches. */
export interface Evaluator {
  readonly run: <E, R>(
    parameters: ReadonlyArray<Buffer>,
    batches: Stream.Stream<Pick<DataBatch, "arrays">, E, R>
  ) => Effect.Effect<Sums, E | DeviceError | CollectiveError, R>
}

/** Compiles the evaluation of a task for batches of its size. Soft targets are not needed. */
export const evaluator = Effect.fn("Tasks.evaluator")(function* <P extends Module.ParamTree, B extends Step.BatchTypes>(
  task: Task<P, B>,
  options: { readonly precision?: Precision.Precision } = {}
): Effect.fn.Return<Evaluator, ProgramError | RecipeError | CompileError | DeviceError, Backend | Scope.Scope> {
  const backend = yield* Backend
  const { targets: _targets, examples: _examples, ...batch } = task.batch
  const program = yield* Effect.fromResult(
    Step.evaluation({
      params: task.params,
      batch,
      metrics: (params, given, call) => task.metrics(params, given as unknown as Tree.Mapped<B, AnyTensor>, call),
      ...options
    })
  )
  const executable = yield* backend.compile(program)
  const outputs = Tree.paths(program.outTree)
  const names = Object.keys(batch)
  const buffers: Array<Buffer> = []
  for (const input of program.inputs.slice(-names.length)) buffers.push(yield* backend.allocate(input.type))
  return {
    run: (parameters, batches) =>
      Stream.runFoldEffect(
        batches,
        (): Record<string, number> => ({}),
        Effect.fnUntraced(function* (totals: Record<string, number>, { arrays }) {
          for (const [i, name] of names.entries()) yield* backend.write(buffers[i]!, arrays[name]!)
          const results = yield* executable.run([...parameters, ...buffers])
          for (const [i, name] of outputs.entries()) {
            const { axes, dtype } = results[i]!.type
            const [value] = Host.fromBytes(axes, dtype, yield* backend.read(results[i]!)).data
            totals[name] = (totals[name] ?? 0) + value!
          }
          yield* Effect.yieldNow
          return totals
        })
      )
  }
})

/** Mean loss, accuracy and count of a classification's sums. */
export const summary = (sums: Sums): { readonly loss: number; readonly accuracy: number; readonly samples: number } => {
  const weight = sums["weight"] ?? 0
  const mean = (x: number | undefined) => (weight === 0 ? 0 : (x ?? 0) / weight)
  return { loss: mean(sums["total"]), accuracy: mean(sums["correct"]), samples: weight }
}
