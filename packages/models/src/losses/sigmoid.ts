/** The sigmoid loss over pairs: whether image and text belong together, asked of every pair by itself. */
import type * as Accumulate from "@tessera/core/Accumulate"
import * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import * as T from "@tessera/core/Tensor"
import * as P from "./pairs.ts"

export interface Pairs<E extends string> extends P.Pairs<E> {
  /** Added to all scaled similarities. `[]` */
  readonly bias: T.Tensor<never>
}

/** Scale and bias as they begin, 10 and -10: at first nearly every pair is wrong. Not decayed. @source arXiv:2303.15343, section 3.2 */
export const params = (): { readonly logScale: Module.Param<never>; readonly bias: Module.Param<never> } => ({
  logScale: Module.param({}, Init.constantOf(Math.log(10)), { decay: false }),
  bias: Module.param({}, Init.constantOf(-10), { decay: false })
})

/**
 * Minus the log-likelihood of all answers, natural log, `[batch, E] x [batch, E] -> []`, over the number of examples (not of pairs). A pair counts
 * the mean of its examples' weights, and nothing where one of them is 0. Sums of a whole batch, as those of `contrastive`. On a mesh a rank asks
 * for its own images and all texts. Throws `ProgramError` for views of different axes. @source arXiv:2303.15343, algorithm 1
 */
export const loss = <E extends string>(pairs: Pairs<E>): Accumulate.Loss => {
  const given = P.checked("sigmoid loss", pairs)
  const [rows, columns] = [P.side(given.image, given.weights, "batch"), P.side(given.text, given.weights, "otherBatch")]
  const logits = T.add(P.similarity(rows, columns, given.logScale), pairs.bias)
  const together: P.Any = T.select(P.own(rows, columns), T.constant(1), T.constant(0))
  const each = T.sigmoidCrossEntropy(logits, together)
  return { total: P.total(weighted(each, rows, columns), "batch", "otherBatch"), weight: P.weightOf(given) }
}

const weighted = (each: P.Any, rows: P.Side, columns: P.Side): P.Any => {
  const on = P.present(rows, columns)
  if (on === null) return each
  const share = T.scale(T.add(rows.weights!, columns.weights!), 0.5)
  return T.select(on, T.mul(each, share), T.constant(0))
}
