/** What losses that compare every example with every other have in common: the matrix of similarities, and who takes part in it. */
import * as Axis from "@tessera/core/Axis"
import { invalid } from "@tessera/core/Errors"
import * as T from "@tessera/core/Tensor"

/** Two views of the same examples, as unit vectors (`layers/unitNorm`), `[batch, E]` with any one name for E. */
export interface Pairs<E extends string> {
  readonly image: T.Tensor<"batch" | E>
  readonly text: T.Tensor<"batch" | E>
  /** Natural logarithm of what similarities are multiplied by. `[]` */
  readonly logScale: T.Tensor<never>
  /** What each example counts, at least 0, `[batch]`. One of weight 0 is nobody's negative either. All count 1 unless given. */
  readonly weights?: T.Tensor<"batch">
}

/** A tensor whose axes are known when the program is traced only. */
export type Any = T.Tensor<any>

/** Pairs of any features. */
export type Loose = Pairs<any>

/** Pairs, checked. */
export interface Given {
  readonly image: Any
  readonly text: Any
  readonly logScale: T.Tensor<never>
  readonly weights: Any | null
}

/** Throws `ProgramError` where the two views differ in more than their values. */
export const checked = (operation: string, { image, logScale, text, weights }: Loose): Given => {
  const [own, other] = [image.type.axes, text.type.axes]
  if (!Axis.has(own, "batch") || !Axis.equal(own, other)) {
    invalid(
      operation,
      `images have ${Axis.print(own)}, texts ${Axis.print(other)}; both need "batch" and the same axis of features`
    )
  }
  return { image, text, logScale, weights: weights ?? null }
}

/** One side of the matrix: features and weights along an axis of their own. */
export interface Side {
  readonly axis: string
  readonly size: number
  readonly features: Any
  readonly weights: Any | null
}

/**
 * Features along `axis`. Rule tables split "batch" over the data axes of a mesh and leave unknown names whole: a side of another name is gathered,
 * over those mesh axes and no others.
 */
export const side = (features: Any, weights: Any | null, axis: string): Side => {
  const along = (x: Any): Any => (axis === "batch" ? x : T.rename(x, "batch", axis))
  const size = T.sizeOf(features, "batch")
  return { axis, size, features: along(features), weights: weights === null ? null : along(weights) }
}

/** Scaled similarities of all pairs. `[rows, E] x [columns, E] -> [rows, columns]` */
export const similarity = (rows: Side, columns: Side, logScale: T.Tensor<never>): Any => {
  const over = Axis.names(Axis.without(rows.features.type.axes, [rows.axis]))
  return T.mul(T.contract(rows.features, columns.features, ...over), T.logitScale(T.exp(logScale)))
}

/** Examples that count: those of a weight above 0. */
export const counting = (weights: Any): T.Tensor<any, "bool"> => T.less(T.constant(0), weights)

/** Pairs whose both examples count; null when all do. `[rows, columns]` */
export const present = (rows: Side, columns: Side): T.Tensor<any, "bool"> | null =>
  rows.weights === null || columns.weights === null ? null : T.and(counting(rows.weights), counting(columns.weights))

/** Where row and column are one example. `[rows, columns]` */
export const own = (rows: Side, columns: Side): T.Tensor<any, "bool"> =>
  T.equal(T.iota(rows.axis, rows.size), T.iota(columns.axis, columns.size))

/** What all examples count together. `[batch] -> []` */
export const weightOf = ({ image, weights }: Given): T.Tensor<never> =>
  weights === null ? T.constant(T.sizeOf(image, "batch")) : total(weights, "batch")

/** The sum over all axes that there are. `[..over] -> []` */
export const total = (x: Any, ...over: ReadonlyArray<string>): T.Tensor<never> => T.sum(x, ...over) as T.AnyTensor
