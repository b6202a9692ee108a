/**
 * Contrastive training as data-parallel ranks do it, written out: every rank has examples of its own, gathers, computes its loss and the derivative
 * of its own loss; what a gather's backward adds up is added up, and gradients of parameters are averaged. No tensors, no programs.
 */

type Matrix = ReadonlyArray<ReadonlyArray<number>>

/** Linear towers that end in unit vectors. */
export interface Towers {
  /** `[example][pixel]` */
  readonly x: Matrix
  readonly y: Matrix
  /** `[pixel][embed]` */
  readonly u: Matrix
  readonly v: Matrix
  readonly logScale: number
}

export interface How {
  readonly ranks: number
  readonly localLoss: boolean
  readonly gatherWithGrad: boolean
  /** Ranks that hold the same examples, as those of a tensor axis do, and take part in the gather all the same. 1: they do not. */
  readonly copies?: number
}

export interface Learned {
  readonly loss: number
  readonly u: Matrix
  readonly v: Matrix
  readonly logScale: number
}

const zeros = (rows: number, columns: number): Array<Array<number>> =>
  Array.from({ length: rows }, () => Array.from({ length: columns }, () => 0))
const range = (count: number, first = 0) => Array.from({ length: count }, (_, i) => first + i)
const dot = (a: ReadonlyArray<number>, b: ReadonlyArray<number>) => a.reduce((sum, v, k) => sum + v * b[k]!, 0)

const forward = (x: Matrix, u: Matrix) => {
  const raw = x.map((row) => u[0]!.map((_, e) => row.reduce((sum, value, p) => sum + value * u[p]![e]!, 0)))
  const lengths = raw.map((row) => Math.sqrt(dot(row, row) + 1e-12))
  return { lengths, features: raw.map((row, i) => row.map((value) => value / lengths[i]!)) }
}

/** From cotangents of features to that of the weights. */
const backward = (x: Matrix, u: Matrix, cotangents: Matrix): Matrix => {
  const { features, lengths } = forward(x, u)
  const gradient = zeros(u.length, u[0]!.length)
  x.forEach((row, i) => {
    const along = dot(features[i]!, cotangents[i]!)
    row.forEach((value, p) => {
      cotangents[i]!.forEach((c, e) => {
        gradient[p]![e]! += (value * (c - along * features[i]![e]!)) / lengths[i]!
      })
    })
  })
  return gradient
}

/** Mean cross-entropy of queries that seek `labels` among keys, halved, with its derivatives. */
const seek = (queries: Matrix, keys: Matrix, labels: ReadonlyArray<number>, scale: number) => {
  const [query, key] = [zeros(queries.length, queries[0]!.length), zeros(keys.length, keys[0]!.length)]
  let [loss, logScale] = [0, 0]
  queries.forEach((q, i) => {
    const logits = keys.map((k) => scale * dot(q, k))
    const top = Math.max(...logits)
    const total = logits.reduce((sum, l) => sum + Math.exp(l - top), 0)
    loss += (top + Math.log(total) - logits[labels[i]!]!) / (2 * queries.length)
    logits.forEach((logit, j) => {
      const owed = (Math.exp(logit - top) / total - (j === labels[i] ? 1 : 0)) / (2 * queries.length)
      logScale += owed * logit
      keys[j]!.forEach((value, e) => {
        query[i]![e]! += owed * scale * value
        key[j]![e]! += owed * scale * q[e]!
      })
    })
  })
  return { loss, logScale, query, key }
}

const addTo = (into: Array<Array<number>>, rows: ReadonlyArray<number>, from: Matrix): void =>
  rows.forEach((row, i) => from[i]!.forEach((value, e) => (into[row]![e]! += value)))

/** Gradients of the mean of all ranks' losses, as the ranks find them. */
export const learned = ({ logScale, u, v, x, y }: Towers, how: How): Learned => {
  const { copies = 1, localLoss, ranks } = how
  // One rank by itself gathers nothing.
  const gatherWithGrad = how.gatherWithGrad || ranks === 1
  const [image, text] = [forward(x, u).features, forward(y, v).features]
  const [count, width, each] = [image.length, image[0]!.length, image.length / ranks]
  const scale = Math.exp(logScale)
  // With copies, what is gathered comes in the order of all ranks: everybody's examples once for every rank that holds them.
  const order = range(ranks).flatMap((r) => range(copies).flatMap(() => range(each, r * each)))
  const [allImages, allTexts] = [order.map((i) => image[i]!), order.map((i) => text[i]!)]
  const [owedImage, owedText] = [zeros(count, width), zeros(count, width)]
  let [loss, owedScale] = [0, 0]
  for (const rank of range(ranks)) {
    const own = range(each, rank * each)
    const rows = localLoss ? own : order
    const labels = localLoss ? own : range(order.length)
    const pick = (features: Matrix) => rows.map((i) => features[i]!)
    const byImage = seek(pick(image), allTexts, labels, scale)
    const byText = seek(pick(text), allImages, labels, scale)
    loss += (byImage.loss + byText.loss) / ranks
    owedScale += (byImage.logScale + byText.logScale) / ranks
    for (const [owed, mine, others] of [
      [owedImage, byImage.query, byText.key],
      [owedText, byText.query, byImage.key]
    ] as const) {
      const gathered = zeros(count, width)
      addTo(gathered, order, others)
      const queries = zeros(count, width)
      addTo(queries, rows, mine)
      // Rows of the whole matrix come out of the gather as well.
      const inside = localLoss ? gathered : gathered.map((row, i) => row.map((value, e) => value + queries[i]![e]!))
      if (localLoss)
        addTo(
          owed,
          own,
          own.map((i) => queries[i]!)
        )
      // The backward of a gather brings everybody's part home; without, one's own slice is put back in, but not for rows of one's own.
      if (gatherWithGrad) addTo(owed, range(count), inside)
      else if (!localLoss)
        addTo(
          owed,
          own,
          own.map((i) => inside[i]!)
        )
    }
  }
  const average = (gradient: Matrix) => gradient.map((row) => row.map((value) => value / ranks))
  return {
    loss,
    logScale: owedScale,
    u: average(backward(x, u, owedImage)),
    v: average(backward(y, v, owedText))
  }
}

/** One process that has all examples. */
export const truth = (towers: Towers): Learned => learned(towers, { ranks: 1, localLoss: false, gatherWithGrad: true })
