/**
 * Boxes of a tensor: which part of the whole an array holds, how two parts meet, and how to copy the common part.
 * Everything is positional (row-major, the last axis is contiguous) and counts elements; names live one level above.
 */
import * as Result from "effect/Result"

/** A box inside a tensor: where it starts and how far it goes along every axis. */
export interface Box {
  readonly start: ReadonlyArray<number>
  readonly size: ReadonlyArray<number>
}

/** One piece of work for a reader: `region` lies in `span` contiguous elements that begin at element `offset`. */
export interface Read {
  readonly region: Box
  readonly offset: number
  readonly span: number
}

/** The box that is a whole tensor of this shape. */
export const whole = (shape: ReadonlyArray<number>): Box => ({ start: shape.map(() => 0), size: shape })

/** Number of elements. The box of a scalar has one. */
export const count = (size: ReadonlyArray<number>): number => size.reduce((product, n) => product * n, 1)

/** Whether `inner` lies within `outer`. */
export const contains = (outer: Box, inner: Box): boolean =>
  inner.start.length === outer.start.length &&
  inner.start.every((s, i) => s >= outer.start[i]! && s + inner.size[i]! <= outer.start[i]! + outer.size[i]!)

/** The common part, or `undefined` where there is none (or it is empty). */
export const intersect = (a: Box, b: Box): Box | undefined => {
  const start = a.start.map((s, i) => Math.max(s, b.start[i]!))
  const size = a.size.map((n, i) => Math.min(a.start[i]! + n, b.start[i]! + b.size[i]!) - start[i]!)
  return size.some((n) => n <= 0) ? undefined : { start, size }
}

/** Elements between two neighbours along every axis of a row-major array. */
const strides = (size: ReadonlyArray<number>): ReadonlyArray<number> => {
  const out = size.map(() => 1)
  for (let i = size.length - 2; i >= 0; i--) out[i] = out[i + 1]! * size[i + 1]!
  return out
}

const offsetIn = (box: Box, point: ReadonlyArray<number>): number => {
  const step = strides(box.size)
  return point.reduce((sum, p, i) => sum + (p - box.start[i]!) * step[i]!, 0)
}

/** Says whether the boxes tile a tensor of this shape exactly; the failure is a sentence. */
export const tiles = (boxes: ReadonlyArray<Box>, shape: ReadonlyArray<number>): Result.Result<void, string> => {
  const all = whole(shape)
  for (const box of boxes) {
    if (!contains(all, box)) return Result.fail(`slice ${show(box)} lies outside of the shape [${shape.join(", ")}]`)
  }
  for (let i = 0; i < boxes.length; i++) {
    for (let j = i + 1; j < boxes.length; j++) {
      const common = intersect(boxes[i]!, boxes[j]!)
      if (common !== undefined) return Result.fail(`slices ${show(boxes[i]!)} and ${show(boxes[j]!)} overlap`)
    }
  }
  const covered = boxes.reduce((sum, box) => sum + count(box.size), 0)
  const needed = count(shape)
  return covered === needed ? Result.void : Result.fail(`slices hold ${covered} of ${needed} elements`)
}

/** `[0:2, 4:8]`. */
export const show = (box: Box): string => `[${box.start.map((s, i) => `${s}:${s + box.size[i]!}`).join(", ")}]`

/**
 * Copies the elements of `region` from an array that holds `sourceBox` to one that holds `targetBox`. `sourceSkip` says
 * how many leading elements of the source box the array leaves out (it holds a window of it).
 */
export const copy = (
  source: { readonly bytes: Uint8Array; readonly box: Box; readonly skip?: number },
  target: { readonly bytes: Uint8Array; readonly box: Box },
  region: Box,
  bytesPerElement: number
): void => {
  if (count(region.size) === 0) return
  const rank = region.size.length
  const run = (rank === 0 ? 1 : region.size[rank - 1]!) * bytesPerElement
  const point = [...region.start]
  for (;;) {
    const from = (offsetIn(source.box, point) - (source.skip ?? 0)) * bytesPerElement
    target.bytes.set(source.bytes.subarray(from, from + run), offsetIn(target.box, point) * bytesPerElement)
    let axis = rank - 2
    while (axis >= 0 && ++point[axis]! >= region.start[axis]! + region.size[axis]!) {
      point[axis] = region.start[axis]!
      axis--
    }
    if (axis < 0) return
  }
}

/**
 * Splits the reading of `region` from a stored `box` into contiguous reads of at most `limit` elements, so that a slice
 * of a large tensor needs little memory whatever its form. Only a last axis longer than the limit is read in one piece.
 */
export const reads = (box: Box, region: Box, limit: number): ReadonlyArray<Read> => {
  if (count(region.size) === 0) return []
  const out: Array<Read> = []
  const pending: Array<Box> = [region]
  while (pending.length > 0) {
    const next = pending.pop()!
    const last = next.start.map((s, i) => s + next.size[i]! - 1)
    const offset = offsetIn(box, next.start)
    const span = offsetIn(box, last) - offset + 1
    const axis = next.size.findIndex((n) => n > 1)
    if (span <= limit || axis < 0) {
      out.push({ region: next, offset, span })
      continue
    }
    const half = Math.floor(next.size[axis]! / 2)
    const front = next.size.map((n, i) => (i === axis ? half : n))
    const back = next.size.map((n, i) => (i === axis ? n - half : n))
    pending.push({ start: next.start.map((s, i) => (i === axis ? s + half : s)), size: back })
    pending.push({ start: next.start, size: front })
  }
  return out
}

/** Reorders the axes of a row-major array: axis `i` of the result is axis `order[i]` of the source. */
export const permute = (
  bytes: Uint8Array,
  size: ReadonlyArray<number>,
  order: ReadonlyArray<number>,
  bytesPerElement: number
): Uint8Array => {
  if (order.every((axis, i) => axis === i)) return bytes
  const step = strides(size)
  const total = count(size)
  const out = new Uint8Array(total * bytesPerElement)
  const point = order.map(() => 0)
  let from = 0
  for (let to = 0; to < total; to++) {
    for (let b = 0; b < bytesPerElement; b++) {
      out[to * bytesPerElement + b] = bytes[from * bytesPerElement + b]!
    }
    for (let i = order.length - 1; i >= 0; i--) {
      const axis = order[i]!
      from += step[axis]!
      if (++point[i]! < size[axis]!) break
      from -= step[axis]! * size[axis]!
      point[i] = 0
    }
  }
  return out
}
