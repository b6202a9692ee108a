/** The symmetric contrastive loss: every image seeks its text among all texts, every text its image among all images. */
import type * as Accumulate from "@tessera/core/Accumulate"
import { RecipeError } from "@tessera/core/Errors"
import * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import * as T from "@tessera/core/Tensor"
import type { Any, Given, Pairs, Side } from "./pairs.ts"
import * as P from "./pairs.ts"

export type { Pairs } from "./pairs.ts"

/**
 * What a rank computes, and to whom gradients flow, named as in open_clip. With gradients through the gather both values of `localLoss` are the one
 * exact loss, on any mesh. Without, towers learn less than the loss says: there to reproduce runs that were made so.
 */
export interface Options {
  /**
   * true (default): a rank computes the rows of its own images, n x N numbers for n of N examples. false: every rank computes the whole matrix,
   * N x N; in exchange its backward pass moves nothing.
   */
  readonly localLoss?: boolean
  /**
   * true (default): gradients flow to the features of all ranks. false, with the whole matrix: the gradient of the towers, not that of the scale,
   * is exactly 1 / ranks of the truth, which Adam forgives but clipping does not. false, with own rows: biased, and refused.
   */
  readonly gatherWithGrad?: boolean
  /** Ranks that data was split over in the run that is reproduced: needed by the whole matrix without `gatherWithGrad`. On one rank all is exact. */
  readonly ranks?: number
  /** Takes the biased combination after all. */
  readonly allowBiased?: boolean
}

/** The scale begins at 1 / 0.07 and is not decayed. @source arXiv:2103.00020, section 2.5 */
export const params = (): { readonly logScale: Module.Param<never> } => ({
  logScale: Module.param({}, Init.constantOf(Math.log(1 / 0.07)), { decay: false })
})

/**
 * Half of what images lose and half of what texts lose, in natural log, `[batch, E] x [batch, E] -> []`. Both sums are over a whole batch and do not
 * add up over its parts: the place for it is `Step.PairwiseLoss`, with negatives "global". Throws `ProgramError` for views of different axes,
 * `RecipeError` for options that do not go together; `Step.make` returns both.
 *
 * @source arXiv:2103.00020, figure 3. Combinations of options: mlfoundations/open_clip src/open_clip/loss.py ClipLoss
 */
export const loss = <E extends string>(pairs: Pairs<E>, options: Options = {}): Accumulate.Loss => {
  const given = P.checked("contrastive loss", pairs)
  const both = combined(given, options)
  return { total: T.scale(both, 0.5), weight: P.weightOf(given) }
}

/**
 * Weights of the images whose text is the nearest of all, and of the texts whose image is, added up: for `metrics`. What is as near as the nearest
 * counts too.
 */
export const correct = <E extends string>(
  pairs: Pairs<E>,
  { localLoss = true }: Pick<Options, "localLoss"> = {}
): Readonly<Record<"imageToText" | "textToImage", T.Tensor<never>>> => {
  const { columns, logits, rows } = matrix(P.checked("contrastive loss", pairs), localLoss)
  const right = T.sum(T.select(P.own(rows, columns), logits, T.constant(0)), columns.axis)
  const found = (mine: Side, others: Side, value: Any): T.Tensor<never> => {
    const hit = T.cast(T.equal(T.max(logits, others.axis), value), "f32")
    return P.total(weighted(hit, mine), mine.axis)
  }
  return {
    imageToText: found(rows, columns, right),
    textToImage: found(columns, rows, T.rename(right, rows.axis, columns.axis))
  }
}

const combined = (given: Given, options: Options): T.Tensor<never> => {
  const { allowBiased = false, gatherWithGrad = true, localLoss = true, ranks } = options
  if (ranks !== undefined && !(Number.isInteger(ranks) && ranks >= 1)) {
    refuse("ranks", `${ranks} is no number of ranks`, "give the ranks that data was split over, 1 or more")
  }
  if (gatherWithGrad || ranks === 1) return symmetric(given, localLoss, 1)
  if (!localLoss) return symmetric(given, localLoss, ranks ?? unknownRanks())
  return allowBiased ? seekersOnly(given) : refuseBiased()
}

/** Who does not count is as far away as can be. */
const against = (rows: Side, columns: Side, logScale: T.Tensor<never>) => {
  const all = P.similarity(rows, columns, logScale)
  const on = P.present(rows, columns)
  return { rows, columns, logits: on === null ? all : T.select(on, all, T.constant(-Infinity)) }
}

const matrix = ({ image, logScale, text, weights }: Given, localLoss: boolean) =>
  against(P.side(image, weights, localLoss ? "batch" : "wholeBatch"), P.side(text, weights, "otherBatch"), logScale)

const weighted = (x: Any, { weights }: Side): Any => (weights === null ? x : T.mul(x, weights))

/** What one side loses by seeking its own on the other. Who does not count seeks nothing. */
const seek = (logits: Any, mine: Side, others: Side): T.Tensor<never> => {
  const at = T.iota(mine.axis, mine.size)
  const none = T.constant(-1, "i32") as unknown as T.Tensor<never, "int">
  const labels = mine.weights === null ? at : T.select(P.counting(mine.weights), at, none)
  const each = T.softmaxCrossEntropy(logits, labels, { classes: others.axis })
  return P.total(weighted(each, mine), mine.axis)
}

const symmetric = ({ image, text, ...rest }: Given, localLoss: boolean, ranks: number): T.Tensor<never> => {
  const faded = { ...rest, image: fade(image, ranks), text: fade(text, ranks) }
  const { columns, logits, rows } = matrix(faded, localLoss)
  return T.add(seek(logits, rows, columns), seek(logits, columns, rows))
}

/** The same values with 1 / ranks of the gradient: each rank derives the whole loss by its own examples only, and the mean over ranks is taken. */
const fade = (x: Any, ranks: number): Any => {
  if (ranks === 1) return x
  const fixed = T.stopGradient(x)
  return T.add(fixed, T.scale(T.sub(x, fixed), 1 / ranks))
}

/** Who is sought does not learn from it: half of every gradient is missing. */
const seekersOnly = ({ image, logScale, text, weights }: Given): T.Tensor<never> => {
  const one = (mine: Any, others: Any): T.Tensor<never> => {
    const sought = P.side(T.stopGradient(others), weights, "otherBatch")
    const { columns, logits, rows } = against(P.side(mine, weights, "batch"), sought, logScale)
    return seek(logits, rows, columns)
  }
  return T.add(one(image, text), one(text, image))
}

const refuse = (option: keyof Options, problem: string, hint: string): never => {
  throw new RecipeError({ key: `loss.${option}`, problem, hint })
}

const refuseBiased = (): never =>
  refuse(
    "gatherWithGrad",
    "false with localLoss makes the gradient biased: an example learns from what it seeks, not from those that seek it",
    "set gatherWithGrad: true, exact at the same memory; to reproduce a run that was made so, add allowBiased: true"
  )

const unknownRanks = (): never =>
  refuse(
    "ranks",
    "missing; without gatherWithGrad the gradient of the towers is 1 / ranks of the truth",
    "give the ranks that data was split over, or set gatherWithGrad: true, exact for any number"
  )
